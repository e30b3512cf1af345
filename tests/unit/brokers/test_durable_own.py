"""Queues that sessions declare, and delivery limits, over restarts of the durable broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from queuecast.brokers.base import BindingSpec, ConsumeSpec, ExchangeSpec, Owner, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.store_batch import Batch
from queuecast.destination import Destination
from queuecast.errors import NotFound, Unavailable
from queuecast.message import Properties
from tests.support.durable import Restart, closing, writer_of
from tests.support.sinks import DeliveryList, until

D = Destination.parse
PERSISTENT = Properties(persistent=True)
BINDING = (BindingSpec("amq.topic", "a.*"),)
LIMITED = {
    "x-queue-type": "quorum",
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "dead",
}


async def consume(broker: EmbeddedBroker, name: str, spec: ConsumeSpec | None = None) -> Any:
    sink = DeliveryList()
    spec = spec or ConsumeSpec()
    sink.consumer = await broker.consume(D(f"/amq/queue/{name}"), sink, spec=spec)
    return sink


def watch(broker: EmbeddedBroker, look: Callable[[Any], object]) -> list[Any]:
    """Return a list that gets what `look` sees in the database after each commit."""
    writer = writer_of(broker)
    seen: list[Any] = []
    commit = writer._commit

    def watched(batch: Batch) -> Any:
        error = commit(batch)
        seen.append(look(writer.database))
        return error

    writer._commit = watched  # type: ignore[method-assign]
    return seen


async def test_durable_own_queues_come_back_with_their_bindings_and_others_do_not(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    owner = Owner()
    kinds = {
        "kept": QueueSpec("kept", bindings=BINDING),
        "kept-auto": QueueSpec("kept-auto", auto_delete=True, bindings=BINDING),
        "exclusive": QueueSpec("exclusive", exclusive=True, bindings=BINDING),
        "transient": QueueSpec("transient", durable=False, bindings=BINDING),
        "temp": QueueSpec(
            "temp", durable=False, exclusive=True, auto_delete=True, bindings=BINDING
        ),
    }
    for queue in kinds.values():
        await broker.declare_own(queue, owner)
    await broker.publish(D("/topic/a.1"), b"1", PERSISTENT)
    assert [queue.ready for queue in broker.counts().queues.values()] == [1] * len(kinds)
    after = await restart(broker)
    assert {name: found.ready for name, found in after.counts().queues.items()} == {
        "kept": 1,
        "kept-auto": 1,
    }
    await after.publish(D("/topic/a.2"), b"2", PERSISTENT)
    # Whoever comes again with the same properties finds it; its lock was the old session's.
    sink = await consume(after, "kept", ConsumeSpec(kinds["kept"], owner=Owner()))
    assert await sink.got(2) == [b"1", b"2"]
    ((rows,),) = writer_of(after).database.execute("SELECT count(*) FROM bindings").fetchall()
    assert rows == 2


async def test_a_deleted_own_queue_does_not_come_back(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    owner = Owner()
    await broker.declare_own(QueueSpec("gone", bindings=BINDING), owner)
    await broker.publish(D("/topic/a.1"), b"1", PERSISTENT)
    await broker.delete_own("gone", owner)
    once = QueueSpec("once", auto_delete=True)
    sink = await consume(broker, "once", ConsumeSpec(once, owner=owner))
    await sink.consumer.close()
    await until(lambda: not broker.counts().queues, "no queue")
    after = await restart(broker)
    assert not after.counts().queues


async def test_a_declaration_is_on_disk_when_it_is_answered(broker: EmbeddedBroker) -> None:
    def names(database: Any) -> list[str]:
        return [name for (name,) in database.execute("SELECT name FROM queues ORDER BY id")]

    seen = watch(broker, names)
    await broker.declare_own(QueueSpec("a"), Owner())
    assert seen[-1] == ["a"]
    await consume(broker, "b", ConsumeSpec(QueueSpec("b")))
    assert seen[-1] == ["a", "b"]
    sink = DeliveryList()
    sink.consumer = await broker.consume(D("/queue/c"), sink)
    assert seen[-1] == ["a", "b", "c"]
    await broker.delete_own("a", Owner())
    assert seen[-1] == ["b", "c"]


async def test_a_full_disk_stops_lasting_queues_and_no_others(broker: EmbeddedBroker) -> None:
    await broker.declare(queues=[QueueSpec("q")])
    database = writer_of(broker).database
    database.execute("PRAGMA query_only = 1")
    with pytest.raises(Unavailable):
        await broker.publish(D("/queue/q"), b"1", PERSISTENT)
    with pytest.raises(Unavailable):
        await broker.declare_own(QueueSpec("lasting"), Owner())
    owner = Owner()
    spec = QueueSpec("temp", durable=False, exclusive=True, auto_delete=True)
    sink = await consume(broker, "temp", ConsumeSpec(spec, owner=owner))
    assert sink.error is None
    await broker.release(owner)
    assert isinstance(sink.error, NotFound)
    database.execute("PRAGMA query_only = 0")


async def test_a_message_and_its_letter_change_places_in_one_commit(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    arguments = {**LIMITED, "x-delivery-limit": 1}
    await broker.declare(
        [ExchangeSpec("events", "topic")],
        [QueueSpec("q", arguments=arguments), QueueSpec("dead")],
    )
    await broker.publish(D("/queue/q"), b"poison", PERSISTENT)

    def places(database: Any) -> list[str]:
        rows = database.execute(
            "SELECT name FROM entries JOIN queues ON queues.id = entries.id >> 40"
        )
        return [name for (name,) in rows]

    seen = watch(broker, places)
    sink = await consume(broker, "q")
    for count in (1, 2):
        await sink.got(count)
        sink.nack()
    await until(lambda: broker.counts().queues["dead"].ready == 1, "the letter")
    await broker.declare()
    assert seen[-1] == ["dead"]
    assert all(found in (["q"], ["dead"]) for found in seen), seen
    after = await restart(broker)
    assert after.counts().queues["q"].ready == 0
    assert after.counts().queue_bytes > 0
    dead = await consume(after, "dead")
    assert await dead.got(1) == [b"poison"]
    death = dead.deliveries[0].message.properties.headers["x-death"][0]
    assert (death["queue"], death["reason"]) == ("q", "delivery_limit")


async def test_deliveries_count_over_restarts(broker: EmbeddedBroker, restart: Restart) -> None:
    arguments = {**LIMITED, "x-delivery-limit": 2}
    await broker.declare(queues=[QueueSpec("q", arguments=arguments), QueueSpec("dead")])
    await broker.publish(D("/queue/q"), b"poison", PERSISTENT)
    await broker.publish(D("/queue/q"), b"waits", PERSISTENT)
    counts = []
    for _ in range(3):
        sink = DeliveryList()
        sink.consumer = await broker.consume(D("/queue/q"), sink, prefetch=1)
        assert await sink.got(1) == [b"poison"]
        counts.append(sink.deliveries[0].message.properties.headers.get("x-delivery-count", 0))
        # The broker ends while the consumer has it: each time it comes back unacked.
        broker = await restart(broker)
    assert counts == [0, 1, 2]
    await until(lambda: broker.counts().queues["dead"].ready == 1, "the letter")
    sink = await consume(broker, "q")
    assert await sink.got(1) == [b"waits"]
    broker = await restart(broker)
    assert broker.counts().queues["dead"].ready == 1


async def test_one_that_may_not_have_been_delivered_is_not_dead(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    arguments = {**LIMITED, "x-delivery-limit": 0}
    await broker.declare(queues=[QueueSpec("q", arguments=arguments), QueueSpec("dead")])
    sink = DeliveryList()
    sink.consumer = await broker.consume(D("/queue/q"), sink)
    sink.consumer.pause()
    for body in (b"1", b"2"):
        await broker.publish(D("/queue/q"), body, PERSISTENT)
    sink.consumer.resume()
    await sink.got(2)
    assert sink.ack()
    broker = await restart(broker)
    ready = {name: found.ready for name, found in broker.counts().queues.items()}
    # A close knows that it came back, and a kill does not.
    assert ready in ({"q": 0, "dead": 1}, {"q": 1, "dead": 0})


async def test_a_delivery_that_was_not_taken_does_not_count(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await broker.declare(queues=[QueueSpec("q", arguments={"x-queue-type": "quorum"})])
    await broker.publish(D("/queue/q"), b"1", PERSISTENT)
    first = await consume(broker, "q")
    await first.got(1)
    first.nack()
    await first.got(2)
    first.nack()
    await first.consumer.close()

    class Refusing(DeliveryList):
        def deliver(self, delivery: Any) -> bool:
            self.deliveries.append(delivery)
            assert self.consumer is not None
            self.consumer.pause()
            return False

    counts = broker.counts().queues["q"]
    refusing = Refusing()
    refusing.consumer = await broker.consume(D("/queue/q"), refusing)
    await refusing.got(1)
    seen = refusing.deliveries[0].message.properties.headers["x-delivery-count"]
    assert counts.ready == 1
    broker = await restart(broker)
    again = await consume(broker, "q")
    await again.got(1)
    assert again.deliveries[0].message.properties.headers["x-delivery-count"] == seen


async def test_a_letter_made_by_the_close_was_never_delivered(
    broker: EmbeddedBroker, tmp_path: Path, brokers: list[EmbeddedBroker]
) -> None:
    arguments = {**LIMITED, "x-delivery-limit": 0}
    await broker.declare(queues=[QueueSpec("q", arguments=arguments), QueueSpec("dead")])
    waiting = await consume(broker, "dead")
    holding = await consume(broker, "q")
    await broker.publish(D("/queue/q"), b"1", PERSISTENT)
    await holding.got(1)
    after = await closing(tmp_path, brokers)(broker)
    assert not waiting.deliveries
    sink = await consume(after, "dead")
    assert await sink.got(1) == [b"1"]
    assert not sink.deliveries[0].message.redelivered
