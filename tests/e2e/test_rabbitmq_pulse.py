"""A RabbitMQ that stands still is noticed within seconds; one that is busy or blocked is kept."""

from __future__ import annotations

import asyncio

import pytest

from queuecast.brokers.rabbitmq import pulse
from queuecast.destination import Destination
from queuecast.errors import OutcomeUnknown, QueuecastError, Unavailable
from tests.support.rabbit import cuttable, started
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import DeliveryList, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse
# Seconds; heartbeats alone take 25 to 30.
SOON = pulse.QUIET + pulse.ANSWER + 8.0


async def test_a_connection_that_brings_nothing_is_dropped(rabbit: RabbitMQ) -> None:
    async with cuttable(rabbit) as (broker, proxy):
        queue = unique("pulse")
        sink = DeliveryList()
        sink.consumer = await broker.consume(D(f"/queue/{queue}"), sink)
        await broker.publish(D(f"/queue/{queue}"), b"1")
        proxy.stall()
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await broker.publish(D(f"/queue/{queue}"), b"2")
        await eventually(lambda: "not answered" in broker.status, "noticed", SOON)
        proxy.unstall()
        proxy.cut()
        await eventually(lambda: broker.ready, "connected again", 60)
        await broker.publish(D(f"/queue/{queue}"), b"3")
        await eventually(lambda: b"3" in sink.bodies, "goes on")


async def test_an_idle_connection_is_kept(rabbit: RabbitMQ) -> None:
    # Without heartbeats nothing comes by itself: each answer is to a question.
    async with started(f"{rabbit.url}?heartbeat=0") as broker:
        link = broker._consuming.link
        assert link is not None
        before = link.received
        await asyncio.sleep(2 * (pulse.QUIET + pulse.ANSWER))
        assert broker._consuming.link is link
        assert broker.ready
        assert link.received > before
        assert [each.reconnects for each in broker._supervisors] == [0, 0]


async def test_a_blocked_connection_is_kept(rabbit_own: RabbitServer) -> None:
    async with started(rabbit_own.url, patience=0.5) as broker:
        queue = unique("blocked")
        sink = DeliveryList()
        sink.consumer = await broker.consume(D(f"/queue/{queue}"), sink)
        await broker.publish(D(f"/queue/{queue}"), b"1")
        await asyncio.to_thread(rabbit_own.ctl, "set_vm_memory_high_watermark", "0")
        try:
            link = broker._publishing.link
            assert link is not None

            async def blocked() -> bool:
                try:
                    await broker.publish(D(f"/queue/{queue}"), b"2")
                except QueuecastError:
                    return link.blocked is not None
                return False

            for _ in range(50):
                if await blocked():
                    break
            assert link.blocked is not None
            await asyncio.sleep(2 * (pulse.QUIET + pulse.ANSWER))
            assert broker._publishing.link is link
            assert [each.reconnects for each in broker._supervisors] == [0, 0]
        finally:
            await asyncio.to_thread(rabbit_own.ctl, "set_vm_memory_high_watermark", "0.8")
        await eventually(lambda: link.blocked is None, "it takes messages again")
        await broker.publish(D(f"/queue/{queue}"), b"3")
