"""Consumers on RabbitMQ: pausing, deleted queues, tags, many at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pika
import pytest

from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.destination import Destination
from queuecast.errors import BadRequest, Conflict, NotFound
from tests.support.rabbit import proxied, started, through
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListDeliveries, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@pytest.fixture
async def broker(rabbit: RabbitMQ) -> AsyncIterator[RabbitBroker]:
    async with started(rabbit.url) as broker:
        yield broker


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


@pytest.fixture
def queue(rabbit: RabbitMQ) -> Iterator[str]:
    name = unique("工作")
    yield name
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        connection.channel().queue_delete(name)


@pytest.mark.both_loops
async def test_a_consumer_gets_a_queue_s_messages_and_acks_them(
    broker: RabbitBroker, queue: str
) -> None:
    await broker.publish(D(f"/queue/{queue}"), "一".encode())
    sink = ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), sink, prefetch=1)
    await sink.until(1)
    assert consumer.ack(sink.deliveries[0].tag)
    assert not consumer.ack(sink.deliveries[0].tag)
    await broker.publish(D(f"/queue/{queue}"), b"two")
    await sink.until(2)
    assert sink.bodies == ["一".encode(), b"two"]
    await consumer.close()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_pausing_in_the_middle_of_a_flood_keeps_order_and_returns_nothing(
    broker: RabbitBroker, queue: str, raw: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is now, a pause of one turn of the loop is a brief one.
    monkeypatch.setattr("queuecast.brokers.rabbitmq.consumer._BRIEF", 60.0)
    raw.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    sink = ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), sink, prefetch=100)
    count = 2000
    publishing = asyncio.gather(
        *(broker.publish(D(f"/queue/{queue}"), b"%d" % number) for number in range(count))
    )
    acked = 0
    while acked < count:
        await sink.until(acked + 1)
        consumer.pause()
        consumer.resume()
        for delivery in sink.deliveries[acked:]:
            assert consumer.ack(delivery.tag)
            acked += 1
        consumer.pause()
        await asyncio.sleep(0)
        consumer.resume()
    await publishing
    assert sink.bodies == [b"%d" % number for number in range(count)]
    assert not any(delivery.message.redelivered for delivery in sink.deliveries)
    await consumer.close()


async def test_a_long_pause_leaves_the_queue_to_others(
    broker: RabbitBroker, queue: str, raw: Any
) -> None:
    paused, other = ListDeliveries(), ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), paused)
    await broker.publish(D(f"/queue/{queue}"), b"mine")
    await paused.until(1)
    consumer.pause()
    await broker.publish(D(f"/queue/{queue}"), b"held")

    def consumers() -> int:
        return int(raw.queue_declare(queue, passive=True).method.consumer_count)

    await eventually(lambda: consumers() == 0, "cancelled at the broker")
    helper = await broker.consume(D(f"/queue/{queue}"), other)
    await broker.publish(D(f"/queue/{queue}"), b"other's")
    await other.until(1)
    assert other.bodies == [b"other's"]
    assert paused.bodies == [b"mine"]
    await helper.close()
    consumer.resume()
    await paused.until(3)
    assert paused.bodies == [b"mine", b"held", b"other's"]
    for delivery in paused.deliveries:
        assert consumer.ack(delivery.tag)
    await consumer.close()


async def test_a_paused_consumer_stays_paused_over_a_reconnect(
    rabbit: RabbitMQ, queue: str, raw: Any
) -> None:
    async with proxied(rabbit) as proxy, started(through(proxy, rabbit.url)) as broker:
        sink = ListDeliveries()
        consumer = await broker.consume(D(f"/queue/{queue}"), sink)
        consumer.pause()
        proxy.cut()
        await eventually(lambda: sink.resets == 1, "the reset")
        await eventually(lambda: broker.ready, "reconnected")
        await broker.publish(D(f"/queue/{queue}"), b"1")
        assert raw.queue_declare(queue, passive=True).method.consumer_count == 0
        assert sink.deliveries == []
        consumer.resume()
        await sink.until(1)
        await consumer.close()


async def test_a_deleted_queue_ends_its_consumer_alone(
    broker: RabbitBroker, queue: str, raw: Any
) -> None:
    other = unique("other")
    doomed, fine = ListDeliveries(), ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), doomed)
    kept = await broker.consume(D(f"/queue/{other}"), fine)
    raw.queue_delete(queue)
    await eventually(lambda: doomed.error is not None, "the end")
    assert isinstance(doomed.error, NotFound)
    assert queue in str(doomed.error)
    await consumer.close()
    await broker.publish(D(f"/queue/{other}"), b"1")
    await fine.until(1)
    assert kept.ack(fine.deliveries[0].tag)
    await kept.close()
    raw.queue_delete(other)


async def test_closing_gives_back_what_is_unacked(broker: RabbitBroker, queue: str) -> None:
    for number in range(3):
        await broker.publish(D(f"/queue/{queue}"), b"%d" % number)
    first = ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), first)
    await first.until(3)
    assert consumer.ack(first.deliveries[1].tag)
    await consumer.close()
    second = ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), second)
    await second.until(2)
    assert second.bodies == [b"0", b"2"]
    assert all(delivery.message.redelivered for delivery in second.deliveries)
    await consumer.close()


async def test_a_queue_in_exclusive_use_is_a_conflict(
    broker: RabbitBroker, queue: str, raw: Any
) -> None:
    raw.queue_declare(queue, durable=True)
    raw.basic_consume(queue, lambda *_: None, exclusive=True)
    sink = ListDeliveries()
    with pytest.raises(Conflict):
        await broker.consume(D(f"/queue/{queue}"), sink)
    # The caller was told; nothing goes on behind its back once the holder has gone.
    raw.connection.close()
    await broker.publish(D(f"/queue/{queue}"), b"1")
    fine = ListDeliveries()
    consumer = await broker.consume(D(f"/queue/{queue}"), fine)
    await fine.until(1)
    await consumer.close()
    assert (sink.deliveries, sink.resets, sink.error) == ([], 0, None)


@pytest.mark.parametrize("prefetch", [0, -1, 65_536])
async def test_a_prefetch_out_of_bounds(broker: RabbitBroker, prefetch: int) -> None:
    with pytest.raises(BadRequest):
        await broker.consume(D("/queue/any"), ListDeliveries(), prefetch=prefetch)


async def test_hundreds_of_consumers_at_once(broker: RabbitBroker, queue: str) -> None:
    sinks = [ListDeliveries() for _ in range(300)]
    consumers = await asyncio.gather(
        *(broker.consume(D(f"/queue/{queue}"), sink, prefetch=1) for sink in sinks)
    )
    await asyncio.gather(
        *(broker.publish(D(f"/queue/{queue}"), b"%d" % number) for number in range(300))
    )
    await eventually(lambda: all(sink.deliveries for sink in sinks), "one each")
    await asyncio.gather(*(consumer.close() for consumer in consumers))
