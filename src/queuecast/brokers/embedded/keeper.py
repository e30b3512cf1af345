"""The keeper: everything that the broker asks of its store, in the broker's own terms.

A message's way through it: planned, written, and only then handed on. Every message that comes
while others are on their way waits behind them, whether or not it has to be kept itself, so that
feeds and queues see one order. Queues are chosen before the write and get the message after it;
feeds are chosen after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import BadRequest, ConfigError, QueuecastError, Unavailable
from ...message import Message
from ...metrics import Family
from .age import AgeClock
from .clearance import Clearance
from .memory import Memory, weight
from .queue import Queue
from .retained import RetainedLog
from .store import Store
from .store_batch import Change, Unit
from .store_codec import encode_properties
from .store_load import Found, StoredEntry, offset_of
from .stream import Stream
from .topology import AnyQueue, Topology
from .turn import Turn

# Messages put back before the event loop has its turn: some milliseconds.
_RESTORED_A_TURN = 1000


async def _in_turns(entries: Sequence[StoredEntry]) -> AsyncIterator[StoredEntry]:
    """Yield entries; between some of them the event loop turns, so that a probe is answered."""
    for start in range(0, len(entries), _RESTORED_A_TURN):
        for entry in entries[start : start + _RESTORED_A_TURN]:
            yield entry
        await asyncio.sleep(0)


class Keeper:
    """The store of one broker, and the messages between a publish and its commit."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def directory(self) -> Path:
        return self._store.directory

    @property
    def ages(self) -> AgeClock:
        """The clock that ages are measured by."""
        return self._store.ages

    @property
    def error(self) -> QueuecastError | None:
        """Why the store cannot write, None while it can."""
        return self._store.error

    def families(self) -> list[Family]:
        """Return what is measured of the store."""
        store = self._store
        return store.measures.families(store.waiting_bytes, ok=store.error is None)

    async def open(self, turn: Turn, memory: Memory) -> Found:
        """Open the store and return what is in it; raises ConfigError."""
        self._turn = turn
        self._memory = memory
        return await self._store.open()

    async def abandon(self) -> None:
        """Close the store as it is: what is in it cannot be used."""
        await self._store.abandon()

    async def restore(self, found: Found, topology: Topology) -> None:
        """Make exchanges, queues and bindings again, then put their messages back.

        Nothing else may use the broker meanwhile, but the event loop turns. Raises ConfigError for
        what this version cannot read.
        """
        try:
            for exchange in found.exchanges:
                topology.declare_exchange(exchange)
            queues = [topology.declare_queue(stored.spec) for stored in found.queues]
        except QueuecastError as error:
            raise ConfigError(f"broker.data: {error.text}", error.hint) from error
        topology.store = self._store
        for queue, stored in zip(queues, found.queues, strict=True):
            if isinstance(queue, Stream):
                async for each in _in_turns(stored.entries):
                    offset = offset_of(each.id)
                    queue.put(each.message, weight(each.message), offset, each.time or 0.0)
                queue.begin_at(stored.last)
                continue
            async for id, message, deliveries, expires in _in_turns(stored.entries):
                ttl = None if expires is None else max(0.0, expires - self.ages.now())
                queue.restore(message, weight(message), id, deliveries, ttl)

    async def settled(self) -> None:
        """Return once all that was taken so far is on disk; raises Unavailable."""
        await self._store.settled()

    async def close(self, topology: Topology, offset: int) -> None:
        """Write what is left; offset: the last that was given. Consumers are cancelled."""
        queues = [queue for queue in topology.queues.values() if isinstance(queue, Queue)]
        for queue in queues:
            queue.close_consumers(Unavailable("the embedded broker is closed"))
        with suppress(Unavailable):  # what came back may have died of it, and be a letter now
            await self._store.settled()
        for queue in queues:
            for entry in queue.kept_entries():
                if entry.cleared:
                    # Some were cleared for a delivery that did not come.
                    self._store.delivered(entry.kept, entry.returns)
        await self._store.close(offset)

    def clearance(self) -> Clearance:
        """Return what a new queue asks before it delivers."""
        return Clearance(self._store)

    def truncated(self, stream: str, offset: int) -> None:
        """Forget a stream's messages before an offset."""
        self._store.truncated(stream, offset)

    def log(self, rule: int) -> RetainedLog:
        """Return the log of a rule, by its number."""
        return self._store.log(rule)

    def drop(self, kept: int) -> None:
        """Forget a message that is in a queue no more; 0 is none."""
        self._store.drop(kept)

    def check(self, message: Message, *, is_letter: bool) -> None:
        """Raise what forbids a message before anything has happened.

        Raises Unavailable (the disk does not keep up), BadRequest. A letter was there already.
        """
        if not is_letter:
            self._store.check_room()
        try:
            message.routing_key.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"routing key {message.routing_key!r} is not text") from None

    def take(
        self,
        message: Message,
        size: int,
        queues: Sequence[AnyQueue],
        rules: Sequence[int],
        hand: Callable[[], None],
        *,
        is_letter: bool,
    ) -> asyncio.Future[None] | None:
        """Write what has to last of a message, then put it into its queues and hand it on.

        Returns when that will be done; None when it is. size: its weight. is_letter: nobody waits
        for it and it must not be lost. Raises BadRequest (a header that cannot be kept).
        """
        store = self._store
        store.reserve(message.offset or 0)
        persistent = message.properties.persistent
        streams = [queue for queue in queues if isinstance(queue, Stream)]
        is_kept = persistent or rules or streams
        properties = encode_properties(message.properties) if is_kept else ""
        changes: list[Change] = []
        retained: list[tuple[int, int]] = []
        places: list[tuple[Queue, int, bool]] = []
        ends: list[tuple[Stream, int, float]] = []
        waiting = [queue for queue in queues if isinstance(queue, Queue)]
        for queue in waiting:
            kept, cleared = 0, True
            if persistent:
                cleared = queue.expects_one()
                ttl = queue.ttl(message)
                expires = None if ttl is None else self.ages.now() + ttl
                kept, change = store.entry(
                    queue.name, message, properties, 1 if cleared else 0, expires
                )
                if change is not None:
                    changes.append(change)
            places.append((queue, kept, cleared or not kept))
        for stream in streams:
            # As at RabbitMQ: a stream keeps every message, whatever it says of itself.
            at = self.ages.now()
            offset, change = store.appended(stream.name, message, properties, at)
            changes.append(change)
            ends.append((stream, offset, at))
        for rule in rules:
            size_there, change = store.retained(rule, message, properties)
            retained.append((rule, size_there))
            changes.append(change)

        def put() -> None:
            for queue, kept, cleared in places:
                if not queue.is_gone:
                    queue.put(message, size, kept, cleared)
            for stream, offset, at in ends:
                if not stream.is_gone:
                    stream.put(message, size, offset, at)
            hand()

        if not changes and not store.waiting:
            put()
            return None

        bytes_ = len(message.body)
        self._memory.used += len(queues) * size
        for queue in waiting:
            queue.pending += 1
            queue.pending_bytes += bytes_
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def leave() -> None:
            self._memory.used -= len(queues) * size
            for queue in waiting:
                queue.pending -= 1
                queue.pending_bytes -= bytes_

        def applied() -> None:
            leave()
            try:
                self._turn.first(put)
            finally:
                if not done.done():
                    done.set_result(None)

        def failed(error: QueuecastError) -> None:
            leave()
            if not done.done():
                done.set_exception(error)

        store.submit(
            Unit(
                changes,
                applied=applied,
                failed=None if is_letter else failed,
                retained=tuple(retained),
                weight=size * max(1, len(changes)),
            )
        )
        return done
