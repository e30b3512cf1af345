"""Queues that a consumer has declared for itself: exclusive, durable, typed; and whose they are."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from queuecast.brokers.base import (
    BindingSpec,
    Broker,
    ConsumeSpec,
    Owner,
    QueueSpec,
)
from queuecast.destination import Destination
from queuecast.errors import Conflict, Locked, NotFound, PublishFailed, Unavailable
from queuecast.message import Properties
from tests.support.sinks import DeliveryList, until

pytestmark = pytest.mark.needs("queues")

D = Destination.parse

Open = Callable[..., Awaitable[DeliveryList]]


@pytest.fixture
async def open_own(broker: Broker) -> AsyncIterator[Open]:
    """Consume with a spec; all consumers are closed after the test."""
    opened: list[DeliveryList] = []

    async def open_own(spec: ConsumeSpec, at: str = "/topic/x", prefetch: int = 10) -> DeliveryList:
        sink = DeliveryList()
        sink.consumer = await broker.consume(D(at), sink, prefetch=prefetch, spec=spec)
        opened.append(sink)
        return sink

    yield open_own
    for sink in opened:
        assert sink.consumer is not None
        await sink.consumer.close()


def transient(name: str, owner: Owner, *, auto_delete: bool = True, **more: Any) -> ConsumeSpec:
    queue = QueueSpec(
        name,
        durable=False,
        exclusive=True,
        auto_delete=auto_delete,
        bindings=(BindingSpec("amq.topic", f"{name}.*"),),
        **more,
    )
    return ConsumeSpec(queue, owner=owner)


def lasting(name: str, owner: Owner, **arguments: Any) -> ConsumeSpec:
    """A durable queue; those of type classic leave a shared server by themselves."""
    if "x-queue-type" not in arguments:
        arguments["x-expires"] = 60_000
    queue = QueueSpec(name, arguments=arguments, bindings=(BindingSpec("amq.topic", f"{name}.*"),))
    return ConsumeSpec(queue, owner=owner)


async def exists(broker: Broker, name: str) -> bool:
    try:
        consumer = await broker.consume(D(f"/amq/queue/{name}"), DeliveryList())
    except NotFound:
        return False
    except Locked:
        return True
    await consumer.close()
    return True


async def gone(broker: Broker, name: str) -> None:
    deadline = asyncio.get_running_loop().time() + 15
    while await exists(broker, name):
        assert asyncio.get_running_loop().time() < deadline, f"queue {name} is still there"
        await asyncio.sleep(0.02)


async def test_a_transient_queue_is_one_owner_s(broker: Broker, open_own: Open, name: str) -> None:
    mine, other = Owner(), Owner()
    sink = await open_own(transient(name, mine))
    await broker.publish(D(f"/topic/{name}.a"), b"1")
    await broker.publish(D(f"/amq/queue/{name}"), b"2")
    assert await sink.got(2) == [b"1", b"2"]
    assert [each.message.exchange for each in sink.deliveries] == ["amq.topic", ""]
    for refused in (transient(name, other), ConsumeSpec(owner=other), ConsumeSpec()):
        for at in (f"/amq/queue/{name}", f"/queue/{name}", f"/reply-queue/{name}"):
            with pytest.raises(Locked):
                await open_own(refused, at)
    with pytest.raises(Locked):
        await broker.delete_own(name, other)
    with pytest.raises(Locked):
        await broker.declare_own(QueueSpec(name), other)
    # Its own session may use it as often as it likes, and the queue goes with the last consumer.
    second = await open_own(ConsumeSpec(owner=mine), f"/amq/queue/{name}")
    assert sink.consumer is not None
    await sink.consumer.close()
    assert await second.got(2) == [b"1", b"2"]
    assert all(each.message.redelivered for each in second.deliveries)
    assert second.consumer is not None
    await second.consumer.close()
    await gone(broker, name)


async def test_an_exclusive_queue_lives_as_long_as_its_session(
    broker: Broker, open_own: Open, name: str
) -> None:
    mine = Owner()
    sink = await open_own(transient(name, mine, auto_delete=False))
    assert sink.consumer is not None
    await sink.consumer.close()
    await broker.publish(D(f"/topic/{name}.a"), b"kept")
    again = await open_own(transient(name, mine, auto_delete=False))
    assert await again.got(1) == [b"kept"]
    await broker.release(mine)
    await gone(broker, name)
    await until(lambda: again.error, "the consumer is told")
    with pytest.raises(Unavailable):
        await open_own(transient(name, mine))
    assert not await exists(broker, name)


async def test_a_queue_declared_without_a_consumer(broker: Broker, name: str) -> None:
    mine = Owner()
    await broker.declare_own(QueueSpec(name, durable=False, exclusive=True), mine)
    await broker.publish(D(f"/amq/queue/{name}"), b"taken")
    await broker.declare_own(QueueSpec(name, durable=False, exclusive=True), mine)
    with pytest.raises(Conflict):
        await broker.declare_own(QueueSpec(name, arguments={"x-max-length": 5}), mine)
    await broker.release(mine)
    await gone(broker, name)


async def test_a_durable_queue_keeps_what_comes_meanwhile(
    broker: Broker, open_own: Open, name: str
) -> None:
    sink = await open_own(lasting(name, Owner()))
    await broker.publish(D(f"/topic/{name}.a"), b"1", Properties(persistent=True))
    assert await sink.got(1) == [b"1"]
    assert sink.ack()
    assert sink.consumer is not None
    await sink.consumer.close()
    await broker.publish(D(f"/topic/{name}.a"), b"2", Properties(persistent=True))
    later = await open_own(lasting(name, Owner()))
    assert await later.got(1) == [b"2"]
    assert later.gaps == []


async def test_other_properties_are_a_conflict(broker: Broker, open_own: Open, name: str) -> None:
    await open_own(lasting(name, Owner()))
    different = QueueSpec(name, arguments={"x-expires": 60_000, "x-max-length": 3})
    with pytest.raises(Conflict) as caught:
        await open_own(ConsumeSpec(different, owner=Owner()))
    assert not isinstance(caught.value, Locked)
    assert name in str(caught.value)


@pytest.mark.parametrize("sort", ["quorum", "stream"])
@pytest.mark.parametrize("wrong", ["auto_delete", "exclusive"])
async def test_what_quorum_queues_and_streams_cannot_be(
    broker: Broker, open_own: Open, name: str, sort: str, wrong: str
) -> None:
    queue = QueueSpec(
        name,
        auto_delete=wrong == "auto_delete",
        exclusive=wrong == "exclusive",
        arguments={"x-queue-type": sort},
    )
    with pytest.raises(Conflict):
        await open_own(ConsumeSpec(queue, owner=Owner()))
    assert not await exists(broker, name)


async def test_a_missing_exchange_leaves_no_queue(
    broker: Broker, open_own: Open, name: str
) -> None:
    queue = QueueSpec(
        name, durable=False, exclusive=True, bindings=(BindingSpec(f"{name}-none", "k"),)
    )
    with pytest.raises(NotFound):
        await open_own(ConsumeSpec(queue, owner=Owner()))
    assert not await exists(broker, name)


async def test_deleting(broker: Broker, open_own: Open, name: str) -> None:
    sink = await open_own(lasting(name, Owner()))
    await broker.delete_own(name, Owner())
    await until(lambda: sink.error, "the consumer is told")
    assert isinstance(sink.error, NotFound)
    await broker.delete_own(name, Owner())  # it is gone already


async def test_a_paused_consumer_keeps_its_auto_delete_queue(
    broker: Broker, open_own: Open, name: str
) -> None:
    big = b"x" * (1 << 20)
    sink = await open_own(transient(name, Owner()), prefetch=20)
    assert sink.consumer is not None
    sink.consumer.pause()
    for number in range(12):
        await broker.publish(D(f"/topic/{name}.a"), b"%02d" % number + big)
    await asyncio.sleep(0.6)  # longer than a broker adapter waits before it cancels
    assert sink.deliveries == []
    assert await exists(broker, name)
    sink.consumer.resume()
    bodies = await sink.got(12)
    assert [body[:2] for body in bodies] == [b"%02d" % number for number in range(12)]
    assert sink.gaps == []


async def test_consumer_priorities(broker: Broker, open_own: Open, name: str) -> None:
    spec = lasting(name, Owner())
    low = await open_own(spec)
    high = await open_own(ConsumeSpec(spec.queue, {"x-priority": 5}), prefetch=2)
    await asyncio.sleep(0.05)  # the embedded broker's consumers begin with the next turn
    for number in range(4):
        await broker.publish(D(f"/topic/{name}.a"), b"%d" % number)
    # Both ends of the prefetch are what is asserted, not the broker's timing.
    assert await high.got(2) == [b"0", b"1"]
    assert await low.got(2) == [b"2", b"3"]


async def test_x_overflow(broker: Broker, open_own: Open, name: str) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    sink = await open_own(lasting(name, Owner(), **arguments), prefetch=1)
    await broker.publish(D(f"/topic/{name}.a"), b"held")
    await sink.got(1)

    async def fill() -> None:
        # How many a queue takes before it refuses is the broker's business.
        for _ in range(50):
            await broker.publish(D(f"/topic/{name}.a"), b"one too many")

    with pytest.raises(PublishFailed):
        await fill()


async def test_a_quorum_queue_counts_deliveries(broker: Broker, open_own: Open, name: str) -> None:
    owner = Owner()
    sink = await open_own(lasting(name, owner, **{"x-queue-type": "quorum"}))
    try:
        await broker.publish(D(f"/topic/{name}.a"), b"again", Properties(persistent=True))
        await sink.got(1)
        assert "x-delivery-count" not in sink.deliveries[0].message.properties.headers
        assert sink.nack(requeue=True)
        await sink.got(2)
        again = sink.deliveries[1].message
        assert again.redelivered
        assert again.properties.headers["x-delivery-count"] == 1
    finally:
        await broker.delete_own(name, owner)
