"""The process that the crash test kills: a durable broker under load, which notes what it did.

Notes are lines of JSON in a file, each written at once: what stands there had happened before
the kill. `started` shows what the store had; then come the things a client would know of.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from queuecast.brokers.base import (
    BindingSpec,
    ConsumeSpec,
    ExchangeSpec,
    FeedReader,
    HistoryReader,
    QueueSpec,
)
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.keeper import Keeper
from queuecast.brokers.embedded.queue import Queue
from queuecast.brokers.embedded.store import Store
from queuecast.brokers.embedded.stream import Stream
from queuecast.delivery import Consumer, Delivery
from queuecast.destination import Destination
from queuecast.errors import QueuecastError
from queuecast.message import Message, Properties
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule

D = Destination.parse
PERSISTENT = Properties(persistent=True)
RULES = (
    RetainRule(D("/topic/kept.#"), messages=400, bytes=1 << 30),
    RetainRule(D("/topic/few.#"), messages=30, bytes=20_000),
)
# A few dozen messages of a stream: most that is published there goes from its front.
STREAM_BYTES = 60_000
LETTERS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
STREAM = {"x-queue-type": "stream", "x-max-length-bytes": STREAM_BYTES}
# Ways to die: some time after the process began, or after it had read the store; before a COMMIT,
# some time into one, before the BEGIN after it (written, and nobody was told), or in the middle of
# a statement.
WAYS = ("starting", "running", "before", "inside", "after", "statement")


class Notes:
    """The file of notes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, *words: Any) -> None:
        os.write(self._file, json.dumps(words).encode() + b"\n")


def run(directory: str, notes: str, seed: int, way: str, first: int) -> None:
    """Live until killed. first: the number of the first message."""
    note = Notes(Path(notes))
    try:
        asyncio.run(_Life(Path(directory), note, seed, way, first).live())
    except BaseException as error:
        note("failed", repr(error))
        raise


class _Life:
    def __init__(self, directory: Path, note: Notes, seed: int, way: str, first: int) -> None:
        self.random = random.Random(seed)
        self.note = note
        self.way = way
        self.numbers = itertools.count(first)
        self.store = Store(
            directory, synchronous=self.random.choice(["full", "normal"]), rules=RULES
        )
        self.broker = EmbeddedBroker(keeper=Keeper(self.store), retain=RULES)

    async def live(self) -> None:
        broker = self.broker
        await broker.start()
        await broker.declare()  # letters that the start itself has made are in their queue then
        await self.describe()
        await broker.declare(
            [ExchangeSpec("events", "topic")],
            [
                QueueSpec("work", arguments=LETTERS),
                QueueSpec("dead"),
                QueueSpec("one"),
                QueueSpec("short", arguments={"x-max-length": 5}),
                QueueSpec(
                    "limited",
                    arguments={**LETTERS, "x-queue-type": "quorum", "x-delivery-limit": 2},
                ),
                QueueSpec("stream", arguments=STREAM),
                QueueSpec("copy", bindings=(BindingSpec("events", "#"),)),
            ],
        )
        self.note("declared")
        await broker.open_feed(D("/topic/#"), _Feed(self.note))
        for queue, prefetch in (("work", 20), ("one", 1), ("dead", 5), ("copy", 3), ("limited", 5)):
            await _Worker(self, queue).open(prefetch)
        await self.read_stream()
        self.arm()
        await asyncio.gather(*(self.publish() for _ in range(8)), self.change())

    async def describe(self) -> None:
        """Note what the store had."""
        queues = {}
        stream: list[list[int]] = []
        for name, queue in self.broker._topology.queues.items():
            if isinstance(queue, Stream):
                stream = [
                    [kept.offset, int(kept.message.body.split()[0]), kept.size]
                    for kept in queue._kept[queue._cut :]
                ]
                continue
            assert isinstance(queue, Queue)
            queues[name] = [
                [int(entry.message.body.split()[0]), entry.redelivered]
                for entry in sorted(queue.kept_entries(), key=lambda entry: entry.number)
            ]
        self.note(
            "started",
            self.broker.epoch,
            self.broker.counts().offset,
            queues,
            [await self.read("kept"), await self.read("few")],
            stream,
        )

    async def read(self, name: str) -> list[Any]:
        """Return floor and all messages of a retained destination."""
        reader: FeedReader = await self.broker.open_feed(D(f"/topic/{name}.#"), _Quiet())
        assert isinstance(reader, HistoryReader)
        place = first = await reader.locate(Start("first"))
        found: list[Message] = []
        while True:
            page = await reader.history(place, 5_000)
            assert not page.gap, page
            found += page.messages
            place = page.after
            if page.end:
                break
        await reader.close()
        return [first[0].offset, [[m.offset, int(m.body.split()[0])] for m in found]]

    async def read_stream(self) -> None:
        """Note what a reader of the stream sees from its beginning on."""
        reader = _StreamReader(self.note)
        spec = ConsumeSpec(arguments={"x-stream-offset": "first"})
        where = D("/amq/queue/stream")
        reader.consumer = await self.broker.consume(where, reader, prefetch=100, spec=spec)

    def arm(self) -> None:
        """Install the way to die, unless the parent does it."""
        database = self.store._writer.database
        left = self.random.randrange(1, 40)

        def traced(statement: str) -> None:
            nonlocal left
            if not statement.startswith("BEGIN" if self.way == "after" else "COMMIT"):
                return
            left -= 1
            if left:
                return
            if self.way == "inside":
                delay = self.random.random() * 0.003
                threading.Timer(delay, die).start()
            else:
                die()

        if self.way in ("before", "inside", "after"):
            database.set_trace_callback(traced)
        elif self.way == "statement":
            steps = self.random.randrange(20, 4000)
            count = itertools.count(1)
            database.set_progress_handler(lambda: die() if next(count) == steps else None, 7)

    async def publish(self) -> None:
        """Publish one message after the other, until the end."""
        rng = self.random
        while True:
            number = next(self.numbers)
            body = b"%d %s" % (number, b"x" * rng.choice([1, 10, 100, 5000]))
            where, properties = rng.choice(
                [
                    ("/queue/work", PERSISTENT),
                    ("/queue/work", PERSISTENT),
                    ("/queue/one", PERSISTENT),
                    ("/queue/short", PERSISTENT),
                    ("/queue/limited", PERSISTENT),
                    ("/amq/queue/stream", PERSISTENT),
                    ("/amq/queue/stream", Properties()),
                    ("/queue/work", Properties()),
                    ("/exchange/events/a", PERSISTENT),
                    ("/topic/kept.a", PERSISTENT),
                    ("/topic/kept.b", Properties()),
                    ("/topic/few.a", PERSISTENT),
                    ("/topic/loose", Properties()),
                ]
            )
            self.note("sends", number)
            await self.broker.publish(D(where), body, properties)
            self.note("published", where, number, properties.persistent)
            if rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.004)

    async def change(self) -> None:
        """Declare and delete queues."""
        for turn in itertools.count():
            name = f"passing-{turn % 3}"
            self.note("passing", name, "coming")
            spec = QueueSpec(name, bindings=(BindingSpec("events", "#"),))
            await self.broker.declare(queues=[spec])
            self.note("passing", name, "there")
            await asyncio.sleep(self.random.random() * 0.01)
            self.note("passing", name, "going")
            await self.broker.delete_queue(name)
            self.note("passing", name, "gone")


