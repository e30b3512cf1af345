"""Retained destinations at RabbitMQ: connections cut, a broker that is killed, or silent."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from queuecast.brokers.rabbitmq import RabbitBroker, stream_reader
from queuecast.brokers.rabbitmq.streams import declare_stream, stream_name
from queuecast.errors import Unavailable
from tests.support.rabbit import proxied, through
from tests.support.retained import FIRST, D, Sink, delete, open_feed, publish, read, retaining, rule
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import ListFeed, eventually
from tests.support.streams import Numbers, numbers

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]


async def test_cut_connections_are_no_gap(rabbit: RabbitMQ) -> None:
    key = unique("cut")
    kept = rule(f"/topic/{key}")
    async with (
        proxied(rabbit) as proxy,
        retaining(through(proxy, rabbit.url), kept) as broker,
        numbers(rabbit.url, "amq.topic", key) as publishing,
    ):
        reader, sink = await open_feed(broker, f"/topic/{key}")
        for _ in range(5):
            await publishing.more(200)
            taken = proxy.accepted
            proxy.cut()
            await eventually(lambda taken=taken: proxy.accepted >= taken + 3, "connections")  # type: ignore[misc]
            await eventually(lambda: broker.ready, "reconnected")
        await publishing.more(200)
        last = await publishing.stop()
        await sink.until(b"%d" % last)
        assert sink.gaps == []
        first = int(sink.bodies[0])
        assert sink.bodies == [b"%d" % n for n in range(first, last + 1)]
        on = await read(reader, FIRST)
        assert (on.bodies, on.gaps) == ([b"%d" % n for n in range(last + 1)], [])
    delete(rabbit, kept)


def check(sink: Sink, publishing: Numbers) -> None:
    """Every confirmed number once, in order, without a gap."""
    got = [int(body) for body in sink.bodies]
    assert sink.gaps == []
    assert got == sorted(set(got))
    assert not set(publishing.confirmed).difference(got, range(got[0]))


async def back(broker: RabbitBroker, patience: float = 120.0) -> None:
    """Wait until a broker is ready again; fails with its status."""
    try:
        await eventually(lambda: broker.ready, "ready again", patience)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {broker.status}") from None


async def test_a_broker_killed_under_load_is_no_gap(rabbit_fresh: RabbitServer) -> None:
    key = unique("killed")
    kept = rule(f"/topic/{key}")
    async with (
        retaining(rabbit_fresh.url, kept) as a,
        retaining(rabbit_fresh.url, kept) as b,
        # A broker that has just started confirms messages that reach no queue yet.
        numbers(rabbit_fresh.url, "amq.topic", key, mandatory=True) as publishing,
    ):
        (reader, one), (_, two) = [await open_feed(each, f"/topic/{key}") for each in (a, b)]
        await asyncio.to_thread(rabbit_fresh.flush)
        for _ in range(2):
            await publishing.more(300)
            await asyncio.to_thread(rabbit_fresh.kill)
            await asyncio.to_thread(rabbit_fresh.start)
            await back(a)
            await back(b)
        await publishing.more(300)
        last = await publishing.stop()
        for sink in (one, two):
            await sink.until(b"%d" % last)
            check(sink, publishing)
        everything = await read(reader, FIRST)
        assert everything.gaps == []
        assert everything.bodies[-len(one.bodies) :] == one.bodies
    async with retaining(rabbit_fresh.url, kept) as c:
        reader, _ = await open_feed(c, f"/topic/{key}")
        assert (await read(reader, FIRST)).bodies == everything.bodies
    delete(rabbit_fresh, kept)


async def test_a_stream_that_rabbitmq_lost_is_named_and_the_rest_works(
    rabbit_fresh: RabbitServer,
) -> None:
    key = unique("lost")
    kept = rule(f"/topic/{key}")
    name = stream_name(kept)
    async with retaining(rabbit_fresh.url, kept) as broker:
        _, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit_fresh, key, [b"1"])
        await sink.until(b"1")
        await asyncio.to_thread(rabbit_fresh.flush)
        await asyncio.to_thread(rabbit_fresh.kill)
        rabbit_fresh.forget_streams()
        await asyncio.to_thread(rabbit_fresh.start)
        await eventually(
            lambda: f"knows the stream {name!r} and cannot reach it" in broker.status, "status", 60
        )
        assert not broker.ready
        other = ListFeed()
        await broker.open_feed(D(f"/topic/other-{key}"), other)
        await broker.publish(D(f"/topic/other-{key}"), b"works")
        await other.until(1)
        with pytest.raises(Unavailable, match="cannot reach it"):
            await broker.publish(D(f"/topic/{key}"), b"2")
        # A gateway that starts meanwhile serves the others, too.
        late = RabbitBroker(rabbit_fresh.url, retain=[kept])
        try:
            await late.start()
            with pytest.raises(Unavailable, match="cannot reach it"):
                await late.declare()
            await late.publish(D(f"/topic/other-{key}"), b"works")
            await other.until(2)
        finally:
            await late.close()
        # What docs/rabbitmq.md says to do about it.
        await asyncio.to_thread(rabbit_fresh.ctl, "eval", removal(name))
        await back(broker)
        await broker.publish(D(f"/topic/{key}"), b"3")
        await sink.until(b"3")
        assert sink.start is not None
        assert len(sink.gaps) == 1
        assert sink.gaps[0][1].epoch != sink.start.epoch
        assert sink.bodies == [b"1", b"3"]


def removal(stream: str) -> str:
    """Return the expression in docs/rabbitmq.md, for this stream."""
    text = (Path(__file__).parents[2] / "docs" / "rabbitmq.md").read_text()
    (command,) = re.findall(r"rabbitmqctl eval '\n(.*?)'\n", text, re.DOTALL)
    expression: str = command.replace("NAME", stream)
    assert expression != command
    return expression


async def test_a_silent_broker_is_asked_again(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = unique("silent")
    kept = rule(f"/topic/{key}")
    asked = 0

    async def declare(*args: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            await asyncio.Event().wait()
        await declare_stream(*args)

    async with proxied(rabbit) as proxy, retaining(through(proxy, rabbit.url), kept) as broker:
        monkeypatch.setattr(stream_reader, "declare_stream", declare)
        monkeypatch.setattr(stream_reader, "ANSWERS", 2.0)
        asked = 1
        proxy.cut()
        await eventually(lambda: "does not answer" in broker.status, "status", 60)
        monkeypatch.setattr(stream_reader, "ANSWERS", 60.0)
        await back(broker)
        assert asked > 2
    delete(rabbit, kept)
