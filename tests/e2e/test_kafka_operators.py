"""What operators do to topics while feeds read them: noticed, mended, and told as a gap."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from queuecast.brokers.kafka import KafkaBroker
from queuecast.destination import Destination
from queuecast.errors import Unroutable
from queuecast.position import Start
from tests.e2e.clients import PATIENCE, Event, EventStream, gateway, sse
from tests.support.confluent import (
    configure,
    create,
    delete,
    delete_records,
    lowest,
    produce,
    read_through,
)
from tests.support.kafka import Kafka
from tests.support.sinks import FeedList, eventually, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

D = Destination.parse


async def follow(stream: EventStream, count: int) -> list[Event]:
    """Return the next events but the places: a gap, or a message, `count` of them."""
    found: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            event = await stream.any()
            if event.type != "position":
                found.append(event)
    return found


@pytest.mark.parametrize(("before", "partitions"), [(3, 1), (3, 2), (1, 3)])
async def test_a_topic_that_is_recreated_is_a_gap_on_every_feed(
    kafka: Kafka, before: int, partitions: int
) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    other = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, [b"old"] * before, key="k")
    why = f"the topic {topic} was deleted and recreated"
    async with gateway(broker={"url": kafka.url}) as gw, AsyncExitStack() as stack:
        urls = [
            f"/sse/topic/{topic}?since=first",
            f"/sse/exchange/{topic}/k?since=first",
        ]
        if partitions == 1:
            # Several destinations are one numbering, which ends when there are more partitions.
            urls.append(f"/sse?destination=/topic/{topic}&destination=/topic/{other}&since=first")
        streams = [await stack.enter_async_context(sse(gw.url + url)) for url in urls]
        for stream in streams:
            assert [event.data for event in await follow(stream, before)] == ["old"] * before
        await asyncio.to_thread(delete, kafka, topic)
        # The cluster creates topics that are asked for: the gateway's readers must not ask.
        await eventually(lambda: topic in gw.gateway.broker.status, "the topic is known to be gone")
        await asyncio.to_thread(create, kafka, partitions, topic)
        # More records than before, so that the old place exists in the new topic too.
        new = [b"%d" % number for number in range(before + 5)]
        await asyncio.to_thread(produce, kafka, topic, new, key="k")
        for stream in streams:
            gap, *rest = await follow(stream, 1 + len(new))
            assert (gap.type, gap.json["reason"]) == ("gap", why)
            assert [event.data for event in rest] == [str(n) for n in range(before + 5)]
        await eventually(lambda: gw.gateway.broker.status == "connected", "no trouble any more")
        if partitions == 1:  # the other topic is read as before
            await asyncio.to_thread(produce, kafka, other, [b"other"])
            assert (await follow(streams[-1], 1))[0].data == "other"


async def test_a_topic_that_is_recreated_at_once_is_not_taken_for_the_old_one(
    kafka: Kafka,
) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    # A watch that looks rarely: the readers themselves notice.
    broker = KafkaBroker(kafka.url, ping=20.0)
    await broker.start()
    sink = FeedList()
    reader = await broker.open_feed(D(f"/topic/{topic}"), sink)
    await asyncio.to_thread(produce, kafka, topic, [b"old-%d" % n for n in range(5)])
    await sink.got(5)
    await asyncio.to_thread(delete, kafka, topic)
    await asyncio.to_thread(create, kafka, 1, topic)
    await asyncio.to_thread(produce, kafka, topic, [b"new-%d" % n for n in range(20)])
    await sink.got(25)
    assert sink.gaps == [f"the topic {topic} was deleted and recreated"]
    assert sink.bodies[5:] == [b"new-%d" % n for n in range(20)]
    position = await reader.locate(Start("first"))  # type: ignore[attr-defined]
    assert position[0].epoch != (sink.start or [])[0].epoch
    await reader.close()
    await broker.close()


async def test_a_topic_with_fewer_partitions_ends_its_feeds_with_the_reason(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    async with gateway(broker={"url": kafka.url}) as gw:
        async with sse(f"{gw.url}/sse/topic/{topic}") as stream:
            await asyncio.to_thread(produce, kafka, topic, [b"old"])
            assert await stream.data(1) == ["old"]
            position = stream.last_event_id
            await asyncio.to_thread(delete, kafka, topic)
            await asyncio.to_thread(create, kafka, 1, topic)
            (last,) = await follow(stream, 1)
            assert last.type == "disconnect"
            assert "deleted and recreated" in last.data
            assert last.json["retry"] is True
        await asyncio.to_thread(produce, kafka, topic, [b"new"])
        async with sse(f"{gw.url}/sse/topic/{topic}", {"Last-Event-ID": position}) as stream:
            gap, message = await follow(stream, 2)
            assert (gap.type, gap.json["reason"], message.data) == ("gap", "epoch", "new")


async def test_publishing_to_a_topic_that_was_deleted(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    broker = KafkaBroker(kafka.url, ping=0.2)
    await broker.start()
    await broker.publish(D(f"/topic/{topic}"), b"old")
    await asyncio.to_thread(delete, kafka, topic)
    # /topic/T comes into being on use here, /amq/queue/T never does; neither waits for a timeout.
    with pytest.raises(Unroutable):
        await broker.publish(D(f"/amq/queue/{topic}"), b"refused")
    await broker.publish(D(f"/topic/{topic}"), b"new")
    await broker.close()


async def test_records_deleted_before_a_reader_has_them_are_a_gap(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(10)])
    async with gateway(broker={"url": kafka.url}) as gw:
        url = f"{gw.url}/sse/topic/{topic}"
        async with sse(f"{url}?since=first") as stream:
            assert len(await stream.data(5)) == 5
            position = stream.last_event_id
    await asyncio.to_thread(delete_records, kafka, topic, 8)
    # Another gateway: the first has them in memory for a while.
    async with gateway(broker={"url": kafka.url}) as gw:
        url = f"{gw.url}/sse/topic/{topic}"
        async with sse(url, {"Last-Event-ID": position}) as stream:
            gap, *rest = await follow(stream, 3)
            assert (gap.type, gap.json["reason"]) == ("gap", "evicted")
            assert [event.data for event in rest] == ["8", "9"]
            # All of it, but this client has it: nothing is missed.
            await asyncio.to_thread(delete_records, kafka, topic, 10)
            await asyncio.to_thread(produce, kafka, topic, [b"10"])
            assert [event.data for event in await follow(stream, 1)] == ["10"]


async def test_records_deleted_before_the_live_reader_has_them_are_a_gap(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    broker = KafkaBroker(kafka.url, ping=0.2)
    await broker.start()
    sink = FeedList()
    reader = await broker.open_feed(D(f"/topic/{topic}"), sink)
    await broker.publish(D(f"/topic/{topic}"), b"0")
    await sink.got(1)
    # It is held up, as by a network that was cut for long.
    consumer = broker._live._consumer
    consumer.pause(*consumer.assignment())
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(1, 10)])
    await asyncio.to_thread(delete_records, kafka, topic, 8)
    consumer.resume(*consumer.assignment())
    assert (await sink.got(3))[-1] == b"9"
    assert len(sink.gaps) <= 1  # what was under way when it was held up still comes
    assert sink.gaps == ["evicted"] or len(sink.messages) == 10
    await reader.close()
    await broker.close()


async def test_retention_that_is_lowered_is_a_gap_for_those_behind(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(
        create, kafka, 1, segment_bytes=1_048_576, retention_ms=-1, retention_bytes=-1
    )
    bodies = [b"%d" % n + b" " * 20_000 for n in range(120)]
    await asyncio.to_thread(produce, kafka, topic, bodies)
    async with gateway(broker={"url": kafka.url}) as gw:
        url = f"{gw.url}/sse/topic/{topic}"
        async with sse(f"{url}?since=first") as stream:
            assert (await stream.data(1))[0].startswith("0 ")
            position = stream.last_event_id
    await asyncio.to_thread(configure, kafka, topic, retention_bytes=1)
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(lowest, kafka, topic):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    async with gateway(broker={"url": kafka.url}) as gw:
        url = f"{gw.url}/sse/topic/{topic}"
        async with sse(url, {"Last-Event-ID": position}) as stream:
            gap, first = await follow(stream, 2)
            assert (gap.type, gap.json["reason"]) == ("gap", "evicted")
            assert int(first.data) > 1


async def test_compaction_is_no_gap(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(
        create,
        kafka,
        1,
        cleanup_policy="compact",
        segment_ms=100,
        min_cleanable_dirty_ratio="0.01",
        max_compaction_lag_ms=200,
        delete_retention_ms=0,
    )
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(50)], key="k")
    async with (
        gateway(broker={"url": kafka.url}) as gw,
        sse(f"{gw.url}/sse/topic/{topic}?since=first") as stream,
    ):
        await stream.data(3)
        position = stream.last_event_id
    number = 50
    async with asyncio.timeout(120):
        while len(await asyncio.to_thread(read_through, kafka, topic)) > 20:
            await asyncio.to_thread(produce, kafka, topic, [b"%d" % number], key="k")
            number += 1
            await asyncio.sleep(0.5)
    async with (
        gateway(broker={"url": kafka.url}) as gw,
        sse(f"{gw.url}/sse/topic/{topic}", {"Last-Event-ID": position}) as stream,
    ):
        events = await follow(stream, 1)
        while events[-1].data != str(number - 1):
            events += await follow(stream, 1)
        assert {event.type for event in events} == {"message"}
        assert len(events) < 47


async def test_a_topic_that_is_deleted_does_not_hold_up_others(kafka: Kafka) -> None:
    gone = await asyncio.to_thread(create, kafka, 1)
    kept = await asyncio.to_thread(create, kafka, 1)
    broker = KafkaBroker(kafka.url, ping=0.2)
    await broker.start()
    sinks = [FeedList(), FeedList()]
    readers = [
        await broker.open_feed(D(f"/topic/{topic}"), sink)
        for topic, sink in zip((gone, kept), sinks, strict=True)
    ]
    await asyncio.to_thread(delete, kafka, gone)
    await until(lambda: gone in broker.status, "the topic is known to be gone")
    consumer = broker._live._consumer
    assert {tp.topic for tp in consumer.assignment()} == {kept}
    await broker.publish(D(f"/topic/{kept}"), b"kept")
    assert await sinks[1].got(1) == [b"kept"]
    assert sinks[0].error is None
    for reader in readers:
        await reader.close()
    await broker.close()
