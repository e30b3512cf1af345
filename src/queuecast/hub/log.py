"""A feed's log: a bounded run of its recent messages, in the order in which they came.

Entries are numbered by `seq`, contiguous and local to this log; cursors are seqs. Positions,
which clients see, are vectors of marks (position.py): each entry moves one lane of the vector
on. A gap is an entry of its own without a message, so that everybody meets it in its place.

Three vectors describe the log: `start` is the place just before the first entry, `head` the
place after the last one, and `complete` the place after which nothing is missing (later than
`start` when a broker handed over older messages with holes between them).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ..message import Message
from ..position import Mark, Position, Vector

if TYPE_CHECKING:
    from .feed import Part

# What an entry costs beside its body and key: the objects themselves, measured on CPython 3.11.
ENTRY_OVERHEAD = 400
# How much of that does not go onto the wire: framing and position take about 150 bytes.
NOT_WRITTEN = 250
# Added to a seq in Place.skip: the subscription is ahead of the log in this lane, and knows of
# what comes at that seq and later what its vector covers.
AHEAD = 1 << 62


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Bounds of one log, and of all logs of the node together.

    messages: entries. bytes: including overhead. age: seconds. total: bytes of the node.
    Without them a burst, or a page left open over a week-end, would fill the memory.
    """

    messages: int = 65_536
    bytes: int = 8 << 20
    age: float = 300.0
    total: int = 512 << 20


class Gap(NamedTuple):
    """Messages known to be missed: why, after which position, and where it goes on."""

    reason: str
    last: str
    first: str


class Entry:
    """One place in the log: a message, or a gap (message None, epoch the new numbering's)."""

    __slots__ = ("at", "epoch", "lane", "message", "offset", "reason", "size")

    def __init__(
        self,
        lane: int,
        offset: int,
        message: Message | None,
        at: float,
        size: int = ENTRY_OVERHEAD,
        epoch: str | None = None,
        reason: str = "",
    ) -> None:
        self.lane = lane
        self.offset = offset
        self.message = message
        self.at = at
        self.size = size
        self.epoch = epoch
        self.reason = reason

    def moved(self, lanes: int) -> Entry:
        """Return the same entry so many lanes further on (a joint feed's)."""
        return Entry(
            self.lane + lanes,
            self.offset,
            self.message,
            self.at,
            self.size,
            self.epoch,
            self.reason,
        )


def size_of(message: Message) -> int:
    """Estimate the bytes that a message holds in memory."""
    size = ENTRY_OVERHEAD + len(message.body) + len(message.routing_key)
    for name, value in message.properties.headers.items():
        size += 100 + len(name) + (len(value) if isinstance(value, (str, bytes)) else 50)
    return size


class Budget:
    """Bytes held by all logs of the node. evicted: messages and gaps that they have dropped."""

    __slots__ = ("evicted", "used")

    def __init__(self) -> None:
        self.used = 0
        self.evicted = 0


class Place(NamedTuple):
    """Where a subscription starts: the next entry's seq and the position before it.

    gap: to be told first. skip: per lane, the seq before which that lane's entries are already
    known to the subscriber, perhaps plus AHEAD. What follows the vector is read first from the
    history of the part `lags`, or from what is newest of each key, if they say so; seq means
    nothing then.
    """

    seq: int
    vector: Vector
    gap: Gap | None = None
    skip: dict[int, int] | None = None
    lags: Part | None = None
    newest: bool = False


class Standing(Enum):
    """How a mark relates to a log.

    here: what follows it is in the log. ahead: in front of the feed. evicted: something after it
    is not there any more. unknown: it is of a numbering that is not in the log.
    """

    HERE = 0
    AHEAD = 1
    EVICTED = 2
    UNKNOWN = 3


