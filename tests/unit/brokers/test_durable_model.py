"""The durable broker does what the one in memory does, wherever it is closed or killed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from queuecast.brokers.base import BindingSpec, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.destination import Destination
from queuecast.message import Properties
from tests.support.durable import image, on_disk, quiet
from tests.support.sinks import DeliveryList

Q = Destination.parse("/amq/queue/q")
DEAD = Destination.parse("/amq/queue/dead")
TOPIC = Destination.parse("/topic/all")
PERSISTENT = Properties(persistent=True)


class DurableMachine(RuleBasedStateMachine):
    """Two brokers get the same calls; the model is the one in memory.

    A restart of the durable one is, to the other, that all consumers leave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.base = Path(tempfile.mkdtemp(prefix="queuecast-model-"))
        self.directories = 0
        self.memory = EmbeddedBroker()
        self.disk = self.new_disk()
        self.published = 0
        self.pairs: list[tuple[DeliveryList, DeliveryList]] = []
        # After a kill the disk may call more redelivered than were, never fewer.
        self.was_killed = False

    def new_disk(self) -> EmbeddedBroker:
        return on_disk(self.base / str(self.directories), synchronous="normal")

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        async def both() -> None:
            await work
            await quiet(self.disk)

        self.loop.run_until_complete(both())

    def teardown(self) -> None:
        self.loop.run_until_complete(self.disk.close())
        self.loop.run_until_complete(self.memory.close())
        assert self.disk.counts().queue_bytes == 0
        self.loop.close()
        shutil.rmtree(self.base)

    @initialize(limit=st.one_of(st.none(), st.integers(0, 4)), copies=st.booleans())
    def begin(self, limit: int | None, copies: bool) -> None:
        arguments: dict[str, Any] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        }
        if limit is not None:
            arguments["x-max-length"] = limit
        bindings = (BindingSpec("amq.topic", "#"),)
        specs = [
            QueueSpec("q", arguments=arguments, bindings=bindings),
            QueueSpec("dead"),
            QueueSpec("copy", bindings=bindings if copies else ()),
        ]

        async def begin() -> None:
            for broker in (self.memory, self.disk):
                await broker.start()
                await broker.declare(queues=specs)

        self.run(begin())

    @rule(where=st.sampled_from([Q, TOPIC]), count=st.integers(1, 4))
    def publish(self, where: Destination, count: int) -> None:
        bodies = [b"%d" % (self.published + number) for number in range(count)]
        self.published += count

        async def publish() -> None:
            for broker in (self.memory, self.disk):
                for body in bodies:
                    await broker.publish(where, body, PERSISTENT)
                    if broker is self.disk:
                        await quiet(broker)

        self.run(publish())

    @precondition(lambda self: len(self.pairs) < 4)
    @rule(prefetch=st.integers(1, 3))
    def consume(self, prefetch: int) -> None:
        sinks = (DeliveryList(), DeliveryList())

        async def consume() -> None:
            for broker, sink in zip((self.memory, self.disk), sinks, strict=True):
                sink.consumer = await broker.consume(Q, sink, prefetch=prefetch)

        self.run(consume())
        self.pairs.append(sinks)

    @precondition(lambda self: any(pair[0].outstanding for pair in self.pairs))
    @rule(data=st.data(), what=st.sampled_from(["ack", "requeue", "reject"]))
    def settle(self, data: st.DataObject, what: str) -> None:
        pair = data.draw(st.sampled_from([each for each in self.pairs if each[0].outstanding]))
        index = data.draw(st.integers(0, len(pair[0].outstanding) - 1))

        async def settle() -> None:
            for sink in pair:
                assert sink.consumer is not None
                delivery = sink.outstanding.pop(index)
                if what == "ack":
                    assert sink.consumer.ack(delivery.tag)
                else:
                    assert sink.consumer.nack(delivery.tag, requeue=what == "requeue")

        self.run(settle())

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.pairs))
        self.pairs.remove(pair)
        self.run(self.close_all([pair]))

    @staticmethod
    async def close_all(pairs: list[tuple[DeliveryList, DeliveryList]]) -> None:
        for pair in pairs:
            for sink in pair:
                assert sink.consumer is not None
                await sink.consumer.close()

    @rule()
    def empty_a_deleted_queue(self) -> None:
        async def delete() -> None:
            for broker in (self.memory, self.disk):
                await broker.delete_queue("copy")
                await broker.declare(queues=[QueueSpec("copy")])

        self.run(delete())

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        pairs, self.pairs = self.pairs, []
        old = self.disk
        directory = self.base / str(self.directories)
        self.directories += 1
        following = self.base / str(self.directories)

        async def restart() -> None:
            if is_killed:
                image(directory, following)
            for memory, disk in pairs:
                assert memory.consumer is not None
                assert disk.consumer is not None
                await memory.consumer.close()
                if is_killed:
                    # Only for tidiness: nothing of it reaches the copy.
                    await disk.consumer.close()
            await old.close()
            if not is_killed:
                directory.rename(following)
            self.disk = self.new_disk()
            await self.disk.start()

        self.was_killed = self.was_killed or is_killed
        self.run(restart())

    @invariant()
    def same(self) -> None:
        if not self.published:
            return
        memory, disk = self.memory.counts(), self.disk.counts()
        assert disk.queues == memory.queues
        for one, other in self.pairs:
            assert [each.message.body for each in other.outstanding] == [
                each.message.body for each in one.outstanding
            ]
            marks = [each.message.redelivered for each in one.outstanding]
            also = [each.message.redelivered for each in other.outstanding]
            if self.was_killed:
                assert all(also[index] for index, mark in enumerate(marks) if mark)
            else:
                assert also == marks

    @rule()
    def look_at_the_dead(self) -> None:
        sinks = (DeliveryList(), DeliveryList())

        async def read() -> None:
            for broker, sink in zip((self.memory, self.disk), sinks, strict=True):
                consumer = await broker.consume(DEAD, sink, prefetch=100_000)
                await asyncio.sleep(0)
                await quiet(self.disk)
                await consumer.close()

        self.run(read())
        # Several consumers' messages, given back at once, die in another order.
        assert sorted(sinks[1].bodies) == sorted(sinks[0].bodies)


DurableMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_disk_is_like_memory = DurableMachine.TestCase