def die() -> None:
    """End as a kill from outside does."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class _Quiet:
    """A feed's sink that does nothing."""

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None: ...

    def append(self, messages: Sequence[Message]) -> None: ...

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None: ...

    def widen(self, marks: Sequence[Mark]) -> None: ...

    def fail(self, error: QueuecastError) -> None: ...


class _Feed(_Quiet):
    """A feed's sink that notes what a client would see."""

    def __init__(self, note: Notes) -> None:
        self._note = note

    def append(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._note("fed", message.routing_key, message.offset, int(message.body.split()[0]))


class _StreamReader:
    """A reader of the stream, which acks after a while, so that it may fall behind."""

    def __init__(self, note: Notes) -> None:
        self.consumer: Consumer | None = None
        self._note = note

    def deliver(self, delivery: Delivery) -> None:
        message = delivery.message
        offset = message.properties.headers["x-stream-offset"]
        self._note("streamed", offset, int(message.body.split()[0]))
        assert self.consumer is not None
        asyncio.get_running_loop().call_later(0.002, self.consumer.ack, delivery.tag)

    def reset(self) -> None: ...

    def gap(self, reason: str) -> None: ...

    def cancelled(self, error: QueuecastError) -> None:
        self._note("failed", str(error))


class _Worker:
    """A consumer that acks, gives back, rejects, and keeps some for itself."""

    def __init__(self, life: _Life, queue: str) -> None:
        self._life = life
        self._queue = queue
        self._consumer: Consumer | None = None

    async def open(self, prefetch: int) -> None:
        self._consumer = await self._life.broker.consume(
            D(f"/queue/{self._queue}"), self, prefetch=prefetch
        )

    def deliver(self, delivery: Delivery) -> None:
        message = delivery.message
        number = int(message.body.split()[0])
        self._life.note("delivered", self._queue, number, message.redelivered)
        asyncio.get_running_loop().call_later(
            self._life.random.random() * 0.003, self.settle, delivery, number
        )

    def settle(self, delivery: Delivery, number: int) -> None:
        assert self._consumer is not None
        what = self._life.random.random()
        # A message of which nothing becomes would in the end hold up a prefetch of 1.
        if what < 0.02 and self._queue in ("work", "copy"):
            return
        if what < (0.6 if self._queue == "limited" else 0.1):
            self._consumer.nack(delivery.tag)
        elif what < 0.2 and self._queue == "work":
            self._life.note("rejected", self._queue, number)
            self._consumer.nack(delivery.tag, requeue=False)
        else:
            self._life.note("acked", self._queue, number)
            self._consumer.ack(delivery.tag)

    def reset(self) -> None: ...

    def gap(self, reason: str) -> None: ...

    def cancelled(self, error: QueuecastError) -> None:
        self._life.note("failed", str(error))
