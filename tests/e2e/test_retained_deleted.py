"""Retained destinations at RabbitMQ: streams and exchanges that are deleted, and come back."""

from __future__ import annotations

import asyncio

import pytest

from queuecast.brokers.rabbitmq import stream_mark
from queuecast.brokers.rabbitmq.streams import StreamIdentity, stream_arguments, stream_name
from queuecast.position import Mark
from tests.support.rabbit import proxied, through
from tests.support.retained import channel, delete, open_feed, publish, read, retaining, rule, seen
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]


async def test_a_stream_deleted_under_running_gateways_is_a_gap(rabbit: RabbitMQ) -> None:
    key = unique("deleted")
    kept = rule(f"/topic/{key}")
    bodies = [b"%d" % n for n in range(5)]
    async with retaining(rabbit.url, kept) as a, retaining(rabbit.url, kept) as b:
        (reader, one), (_, two) = [await open_feed(each, f"/topic/{key}") for each in (a, b)]
        publish(rabbit, key, bodies)
        for sink in (one, two):
            await sink.until(b"4")
        delete(rabbit, kept)
        await eventually(lambda: bool(one.gaps and two.gaps), "the gaps")
        await eventually(lambda: a.ready and b.ready, "the new stream")
        # The very same messages again: nothing but the epoch tells the streams apart.
        publish(rabbit, key, bodies)
        await eventually(lambda: one.bodies == two.bodies == [*bodies, *bodies], "all twice")
        assert one.start is not None
        epochs = {sink.gaps[0][1].epoch for sink in (one, two)}
        assert len(epochs) == 1
        assert epochs != {one.start.epoch}
        assert len(one.gaps) == len(two.gaps) == 1
        offset = one.messages[2].offset
        assert offset is not None
        on = await read(reader, Mark(one.start.epoch, offset))
        assert on.bodies == bodies
        assert [gap for gap, _ in on.gaps] == ["epoch"]
    delete(rabbit, kept)


@pytest.mark.parametrize("by_hand", [False, True], ids=["by the gateway", "by hand"])
async def test_a_stream_deleted_and_made_anew_while_all_are_down_is_a_gap(
    rabbit: RabbitMQ, by_hand: bool
) -> None:
    key = unique("replaced")
    kept = rule(f"/topic/{key}")
    bodies = [b"%d" % n for n in range(5)]
    async with retaining(rabbit.url, kept) as broker:
        _, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, bodies)
        await sink.until(b"4")
        assert sink.start is not None
        mark = Mark(sink.start.epoch, sink.messages[2].offset or 0)
    delete(rabbit, kept)
    if by_hand:
        with channel(rabbit) as opened:
            opened.queue_declare(stream_name(kept), durable=True, arguments=stream_arguments(kept))
            opened.queue_bind(stream_name(kept), "amq.topic", key)
        publish(rabbit, key, bodies)
    async with retaining(rabbit.url, kept) as broker:
        reader, _ = await open_feed(broker, f"/topic/{key}")
        if not by_hand:
            publish(rabbit, key, bodies)
        await seen(broker, kept)
        on = await read(reader, mark)
        assert [gap for gap, _ in on.gaps] == ["epoch"]
        assert on.bodies == bodies
        assert on.place[0].epoch != mark.epoch
    delete(rabbit, kept)


async def test_a_stream_that_lost_its_end_gets_a_new_epoch(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_mark, "PATIENCE", 2.0)
    key = unique("shortened")
    kept = rule(f"/topic/{key}")
    name, identity = stream_name(kept), StreamIdentity(stream_name(kept)).exchange
    async with proxied(rabbit) as proxy, retaining(through(proxy, rabbit.url), kept) as broker:
        _, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, [b"%d" % n for n in range(5)])
        await sink.until(b"4")
        taken = proxy.accepted
        await proxy.refuse()
        proxy.cut()
        with channel(rabbit) as opened:
            # What a power cut can do to an unreplicated stream: same stream, fewer messages.
            # Here the identity is kept alive by another binding.
            keeper = opened.queue_declare("", exclusive=True).method.queue
            opened.queue_bind(keeper, identity)
            opened.queue_delete(name)
            opened.queue_declare(name, durable=True, arguments=stream_arguments(kept))
            opened.queue_bind(name, "amq.topic", key)
            opened.queue_bind(name, identity)
            opened.basic_publish("amq.topic", key, b"again")
            await proxy.accept()
            await eventually(lambda: proxy.accepted >= taken + 3, "new connections")
            await sink.until(b"again")
        assert sink.start is not None
        assert len(sink.gaps) == 1
        assert sink.gaps[0][1].epoch != sink.start.epoch
    delete(rabbit, kept)


async def test_an_exchange_that_comes_back_is_bound_again_with_a_gap(rabbit: RabbitMQ) -> None:
    name = unique("exchange")
    kept = rule(f"/exchange/{name}/#")
    with channel(rabbit) as opened:
        opened.exchange_declare(name, "topic", durable=True)
    async with retaining(rabbit.url, kept, rebind=0.2) as broker:
        _, sink = await open_feed(broker, f"/exchange/{name}/a")
        publish(rabbit, "a", [b"1"], name)
        await sink.until(b"1")
        with channel(rabbit) as opened:
            opened.exchange_delete(name)
        await asyncio.sleep(1.0)  # several looks
        with channel(rabbit) as opened:
            opened.exchange_declare(name, "topic", durable=True)
        await eventually(lambda: bool(sink.gaps), "the gap")
        publish(rabbit, "a", [b"2"], name)
        await sink.until(b"2")
        assert sink.start is not None
        assert [mark.epoch for _, mark in sink.gaps] == [sink.start.epoch]
    delete(rabbit, kept)
    with channel(rabbit) as opened:
        opened.exchange_delete(name)
