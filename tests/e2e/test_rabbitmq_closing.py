"""Closing the RabbitMQ broker: with confirms in flight, and in the middle of connecting."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from queuecast.brokers.base import SettlingReader
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.destination import Destination
from queuecast.errors import QueuecastError, Unavailable
from tests.support.rabbit import proxied, started, through
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListDeliveries, ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


async def test_closing_waits_for_confirms_and_no_longer(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url, grace=600.0) as broker:
        key = unique("closing")
        await broker.publish(D(f"/topic/{key}"), b"first")
        publishes = [
            asyncio.create_task(broker.publish(D(f"/topic/{key}"), b"%d" % number))
            for number in range(200)
        ]
        await asyncio.sleep(0)
        await broker.close()
        assert await asyncio.gather(*publishes) == [None] * 200
        with pytest.raises(Unavailable):
            await broker.publish(D(f"/topic/{key}"), b"late")


def rabbit_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if "rabbitmq" in task.get_name()]


def settling_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if "settle" in task.get_name()]


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.05, 0.1, 0.3])
async def test_closing_in_the_middle_of_a_reconnect_leaves_nothing(
    rabbit: RabbitMQ, moment: float
) -> None:
    async with proxied(rabbit) as proxy:
        broker = RabbitBroker(through(proxy, rabbit.url), reconnect=0.1)
        await broker.start()
        key = unique("closing")
        await broker.open_feed(D(f"/topic/{key}"), ListFeed())
        consumer = await broker.consume(D(f"/queue/{key}"), ListDeliveries())
        proxy.cut()
        await asyncio.sleep(moment)
        await broker.close()
        await consumer.close()
        assert broker.status == "closed" or not broker.ready
        await eventually(lambda: not proxy.connections, "no connection is left")
        assert rabbit_tasks() == []
        with pytest.raises(Unavailable):
            await broker.publish(D(f"/topic/{key}"), b"late")
        with pytest.raises(Unavailable):
            await broker.open_feed(D(f"/topic/{key}"), ListFeed())


async def test_closing_while_starting_leaves_nothing(rabbit: RabbitMQ) -> None:
    async with proxied(rabbit) as proxy:
        broker = RabbitBroker(through(proxy, rabbit.url))
        starting = asyncio.create_task(broker.start())
        await eventually(lambda: proxy.accepted > 0, "connecting")
        await broker.close()
        with contextlib.suppress(QueuecastError):
            await starting
        await eventually(lambda: not proxy.connections, "no connection is left")
        assert rabbit_tasks() == []
        assert not broker.ready


async def test_closing_tells_those_who_wait_for_a_queue_to_be_read(rabbit: RabbitMQ) -> None:
    async with proxied(rabbit) as proxy:
        broker = RabbitBroker(through(proxy, rabbit.url), reconnect=0.1, patience=600.0)
        await broker.start()
        reader = await broker.open_feed(D(f"/topic/{unique('closing')}"), ListFeed())
        assert isinstance(reader, SettlingReader)
        await asyncio.gather(*(reader.settle() for _ in range(100)))
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not broker.ready, "the cut noticed")
        waiting = [asyncio.create_task(reader.settle()) for _ in range(100)]
        await asyncio.sleep(0.2)
        waiting[0].cancel()
        assert not any(task.done() for task in waiting[1:])
        await broker.close()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, Unavailable) for end in ends[1:]), ends
        await eventually(lambda: not settling_tasks(), "nobody looks any more")
        with pytest.raises(Unavailable):
            await reader.settle()
