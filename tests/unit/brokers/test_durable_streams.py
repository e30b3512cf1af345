"""Streams of the durable broker: the same messages at the same offsets after any end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from queuecast.brokers.base import BindingSpec, ConsumeSpec, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.memory import weight
from queuecast.destination import Destination
from queuecast.errors import Unavailable
from queuecast.message import Message, Properties
from queuecast.queuespec import Timestamp
from tests.support.durable import Restart, writer_of
from tests.support.sinks import DeliveryList, until

D = Destination.parse
WHERE = D("/topic/s")
PERSISTENT = Properties(persistent=True)


def spec(**arguments: Any) -> QueueSpec:
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return QueueSpec(
        "s",
        arguments={"x-queue-type": "stream", **named},
        bindings=(BindingSpec("amq.topic", "s"),),
    )


async def read(broker: EmbeddedBroker, start: object = "first") -> DeliveryList:
    sink = DeliveryList()
    asked = ConsumeSpec(arguments={"x-stream-offset": start})
    sink.consumer = await broker.consume(D("/amq/queue/s"), sink, prefetch=10_000, spec=asked)
    return sink


def seen(sink: DeliveryList) -> list[tuple[int, bytes]]:
    """Return offsets and bodies."""
    return [
        (delivery.message.properties.headers["x-stream-offset"], delivery.message.body)
        for delivery in sink.deliveries
    ]


async def everything(broker: EmbeddedBroker, start: object = "first") -> list[tuple[int, bytes]]:
    """Return offsets and bodies of all that is there."""
    sink = await read(broker, start)
    for _ in range(50):
        await asyncio.sleep(0)
    found = seen(sink)
    assert sink.consumer is not None
    await sink.consumer.close()
    return found


async def publish(broker: EmbeddedBroker, *bodies: bytes) -> None:
    for body in bodies:
        await broker.publish(WHERE, body, PERSISTENT)


def rows(broker: EmbeddedBroker) -> int:
    ((count,),) = writer_of(broker).database.execute("SELECT count(*) FROM entries").fetchall()
    return int(count)


async def test_messages_keep_their_offsets(broker: EmbeddedBroker, restart: Restart) -> None:
    await broker.declare(queues=[spec()])
    await publish(broker, b"0", b"1")
    # As at RabbitMQ a stream keeps every message.
    await broker.publish(WHERE, b"2", Properties(headers={"a": [1, b"\0"]}, priority=4))
    bytes_before = broker.counts().queue_bytes
    before = await everything(broker)
    assert before == [(0, b"0"), (1, b"1"), (2, b"2")]
    after = await restart(broker)
    assert await everything(after) == before
    assert after.counts().queue_bytes == bytes_before
    sink = await read(after, "next")
    await publish(after, b"3")
    await sink.got(1)
    assert seen(sink) == [(3, b"3")], "the numbering goes on"
    assert await everything(after, 2) == [(2, b"2"), (3, b"3")]
    again = await read(after, 2)
    await again.got(2)
    properties = again.deliveries[0].message.properties
    assert properties.headers["a"] == [1, b"\0"]
    assert (properties.priority, properties.persistent) == (4, False)
    once_more = await restart(after)
    assert len(await everything(once_more)) == 4


async def test_times_come_back_too(broker: EmbeddedBroker, restart: Restart) -> None:
    await broker.declare(queues=[spec()])
    await publish(broker, b"old")
    between = int(time.time()) + 1
    await until(lambda: time.time() >= between, "the next second")
    await publish(broker, b"new")
    after = await restart(broker)
    assert await everything(after, Timestamp(between)) == [(1, b"new")]
    assert len(await everything(after, Timestamp(between - 60))) == 2


async def test_a_deleted_stream_begins_anew(broker: EmbeddedBroker, restart: Restart) -> None:
    await broker.declare(queues=[spec()])
    await publish(broker, b"0", b"1")
    await broker.delete_queue("s")
    await broker.declare(queues=[spec()])
    await publish(broker, b"other")
    after = await restart(broker)
    assert await everything(after) == [(0, b"other")]
    assert rows(after) == 1


async def test_what_is_too_much_is_gone_from_the_disk(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    one = weight(Message(b"x", "amq.topic", "s", PERSISTENT))
    await broker.declare(queues=[spec(x_max_length_bytes=3 * one)])
    await publish(broker, *(b"%d" % number for number in range(8)))
    left = [(5, b"5"), (6, b"6"), (7, b"7")]
    assert await everything(broker) == left
    await broker.declare()
    assert rows(broker) == 3
    after = await restart(broker)
    assert await everything(after) == left
    assert await everything(after, 1) == left, "an offset that is gone means the first"
    # One message is too much by itself: nothing is left, and no number is given twice.
    await publish(after, b"x" * 4 * one)
    assert await everything(after) == []
    await after.declare()
    assert rows(after) == 0
    empty = await restart(after)
    assert await everything(empty) == []
    await publish(empty, b"9")
    assert await everything(empty) == [(9, b"9")]


async def test_what_is_too_old_is_gone_and_the_numbering_goes_on(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await broker.declare(queues=[spec(x_max_age="1h")])
    await publish(broker, b"0", b"1")
    await broker.declare()
    writer_of(broker).database.execute("UPDATE entries SET time = time - 7200")
    after = await restart(broker)
    assert await everything(after) == []
    await after.declare()
    assert rows(after) == 0
    sink = await read(after, "next")
    await publish(after, b"2")
    await sink.got(1)
    assert seen(sink) == [(2, b"2")]


async def test_nothing_is_read_before_its_commit(broker: EmbeddedBroker) -> None:
    await broker.declare(queues=[spec()])
    sink = await read(broker)
    writer = writer_of(broker)
    commit = writer._commit
    at_commit: list[int] = []

    def watched(batch: Any) -> Any:
        at_commit.append(len(sink.deliveries))
        return commit(batch)

    writer._commit = watched  # type: ignore[method-assign]
    await publish(broker, b"0")
    assert at_commit == [0]
    await sink.got(1)
    await publish(broker, b"1")
    assert at_commit == [0, 1]


async def test_a_full_disk_leaves_numbers_out(broker: EmbeddedBroker, restart: Restart) -> None:
    await broker.declare(queues=[spec()])
    await publish(broker, b"0")
    sink = await read(broker)
    database = writer_of(broker).database
    database.execute("PRAGMA query_only = 1")
    results = await asyncio.gather(
        publish(broker, b"lost"), publish(broker, b"lost too"), return_exceptions=True
    )
    assert [type(result) for result in results] == [Unavailable, Unavailable]
    database.execute("PRAGMA query_only = 0")
    await publish(broker, b"1", b"2")
    await sink.got(3)
    before = seen(sink)
    assert [body for _, body in before] == [b"0", b"1", b"2"]
    assert await everything(broker) == before
    # A number that is nobody's means the next message.
    assert await everything(broker, before[0][0] + 1) == before[1:]
    assert await everything(broker, "last") == before[-1:]
    after = await restart(broker)
    assert await everything(after) == before


async def test_letters_go_into_streams(broker: EmbeddedBroker, restart: Restart) -> None:
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "s"}
    await broker.declare(queues=[spec(), QueueSpec("q", arguments=arguments)])
    for properties in (PERSISTENT, Properties()):
        await broker.publish(D("/queue/q"), b"dies", properties)
    sink = DeliveryList()
    sink.consumer = await broker.consume(D("/queue/q"), sink)
    await sink.got(2)
    sink.nack(requeue=False)
    sink.nack(requeue=False)
    after = await restart(broker)
    assert await everything(after) == [(0, b"dies"), (1, b"dies")]
    assert after.counts().queues["q"].ready == 0


async def test_a_stream_deleted_meanwhile_takes_those_on_their_way_along(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await broker.declare(queues=[spec()])
    under_way = asyncio.ensure_future(publish(broker, b"0"))
    await asyncio.sleep(0)
    await broker.delete_queue("s")
    await under_way
    assert broker.counts().queue_bytes == 0
    after = await restart(broker)
    assert rows(after) == 0
    assert not after.counts().queues


async def test_many_publishers_one_order(broker: EmbeddedBroker, restart: Restart) -> None:
    count = 500
    await broker.declare(queues=[spec()])
    sink = await read(broker)
    await asyncio.gather(*(publish(broker, b"%d" % number) for number in range(count)))
    await sink.got(count)
    found = seen(sink)
    assert [offset for offset, _ in found] == list(range(count))
    after = await restart(broker)
    again = await read(after)
    await again.got(count)
    assert seen(again) == found
