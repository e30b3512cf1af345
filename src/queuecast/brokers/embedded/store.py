"""The store: what the embedded broker keeps on disk, seen from the event loop.

What is in memory is the truth while the broker runs; the store follows it in order. Changes
gather here and go to the writer batch by batch (store_writer.py has the law). Offsets come in
ranges that are reserved on disk beforehand, so that none is ever given twice, whatever was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import QueuecastError, Unavailable
from ...message import Message
from ...retention import RetainRule
from ..base import BindingSpec, ExchangeSpec, QueueSpec
from .age import AgeClock
from .store_batch import NUMBER_BITS, Batch, Change, Outcome, Unit
from .store_codec import encode_arguments
from .store_file import FILE
from .store_load import Found, load, offset_of
from .store_measures import StoreMeasures
from .store_reader import Reader, StoredLog
from .store_writer import Writer

logger = logging.getLogger(__name__)

# Offsets reserved at a time; after a kill the numbering goes on behind the range.
RANGE = 1 << 16
# Messages that wait for the disk, in bytes: a publisher that is faster must not take the memory.
WAITING_BYTES = 64 << 20
# Units applied before the event loop has its turn.
_APPLIED_A_TURN = 256
# Seconds until changes that nobody waits for are tried again on a disk that failed.
_RETRY = 1.0
# A retained message beside its key, properties and body: row and index.
_ROW_BYTES = 64


class Store:
    """A directory, open for one broker. synchronous: "full" or "normal".

    ages: the clock that messages' ages are measured by; it goes on from what is in the directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        synchronous: str = "full",
        rules: Sequence[RetainRule] = (),
        ages: AgeClock | None = None,
    ) -> None:
        self.directory = directory
        self.ages = AgeClock() if ages is None else ages
        self.error: QueuecastError | None = None
        """Why the last batch was not written; None while all is well."""
        self.measures = StoreMeasures(directory)
        self._reserved = 0
        self._synchronous = synchronous
        self._rules = rules
        self._queues: dict[str, int] = {}
        self._next_queue = 1
        self._numbers: dict[int, int] = {}
        self._gathering = Batch()
        self._is_writing = False
        self._is_due = False
        self._is_closed = False
        self._applying: deque[Unit] = deque()
        self._waiting = 0
        self._waiting_bytes = 0
        self._idle: asyncio.Future[None] | None = None

    # Life

    async def open(self) -> Found:
        """Open the files and return what is there; raises ConfigError."""
        self._loop = asyncio.get_running_loop()
        # In a thread: a large file takes its time.
        loaded = await asyncio.to_thread(
            load, self.directory, self._synchronous, self._rules, self.ages
        )
        self._lock = loaded.lock
        self._queues = loaded.queues.ids
        self._numbers = loaded.queues.numbers
        self._next_queue = loaded.queues.next_id
        states, found = loaded.rules, loaded.found
        names = [str(rule.destination) for rule in self._rules]
        self.measures.retained = {name: (states, number) for number, name in enumerate(names)}
        path = self.directory / FILE
        self._reader = Reader(path)
        self._tables = [states[number].table for number in range(len(self._rules))]
        self._logs = [
            StoredLog(self._reader, states[number].id, rule.exchange)
            for number, rule in enumerate(self._rules)
        ]
        self._writer = Writer(loaded.database, path, states, self._report, self.ages)
        await asyncio.to_thread(self._writer.start)
        self._reserved = found.offset
        self.reserve(found.offset)
        await self.settled()
        return found

    async def close(self, offset: int) -> None:
        """Write what is left and that all is well, with the last offset given.

        On a disk that fails it is tried once more; the next start then finds what a kill leaves.
        """
        self.record("UPDATE meta SET value = ? WHERE name = 'offset'", offset)
        self.error = None
        while self._is_writing or self._applying or (self._gathering and not self.error):
            self._idle = self._loop.create_future()
            self._send()
            await self._idle
        self._is_closed = True
        await asyncio.to_thread(self._shut)

    async def abandon(self) -> None:
        """Close the files as they are: what is in them cannot be used."""
        self._is_closed = True
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writer.stop()
        self._reader.close()
        self._writer.database.close()
        self._lock.release()

    @property
    def waiting(self) -> int:
        """The number of units that are not applied yet."""
        return self._waiting

    @property
    def waiting_bytes(self) -> int:
        """Bytes of messages that wait for the disk."""
        return self._waiting_bytes

    def log(self, rule: int) -> StoredLog:
        """Return the log of a rule, by its number in the configuration."""
        return self._logs[rule]

    # What happened: written with the next batch, nobody waits

    def record(self, sql: str, *values: Any) -> None:
        """Take a change that has happened already."""
        self._gathering.add((sql, values))
        self._due()

    def exchange_added(self, spec: ExchangeSpec) -> None:
        """Keep an exchange, if it is durable."""
        if spec.durable:
            self.record(
                "INSERT OR REPLACE INTO exchanges VALUES (?, ?, ?, ?)",
                spec.name, spec.type, spec.auto_delete, encode_arguments(spec.arguments),
            )  # fmt: skip

    def exchange_dropped(self, name: str) -> None:
        """Forget an exchange and its bindings."""
        self.record("DELETE FROM exchanges WHERE name = ?", name)
        self.record("DELETE FROM bindings WHERE exchange = ?", name)

    def queue_added(self, spec: QueueSpec) -> None:
        """Keep a queue, if it is to last; an exclusive one goes with its session anyway."""
        if not spec.is_lasting:
            return
        id = self._queues[spec.name] = self._next_queue
        self._next_queue += 1
        self._numbers[id] = 0
        self.record(
            "INSERT INTO queues VALUES (?, ?, ?, ?, 0)",
            id, spec.name, spec.auto_delete, encode_arguments(spec.arguments),
        )  # fmt: skip

    def queue_dropped(self, name: str) -> None:
        """Forget a queue with its bindings and messages."""
        id = self._queues.pop(name, None)
        if id is None:
            return
        del self._numbers[id]
        self._gathering.floors.pop(id, None)
        self.record("DELETE FROM queues WHERE id = ?", id)
        self.record("DELETE FROM bindings WHERE queue = ?", id)
        low = id << NUMBER_BITS
        self.record("DELETE FROM entries WHERE id BETWEEN ? AND ?", low, low + (1 << NUMBER_BITS))

    def bound(self, queue: str, binding: BindingSpec) -> None:
        """Keep a binding of a queue, if that is kept, to a durable exchange."""
        id = self._queues.get(queue)
        if id is not None:
            self.record(
                "INSERT OR IGNORE INTO bindings VALUES (?, ?, ?, ?)",
                id, binding.exchange, binding.key, encode_arguments(binding.arguments),
            )  # fmt: skip

    def drop(self, entry: int) -> None:
        """Forget a queue's message: it was acked, or died. 0 is none."""
        if entry:
            self._gathering.deliveries.pop(entry, None)
            self.record("DELETE FROM entries WHERE id = ?", entry)

    def delivered(self, entry: int, deliveries: int) -> None:
        """Keep how often a message was delivered, at least."""
        self._gathering.deliveries[entry] = deliveries
        self._due()

    def truncated(self, stream: str, offset: int) -> None:
        """Forget a stream's messages before an offset."""
        id = self._queues.get(stream)
        if id is not None:
            # The last number that is gone: numbers begin at 1.
            self._gathering.floors[id] = offset
            self._due()

    # What waits for the disk

    def entry(
        self, queue: str, message: Message, properties: str, deliveries: int, expires: float | None
    ) -> tuple[int, Change | None]:
        """Return a new entry's id and the change that keeps it; 0 for a queue that is not kept.

        expires: by the clock of ages.
        """
        id = self._queues.get(queue)
        if id is None:
            return 0, None
        return self._add(id, message, properties, deliveries, expires)

    def appended(
        self, stream: str, message: Message, properties: str, at: float
    ) -> tuple[int, Change]:
        """Return a message's offset in a stream and the change that keeps it; at: by `ages`.

        Offsets of messages that could not be written stay out.
        """
        entry, change = self._add(self._queues[stream], message, properties, 0, at)
        return offset_of(entry), change

    def _add(
        self, queue: int, message: Message, properties: str, deliveries: int, at: float | None
    ) -> tuple[int, Change]:
        self._numbers[queue] += 1
        number = (queue << NUMBER_BITS) + self._numbers[queue]
        values = (
            number, deliveries, at, message.exchange, message.routing_key, properties,
            message.body,
        )  # fmt: skip
        return number, ("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def retained(self, rule: int, message: Message, properties: str) -> tuple[int, Change]:
        """Return the size that counts, and the change that adds a message to a rule's log."""
        size = len(message.body) + len(message.routing_key) + len(properties) + _ROW_BYTES
        sql = f"INSERT INTO {self._tables[rule]} VALUES (?, ?, ?, ?, ?, ?)"
        values = (
            message.offset, self.ages.now(), size, message.routing_key, properties, message.body
        )  # fmt: skip
        return size, (sql, values)

    def check_writable(self) -> None:
        """Raise Unavailable while the disk fails: what nobody waits for must not pile up."""
        if self.error is not None:
            raise Unavailable(self.error.text, self.error.hint)

    def check_room(self) -> None:
        """Raise Unavailable while too much waits for the disk."""
        if self._waiting_bytes > WAITING_BYTES:
            raise Unavailable(
                f"{self._waiting_bytes} bytes wait for the disk of broker.data",
                "publish more slowly",
            )

    def submit(self, unit: Unit) -> None:
        """Take changes with what is to happen after them, in the order of the calls."""
        self._gathering.units.append(unit)
        self._waiting += 1
        self._waiting_bytes += unit.weight
        self._due()

    def reserve(self, offset: int) -> None:
        """Reserve the next range once the last one is half used.

        What is submitted after it is seen after it was written, and may use it at once.
        """
        if self._reserved - offset > RANGE // 2:
            return
        self._reserved = offset + RANGE
        change = ("UPDATE meta SET value = ? WHERE name = 'offset'", (self._reserved,))
        self.submit(Unit([change], applied=lambda: None))

    async def settled(self) -> None:
        """Return once all that was taken so far is on disk; raises Unavailable."""
        if not (self._is_writing or self._waiting or self._gathering):
            return
        done = self._loop.create_future()
        self.submit(
            Unit(
                [],
                applied=lambda: None if done.done() else done.set_result(None),
                failed=lambda error: None if done.done() else done.set_exception(error),
            )
        )
        await done

    # Batches

    def _due(self) -> None:
        """Write at the end of this turn of the loop, or after the batch that is written now."""
        if not self._is_due and not self._is_writing:
            self._is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_due = False
        if self._is_writing or self._is_closed or not self._gathering:
            return
        self._is_writing = True
        batch, self._gathering = self._gathering, Batch()
        self._writer.write(batch)

    def _report(self, outcome: Outcome) -> None:
        """Called from the writer's thread."""
        try:
            self._loop.call_soon_threadsafe(self._written, outcome)
        except RuntimeError:
            # The loop is closed: its program ended without closing the broker.
            logger.warning("the store wrote a batch that nobody waits for any more")

    def _written(self, outcome: Outcome) -> None:
        self._is_writing = False
        self.measures.committed(outcome)
        if outcome.error is None:
            if self.error is not None:
                logger.info("the store can write again")
            self.error = None
            # The next batch is written while this one is applied.
            self._send()
            self._applying.extend(unit for unit in outcome.batch.units if unit.applied is not None)
            self._apply()
        else:
            self._not_written(outcome, outcome.error)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _apply(self) -> None:
        for _ in range(_APPLIED_A_TURN):
            if not self._applying:
                break
            unit = self._applying.popleft()
            self._waiting -= 1
            self._waiting_bytes -= unit.weight
            assert unit.applied is not None
            try:
                unit.applied()
            except Exception:
                logger.exception(
                    "embedded broker: a message that was stored could not be handed on"
                )
        if self._applying:
            self._loop.call_soon(self._apply)
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _not_written(self, outcome: Outcome, error: QueuecastError) -> None:
        if self.error is None:
            logger.error("%s; publishes are refused until it can", error)
        self.error = error
        batch = outcome.batch
        carried = [unit for unit in batch.units if unit.failed is None]
        later = self._gathering
        later.units[:0] = carried
        later.deliveries = batch.deliveries | later.deliveries
        later.floors = batch.floors | later.floors
        for unit in batch.units:
            if unit.failed is not None:
                self._waiting -= 1
                self._waiting_bytes -= unit.weight
                unit.failed(error)
        if any(unit.failed is not None for unit in later.units):
            self._due()
            return
        if not later:
            # Something to try with, so that a disk that has room again is noticed by itself.
            later.add(("UPDATE meta SET value = value WHERE name = 'starts'", ()))
        self._loop.call_later(_RETRY, self._send)
