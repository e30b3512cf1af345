"""Who reads what of one exchange: the open feeds, their routing keys, and what the broker binds.

Knows no channel: the feed's queue asks which keys are stale, binds and unbinds them, and says
how that went; the intake hands in messages and gaps, which go to the readers concerned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ...errors import QueuecastError, Refused
from ...message import Message
from ..base import FeedSink
from ..matching import Index, new_index
from .topology import MATCHED

log = logging.getLogger(__name__)


class Reader:
    """An open feed: where the messages of one destination go.

    opened: done when the binding is there and the sink's `begin` was called. owed: a gap that
    the sink is told of when the binding is there again.
    """

    def __init__(self, readers: Readers, key: str, sink: FeedSink) -> None:
        self._readers = readers
        self.key = key
        self.sink = sink
        self.live = False
        self.closed = False
        self.owed: str | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def position(self) -> Sequence[int] | None:
        """Return None: a classic queue has no offsets."""
        return None

    async def settle(self) -> None:
        """See base.SettlingReader."""
        await self._readers.settle()

    async def close(self) -> None:
        """Stop reading; unbinding happens in the background."""
        self._readers.remove(self)


class _Binding:
    """One routing key or pattern, and who reads it."""

    __slots__ = ("bound", "lost", "readers")

    def __init__(self) -> None:
        self.readers: set[Reader] = set()
        self.bound = False
        # Whether messages may have passed it by since its readers went live.
        self.lost: str | None = None


class Readers:
    """The readers of one exchange by binding.

    kind: the exchange's type, which decides how messages find their readers. on_stale: called
    when a binding must be looked at. settle: returns once all that the queue holds was appended.
    """

    def __init__(
        self, kind: str, on_stale: Callable[[], None], settle: Callable[[], Awaitable[None]]
    ) -> None:
        self.settle = settle
        self._bindings: dict[str, _Binding] = {}
        self._stale: set[str] = set()  # keys whose binding must be looked at
        self._index: Index[Reader] | None = new_index(kind) if kind in MATCHED else None
        self._live: set[Reader] = set()
        self._on_stale = on_stale
        self._unmatched = False
        # Bound since the queue was last heard of: whether the broker's nodes agree on them is open.
        self._fresh: set[str] = set()

    @property
    def is_empty(self) -> bool:
        return not self._bindings

    @property
    def has_lost(self) -> bool:
        """Whether a binding is missing because its exchange is."""
        return any(binding.lost for binding in self._bindings.values())

    def take_unmatched(self) -> bool:
        """Tell whether messages came since the last call that no reader wanted."""
        unmatched, self._unmatched = self._unmatched, False
        return unmatched

    # Coming and going

    def add(self, key: str, sink: FeedSink) -> Reader:
        """Add a reader; await its `opened`."""
        reader = Reader(self, key, sink)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = _Binding()
        binding.readers.add(reader)
        if binding.bound:
            self._go_live(reader)
        else:
            self._look_at(key)
        return reader

    def remove(self, reader: Reader) -> None:
        """Forget a reader; its sink is not called any more."""
        if reader.closed:
            return
        reader.closed = True
        if reader.live:
            reader.live = False
            self._live.discard(reader)
            if self._index is not None:
                self._index.remove(reader.key, reader)
        if not reader.opened.done():
            reader.opened.cancel()
        binding = self._bindings.get(reader.key)
        if binding is None:
            return
        binding.readers.discard(reader)
        if not binding.readers:
            self._look_at(reader.key)

    def _look_at(self, key: str) -> None:
        self._stale.add(key)
        self._on_stale()

    def _go_live(self, reader: Reader) -> None:
        if reader.closed or reader.live:
            return
        try:
            reader.sink.begin(None)
        except Exception as error:
            log.exception("a feed's sink failed")
            if not reader.opened.done():
                reader.opened.set_exception(error)
            self.remove(reader)
            return
        reader.live = True
        self._live.add(reader)
        if self._index is not None:
            self._index.add(reader.key, reader)
        if not reader.opened.done():
            reader.opened.set_result(None)

    def refuse(self, error: QueuecastError, keys: Sequence[str] | None = None) -> None:
        """Fail those who wait for these bindings (all).

        Those who had one wait for its return, unless it is ours no more to have.
        """
        for key in list(self._bindings) if keys is None else keys:
            binding = self._bindings.get(key)
            if binding is None:
                continue
            for reader in [reader for reader in binding.readers if not reader.live]:
                binding.readers.discard(reader)
                reader.closed = True
                if not reader.opened.done():
                    reader.opened.set_exception(error)
            if isinstance(error, Refused) and not binding.bound:
                for reader in list(binding.readers):
                    self._end(reader, error)
            if not binding.readers:
                self._stale.add(key)

    def fail(self, error: QueuecastError) -> None:
        """Tell every reader that the feed is over."""
        self.refuse(error)
        for binding in list(self._bindings.values()):
            for reader in list(binding.readers):
                self._end(reader, error)

    def close(self, error: QueuecastError) -> None:
        """Forget all, failing those who still wait with the error."""
        for binding in self._bindings.values():
            for reader in binding.readers:
                reader.closed = True
                reader.live = False
                if not reader.opened.done():
                    reader.opened.set_exception(error)

    def _end(self, reader: Reader, error: QueuecastError) -> None:
        self.remove(reader)
        try:
            reader.sink.fail(error)
        except Exception:
            log.exception("a feed's sink failed")

    # Bindings

    def take_stale(self, most: int) -> tuple[list[str], list[str]]:
        """Return up to `most` keys to look at: those to bind, and those to unbind."""
        wanted: list[str] = []
        unwanted: list[str] = []
        for _ in range(min(most, len(self._stale))):
            key = self._stale.pop()
            binding = self._bindings.get(key)
            if binding is not None:
                (wanted if binding.readers else unwanted).append(key)
        return wanted, unwanted

    @property
    def has_stale(self) -> bool:
        return bool(self._stale)

    def put_back(self, keys: Sequence[str]) -> None:
        """Say that looking at these keys was cut short."""
        self._stale.update(keys)

    def refresh(self, most: int) -> None:
        """Have up to `most` bindings looked at again, each in its turn."""
        for key in list(self._bindings)[:most]:
            binding = self._bindings.pop(key)
            self._bindings[key] = binding  # to the end: its turn comes after the others'
            self._stale.add(key)
        if self._bindings:
            self._on_stale()

    def unbound(self) -> None:
        """Say that there is a new queue, without bindings."""
        for binding in self._bindings.values():
            binding.bound = False
        self._stale.update(self._bindings)

    def lose(self, why: str, keys: Iterable[str] | None = None) -> None:
        """Have these keys (all) bound again: messages passed them by. The gap is told then."""
        for key in list(self._bindings) if keys is None else keys:
            binding = self._bindings.get(key)
            if binding is not None:
                binding.lost = binding.lost or why
                self._stale.add(key)
        if self._stale:
            self._on_stale()

    def heard(self) -> None:
        """Note that the queue delivers."""
        self._fresh.clear()

    def doubt(self, why: str) -> None:
        """Note that the queue does not deliver, so that its last bindings may not hold."""
        fresh, self._fresh = self._fresh, set()
        self.lose(why, fresh)

    def binding(self, keys: Sequence[str]) -> None:
        """Note that these keys are being bound: the next message may come before the answer."""
        for key in keys:
            binding = self._bindings.get(key)
            if binding is None or binding.lost is None:
                continue
            for reader in binding.readers:
                if reader.live:
                    reader.owed = reader.owed or binding.lost

    def bound(self, keys: Sequence[str]) -> None:
        """Say that these keys are bound: who waits for one goes live."""
        self._fresh.update(keys)
        for key in keys:
            binding = self._bindings.get(key)
            if binding is None:
                continue
            binding.bound = True
            binding.lost = None
            for reader in list(binding.readers):
                owed, reader.owed = reader.owed, None
                if not reader.live:
                    self._go_live(reader)
                elif owed is not None:
                    self._tell_gap(reader, owed)

    def missing(self, keys: Sequence[str], why: str) -> bool:
        """Say that these keys cannot be bound now; returns whether they are the first."""
        before = self.has_lost
        for key in keys:
            binding = self._bindings.get(key)
            if binding is not None and binding.readers:
                binding.bound = False
                binding.lost = binding.lost or why
        return not before and self.has_lost

    def unbinding(self, keys: Sequence[str]) -> list[str]:
        """Return which of these are bound; from here on a new reader of one binds it again."""
        bound = [key for key in keys if self._bindings[key].bound]
        for key in bound:
            self._bindings[key].bound = False
        return bound

    def forget(self, keys: Sequence[str]) -> None:
        """Say that these keys are unbound; those that have readers again are looked at again."""
        for key in keys:
            if self._bindings[key].readers:
                self._stale.add(key)
            else:
                del self._bindings[key]

    # Messages

    def append(self, messages: Sequence[Message]) -> None:
        """Hand messages to the readers they match, one call each."""
        index = self._index
        lists: dict[Reader, list[Message]] = {}
        for message in messages:
            if index is None:
                found: Any = self._live
            else:
                found = index.match(message.routing_key)
                if not found:
                    self._unmatched = True
                more = message.properties.headers.get("CC")
                if more:
                    found = _with_copies(index, found, more)
            for reader in found:
                batch = lists.get(reader)
                if batch is None:
                    lists[reader] = [message]
                else:
                    batch.append(message)
        for reader, batch in lists.items():
            if reader.closed:
                continue
            if reader.owed is not None:
                # Its key is bound, the answer to that is still on its way.
                owed, reader.owed = reader.owed, None
                self._tell_gap(reader, owed)
            try:
                reader.sink.append(batch)
            except Exception:
                log.exception("a feed's sink failed")
                self._break(reader)

    def owe(self, why: str) -> None:
        """Tell everyone of messages that are lost, each when its key is bound again."""
        for reader in self._live:
            reader.owed = why

    def gap(self, why: str) -> None:
        """Tell everyone of messages that are lost."""
        for reader in list(self._live):
            self._tell_gap(reader, why)

    def gap_of(self, keys: Iterable[str], why: str) -> None:
        """Tell the readers of messages with these routing keys that they are lost."""
        if self._index is None:
            self.gap(why)
            return
        found: dict[Reader, None] = {}
        for key in keys:
            found.update(dict.fromkeys(self._index.match(key)))
        for reader in found:
            if not reader.closed:
                self._tell_gap(reader, why)

    def _tell_gap(self, reader: Reader, why: str) -> None:
        try:
            reader.sink.gap(why)
        except Exception:
            log.exception("a feed's sink failed")
            self._break(reader)

    def _break(self, reader: Reader) -> None:
        """End a feed whose sink cannot take messages: it has a hole now."""
        self._end(reader, QueuecastError("the feed failed inside the gateway, see its log"))


def _with_copies(index: Index[Reader], readers: Any, more: Any) -> Any:
    """Add the readers of the sender-selected routing keys (RabbitMQ's CC header)."""
    found = dict.fromkeys(readers)
    for key in more if isinstance(more, list) else ():
        if isinstance(key, str):
            found.update(dict.fromkeys(index.match(key)))
    return found
