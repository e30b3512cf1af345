"""Stream queues: everybody reads the same messages, each from the offset that was asked for."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from queuecast.brokers.base import BindingSpec, Broker, ConsumeSpec, Delivery, Owner, QueueSpec
from queuecast.destination import Destination
from queuecast.errors import BadRequest, Conflict
from queuecast.message import Properties
from queuecast.queuespec import Timestamp
from tests.support.sinks import DeliveryList, until

D = Destination.parse
PERSISTENT = Properties(persistent=True)

pytestmark = pytest.mark.needs("queues")


@asynccontextmanager
async def stream(broker: Broker, name: str, **arguments: Any) -> AsyncIterator[QueueSpec]:
    """A stream bound to `/topic/NAME`, deleted afterwards."""
    owner = Owner()
    spec = QueueSpec(
        name,
        arguments={"x-queue-type": "stream", **arguments},
        bindings=(BindingSpec("amq.topic", name),),
    )
    await broker.declare_own(spec, owner)
    try:
        yield spec
    finally:
        await broker.delete_own(name, owner)


async def read(
    broker: Broker,
    spec: QueueSpec,
    offset: object = None,
    *,
    prefetch: int = 10,
    arguments: Mapping[str, Any] | None = None,
) -> DeliveryList:
    arguments = dict(arguments or {})
    if offset is not None:
        arguments["x-stream-offset"] = offset
    sink = DeliveryList()
    sink.consumer = await broker.consume(
        D(f"/amq/queue/{spec.name}"), sink, prefetch=prefetch, spec=ConsumeSpec(spec, arguments)
    )
    # A delivery may have come before this ran.
    sink.acks_at_once = True
    while sink.outstanding:
        sink.ack()
    return sink


async def closed(*sinks: DeliveryList) -> None:
    for sink in sinks:
        assert sink.consumer is not None
        await sink.consumer.close()


def offsets(sink: DeliveryList) -> list[int]:
    return [each.message.properties.headers["x-stream-offset"] for each in sink.deliveries]


async def test_everybody_reads_everything(broker: Broker, name: str) -> None:
    async with stream(broker, name) as spec:
        for number in range(20):
            await broker.publish(D(f"/topic/{name}"), b"%d" % number, PERSISTENT)
        first = await read(broker, spec, "first", prefetch=3)
        expected = [b"%d" % number for number in range(20)]
        assert await first.got(20) == expected
        assert offsets(first) == list(range(20))
        assert not any(each.message.redelivered for each in first.deliveries)
        again = await read(broker, spec, "first")
        assert await again.got(20) == expected
        middle = await read(broker, spec, 15)
        assert await middle.got(5) == expected[15:]
        past = await read(broker, spec, Timestamp(int(time.time()) - 3600))
        assert await past.got(20) == expected
        new = await read(broker, spec)
        following = await read(broker, spec, "next")
        last = await read(broker, spec, "last")
        await last.got(1)
        await broker.publish(D(f"/topic/{name}"), b"20", PERSISTENT)
        assert await new.got(1) == [b"20"]
        assert await following.got(1) == [b"20"]
        # RabbitMQ's last chunk may hold more than the last message.
        while last.bodies[-1] != b"20":
            await last.got(len(last.bodies) + 1)
        everything = [b"%d" % number for number in range(21)]
        assert last.bodies == everything[-len(last.bodies) :]
        await closed(first, again, middle, past, new, following, last)


async def test_a_prefetch_bounds_what_is_outstanding(broker: Broker, name: str) -> None:
    async with stream(broker, name) as spec:
        for number in range(6):
            await broker.publish(D(f"/topic/{name}"), b"%d" % number, PERSISTENT)
        sink = await read(broker, spec, "first", prefetch=2)
        await sink.got(6)
        await closed(sink)
        by_hand = DeliveryList()
        by_hand.consumer = await broker.consume(
            D(f"/amq/queue/{name}"),
            by_hand,
            prefetch=2,
            spec=ConsumeSpec(arguments={"x-stream-offset": "first"}),
        )
        await by_hand.got(2)
        assert by_hand.most == 2
        # Nothing goes back to a stream: a nack only makes room.
        assert by_hand.nack(requeue=True)
        assert by_hand.ack()
        assert await by_hand.got(4) == [b"0", b"1", b"2", b"3"]
        await closed(by_hand)


async def test_a_paused_reader_goes_on_where_it_was(broker: Broker, name: str) -> None:
    big = b"x" * (1 << 20)
    async with stream(broker, name) as spec:
        sink = await read(broker, spec, "first", prefetch=20)
        assert sink.consumer is not None
        await broker.publish(D(f"/topic/{name}"), b"00", PERSISTENT)
        await sink.got(1)
        sink.consumer.pause()
        for number in range(1, 9):
            await broker.publish(D(f"/topic/{name}"), b"%02d" % number + big, PERSISTENT)
        sink.consumer.resume()
        bodies = await sink.got(9)
        assert [body[:2] for body in bodies] == [b"%02d" % number for number in range(9)]
        await closed(sink)


async def test_what_a_reader_has_no_room_for_comes_once_it_has(broker: Broker, name: str) -> None:
    class Full(DeliveryList):
        refused = 0

        def deliver(self, delivery: Delivery) -> bool | None:
            if not self.refused and delivery.message.body == b"2":
                assert self.consumer is not None
                self.consumer.pause()
                self.refused += 1
                return False
            return super().deliver(delivery)

    async with stream(broker, name) as spec:
        sink = Full()
        sink.consumer = await broker.consume(
            D(f"/amq/queue/{name}"), sink, prefetch=3, spec=ConsumeSpec(spec)
        )
        sink.acks_at_once = True
        for number in range(6):
            await broker.publish(D(f"/topic/{name}"), b"%d" % number, PERSISTENT)
        await until(lambda: sink.refused, "a refused delivery")
        sink.consumer.resume()
        assert await sink.got(6) == [b"%d" % number for number in range(6)]
        await closed(sink)


async def test_a_stream_offset_needs_a_stream(broker: Broker, name: str) -> None:
    owner = Owner()
    queue = QueueSpec(name, durable=False, exclusive=True)
    spec = ConsumeSpec(queue, {"x-stream-offset": "first"}, owner)
    with pytest.raises(Conflict, match="x-stream-offset"):
        await broker.consume(D(f"/amq/queue/{name}"), DeliveryList(), spec=spec)
    await broker.release(owner)


@pytest.mark.parametrize("age", ["", "soon", "1", "-1s", "1d"])
async def test_a_wrong_age_disturbs_nobody(broker: Broker, name: str, age: str) -> None:
    bystander = DeliveryList()
    owner = Owner()
    spec = ConsumeSpec(QueueSpec(name, durable=False, exclusive=True), owner=owner)
    bystander.consumer = await broker.consume(D(f"/amq/queue/{name}"), bystander, spec=spec)
    wrong = QueueSpec(f"{name}-s", arguments={"x-queue-type": "stream", "x-max-age": age})
    with pytest.raises(BadRequest, match="x-max-age"):
        await broker.declare_own(wrong, owner)
    await broker.publish(D(f"/amq/queue/{name}"), b"well")
    assert await bystander.got(1) == [b"well"]
    assert bystander.resets == 0
    await closed(bystander)


@pytest.mark.parametrize("unfiltered", [False, True])
async def test_filters(broker: Broker, kind: str, name: str, unfiltered: bool) -> None:
    async with stream(broker, name) as spec:
        for value in ("a", "b", None):
            headers = {} if value is None else {"x-stream-filter-value": value}
            properties = Properties(persistent=True, headers=headers)
            await broker.publish(D(f"/topic/{name}"), str(value).encode(), properties)
        arguments = {"x-stream-filter": ["a"], "x-stream-match-unfiltered": unfiltered}
        sink = await read(broker, spec, "first", arguments=arguments)
        # RabbitMQ leaves out whole chunks only, and before 3.13 nothing: clients filter as well.
        expected = [b"a", b"None"] if unfiltered else [b"a"]
        await sink.got(3 if kind == "rabbitmq-3.10" else len(expected))
        assert set(expected) <= set(sink.bodies)
        if kind == "embedded":
            assert sink.bodies == expected
        await closed(sink)
