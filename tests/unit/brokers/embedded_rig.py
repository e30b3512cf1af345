"""The embedded broker with its clock turned by hand, and what its tests ask of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from queuecast.brokers.base import Delivery, QueueSpec
from queuecast.brokers.embedded.broker import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_QUEUES,
    EmbeddedBroker,
)
from queuecast.destination import Destination
from tests.support.sinks import DeliveryList
from tests.unit.brokers.hand_clock import HandClock

D = Destination.parse
Q = D("/queue/q")


@contextlib.asynccontextmanager
async def running(
    clock: HandClock, *, max_bytes: int = DEFAULT_MAX_BYTES, max_queues: int = DEFAULT_MAX_QUEUES
) -> AsyncIterator[EmbeddedBroker]:
    """Yield a started broker that has to be empty in the end."""
    made = EmbeddedBroker(clock, max_bytes=max_bytes, max_queues=max_queues)
    await made.start()
    yield made
    await made.close()
    counts = made.counts()
    assert counts.queue_bytes == 0
    assert counts.feeds == 0
    assert clock.waiting == 0


async def declare(
    broker: EmbeddedBroker, name: str = "q", arguments: dict[str, Any] | None = None
) -> None:
    await broker.declare(queues=[QueueSpec(name, arguments=arguments or {})])


async def consume(
    broker: EmbeddedBroker, clock: HandClock, name: str = "q", prefetch: int = 100
) -> DeliveryList:
    sink = DeliveryList()
    sink.consumer = await broker.consume(D(f"/amq/queue/{name}"), sink, prefetch=prefetch)
    clock.turn()
    return sink


def ready(broker: EmbeddedBroker, name: str = "q") -> int:
    return broker.counts().queues[name].ready


async def drain(broker: EmbeddedBroker, clock: HandClock, name: str) -> list[Delivery]:
    sink = await consume(broker, clock, name)
    while sink.outstanding:
        sink.ack()
    assert sink.consumer is not None
    await sink.consumer.close()
    return sink.deliveries
