"""Feeds of Kafka under faults: a killed broker, retention, topics that grow or are made anew."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from queuecast.brokers.kafka import KafkaBroker
from queuecast.destination import Destination
from queuecast.errors import OutcomeUnknown, PublishFailed, Unavailable
from tests.e2e.clients import PATIENCE, gateway, get, request, sse
from tests.support.confluent import (
    Numbers,
    Publisher,
    create,
    delete,
    grow,
    lowest,
    produce,
    read_all,
)
from tests.support.kafka import Kafka, KafkaServer
from tests.support.sinks import FeedList, eventually, until
from tests.support.streams import audience

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

D = Destination.parse


async def test_a_killed_broker_under_load_loses_and_repeats_nothing(
    kafka_own: KafkaServer,
) -> None:
    topic = await asyncio.to_thread(create, kafka_own, 3)
    keys = ("a", "b", "c", "d", "e")
    async with (
        gateway(broker={"url": kafka_own.url}) as gw,
        audience(gw.url, f"/topic/{topic}", 8) as streams,
        audience(gw.url, f"/exchange/{topic}/c", 4) as keyed,
    ):
        numbers = Numbers(kafka_own, topic, keys=keys)
        for _ in range(2):
            before = numbers.confirmed
            await eventually(lambda: numbers.confirmed > before + 200, "load", 120)  # noqa: B023
            await asyncio.to_thread(kafka_own.kill)
            await asyncio.to_thread(kafka_own.start)
        before = numbers.confirmed
        await eventually(lambda: numbers.confirmed > before + 200, "load again", 120)
        sent = await asyncio.to_thread(numbers.stop)
        for stream in streams:
            await eventually(lambda: len(stream.events) >= len(sent), stream.name, 120)  # noqa: B023
            assert "gap" not in stream.events
            assert stream.ended is None
            assert sorted(stream.numbers) == sorted(sent)
            for key in range(len(keys)):  # a key is one partition, and its order holds
                part = [number for number in stream.numbers if number % len(keys) == key]
                assert part == sorted(part)
        of_c = sorted(number for number in sent if number % len(keys) == 2)
        for stream in keyed:
            await eventually(lambda: len(stream.events) >= len(of_c), stream.name, 120)  # noqa: B023
            assert stream.numbers == of_c


async def test_publishes_while_the_broker_is_killed_are_answered_honestly(
    kafka_own: KafkaServer,
) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    outcomes: dict[int, int] = {}
    async with gateway(broker={"url": kafka_own.url}) as gw:

        async def publisher(first: int) -> None:
            for number in range(first, first + 150):
                answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data=str(number))
                outcomes[number] = answer.status
                if answer.status != 200:
                    assert answer.json["code"] in ("unavailable", "outcome_unknown"), answer.text
                    await asyncio.sleep(0.05)

        publishing = asyncio.gather(*(publisher(first) for first in range(0, 600, 150)))
        await eventually(lambda: len(outcomes) > 60, "publishes", 60)
        await asyncio.to_thread(kafka_own.kill)
        await asyncio.to_thread(kafka_own.start)
        await publishing
        taken = [number for number, status in outcomes.items() if status == 200]
        await eventually(lambda: gw.gateway.broker.ready, "ready", 120)
        answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data="-1")
        assert answer.status == 200
    unknown = sum(status == 504 or status == 500 for status in outcomes.values())
    records = await asyncio.to_thread(read_all, kafka_own, topic, len(taken) + 1)
    there = [int(record.value()) for record in records]
    assert len(there) == len(set(there))
    assert len(set(taken) - set(there)) <= unknown
    assert len(taken) > 60


async def test_a_producer_that_lost_the_brokers_memory_is_replaced(
    tmp_path: Path,
) -> None:
    server = KafkaServer()
    try:
        server.start()
        topic = await asyncio.to_thread(create, server)
        broker = KafkaBroker(server.url, ping=0.2)
        await broker.start()
        for number in range(5):
            await broker.publish(D(f"/topic/{topic}"), b"%d" % number)
        # The disk of an hour ago: what came after it is gone, and so are the numbers it had.
        await asyncio.to_thread(server.stop)
        shutil.copytree(server.data, tmp_path / "data")
        await asyncio.to_thread(server.start)
        await until(lambda: broker.ready, "ready", 120)
        for number in range(5, 20):
            await broker.publish(D(f"/topic/{topic}"), b"%d" % number)
        await asyncio.to_thread(server.kill)
        shutil.rmtree(server.data)
        shutil.copytree(tmp_path / "data", server.data)
        await asyncio.to_thread(server.start)
        await until(lambda: broker.ready, "ready again", 120)
        for number in range(20, 25):
            await broker.publish(D(f"/topic/{topic}"), b"%d" % number)
        assert broker._publisher.replaced == 1
        found = await asyncio.to_thread(read_all, server, topic, 10)
        assert [int(record.value()) for record in found] == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24]
        await broker.close()
    finally:
        server.close()


async def test_no_answer_is_an_unknown_outcome_and_later_publishes_go_on(
    kafka_own: KafkaServer,
) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    broker = KafkaBroker(kafka_own.url, timeout=4.0, ping=30.0)
    await broker.start()
    await broker.publish(D(f"/topic/{topic}"), b"0")
    await asyncio.to_thread(kafka_own.kill)
    with pytest.raises((OutcomeUnknown, Unavailable)):  # it has not noticed yet
        await broker.publish(D(f"/topic/{topic}"), b"1")
    await asyncio.to_thread(kafka_own.start)

    async def publishes() -> bool:
        try:
            await broker.publish(D(f"/topic/{topic}"), b"2")
        except (PublishFailed, Unavailable):
            return False
        return True

    for _ in range(100):
        if await publishes():
            break
        await asyncio.sleep(0.2)
    else:
        pytest.fail("nothing can be published any more")
    await broker.close()


async def rolled(kafka: Kafka) -> str:
    """Fill a topic of tiny segments until retention has deleted its beginning."""
    topic: str = await asyncio.to_thread(
        create, kafka, segment_bytes=1_048_576, retention_bytes=1_048_576, retention_ms=-1
    )
    return topic


async def flood(kafka: Kafka, topic: str, first: int) -> int:
    """Publish until retention has deleted what was there; returns the next number."""
    low = await asyncio.to_thread(lowest, kafka, topic)
    number = first
    async with asyncio.timeout(90):
        while await asyncio.to_thread(lowest, kafka, topic) <= max(low, first):
            bodies = [b"%d" % n + b" " * 20_000 for n in range(number, number + 50)]
            await asyncio.to_thread(produce, kafka, topic, bodies)
            number += 50
            await asyncio.sleep(0.2)
    return number


async def test_retention_under_a_sleeping_client_is_a_gap(kafka: Kafka) -> None:
    topic = await rolled(kafka)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(10)])
    async with gateway(broker={"url": kafka.url}, log={"linger": 0}) as gw:
        async with sse(f"{gw.url}/sse/topic/{topic}?since=first") as stream:
            assert await stream.data(10) == [str(n) for n in range(10)]
            position = stream.last_event_id
        following = await flood(kafka, topic, 10)
        low = await asyncio.to_thread(lowest, kafka, topic)
        assert low > 10
        async with sse(f"{gw.url}/sse/topic/{topic}", {"Last-Event-ID": position}) as stream:
            async with asyncio.timeout(PATIENCE):
                while (event := await stream.any()).type == "position":
                    pass
            assert event.type == "gap", event
            assert event.json["reason"] == "evicted"
            first = int((await stream.next()).data)
            assert 10 < first < following
            await asyncio.to_thread(produce, kafka, topic, [b"last"])
            rest = [each.strip() for each in await stream.data(following - first)]
            assert rest == [*(str(n) for n in range(first + 1, following)), "last"]


async def test_retention_that_overtakes_this_nodes_reader_is_a_gap(
    kafka_own: KafkaServer,
) -> None:
    topic = await rolled(kafka_own)
    broker = KafkaBroker(kafka_own.url, ping=0.2)
    await broker.start()
    sink = FeedList()
    reader = await broker.open_feed(D(f"/topic/{topic}"), sink)
    await broker.publish(D(f"/topic/{topic}"), b"0")
    assert await sink.got(1) == [b"0"]
    # It is held up, as by a network that was cut for long.
    broker._live._consumer.pause(*broker._live._consumer.assignment())
    following = await flood(kafka_own, topic, 1)
    broker._live._consumer.resume(*broker._live._consumer.assignment())
    await until(lambda: sink.gaps, "the gap", 60)
    assert sink.gaps == ["evicted"]
    await until(lambda: sink.messages[-1].body.startswith(b"%d " % (following - 1)), "the end", 60)
    offsets = [message.offset for message in sink.messages[1:]]
    assert offsets == list(range(offsets[0] or 0, following + 1))
    await reader.close()
    await broker.close()


async def test_partitions_that_are_added_while_it_runs(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    async with gateway(broker={"url": kafka.url}) as gw:
        async with audience(gw.url, f"/topic/{topic}", 8) as streams:
            await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(30)])
            for stream in streams:
                await eventually(lambda: len(stream.bodies) >= 30, stream.name)  # noqa: B023
            async with sse(f"{gw.url}/sse/topic/{topic}?since=first") as early:
                assert sorted(map(int, await early.data(30))) == list(range(30))
                position = early.last_event_id
            await asyncio.to_thread(grow, kafka, topic, 6)
            publisher = Publisher(kafka)
            for number in range(30, 90):
                publisher.send(topic, b"%d" % number, partition=number % 6)
            await asyncio.to_thread(publisher.flush)
            for stream in streams:
                await eventually(lambda: len(stream.bodies) >= 90, stream.name, 120)  # noqa: B023
                assert stream.events.count("gap") == 0
                assert sorted(stream.numbers) == list(range(90))
        # A position of three partitions goes on in six: the others are new as a whole.
        async with sse(f"{gw.url}/sse/topic/{topic}", {"Last-Event-ID": position}) as again:
            assert sorted(map(int, await again.data(60))) == list(range(30, 90))
        answer = await get(f"{gw.url}/poll/topic/{topic}?since={position}")
        assert sorted(int(each["body"]) for each in answer.json["messages"]) == list(range(30, 90))


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_topic_that_is_made_anew_is_another_one(kafka: Kafka, partitions: int) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, [b"old-%d" % n for n in range(5)])
    async with gateway(broker={"url": kafka.url}, log={"linger": 0}) as gw:
        async with sse(f"{gw.url}/sse/topic/{topic}?since=first") as stream:
            assert await stream.data(5) == [f"old-{n}" for n in range(5)]
            position = stream.last_event_id
        await eventually(lambda: not gw.gateway.hub.feeds, "nobody")

        async def anew() -> bool:
            await asyncio.to_thread(delete, kafka, topic)
            try:
                await asyncio.to_thread(create, kafka, partitions, topic)
            except KafkaException as error:
                # On this cluster the gateway's own question for it may have made it again first.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                return False
            return True

        async with asyncio.timeout(60):
            while not await anew():
                pass
        await asyncio.to_thread(produce, kafka, topic, [b"new-%d" % n for n in range(9)])
        headers = {"Last-Event-ID": position}
        async with sse(f"{gw.url}/sse/topic/{topic}", headers) as stream:
            while (event := await stream.any()).type == "position":
                pass
            assert event.type == "gap", event
            assert event.json["reason"] == "epoch"
            assert sorted(await stream.data(9)) == [f"new-{n}" for n in range(9)]


async def test_holes_of_transactions_are_no_gaps(kafka: Kafka) -> None:
    from confluent_kafka import Producer

    topic = await asyncio.to_thread(create, kafka, 1)
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap, "log_level": 0}
    producer = Producer({**settings, "transactional.id": topic})
    await asyncio.to_thread(producer.init_transactions, 30)

    async with gateway(broker={"url": kafka.url}) as gw:
        async with sse(f"{gw.url}/sse/topic/{topic}") as stream:
            for number in range(10):
                producer.begin_transaction()
                producer.produce(topic, b"%d" % number)
                if number % 2:
                    await asyncio.to_thread(producer.abort_transaction, 30)
                else:
                    await asyncio.to_thread(producer.commit_transaction, 30)
            assert await stream.data(5) == ["0", "2", "4", "6", "8"]
            position = stream.last_event_id
        # What follows the last message are control records only: nothing is missing.
        await asyncio.to_thread(produce, kafka, topic, [b"10"])
        async with sse(f"{gw.url}/sse/topic/{topic}", {"Last-Event-ID": position}) as stream:
            assert await stream.data(1) == ["10"]
        async with sse(f"{gw.url}/sse/topic/{topic}?since=first") as stream:
            assert await stream.data(6) == ["0", "2", "4", "6", "8", "10"]
        async with sse(f"{gw.url}/sse/topic/{topic}?last=3") as stream:
            assert await stream.data(3) == ["6", "8", "10"]
