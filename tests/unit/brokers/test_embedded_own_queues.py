"""The embedded broker's priorities among consumers, delivery counts, and leaving sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from queuecast.brokers.base import ConsumeSpec, Owner, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.errors import NotFound
from tests.support.sinks import DeliveryList
from tests.unit.brokers.embedded_rig import D, Q, running
from tests.unit.brokers.hand_clock import HandClock


@pytest.fixture
async def broker(clock: HandClock) -> AsyncIterator[EmbeddedBroker]:
    async with running(clock) as made:
        yield made


async def consume(
    broker: EmbeddedBroker, clock: HandClock, prefetch: int, priority: int
) -> DeliveryList:
    sink = DeliveryList()
    spec = ConsumeSpec(arguments={"x-priority": priority} if priority else {})
    sink.consumer = await broker.consume(Q, sink, prefetch=prefetch, spec=spec)
    clock.turn()
    return sink


async def test_a_higher_priority_is_served_first(broker: EmbeddedBroker, clock: HandClock) -> None:
    none = await consume(broker, clock, 10, 0)
    high = await consume(broker, clock, 2, 5)
    low = await consume(broker, clock, 10, -1)
    twin = await consume(broker, clock, 2, 5)
    for number in range(7):
        await broker.publish(Q, b"%d" % number)
    assert high.bodies == [b"0", b"2"]
    assert twin.bodies == [b"1", b"3"]
    assert none.bodies == [b"4", b"5", b"6"]
    assert low.bodies == []
    assert high.ack()
    await broker.publish(Q, b"7")
    assert high.bodies == [b"0", b"2", b"7"]


async def test_a_delivery_limit(broker: EmbeddedBroker, clock: HandClock) -> None:
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
    }
    await broker.declare(queues=[QueueSpec("dead"), QueueSpec("q", arguments=arguments)])
    sink = await consume(broker, clock, 1, 0)
    await broker.publish(Q, b"poison")
    for _ in range(3):
        sink.nack(requeue=True)
    counts = [each.message.properties.headers.get("x-delivery-count") for each in sink.deliveries]
    assert counts == [None, 1, 2]
    assert broker.counts().queues["q"].ready == 0
    assert broker.counts().queues["q"].unacked == 0
    dead = DeliveryList()
    dead.consumer = await broker.consume(D("/queue/dead"), dead)
    clock.turn()
    (death,) = dead.deliveries[0].message.properties.headers["x-death"]
    assert death["reason"] == "delivery_limit"
    dead.ack()


async def test_an_owner_that_left_declares_nothing(broker: EmbeddedBroker) -> None:
    owner = Owner()
    queue = QueueSpec("mine", durable=False, exclusive=True)
    await broker.declare_own(queue, owner)
    await broker.release(owner)
    assert broker.counts().queues == {}
    with pytest.raises(NotFound):
        await broker.consume(D("/amq/queue/mine"), DeliveryList())
    await broker.release(owner)
