"""Retained destinations at RabbitMQ whose exchange is deleted: a gap, live and in the history."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from queuecast.brokers.base import HistoryReader
from queuecast.brokers.rabbitmq import stream_mark
from queuecast.brokers.rabbitmq.connection import Channel
from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule
from tests.support.rabbit import proxied, through
from tests.support.retained import (
    FIRST,
    Sink,
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
from tests.support.sinks import eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(300)]

BODIES = [b"%d" % n for n in range(10)]


@contextlib.contextmanager
def exchange(rabbit: RabbitMQ) -> Iterator[tuple[str, RetainRule]]:
    """An exchange with a rule; both are deleted in the end."""
    name = unique("exchange")
    kept = rule(f"/exchange/{name}/#")
    recreate(rabbit, name, first=True)
    try:
        yield name, kept
    finally:
        delete(rabbit, kept)
        with channel(rabbit) as opened:
            opened.exchange_delete(name)


def recreate(rabbit: RabbitMQ, name: str, *, first: bool = False) -> None:
    with channel(rabbit) as opened:
        if not first:
            opened.exchange_delete(name)
        opened.exchange_declare(name, "topic", durable=True)


def again(name: str) -> str:
    return f"the exchange {name!r} was deleted and declared again"


def place(sink: Sink, body: bytes) -> Mark:
    """Return the position of the message with this body."""
    assert sink.start is not None
    offset = next(each.offset for each in sink.messages if each.body == body)
    assert offset is not None
    return Mark(sink.start.epoch, offset)


async def check_history(reader: HistoryReader, why: str, before: Mark, after: Mark) -> None:
    """Ten messages, of which the gap is after the fifth."""
    cases: list[tuple[Start | Mark, list[bytes], list[str]]] = [
        (FIRST, BODIES, [why]),
        (before, BODIES[5:], [why]),
        (after, BODIES[6:], []),
        (Start("last", count=5), BODIES[5:], []),
        (Start("last", count=6), BODIES[4:], [why]),
        (Start("last", count=20), BODIES, [why]),
    ]
    for start, bodies, gaps in cases:
        for max_bytes in (1, 1 << 18):
            on = await read(reader, start, max_bytes)
            assert on.bodies == bodies, start
            assert [gap for gap, _ in on.gaps] == gaps, start
            for _, mark in on.gaps:
                assert before.offset < mark.offset < after.offset


async def test_recreated_under_running_gateways(rabbit: RabbitMQ) -> None:
    with exchange(rabbit) as (name, kept):
        async with retaining(rabbit.url, kept) as a, retaining(rabbit.url, kept) as b:
            (reader, one), (other, two) = [
                await open_feed(each, f"/exchange/{name}/a") for each in (a, b)
            ]
            publish(rabbit, "a", BODIES[:5], name)
            for sink in (one, two):
                await sink.until(b"4")
            recreate(rabbit, name)
            publish(rabbit, "a", [b"missed"], name)
            for sink in (one, two):
                await eventually(lambda sink=sink: bool(sink.gaps), "the gap")  # type: ignore[misc]
            publish(rabbit, "a", BODIES[5:], name)
            for sink in (one, two):
                await sink.until(b"9")
            await asyncio.sleep(2.5)  # some looks: no gap is told twice
            assert one.events == two.events
            assert [gap for gap, _ in one.gaps] == [again(name)]
            assert one.bodies == BODIES
            before, after = place(one, b"4"), place(one, b"5")
            assert [mark.epoch for _, mark in one.gaps] == [before.epoch]
            assert before.offset < one.gaps[0][1].offset < after.offset
            for each in (reader, other):
                await check_history(each, again(name), before, after)
        # The gap is in the stream itself.
        async with retaining(rabbit.url, kept) as broker:
            reader, sink = await open_feed(broker, f"/exchange/{name}/a")
            await seen(broker, kept)
            await check_history(reader, again(name), before, after)
            assert not sink.gaps
            # Another key's readers have missed something too, perhaps.
            reader, _ = await open_feed(broker, f"/exchange/{name}/other")
            on = await read(reader, FIRST)
            assert (on.bodies, [gap for gap, _ in on.gaps]) == ([], [again(name)])


async def test_recreated_while_no_gateway_runs(rabbit: RabbitMQ) -> None:
    with exchange(rabbit) as (name, kept):
        for turn in range(2):
            async with retaining(rabbit.url, kept) as broker:
                reader, sink = await open_feed(broker, f"/exchange/{name}/a")
                await seen(broker, kept)
                publish(rabbit, "a", BODIES[5 * turn : 5 * turn + 5], name)
                await sink.until(BODIES[5 * turn + 4])
                assert not sink.gaps
                if not turn:
                    before = place(sink, b"4")
                    assert not (await read(reader, FIRST)).gaps
                else:
                    await check_history(reader, again(name), before, place(sink, b"5"))
            if not turn:
                recreate(rabbit, name)
                publish(rabbit, "a", [b"missed"], name)
        # A start after which nothing was missed adds no gap.
        async with retaining(rabbit.url, kept) as broker:
            reader, _ = await open_feed(broker, f"/exchange/{name}/a")
            await seen(broker, kept)
            assert len((await read(reader, FIRST)).gaps) == 1


async def test_recreated_while_the_connection_is_away(rabbit: RabbitMQ) -> None:
    with exchange(rabbit) as (name, kept):
        async with proxied(rabbit) as proxy, retaining(through(proxy, rabbit.url), kept) as broker:
            reader, sink = await open_feed(broker, f"/exchange/{name}/a")
            publish(rabbit, "a", BODIES[:5], name)
            await sink.until(b"4")
            await proxy.refuse()
            proxy.cut()
            await eventually(lambda: not broker.ready, "away")
            recreate(rabbit, name)
            publish(rabbit, "a", [b"missed"], name)
            await proxy.accept()
            await eventually(lambda: bool(sink.gaps), "the gap")
            publish(rabbit, "a", BODIES[5:], name)
            await sink.until(b"9")
            assert [gap for gap, _ in sink.gaps] == [again(name)]
            assert sink.bodies == BODIES
            await check_history(reader, again(name), place(sink, b"4"), place(sink, b"5"))


async def test_missing_for_a_while(rabbit: RabbitMQ) -> None:
    with exchange(rabbit) as (name, kept):
        async with retaining(rabbit.url, kept) as a, retaining(rabbit.url, kept) as b:
            (reader, one), (_, two) = [
                await open_feed(each, f"/exchange/{name}/a") for each in (a, b)
            ]
            publish(rabbit, "a", BODIES[:5], name)
            for sink in (one, two):
                await sink.until(b"4")
            with channel(rabbit) as opened:
                opened.exchange_delete(name)
            await asyncio.sleep(3)
            assert not one.gaps
            recreate(rabbit, name, first=True)
            for sink in (one, two):
                await eventually(lambda sink=sink: bool(sink.gaps), "the gap")  # type: ignore[misc]
            publish(rabbit, "a", BODIES[5:], name)
            for sink in (one, two):
                await sink.until(b"9")
            await asyncio.sleep(2.5)
            why = f"the exchange {name!r} was missing"
            assert [gap for gap, _ in one.gaps] == [gap for gap, _ in two.gaps] == [why]
            await check_history(reader, why, place(one, b"4"), place(one, b"5"))


async def test_a_plain_unbind_does_not_hit_our_binding(rabbit: RabbitMQ) -> None:
    with exchange(rabbit) as (name, kept):
        async with retaining(rabbit.url, kept) as broker:
            _, sink = await open_feed(broker, f"/exchange/{name}/a")
            with channel(rabbit) as opened:
                opened.queue_unbind(stream_name(kept), name, kept.pattern)
            publish(rabbit, "a", BODIES, name)
            await sink.until(b"9")
            assert (sink.bodies, sink.gaps) == (BODIES, [])


@pytest.mark.parametrize("silent", [("live",), ("live", "end")], ids=["one replica", "both"])
async def test_a_replica_that_is_behind_is_no_new_epoch(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...]
) -> None:
    monkeypatch.setattr(stream_mark, "PATIENCE", 1.0)
    behind = False
    quiet = 0
    consume = Channel.consume

    async def lagging(
        self: Channel, queue: str, tag: str, on_message: object, **how: object
    ) -> None:
        """A consumer at a replica that has not caught up gets nothing."""
        nonlocal quiet
        if behind and tag in silent:
            quiet += 1
            return
        await consume(self, queue, tag, on_message, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Channel, "consume", lagging)
    with exchange(rabbit) as (name, kept):
        async with proxied(rabbit) as proxy, retaining(through(proxy, rabbit.url), kept) as broker:
            _, sink = await open_feed(broker, f"/exchange/{name}/a")
            publish(rabbit, "a", BODIES[:5], name)
            await sink.until(b"4")
            behind = True
            proxy.cut()
            await eventually(lambda: quiet >= 2 * len(silent), "two attempts")
            assert not broker.ready
            publish(rabbit, "a", BODIES[5:], name)
            behind = False
            await sink.until(b"9")
            await eventually(lambda: broker.ready, "ready")
            assert (sink.bodies, sink.gaps) == (BODIES, [])
