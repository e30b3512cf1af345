"""Channels on RabbitMQ: who goes away leaves none behind, and what fails on one is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pika
import pytest

from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.brokers.rabbitmq.connection import Link
from queuecast.destination import Destination
from queuecast.errors import LimitExceeded
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListDeliveries, ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse
_PROBES = 4  # channels that a connection keeps for the next call


@pytest.fixture
async def broker(rabbit: RabbitMQ) -> AsyncIterator[RabbitBroker]:
    async with started(rabbit.url, node=unique("channels")) as broker:
        yield broker


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


def channels(broker: RabbitBroker) -> int:
    """Count the consuming connection's channels, closing ones included."""
    link = broker._consuming.link
    assert link is not None
    return len(link._raw._channels)


async def test_cancelled_callers_leave_no_channel(broker: RabbitBroker) -> None:
    queue = unique("cancelled")
    await broker.open_feed(D(f"/topic/{queue}"), ListFeed())
    before = channels(broker)
    sinks = [ListDeliveries() for _ in range(100)]
    tasks = [asyncio.create_task(broker.consume(D(f"/queue/{queue}"), sink)) for sink in sinks]
    feeds = [
        asyncio.create_task(broker.open_feed(D(f"/topic/{queue}.{number}"), ListFeed()))
        for number in range(100)
    ]
    for number, task in enumerate([*tasks, *feeds]):
        if number % 5 == 0:
            await asyncio.sleep(0.002)  # cancels each in another moment of its opening
        task.cancel()
    results: list[Any] = await asyncio.gather(*tasks, *feeds, return_exceptions=True)
    assert any(isinstance(result, asyncio.CancelledError) for result in results)
    for result in results:
        if not isinstance(result, BaseException):
            await result.close()
    await eventually(lambda: channels(broker) <= before + _PROBES, "the channels are closed")
    sink = ListDeliveries()
    await broker.publish(D(f"/queue/{queue}"), b"1")
    consumer = await broker.consume(D(f"/queue/{queue}"), sink)
    await sink.until(1)  # nobody who went away has it
    assert consumer.ack(sink.deliveries[0].tag)
    await consumer.close()


async def test_a_feed_queue_deleted_again_and_again_leaves_no_channel(
    broker: RabbitBroker, raw: Any
) -> None:
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{unique('deleted')}"), sink)
    (queue,) = broker._feeds._queues.values()
    before = channels(broker)
    for turn in range(8):
        name = queue.name
        raw.queue_delete(name)
        await eventually(lambda turn=turn: len(sink.gaps) == turn + 1, "the gap")  # type: ignore[misc]
    await eventually(lambda: channels(broker) <= before + _PROBES, "the channels are closed")


async def test_a_gap_is_told_even_if_the_new_queue_cannot_be_made_at_once(
    broker: RabbitBroker, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = unique("delayed")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    (queue,) = broker._feeds._queues.values()
    real, calls = broker._feeds.canary_of, 0

    async def fails_once(link: Link) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LimitExceeded("not now")
        return await real(link)

    monkeypatch.setattr(broker._feeds, "canary_of", fails_once)
    raw.queue_delete(queue.name)
    await eventually(lambda: bool(sink.gaps), "the gap")
    await broker.publish(D(f"/topic/{key}"), b"after")
    await sink.until(1)
    assert sink.events == [sink.gaps[0], b"after"]


async def test_a_feed_that_failed_a_thousand_times_comes_back(
    broker: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def fails(_link: Link) -> Any:
        nonlocal calls
        calls += 1
        raise LimitExceeded("not now")

    monkeypatch.setattr(broker._feeds, "canary_of", fails)
    key = unique("patient")
    with pytest.raises(LimitExceeded):
        await broker.open_feed(D(f"/topic/{key}"), ListFeed())
    (queue,) = broker._feeds._queues.values()
    while calls < 1200:
        queue.wake()
        await asyncio.sleep(0)
    monkeypatch.undo()
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    await broker.publish(D(f"/topic/{key}"), b"1")
    await sink.until(1)


async def test_headers_nested_too_deeply_cost_nobody_the_connection(
    broker: RabbitBroker, raw: Any
) -> None:
    key = unique("deep")
    feed, queue = ListFeed(), ListDeliveries()
    await broker.open_feed(D(f"/topic/{key}"), feed)
    consumer = await broker.consume(D(f"/queue/{key}"), queue)
    link = broker._consuming.link
    for wrap in (lambda inner: {"k": inner}, lambda inner: [inner]):
        headers: Any = "the bottom"
        for _ in range(100):
            headers = wrap(headers)
        properties = pika.BasicProperties(headers={"deep": headers, "flat": "here"})
        raw.basic_publish("amq.topic", key, b"to the feed", properties)
        raw.basic_publish("", key, b"to the queue", properties)
    await feed.until(2)
    await queue.until(2)
    assert all(message.properties.headers["flat"] == "here" for message in feed.messages)
    assert queue.resets == 0
    assert broker._consuming.link is link
    await consumer.close()
    raw.queue_delete(key)


async def test_a_consumer_whose_sink_fails_ends_and_its_delivery_goes_back(
    broker: RabbitBroker, raw: Any
) -> None:
    class Broken(ListDeliveries):
        def deliver(self, delivery: Any) -> None:
            raise RuntimeError("broken on purpose")

    queue = unique("broken")
    broken, fine = Broken(), ListDeliveries()
    await broker.consume(D(f"/queue/{queue}"), broken)
    await broker.publish(D(f"/queue/{queue}"), b"1")
    await eventually(lambda: broken.error is not None, "the end")
    consumer = await broker.consume(D(f"/queue/{queue}"), fine)
    await fine.until(1)
    assert consumer.ack(fine.deliveries[0].tag)
    await consumer.close()
    raw.queue_delete(queue)
