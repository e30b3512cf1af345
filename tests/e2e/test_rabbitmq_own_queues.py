"""Consumers with queues of their own, and streams, when their connection to RabbitMQ is cut."""

from __future__ import annotations

import asyncio

import pytest

from queuecast.brokers.base import BindingSpec, ConsumeSpec, Owner, QueueSpec
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.brokers.rabbitmq.consumer import LOST, PLACELESS
from queuecast.destination import Destination
from queuecast.errors import Conflict, Locked
from queuecast.message import Properties
from tests.support.proxy import TcpProxy
from tests.support.rabbit import cuttable, proxied, started, through
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListDeliveries, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse
PERSISTENT = Properties(persistent=True)


async def cut(proxy: TcpProxy, broker: RabbitBroker) -> None:
    link = broker._consuming.link
    proxy.cut()
    await eventually(
        lambda: broker.ready and broker._consuming.link is not link, "connected again", 60
    )


def bound(name: str, *, key: str | None = None, **more: object) -> QueueSpec:
    binding = BindingSpec("amq.topic", key or name)
    return QueueSpec(name, bindings=(binding,), **more)  # type: ignore[arg-type]


async def test_an_exclusive_queue_is_made_anew_with_a_gap(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        name, owner = unique("excl"), Owner()
        sink = ListDeliveries()
        queue = bound(name, durable=False, exclusive=True, auto_delete=True)
        consumer = await broker.consume(
            D("/topic/x"), sink, prefetch=5, spec=ConsumeSpec(queue, owner=owner)
        )
        await other.publish(D(f"/topic/{name}"), b"before")
        await sink.until(1)
        await cut(proxy, broker)
        await eventually(lambda: sink.gaps == [LOST], "the gap", 60)
        assert sink.resets == 1

        async def arrives() -> None:
            # What is published before it is bound again is what the gap is about.
            while len(sink.deliveries) < 2:
                await other.publish(D(f"/topic/{name}"), b"after")
                await asyncio.sleep(0.05)

        await asyncio.wait_for(arrives(), 60)
        assert sink.bodies[1] == b"after"
        # It is as exclusive as before.
        with pytest.raises(Locked):
            await broker.consume(D(f"/amq/queue/{name}"), ListDeliveries())
        with pytest.raises(Locked):
            await other.consume(D(f"/amq/queue/{name}"), ListDeliveries())
        await consumer.close()
        assert rabbit.list_queues().get(name) is None


async def test_a_durable_queue_goes_on_without_a_gap(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        name, owner = unique("dur"), Owner()
        sink = ListDeliveries()
        queue = bound(name, arguments={"x-expires": 60_000})
        consumer = await broker.consume(
            D("/topic/x"), sink, prefetch=5, spec=ConsumeSpec(queue, owner=owner)
        )
        await other.publish(D(f"/topic/{name}"), b"acked", PERSISTENT)
        await other.publish(D(f"/topic/{name}"), b"unacked", PERSISTENT)
        await sink.until(2)
        consumer.ack(sink.deliveries[0].tag)
        await eventually(lambda: _unacked(rabbit, name) == 1, "the ack has arrived")
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not broker.ready, "the cut is noticed")
        await other.publish(D(f"/topic/{name}"), b"meanwhile", PERSISTENT)
        await proxy.accept()
        await sink.until(4)
        assert sink.bodies[2:] == [b"unacked", b"meanwhile"]
        assert sink.deliveries[2].message.redelivered
        assert sink.gaps == []
        await consumer.close()
        await broker.delete_own(name, owner)


def _unacked(rabbit: RabbitMQ, name: str) -> int:
    return rabbit.list_queues()[name].messages


async def test_a_queue_that_came_back_different_ends_its_consumer(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        name, owner = unique("changed"), Owner()
        sink = ListDeliveries()
        queue = bound(name, arguments={"x-expires": 60_000})
        await broker.consume(D("/topic/x"), sink, spec=ConsumeSpec(queue, owner=owner))
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not broker.ready, "the cut is noticed")
        await other.delete_own(name, owner)
        await other.declare_own(QueueSpec(name, arguments={"x-expires": 61_000}), owner)
        await proxy.accept()
        await eventually(lambda: sink.error is not None, "the end")
        assert isinstance(sink.error, Conflict)


async def test_a_stream_goes_on_behind_what_was_acked(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        name, owner = unique("stream"), Owner()
        sink = ListDeliveries()
        queue = bound(name, arguments={"x-queue-type": "stream"})
        consumer = await broker.consume(
            D("/topic/x"), sink, prefetch=6, spec=ConsumeSpec(queue, owner=owner)
        )
        for number in range(6):
            await other.publish(D(f"/topic/{name}"), b"%d" % number, PERSISTENT)
        await sink.until(6)
        for acked in (0, 1, 3):
            assert consumer.ack(sink.deliveries[acked].tag)
        await cut(proxy, broker)
        await other.publish(D(f"/topic/{name}"), b"6", PERSISTENT)
        await sink.until(10)
        assert sink.bodies[6:] == [b"2", b"4", b"5", b"6"]
        assert [each.message.redelivered for each in sink.deliveries[6:]] == [
            True,
            True,
            True,
            False,
        ]
        assert sink.gaps == []
        await consumer.close()
        await broker.delete_own(name, owner)


async def test_a_stream_without_a_place_has_a_gap(rabbit: RabbitMQ) -> None:
    async with cuttable(rabbit) as (broker, proxy):
        name, owner = unique("stream"), Owner()
        sink = ListDeliveries()
        queue = bound(name, arguments={"x-queue-type": "stream"})
        consumer = await broker.consume(D("/topic/x"), sink, spec=ConsumeSpec(queue, owner=owner))
        await cut(proxy, broker)
        await eventually(lambda: sink.gaps == [PLACELESS], "the gap", 60)
        await broker.publish(D(f"/topic/{name}"), b"new", PERSISTENT)
        await sink.until(1)
        await consumer.close()
        await broker.delete_own(name, owner)


@pytest.mark.parametrize("destination", ["/queue", "/amq/queue"])
async def test_a_stream_that_nobody_called_one(rabbit: RabbitMQ, destination: str) -> None:
    """Read by its name alone it goes on where it was as well, after a pause and after a cut."""
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        name, owner = unique("stream"), Owner()
        to = D(f"/amq/queue/{name}")
        await other.declare_own(QueueSpec(name, arguments={"x-queue-type": "stream"}), owner)
        sink = ListDeliveries()
        consumer = await broker.consume(D(f"{destination}/{name}"), sink, prefetch=6)
        for number in range(3):
            await other.publish(to, b"%d" % number, PERSISTENT)
        await sink.until(3)
        for acked in (0, 2):
            assert consumer.ack(sink.deliveries[acked].tag)
        consumer.pause()
        await eventually(lambda: rabbit.list_queues()[name].consumers == 0, "the pause", 60)
        await other.publish(to, b"3", PERSISTENT)
        consumer.resume()
        await sink.until(4)
        assert sink.bodies == [b"0", b"1", b"2", b"3"]
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not broker.ready, "the cut is noticed")
        await other.publish(to, b"4", PERSISTENT)
        await proxy.accept()
        await sink.until(7)
        assert sink.bodies[4:] == [b"1", b"3", b"4"]
        assert [each.message.redelivered for each in sink.deliveries[4:]] == [True, True, False]
        assert sink.gaps == []
        await consumer.close()
        await other.delete_own(name, owner)


async def test_a_queue_whose_messages_look_like_a_streams(rabbit: RabbitMQ) -> None:
    """Whoever publishes a header of that name makes nobody lose a message."""
    async with proxied(rabbit) as proxy, started(through(proxy, rabbit.url)) as broker:
        name = unique("plain")
        to = D(f"/queue/{name}")
        sink = ListDeliveries()
        consumer = await broker.consume(to, sink, prefetch=10)
        for offset in (7, 7, 3):
            headers = {"x-stream-offset": offset}
            await broker.publish(to, b"%d" % offset, Properties(persistent=True, headers=headers))
        await sink.until(3)
        assert sink.bodies == [b"7", b"7", b"3"]
        consumer.pause()
        await eventually(lambda: rabbit.list_queues()[name].consumers == 0, "the pause", 60)
        headers = {"x-stream-offset": 1}
        await broker.publish(to, b"1", Properties(persistent=True, headers=headers))
        consumer.resume()
        await sink.until(4)
        assert sink.resets == 0
        await cut(proxy, broker)
        await sink.until(8)
        assert sorted(sink.bodies[4:]) == [b"1", b"3", b"7", b"7"]
        await consumer.close()
        await broker.delete_own(name, Owner())


async def test_what_a_lost_session_declared_is_nobody_s(rabbit: RabbitMQ) -> None:
    """Its exclusive queue went with the connection; another session may take the name."""
    async with cuttable(rabbit) as (broker, proxy):
        name, first, second = unique("name"), Owner(), Owner()
        queue = QueueSpec(name, durable=False, exclusive=True)
        await broker.declare_own(queue, first)
        with pytest.raises(Locked):
            await broker.declare_own(queue, second)
        await cut(proxy, broker)
        await broker.declare_own(queue, second)
        await broker.release(first)
        assert rabbit.list_queues().get(name) is not None
        await broker.release(second)
        assert rabbit.list_queues().get(name) is None
