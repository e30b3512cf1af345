"""Retained destinations at RabbitMQ: what is published, and what is read again."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pika
import pytest

from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.errors import Unavailable
from queuecast.position import Mark, Start
from tests.support.retained import (
    FIRST,
    D,
    channel,
    delete,
    open_feed,
    publish,
    read,
    retaining,
    rule,
    seen,
)
from tests.support.servers import RabbitMQ, unique

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]


async def test_a_publish_that_misses_the_stream_is_told_and_mended(rabbit: RabbitMQ) -> None:
    key = unique("missed")
    kept = rule(f"/topic/{key}")
    login = RabbitBroker(rabbit.url, covered=[kept])
    await login.start()
    try:
        async with retaining(rabbit.url, kept) as broker:
            _, sink = await open_feed(broker, f"/topic/{key}")
            # Whoever publishes with a login of his own, and who says that it need not arrive.
            for publisher in (broker, login):
                with channel(rabbit) as opened:
                    mark = {"x-queuecast": "retain"}
                    opened.queue_unbind(stream_name(kept), "amq.topic", key, mark)
                with pytest.raises(Unavailable, match="takes no messages"):
                    await publisher.publish(D(f"/topic/{key}"), b"lost", mandatory=False)
                # The gateway that reads the stream binds it again.
                with contextlib.suppress(Unavailable):
                    await broker.publish(D(f"/topic/{key}"), b"1")
                async with asyncio.timeout(60):
                    while not await accepted(publisher, key):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                await sink.until(b"accepted")
            assert b"lost" not in sink.bodies
            await login.publish(D(f"/topic/not-{key}"), b"nobody keeps this")
    finally:
        await login.close()
    delete(rabbit, kept)


async def accepted(publisher: RabbitBroker, key: str) -> bool:
    """Publish, and tell whether that was confirmed."""
    try:
        await publisher.publish(D(f"/topic/{key}"), b"accepted")
    except Unavailable:
        return False
    return True


async def test_what_was_published_before_anyone_came_is_there(rabbit: RabbitMQ) -> None:
    key = unique("before")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as broker:
        for name in "abab":
            publish(rabbit, f"{key}.{name}", [name.encode() + b"%d" % n for n in range(3)])
        await seen(broker, kept)
        one, live = await open_feed(broker, f"/topic/{key}.a")
        both, _ = await open_feed(broker, f"/topic/{key}.*")
        none, _ = await open_feed(broker, f"/topic/{key}.c")
        a = [b"a0", b"a1", b"a2"] * 2
        assert (await read(one, FIRST)).bodies == a
        assert (await read(one, FIRST, max_bytes=1)).bodies == a
        assert (await read(one, Start("last", count=1))).bodies == [b"a2"]
        assert (await read(one, Start("last", count=4))).bodies == a[2:]
        assert (await read(one, Start("last", count=100))).bodies == a
        assert (await read(both, Start("last", count=4))).bodies == [b"a2", b"b0", b"b1", b"b2"]
        assert len((await read(both, FIRST)).bodies) == 12
        assert (await read(none, FIRST)).bodies == []
        assert (await read(none, Start("last", count=1))).bodies == []
        publish(rabbit, f"{key}.a", [b"live"])
        await live.until(b"live")
        assert live.bodies == [b"live"]
        assert live.messages[0].routing_key == f"{key}.a"
        assert not live.messages[0].properties.headers
        # The history and the feed join: what follows the last page is what was handed over.
        assert live.start is not None
        joined = await read(one, live.start)
        assert joined.bodies == [b"live"]
        assert joined.place == (Mark(live.start.epoch, one.position()[0]),)  # type: ignore[index]
    delete(rabbit, kept)


async def test_since_a_time(rabbit: RabbitMQ) -> None:
    key = unique("time")
    kept = rule(f"/topic/{key}")
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, [b"old"])
        await sink.until(b"old")
        await asyncio.sleep(2.5)  # RabbitMQ counts whole seconds
        now = time.time()
        publish(rabbit, key, [b"new"])
        await sink.until(b"new")
        since = Start("time", time=now - 1)
        assert (await read(reader, since)).bodies == [b"new"]
        assert (await read(reader, Start("time", time=now - 60))).bodies == [b"old", b"new"]
        assert (await read(reader, Start("time", time=0))).bodies == [b"old", b"new"]
        assert (await read(reader, Start("time", time=now + 60))).bodies == []
        # A gateway that was not there then asks the broker.
        async with retaining(rabbit.url, kept) as late:
            reader, _ = await open_feed(late, f"/topic/{key}")
            assert (await read(reader, since)).bodies == [b"new"]
            assert (await read(reader, Start("time", time=now - 60))).bodies == [b"old", b"new"]
    delete(rabbit, kept)


async def test_a_sender_selected_key_reaches_its_feed(rabbit: RabbitMQ, rabbit_name: str) -> None:
    # Before 4.0 a stream drops headers that are lists, and with them the other keys.
    expected = [b"2"] if rabbit_name == "rabbitmq-3.10" else [b"1", b"2"]
    key = unique("cc")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}.b")
        _, both = await open_feed(broker, f"/topic/{key}.#")
        properties = pika.BasicProperties(headers={"CC": [f"{key}.b"]})
        with channel(rabbit) as opened:
            opened.basic_publish("amq.topic", f"{key}.a", b"1", properties)
            opened.basic_publish("amq.topic", f"{key}.b", b"2")
        await sink.until(b"2")
        await both.until(b"2")
        assert both.bodies == [b"1", b"2"]
        assert sink.bodies == expected
        assert (await read(reader, FIRST)).bodies == expected
    delete(rabbit, kept)


async def test_positions_hold_on_other_nodes_and_after_restarts_of_all(rabbit: RabbitMQ) -> None:
    key = unique("nodes")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as a, retaining(rabbit.url, kept) as b:
        _, on_a = await open_feed(a, f"/topic/{key}.x")
        reader, on_b = await open_feed(b, f"/topic/{key}.x")
        assert on_a.start is not None
        assert on_b.start is not None
        assert on_a.start.epoch == on_b.start.epoch
        publish(rabbit, f"{key}.x", [b"%d" % n for n in range(10)])
        publish(rabbit, f"{key}.y", [b"other"])
        await on_a.until(b"9")
        offset = on_a.messages[4].offset
        assert offset is not None
        mark = Mark(on_a.start.epoch, offset)
        rest = [b"%d" % n for n in range(5, 10)]
        on = await read(reader, mark)
        assert (on.bodies, on.gaps) == (rest, [])
        assert [m.offset for m in on.messages] == [m.offset for m in on_a.messages[5:]]
    async with retaining(rabbit.url, kept) as c:
        reader, _ = await open_feed(c, f"/topic/{key}.x")
        on = await read(reader, mark)
        assert (on.bodies, on.gaps) == (rest, [])
    delete(rabbit, kept)


async def test_a_position_that_never_was_is_a_gap(rabbit: RabbitMQ) -> None:
    key = unique("forged")
    kept = rule(f"/topic/{key}")
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}")
        assert sink.start is not None
        publish(rabbit, key, [b"1"])
        await sink.until(b"1")
        for mark in (Mark("0123456789", 1), Mark(sink.start.epoch, 10**15)):
            on = await read(reader, mark)
            assert on.bodies == [b"1"]
            assert on.gaps == [("epoch", Mark(sink.start.epoch, 0))]
    delete(rabbit, kept)