class Log:
    """The entries, with bounds, and the search for positions."""

    __slots__ = (
        "_bounds",
        "_budget",
        "_changes",
        "_entries",
        "_first",
        "_limits",
        "base",
        "bytes",
        "complete",
        "cut",
        "head",
        "next",
        "start",
    )

    def __init__(
        self,
        marks: Sequence[Mark],
        limits: LogLimits,
        budget: Budget,
        bounds: tuple[int, ...] = (),
    ) -> None:
        """bounds: of several destinations together, see position.Vector."""
        self._entries: list[Entry] = []
        self._first = 0  # index of the first live entry; the dead prefix is cut now and then
        self._limits = limits
        self._budget = budget
        self.base = 0
        self.next = 0
        self.bytes = 0
        self._bounds = bounds
        self.start = Vector(marks, bounds)
        self.complete = Vector(marks, bounds)
        self.head = Vector(marks, bounds)
        self.cut = float("-inf")  # when the last entry came that was evicted
        # The gaps that begin another numbering: (seq, lane, epoch).
        self._changes: list[tuple[int, int, str]] = []

    def __len__(self) -> int:
        return self.next - self.base

    def append(self, entry: Entry) -> None:
        """Add an entry at the head; bounds are applied by `evict`, after the tick."""
        self._entries.append(entry)
        if entry.epoch is not None and entry.epoch != self.head.marks[entry.lane].epoch:
            # A gap within one numbering (a broker that keeps its offsets) begins none.
            self._changes.append((self.next, entry.lane, entry.epoch))
        self.head.advance(entry.lane, entry.offset, entry.epoch)
        self.next += 1
        self.bytes += entry.size
        self._budget.used += entry.size

    def preload(
        self, entries: Iterable[Entry], start: Sequence[Mark], complete: Sequence[Mark]
    ) -> None:
        """Fill an empty log with what was there before it; start is the place before that."""
        now = list(self.head.marks)
        self.start = Vector(start, self._bounds)
        self.complete = Vector(complete, self._bounds)
        self.head = Vector(start, self._bounds)
        for entry in entries:
            self.append(entry)
        for lane, mark in enumerate(now):
            # A lane's head never stands before where the broker said it is.
            reached = self.head.marks[lane]
            if reached.epoch != mark.epoch or reached.offset < mark.offset:
                self.head.marks[lane] = mark

    def widen(self, marks: Iterable[Mark]) -> None:
        """Add lanes at the end, which begin at these marks."""
        for mark in marks:
            for vector in (self.start, self.complete, self.head):
                vector.marks.append(mark)

    def latest(self, count: int) -> list[Entry]:
        """Return the last `count` entries."""
        return self._entries[len(self._entries) - count :]

    def entries(self) -> list[Entry]:
        """Return everything that is there, oldest first."""
        return self._entries[self._first :]

    def read(self, seq: int, max_bytes: int) -> tuple[list[Entry], int]:
        """Return entries from seq on (at least one if there is one), and the seq after them.

        max_bytes: of their wire form, estimated.
        """
        low = seq - self.base + self._first
        entries = self._entries
        high = len(entries)
        size = 0
        stop = low
        while stop < high:
            size += entries[stop].size - NOT_WRITTEN
            if size > max_bytes and stop > low:
                break
            stop += 1
        return entries[low:stop], seq + stop - low

    def evict(self, now: float) -> None:
        """Apply the bounds from the oldest entry on."""
        limits = self._limits
        oldest_allowed = now - limits.age
        base = self.base
        while self.base < self.next:
            entry = self._entries[self._first]
            if (
                self.next - self.base <= limits.messages
                and self.bytes <= limits.bytes
                and entry.at >= oldest_allowed
            ):
                break
            self.drop_oldest()
        self._budget.evicted += self.base - base
        self._trim()

    def halve(self) -> None:
        """Drop the older half: the node's budget is used up."""
        goal = self.bytes // 2
        base = self.base
        while self.base < self.next and self.bytes > goal:
            self.drop_oldest()
        self._budget.evicted += self.base - base
        self._trim()

    def clear(self) -> None:
        """Give everything back to the budget; the log is not used any more."""
        self._budget.used -= self.bytes
        self.bytes = 0
        self._entries = []
        self._first = 0
        self.base = self.next

    def drop_oldest(self) -> None:
        """Forget the first entry; whoever has not read it meets a gap."""
        entry = self._entries[self._first]
        self.cut = entry.at
        self.start.advance(entry.lane, entry.offset, entry.epoch)
        known = self.complete.marks[entry.lane]
        if entry.epoch is not None or entry.offset > known.offset:
            self.complete.advance(entry.lane, entry.offset, entry.epoch)
        self._first += 1
        self.base += 1
        self.bytes -= entry.size
        self._budget.used -= entry.size
        if self._changes and self._changes[0][0] < self.base:
            del self._changes[0]

    def _trim(self) -> None:
        # Amortized: the dead prefix is cut when it is at least as long as the living rest.
        if self._first and self._first >= len(self._entries) - self._first:
            del self._entries[: self._first]
            self._first = 0

    # -- searching ------------------------------------------------------------------------

    def oldest(self) -> Place:
        """Return the place before the first entry."""
        return Place(self.base, self.start.copy())

    def tail(self, count: int) -> tuple[Place, set[int]]:
        """Return the place before the last `count` messages of each lane.

        The second value is the lanes that do not have that many.
        """
        lanes = len(self.head.marks)
        wanted = [count] * lanes
        skip = dict.fromkeys(range(lanes), self.next)
        short = set(range(lanes))
        for index in range(len(self._entries) - 1, self._first - 1, -1):
            entry = self._entries[index]
            lane = entry.lane
            if wanted[lane] == 0 or entry.message is None:
                continue
            skip[lane] = index - self._first + self.base
            wanted[lane] -= 1
            if wanted[lane] == 0:
                short.discard(lane)
                if not short:
                    break
        seq = min(skip.values())
        if lanes == 1:
            return Place(seq, self._vector_at(seq)), short
        return Place(seq, self._vector_skipping(skip), None, skip), short

    def from_time(self, time: float) -> Place:
        """Return the place before the first entry that came at a time or later."""
        seq = self.base
        for entry in self.entries():
            if entry.at >= time:
                break
            seq += 1
        return Place(seq, self._vector_skipping(dict.fromkeys(range(len(self.head.marks)), seq)))

    def standing(self, lane: int, mark: Mark, ahead: Vector) -> Standing:
        """Tell how a mark relates to the log; ahead as in `since`."""
        epochs = self._epochs(lane)
        if mark.epoch not in epochs:
            return Standing.UNKNOWN
        if mark.epoch == epochs[-1] and mark.offset > ahead.marks[lane].offset:
            return Standing.AHEAD
        if mark.epoch == epochs[0] and mark.offset < self.complete.marks[lane].offset:
            return Standing.EVICTED
        return Standing.HERE

    def since(
        self,
        position: Position,
        ahead: Vector,
        all_new: Callable[[Mark], bool],
        trusted: Collection[int] = (),
    ) -> Place:
        """Return the place after a position.

        ahead: where the feed stands (it may run ahead of the last entry). A position before
        `complete` is answered with a gap; so is one in front of `ahead` or of a numbering that
        is not in the log. all_new tells of such a mark whether its client knows nothing of
        what the log has: then it gets that, else what comes from now on. trusted: lanes in
        which the broker's own history led to the position, so that being ahead is no error.
        """
        if len(position) == 1:
            return self._since_one(position, ahead, all_new, trusted)
        return self._since_many(position, ahead, all_new, trusted)

    def _since_one(
        self,
        position: Position,
        ahead: Vector,
        all_new: Callable[[Mark], bool],
        trusted: Collection[int],
    ) -> Place:
        mark = position[0]
        standing = self.standing(0, mark, ahead)
        if standing is Standing.AHEAD and 0 in trusted:
            return Place(self.next, Vector(position), None, {0: AHEAD + self.next})
        if standing in (Standing.AHEAD, Standing.UNKNOWN):
            place = self.oldest() if all_new(mark) else Place(self.next, ahead)
            return place._replace(gap=Gap("epoch", str(position), str(place.vector)))
        number = self._epochs(0).index(mark.epoch)
        borders = [self.base, *(seq for seq, _, _ in self._changes), self.next]
        low = borders[number] - self.base + self._first
        high = borders[number + 1] - self.base + self._first
        index = bisect_right(self._entries, mark.offset, low, high, key=_offset)
        seq = index - self._first + self.base
        if standing is Standing.HERE:
            return Place(seq, Vector(position))
        vector = Vector([max(mark, self._vector_at(seq).marks[0])])
        return Place(seq, vector, Gap("evicted", str(position), str(vector)))

    def _since_many(
        self,
        position: Position,
        ahead: Vector,
        all_new: Callable[[Mark], bool],
        trusted: Collection[int],
    ) -> Place:
        # Lanes interleave differently on every node, so there is no single seq: each lane has
        # its own, and the cursor skips what its lane has already seen.
        standings = [self.standing(lane, mark, ahead) for lane, mark in enumerate(position)]
        epochs = [mark.epoch for mark in self.start.marks]
        skip = {lane: self.base for lane, mark in enumerate(position) if epochs[lane] == mark.epoch}
        for seq, entry in enumerate(self.entries(), self.base):
            lane = entry.lane
            mark = position[lane]
            if entry.epoch is not None:
                epochs[lane] = entry.epoch
            if epochs[lane] != mark.epoch:
                continue
            if entry.offset <= mark.offset:
                skip[lane] = seq + 1
            else:
                skip.setdefault(lane, seq)
        evicted = {lane for lane, how in enumerate(standings) if how is Standing.EVICTED}
        unknown = set()
        for lane, how in enumerate(standings):
            if how is Standing.AHEAD and lane in trusted:
                skip[lane] = AHEAD + self.next
            elif how in (Standing.AHEAD, Standing.UNKNOWN):
                skip[lane] = self.base if all_new(position[lane]) else self.next
                unknown.add(lane)
        vector = Vector(position)
        seq = min(self.next, *skip.values())
        if not unknown and not evicted:
            return Place(seq, vector, None, skip)
        reached = self._vector_skipping(skip).marks
        for lane in evicted:
            vector.marks[lane] = max(vector.marks[lane], reached[lane])
        for lane in unknown:
            vector.marks[lane] = reached[lane]
        gap = Gap("epoch" if unknown else "evicted", str(position), str(vector))
        return Place(seq, vector, gap, skip)

    def _epochs(self, lane: int) -> list[str]:
        """The numberings of a lane, in their order."""
        first = self.start.marks[lane].epoch
        if not self._changes:
            return [first]
        return [first, *(epoch for _, changed, epoch in self._changes if changed == lane)]

    def _vector_at(self, seq: int) -> Vector:
        """The place before seq (one lane only)."""
        if seq == self.next:
            return self.head.copy()
        if seq == self.base:
            return self.start.copy()
        epoch = self.start.marks[0].epoch
        for first, _, name in self._changes:
            if first < seq:
                epoch = name
        return Vector([Mark(epoch, self._entries[seq - self.base + self._first - 1].offset)])

    def _vector_skipping(self, skip: dict[int, int]) -> Vector:
        """The vector of one who knows each lane up to its own seq."""
        vector = self.start.copy()
        for seq, entry in enumerate(self.entries(), self.base):
            if seq < skip[entry.lane]:
                vector.advance(entry.lane, entry.offset, entry.epoch)
        for lane, limit in skip.items():
            if limit == self.next:
                vector.marks[lane] = self.head.marks[lane]
        return vector


def _offset(entry: Entry) -> int:
    return entry.offset
