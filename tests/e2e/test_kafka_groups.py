"""Consumer groups: shared by nodes, committed, taken over, with nothing acked coming twice."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from queuecast.brokers.kafka import KafkaBroker, group
from queuecast.brokers.kafka.window import MAX_RECORDS
from queuecast.destination import Destination
from queuecast.errors import NotFound
from tests.e2e.clients import gateway
from tests.support.confluent import committed, create, delete, produce
from tests.support.kafka import Kafka, KafkaServer
from tests.support.processes import Process, free_port
from tests.support.sinks import DeliveryList, eventually, until
from tests.support.streams import Enveloped

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

D = Destination.parse


@contextlib.asynccontextmanager
async def node(url: str, **options: Any) -> AsyncIterator[KafkaBroker]:
    broker = KafkaBroker(url, ping=0.5, **options)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def worker(broker: KafkaBroker, topic: str, prefetch: int = 10) -> DeliveryList:
    sink = DeliveryList()
    sink.consumer = await broker.consume(D(f"/queue/{topic}"), sink, prefetch=prefetch)
    return sink


def ack(sink: DeliveryList, *bodies: int) -> None:
    """Ack by hand what has these numbers."""
    assert sink.consumer is not None
    for delivery in list(sink.outstanding):
        if int(delivery.message.body) in bodies:
            assert sink.consumer.ack(delivery.tag)
            sink.outstanding.remove(delivery)


async def test_what_is_acked_is_gone_for_the_next_node_and_the_rest_is_redelivered(
    kafka: Kafka,
) -> None:
    topic = await asyncio.to_thread(create, kafka)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(10)])
    async with node(kafka.url) as one:
        first = await worker(one, topic, prefetch=6)
        await first.got(6)
        # Out of order: Kafka's offset alone could only say that 0 is done.
        ack(first, 0, 2, 3, 5)
        await first.got(10)
        ack(first, 8)
    group = f"queuecast.{topic}"
    assert await asyncio.to_thread(committed, kafka, group, topic) == [1]
    async with node(kafka.url) as two:
        second = await worker(two, topic)
        assert await second.got(5) == [b"1", b"4", b"6", b"7", b"9"]
        assert all(delivery.message.redelivered for delivery in second.deliveries)
        await asyncio.to_thread(produce, kafka, topic, [b"10"])
        assert (await second.got(6))[5] == b"10"
        assert not second.deliveries[5].message.redelivered
        while second.outstanding:
            assert second.ack()
        await until(
            lambda: not next(iter(two._queues._groups.values()))._windows[0].due(), "the commit"
        )
    assert await asyncio.to_thread(committed, kafka, group, topic) == [11]


async def test_nodes_share_a_group_and_a_rebalance_repeats_nothing(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 6)
    bodies = [b"%d" % n for n in range(300)]
    async with node(kafka.url) as one, node(kafka.url) as two, node(kafka.url) as three:
        sinks = [await worker(one, topic)]
        sinks[0].acks_at_once = True
        producing = asyncio.create_task(asyncio.to_thread(produce, kafka, topic, bodies[:100]))
        sinks.append(await worker(two, topic))
        sinks[1].acks_at_once = True
        for sink in sinks:
            while sink.outstanding:
                sink.ack()
        await producing
        sinks.append(await worker(three, topic))
        for sink in sinks:
            sink.acks_at_once = True
            while sink.outstanding:
                sink.ack()
        await asyncio.to_thread(produce, kafka, topic, bodies[100:])
        await until(lambda: sum(len(sink.deliveries) for sink in sinks) >= 300, "all", 60)
        assert sinks[2].consumer is not None
        await sinks[2].consumer.close()
        await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(300, 400)])
        await until(lambda: sum(len(sink.deliveries) for sink in sinks) >= 400, "more", 60)
        got = [int(body) for sink in sinks for body in sink.bodies]
        assert len(got) == len(set(got)) == 400
        assert all(sink.deliveries for sink in sinks)


async def test_what_is_held_through_a_rebalance_stays_with_its_holder(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(5)])
    async with node(kafka.url) as one, node(kafka.url) as two:
        first = await worker(one, topic)
        await first.got(5)
        second = await worker(two, topic)  # the only partition stays where it is, or moves whole
        if second.deliveries:
            assert first.resets == 1
            assert all(delivery.message.redelivered for delivery in second.deliveries)
        else:
            assert first.resets == 0
            ack(first, *range(5))
        both = first.bodies + second.bodies
        assert len(both) == 5 * (1 + first.resets)


async def test_a_late_ack_of_a_lost_partition_is_ignored(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 2)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(20)], partition=0)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(20, 40)], partition=1)
    async with node(kafka.url) as one, node(kafka.url) as two:
        first = await worker(one, topic, prefetch=100)
        await first.got(40)
        second = await worker(two, topic, prefetch=100)
        await second.got(20)
        moved = {int(body) for body in second.bodies}
        assert moved in (set(range(20)), set(range(20, 40)))
        assert first.consumer is not None
        answers = {
            int(each.message.body): first.consumer.ack(each.tag) for each in first.deliveries
        }
        assert {number for number, known in answers.items() if known} == set(range(40)) - moved
        assert all(delivery.message.redelivered for delivery in second.deliveries)
        while second.outstanding:
            assert second.ack()


async def test_no_more_than_the_window_is_fetched_beyond_the_commit(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(3 * MAX_RECORDS)])
    async with node(kafka.url) as broker:
        sink = await worker(broker, topic, prefetch=4 * MAX_RECORDS)
        await until(lambda: len(sink.deliveries) > MAX_RECORDS * 0.8, "a window", 60)
        # The first is held, everything else is acked: the commit stands still, and so does this.
        hold = sink.outstanding.pop(0)
        sink.acks_at_once = True
        while sink.outstanding:
            sink.ack()
        # Another topic's round trips: time enough for deliveries that should not come.
        other = await worker(broker, await asyncio.to_thread(create, kafka))
        for count in range(1, 4):
            (group,) = (each for each in broker._queues._groups.values() if topic not in each.name)
            name = group.name.removeprefix("queuecast.")
            await asyncio.to_thread(produce, kafka, name, [b"%d" % count])
            await other.got(count)
        assert len(sink.deliveries) <= MAX_RECORDS
        assert sink.consumer is not None
        assert sink.consumer.ack(hold.tag)
        await until(lambda: len(sink.deliveries) == 3 * MAX_RECORDS, "the rest", 60)
        assert [int(body) for body in sink.bodies] == list(range(3 * MAX_RECORDS))


async def test_a_killed_broker_loses_nothing_of_a_queue(kafka_own: KafkaServer) -> None:
    topic = await asyncio.to_thread(create, kafka_own, 2)
    async with node(kafka_own.url) as broker:
        sink = await worker(broker, topic)
        sink.acks_at_once = True
        await asyncio.to_thread(produce, kafka_own, topic, [b"%d" % n for n in range(100)])
        await until(lambda: len(sink.deliveries) >= 100, "the first", 60)
        await asyncio.to_thread(kafka_own.kill)
        await asyncio.to_thread(kafka_own.start)
        await asyncio.to_thread(produce, kafka_own, topic, [b"%d" % n for n in range(100, 200)])
        await until(lambda: len({*sink.bodies}) >= 200, "all", 120)
        again = [each for each in sink.deliveries if each.message.redelivered]
        assert len(sink.deliveries) == 200 + len(again)


def serve(kafka: Kafka, directory: Path) -> tuple[Process, str]:
    """Run a gateway in a process of its own, to be killed."""
    port = free_port()
    command = [sys.executable, "-m", "queuecast", "serve", "--port", str(port)]
    process = Process([*command, "--broker", kafka.url], log=directory / f"{port}.log")

    def answers() -> bool:
        asked = [
            sys.executable,
            "-c",
            "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)",
            f"http://127.0.0.1:{port}/readyz",
        ]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    process.wait_until(answers, what="the gateway", timeout=120)
    return process, f"http://127.0.0.1:{port}"


async def test_a_killed_node_hands_its_share_to_the_other(kafka: Kafka, tmp_path: Path) -> None:
    topic = await asyncio.to_thread(create, kafka, 4)
    query = f"/queue/{topic}?ack=client&prefetch=20&envelope=json"
    async with gateway(broker={"url": kafka.url}) as staying:
        process, url = await asyncio.to_thread(serve, kafka, tmp_path)
        try:
            one, two = await Enveloped.open(staying.url, query), await Enveloped.open(url, query)
            await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(200)])
            acked: set[str] = set()

            async def settle(socket: Enveloped) -> None:
                done = 0
                while len(acked) < 200:
                    for delivery in socket.deliveries[done:]:
                        await socket.say(ack=delivery["ack"])
                        acked.add(delivery["body"])
                        done += 1
                    await asyncio.sleep(0.01)

            settling = asyncio.create_task(settle(one))
            await two.until(20)
            held = set(two.bodies)
            process.kill()
            await eventually(lambda: len(acked) == 200, "every record", 120)
            await settling
            assert held <= set(one.bodies)
            # Marked is what the dead node may have handed out, as far as it had committed anything:
            # of one that is killed before its first commit the group knows nothing.
            assert len(one.bodies) == len(set(one.bodies))
            await one.close()
            await two.close()
        finally:
            process.kill()


async def test_a_topic_that_stays_deleted_ends_its_consumers(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "GONE", 1.0)
    topic = await asyncio.to_thread(create, kafka)
    async with node(kafka.url) as broker:
        sink = await worker(broker, topic)
        await asyncio.to_thread(delete, kafka, topic)
        await until(lambda: sink.error, "the end")
        assert isinstance(sink.error, NotFound)
        assert topic in sink.error.text
