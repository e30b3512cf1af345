"""Three Kafka nodes under faults: what the loss of one costs a gateway and its clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from queuecast.brokers.kafka import KafkaBroker
from queuecast.destination import Destination
from queuecast.errors import QueuecastError
from tests.e2e.clients import gateway, request
from tests.e2e.test_kafka_groups import node, worker
from tests.support.confluent import Numbers, create, produce, read_all
from tests.support.kafka_cluster import KafkaCluster
from tests.support.sinks import DeliveryList, FeedList, eventually, until

# A busy machine takes a minute to start the nodes.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(500)]

D = Destination.parse


@pytest.fixture(scope="module")
def patient_cluster() -> Iterator[KafkaCluster]:
    """A cluster that believes in a frozen node for minutes: no election helps its clients."""
    cluster = KafkaCluster("broker.session.timeout.ms=300000", "replica.lag.time.max.ms=300000")
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.close()


async def lone_topics(cluster: KafkaCluster) -> dict[int, str]:
    """Create topics of one replica until every node leads one; returns them by node."""
    found: dict[int, str] = {}
    while len(found) < len(cluster.nodes):
        settings = {"min_insync_replicas": 1}
        topic = await asyncio.to_thread(create, cluster, 1, "", 1, **settings)
        found[await asyncio.to_thread(cluster.leader, topic)] = topic
    return found


async def test_the_cluster_goes_on_without_one_node(kafka_cluster: KafkaCluster) -> None:
    topic = await asyncio.to_thread(create, kafka_cluster, 3)
    await asyncio.to_thread(produce, kafka_cluster, topic, [b"%d" % n for n in range(30)])
    led = await asyncio.to_thread(kafka_cluster.leader, topic)
    await asyncio.to_thread(kafka_cluster.kill, led)
    await asyncio.to_thread(produce, kafka_cluster, topic, [b"%d" % n for n in range(30, 60)])
    await asyncio.to_thread(kafka_cluster.start, led)
    kafka_cluster.freeze(led)
    await asyncio.to_thread(produce, kafka_cluster, topic, [b"%d" % n for n in range(60, 90)])
    kafka_cluster.thaw(led)
    records = await asyncio.to_thread(read_all, kafka_cluster, topic, 90)
    assert sorted(int(record.value()) for record in records) == list(range(90))


async def test_a_fresh_gateway_beside_a_frozen_first_bootstrap_server(
    patient_cluster: KafkaCluster,
) -> None:
    topics = await lone_topics(patient_cluster)
    # A broker's first producer ids come from the active controller, which may be the frozen node:
    # have every broker get some before.
    for _ in range(20):
        await asyncio.to_thread(produce, patient_cluster, topics[1], [b"x"])
    patient_cluster.freeze(1)
    try:
        async with gateway(broker={"url": patient_cluster.url}) as gw:
            for led in (2, 3):
                answer = await request("POST", f"{gw.url}/publish/topic/{topics[led]}", data="x")
                assert answer.status == 200, answer.text
            assert (await request("GET", f"{gw.url}/readyz")).status == 200
            broker = gw.gateway.broker
            await eventually(lambda: "no answer from node 1" in broker.status, "node 1 is named")
            # What only the frozen node could take makes the gateway not ready while it is all.
            waiting = asyncio.create_task(
                request("POST", f"{gw.url}/publish/topic/{topics[1]}", data="x")
            )
            await eventually(lambda: not broker.ready, "no publish is answered")
            assert (await request("GET", f"{gw.url}/readyz")).status == 503
            answer = await request("POST", f"{gw.url}/publish/topic/{topics[2]}", data="y")
            assert answer.status == 200, answer.text
            assert broker.ready
            patient_cluster.thaw(1)
            assert (await waiting).status in (200, 504)
            await eventually(lambda: broker.status == "connected", "node 1 is back")
    finally:
        patient_cluster.thaw(1)


async def test_a_running_gateway_goes_on_beside_a_frozen_node(
    patient_cluster: KafkaCluster,
) -> None:
    topics = await lone_topics(patient_cluster)
    broker = KafkaBroker(patient_cluster.url, ping=0.5, timeout=90.0)
    await broker.start()
    sinks = {led: FeedList() for led in topics}
    for led, topic in topics.items():
        await broker.open_feed(D(f"/topic/{topic}"), sinks[led])
        await broker.publish(D(f"/topic/{topic}"), b"before")
        assert await sinks[led].got(1) == [b"before"]
    for frozen in patient_cluster.nodes:
        patient_cluster.freeze(frozen)
        try:
            held = asyncio.create_task(broker.publish(D(f"/topic/{topics[frozen]}"), b"held"))
            for led in set(topics) - {frozen}:
                # Before and after the frozen node is known to be that.
                count = len(sinks[led].messages)
                await broker.publish(D(f"/topic/{topics[led]}"), b"at once")
                await sinks[led].got(count + 1)
            await until(lambda: f"node {frozen}" in broker.status, "the node is named", 60)  # noqa: B023
            for led in set(topics) - {frozen}:
                count = len(sinks[led].messages)
                await broker.publish(D(f"/topic/{topics[led]}"), b"later")
                await sinks[led].got(count + 1)
        finally:
            patient_cluster.thaw(frozen)
        await held
        await until(lambda: sinks[frozen].bodies[-1] == b"held", "what was held", 60)  # noqa: B023
        await until(lambda: broker.status == "connected", "the node is back", 60)
    assert all(sink.gaps == [] and sink.error is None for sink in sinks.values())
    await broker.close()


async def test_publishing_goes_on_as_soon_as_the_cluster_has_other_leaders(
    kafka_cluster: KafkaCluster,
) -> None:
    topic = await asyncio.to_thread(create, kafka_cluster, 1)
    broker = KafkaBroker(kafka_cluster.url, timeout=90.0)
    await broker.start()
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{topic}"), sink)
    await broker.publish(D(f"/topic/{topic}"), b"0")
    led = await asyncio.to_thread(kafka_cluster.leader, topic)
    kafka_cluster.freeze(led)
    try:
        # Through the frozen leader at first; one answer each, and in their order.
        async with asyncio.timeout(80):
            for number in range(1, 20):
                await broker.publish(D(f"/topic/{topic}"), b"%d" % number)
        assert await asyncio.to_thread(kafka_cluster.leader, topic) != led
        await sink.got(20)
    finally:
        kafka_cluster.thaw(led)
    assert sink.bodies == [b"%d" % number for number in range(20)]
    assert sink.gaps == []
    await broker.close()


async def test_what_is_repeated_after_a_frozen_coordinator_is_marked(
    kafka_cluster: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    topic = await asyncio.to_thread(create, kafka_cluster, 6)
    async with node(kafka_cluster.url) as one, node(kafka_cluster.url) as two:
        sinks: list[DeliveryList] = []
        for each in (one, two):
            sinks.append(await worker(each, topic, prefetch=100))
            sinks[-1].acks_at_once = True
            while sinks[-1].outstanding:
                sinks[-1].ack()
        numbers = Numbers(kafka_cluster, topic, pause=0.02)
        await until(lambda: all(len(sink.deliveries) > 50 for sink in sinks), "both", 60)
        frozen = await asyncio.to_thread(kafka_cluster.coordinator, f"queuecast.{topic}")
        kafka_cluster.freeze(frozen)
        try:
            confirmed = numbers.confirmed
            # Longer than a session, and than the cluster needs for another coordinator.
            await asyncio.sleep(25)
            await until(lambda: numbers.confirmed > confirmed + 50, "the cluster goes on", 90)
        finally:
            kafka_cluster.thaw(frozen)
        sent = await asyncio.to_thread(numbers.stop)

        def seen() -> set[int]:
            return {int(body) for sink in sinks for body in sink.bodies}

        await until(lambda: seen() >= set(sent), "every record", 120)
    for sink in sinks:
        # To one node nothing that it acked comes twice.
        assert [body for body, times in Counter(sink.bodies).items() if times > 1] == []
    first, second = (
        {int(each.message.body): each.message.redelivered for each in sink.deliveries}
        for sink in sinks
    )
    twice = set(first) & set(second)
    assert all(first[each] or second[each] for each in twice)
    assert not any(sink.gaps or sink.error for sink in sinks)
    # The log has one line of the gateway for it, not the client library's paragraph.
    assert all("max_poll" not in record.getMessage() for record in caplog.records)


async def test_a_killed_leader_and_coordinator_costs_feeds_and_work_nothing(
    kafka_cluster: KafkaCluster,
) -> None:
    topic = await asyncio.to_thread(create, kafka_cluster, 3)
    async with node(kafka_cluster.url, timeout=60.0) as broker:
        feed = FeedList()
        await broker.open_feed(D(f"/topic/{topic}"), feed)
        work = await worker(broker, topic, prefetch=100)
        work.acks_at_once = True
        for victim in (
            await asyncio.to_thread(kafka_cluster.leader, topic),
            await asyncio.to_thread(kafka_cluster.coordinator, f"queuecast.{topic}"),
        ):
            sent = 0
            await asyncio.to_thread(kafka_cluster.kill, victim)
            async with asyncio.timeout(120):
                while sent < 20:
                    try:
                        await broker.publish(D(f"/topic/{topic}"), b"%d" % len(feed.messages))
                        sent += 1
                    except QueuecastError:
                        await asyncio.sleep(0.1)
            await asyncio.to_thread(kafka_cluster.heal)
        await until(lambda: len(feed.messages) >= 40, "the feed", 60)
        await until(lambda: len(work.deliveries) >= 40, "the queue", 60)
        assert feed.gaps == []
        assert len([each for each in work.deliveries if not each.message.redelivered]) <= len(
            feed.messages
        )
