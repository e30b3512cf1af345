"""The newest message of each routing key, beside the log: what `conflate` gives to the slow.

It is read by place, as the log is: whoever stands at a position gets, in their order, the
messages after it that no later message of the same key has replaced. Gaps are never replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..position import Mark, Vector
from .log import NOT_WRITTEN, Budget, Entry, LogLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .cohort import Cohort
    from .subscription import Subscription

# Routing keys of one feed. A publisher with ever new keys would otherwise fill the memory; who
# needs more than this many gets them from the log, as without conflation.
MOST_KEYS = 10_000
# Bytes of encoded chunks kept for those who stand at the same place.
_KEPT_BYTES = 512 * 1024

_Key = tuple[int, str | int]


class _Kept(NamedTuple):
    entry: Entry
    epoch: str


class Newest:
    """Entries in the order of the log, at most one message for each key of each lane.

    start: the place after which nothing is missing but what was replaced.
    """

    def __init__(self, marks: Iterable[Mark], limits: LogLimits, budget: Budget) -> None:
        self.start = Vector(marks)
        self.bytes = 0
        self._head = self.start.copy()
        self._limits = limits
        self._budget = budget
        self._entries: dict[_Key, _Kept] = {}
        self._gaps = 0
        self._epochs: dict[_Key, tuple[int, str]] = {}  # of the gaps that are here
        self._chunks: dict[tuple[Cohort, tuple[Mark, ...]], tuple[Vector, bytes]] = {}
        self._chunk_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, entries: Iterable[Entry]) -> None:
        """Take what the log has; what lies before `start` has holes and stays out."""
        for entry in entries:
            if entry.epoch is not None or entry.offset > self._head.marks[entry.lane].offset:
                self.add(entry)

    def add(self, entry: Entry) -> None:
        """Take an entry that was appended to the log."""
        self._head.advance(entry.lane, entry.offset, entry.epoch)
        epoch = self._head.marks[entry.lane].epoch
        if entry.message is None:
            self._gaps += 1
            key: _Key = (entry.lane, self._gaps)
            self._epochs[key] = (entry.lane, epoch)
        else:
            key = (entry.lane, entry.message.routing_key)
            replaced = self._entries.pop(key, None)
            if replaced is not None:
                self._count(-replaced.entry.size)
        self._entries[key] = _Kept(entry, epoch)
        self._count(entry.size)
        if self._chunks:
            self.forget_chunks()
        while len(self._entries) > MOST_KEYS or self.bytes > self._limits.bytes:
            self._drop_oldest()

    def widen(self, marks: Sequence[Mark]) -> None:
        """Add lanes at the end."""
        for vector in (self.start, self._head):
            vector.marks += marks
        self.forget_chunks()

    def covers(self, vector: Vector) -> bool:
        """Tell whether everything after a place is here, but for what was replaced."""
        for lane, (mark, start) in enumerate(zip(vector.marks, self.start.marks, strict=True)):
            here = mark.epoch == start.epoch and mark.offset >= start.offset
            if not here and (lane, mark.epoch) not in self._epochs.values():
                return False
        return True

    def after(self, vector: Vector, max_bytes: int) -> list[Entry]:
        """Return what comes after a place that is covered, oldest first: as much as is written
        at a time, at least one entry unless there is none."""
        found: list[Entry] = []
        known: set[int] = set()
        for entry, epoch in reversed(self._entries.values()):
            lane = entry.lane
            if lane in known:
                continue
            mark = vector.marks[lane]
            if epoch == mark.epoch and entry.offset <= mark.offset:
                known.add(lane)
                if len(known) == len(vector.marks):
                    break
                continue
            found.append(entry)
        found.reverse()
        size = 0
        for index, entry in enumerate(found):
            size += entry.size - NOT_WRITTEN
            if index and size > max_bytes:
                return found[:index]
        return found

    def chunk(self, cohort: Cohort, vector: Vector) -> tuple[Vector, bytes] | None:
        """Encode what comes after a place; None when that is nothing."""
        key = (cohort, tuple(vector.marks))
        kept = self._chunks.get(key)
        if kept is not None:
            return kept
        entries = self.after(vector, cohort.feed.ticker.chunk_bytes)
        if not entries:
            return None
        _, after, data = cohort.encode(entries, vector)
        if self._chunk_bytes + len(data) <= _KEPT_BYTES:
            self._chunks[key] = (after, data)
            self._chunk_bytes += len(data)
        return after, data

    def halve(self) -> None:
        """Drop the older half: the node's budget is used up."""
        goal = self.bytes // 2
        while self._entries and self.bytes > goal:
            self._drop_oldest()

    def clear(self) -> None:
        """Give everything back; not used any more."""
        self._count(-self.bytes)
        self._entries.clear()
        self._epochs.clear()
        self.forget_chunks()

    def forget_chunks(self) -> None:
        """Give the kept chunks' memory back."""
        self._chunks.clear()
        self._chunk_bytes = 0

    def _drop_oldest(self) -> None:
        key = next(iter(self._entries))
        entry, epoch = self._entries.pop(key)
        self._epochs.pop(key, None)
        self.start.advance(entry.lane, entry.offset, epoch)
        self._count(-entry.size)

    def _count(self, size: int) -> None:
        self.bytes += size
        self._budget.used += size


class Conflation:
    """A subscription that fell behind, on its way through what is newest."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def stop(self) -> None:
        """It holds nothing."""

    def step(self) -> bytes | None:
        """Return the next bytes; None when there are no more, or when the log must be read."""
        subscription = self._subscription
        newest = subscription.feed.newest
        if newest is not None and newest.covers(subscription.vector):
            chunk = newest.chunk(subscription.cohort, subscription.vector)
            if chunk is not None:
                subscription.vector, data = chunk
                return data
        subscription.stand(subscription.feed.since(subscription.vector.position()))
        return None
