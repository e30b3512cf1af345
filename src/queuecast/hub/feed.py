"""A feed: one destination's shared broadcast on this node.

It takes messages from its upstream reader into the log, marks itself for the tick, and keeps
the cohorts of its subscribers. Opening and closing the reader is the hub's business (hub.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..errors import BadPosition, QueuecastError, TooSlow
from ..message import Message
from ..metrics import count_up
from ..position import MAX_POSITION_TEXT, Mark, Position, Start, Vector, new_epoch
from ..retention import SlowPolicy
from .align import aligned
from .cohort import Cohort
from .history import Pages
from .log import Budget, Entry, Gap, Log, LogLimits, Place, Standing, size_of
from .newest import Newest
from .page import History, Marks
from .subscription import Encoding, Outlet, Subscription
from .ticker import Ticker

logger = logging.getLogger(__name__)


class Tap(Protocol):
    """A joint feed's ear on one of its members."""

    def entry(self, entry: Entry) -> None:
        """Take a new entry, right after it was appended."""

    def widened(self) -> None:
        """Learn that the member has more lanes now."""

    def failed(self, error: QueuecastError) -> None:
        """Learn that the member is over."""


@dataclass(slots=True)
class Part:
    """A destination's share of a feed: all of it, or its lanes in a joint feed.

    retained: the broker keeps some of what was published. pages: it can be read page by page.
    """

    name: str
    first: int
    lanes: int
    retained: bool
    pages: Pages | None

    def of(self, vector: Vector) -> Marks:
        """Return its share of a vector."""
        return tuple(vector.marks[self.first : self.first + self.lanes])


async def settled() -> None:
    """Return at once: the settling of a feed whose broker holds nothing back."""


class Feed:
    """Log, cohorts and subscribers of one destination; the sink of its reader."""

    def __init__(
        self,
        name: str,
        ticker: Ticker,
        now: Callable[[], float],
        limits: LogLimits,
        budget: Budget,
        node: str,
        wall: Callable[[], float] = time.time,
        policy: SlowPolicy = "catch-up",
    ) -> None:
        """now: monotonic seconds. wall: Unix seconds. policy: for those who do not keep up."""
        self.name = name
        self.ticker = ticker
        self.cohorts: dict[Encoding, Cohort] = {}
        self.subscribers: set[Subscription] = set()
        self.taps: list[Tap] = []
        self.on_failure: Callable[[QueuecastError], None] = lambda error: None
        self.upstream_position: Callable[[], Sequence[int] | None] = lambda: None
        # Returns once what the broker held for the feed is in it.
        self.settle: Callable[[], Awaitable[None]] = settled
        # Whether it may get more lanes, as partitions are added.
        self.widens = False
        # Set by who opens the reader, where the broker keeps what was published.
        self.past: History | None = None
        self.history = False
        self.policy = policy
        self.newest: Newest | None = None
        # Subscriptions ahead of the feed, which waits for what they know already.
        self.parked: dict[Subscription, None] = {}
        self._now = now
        self._wall = wall
        self._limits = limits
        self._budget = budget
        self._node = node
        self._numbering = True  # the broker has no offsets: count here
        self.log = Log([Mark(new_epoch(node), 0)], limits, budget)
        self.parts = [Part(name, 0, 1, False, None)]
        # Of a joint feed, each member's first lane.
        self.bounds: tuple[int, ...] = ()
        self._begun = now()
        self._hinted = False
        # Subscribers that were closed since the last sweep.
        self._ended_slow = 0
        self._conflate()

    # -- upstream: brokers.base.FeedSink --------------------------------------------------

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        """Begin where the broker says; see brokers.base.FeedSink."""
        self.history = self.parts[0].retained = history
        self._begun = self._now() - complete
        if start is None:
            return
        self.parts[0].lanes = len(start)
        self._numbering = False
        self.log = Log(start, self._limits, self._budget)
        now = self._now()
        entries = [self._entry(message, now) for message in backlog]
        before = list(start)
        for entry in reversed(entries):
            mark = before[entry.lane]
            before[entry.lane] = mark._replace(offset=min(mark.offset, entry.offset - 1))
        self.log.preload(entries, before, start)
        self._conflate()
        self.log.evict(now)

    def begin_with(
        self,
        entries: Sequence[Entry],
        *,
        start: Sequence[Mark],
        complete: Sequence[Mark],
        head: Sequence[Mark],
        parts: list[Part],
        complete_since: float,
    ) -> None:
        """Begin from other feeds' logs; the marks are those of log.Log.

        complete_since: when the youngest of the logs began, monotonic.
        """
        self.parts = parts
        self.bounds = tuple(part.first for part in parts)
        self.history = all(part.retained for part in parts)
        self._begun = complete_since
        self._numbering = False
        self.log = Log(head, self._limits, self._budget, self.bounds)
        self.log.preload(entries, start, complete)
        self._conflate()
        self.log.evict(self._now())

    def append(self, messages: Sequence[Message]) -> None:
        """Append messages in their order and mark the feed for this tick."""
        now = self._now()
        log = self.log
        for message in messages:
            entry = self._entry(message, now)
            log.append(entry)
            for tap in self.taps:
                tap.entry(entry)
        if self.newest is not None:
            for entry in self.log.latest(len(messages)):
                self.newest.add(entry)
        self.ticker.stats.appended += len(messages)
        self.ticker.mark(self)

    def append_entry(self, entry: Entry) -> None:
        """Append a ready entry (a joint feed's)."""
        self.log.append(entry)
        if self.newest is not None:
            self.newest.add(entry)
        self.ticker.mark(self)

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        """Append a gap, and go on with a new epoch."""
        logger.warning("gap on %s: %s", self.name, reason)
        count_up(self.ticker.stats.feed_gaps, reason)
        marks = start or [Mark(new_epoch(self._node), 0)] * len(self.log.head.marks)
        now = self._now()
        # A lane that goes on where it stood has lost nothing (one Kafka partition among many).
        stood = self.position()
        for lane, (epoch, offset) in enumerate(marks):
            if stood[lane] == (epoch, offset):
                continue
            entry = Entry(lane, offset, None, now, epoch=epoch, reason=reason)
            self.append_entry(entry)
            for tap in self.taps:
                tap.entry(entry)

    def widen(self, marks: Sequence[Mark]) -> None:
        """Add lanes at the end, of the epoch that the last one has; see FeedSink."""
        self.widens = True
        self.log.widen(marks)
        if self.newest is not None:
            self.newest.widen(marks)
        part = self.parts[0]
        part.lanes += len(marks)
        for cohort in self.cohorts.values():
            cohort.widen(marks)
        if part.pages is not None:
            part.pages.forget()
        for subscription in self.subscribers:
            subscription.widen(marks)
        for tap in list(self.taps):
            tap.widened()

    def fail(self, error: QueuecastError) -> None:
        """End the feed: its subscribers are told why."""
        logger.warning("feed %s ends: %s", self.name, error)
        for subscription in list(self.subscribers):
            subscription.fail(error)
        for tap in list(self.taps):
            tap.failed(error)
        self.on_failure(error)

    def _conflate(self) -> None:
        """Keep what is newest beside the log, if that is what the slow get."""
        if self.policy == "conflate":
            if self.newest is not None:
                self.newest.clear()
            self.newest = Newest(self.log.complete.marks, self._limits, self._budget)
            self.newest.begin(self.log.entries())

    def _entry(self, message: Message, now: float) -> Entry:
        offset = message.offset
        if offset is None or self._numbering:
            offset = self.log.head.marks[0].offset + 1
        return Entry(message.lane, offset, message, now, size_of(message))

    # -- subscribers ----------------------------------------------------------------------

    def understood(self, start: Start) -> Start:
        """Return the start to take here: another one where a position given as Last-Event-ID is of
        other destinations. Raises Unavailable."""
        if start.otherwise is None or start.position is None:
            return start
        try:
            self._aligned(start.position)
        except BadPosition:
            return start.otherwise
        return start

    async def locate(self, start: Start) -> tuple[Start, bool]:
        """Turn a start that the log cannot answer into a `since`, asking the broker's history.

        One with a place of another node waits until nothing is on its way to this one that the
        client may have from there. The second value tells whether some of what was asked for is
        kept nowhere. Raises BadPosition, Unavailable.
        """
        position = start.position
        if position is not None and self.settle is not settled and self._is_foreign(position):
            await self.settle()
        if start.kind in ("live", "since") or all(part.pages is None for part in self.parts):
            return start, False
        foreign, start = start.foreign, replace(start, foreign=False)
        place, short = self._search(start)
        marks, unretained = list(place.vector.marks), False
        for part in self.parts:
            lanes = range(part.first, part.first + part.lanes)
            if short.isdisjoint(lanes):
                continue
            if part.pages is not None:
                marks[lanes.start : lanes.stop] = await part.pages.locate(start)
            elif not part.retained or start.kind == "time":
                unretained = True
        return Start("since", position=Position(marks), foreign=foreign), unretained

    def is_at_hand(self, start: Start) -> bool:
        """Tell whether a start is found without asking or waiting for anybody; else see `locate`.

        Raises BadPosition, Unavailable.
        """
        if start.position is not None:
            return self.settle is settled or not self._is_foreign(start.position)
        return start.kind == "live" or all(part.pages is None for part in self.parts)

    def subscribe(
        self, encoding: Encoding, start: Start, outlet: Outlet, *, unretained: bool = False
    ) -> Subscription:
        """Add a subscriber at its starting place; it flows when told to.

        unretained: as `locate` found. Raises BadPosition, Unavailable.
        """
        place = self.place(start)
        if unretained and place.gap is None:
            place = self._unretained(place)
        if start.foreign:
            place = place._replace(gap=Gap("epoch", "", str(place.vector)))
        lanes = len(place.vector.marks)
        if lanes > 1 and len(str(place.vector)) > MAX_POSITION_TEXT:
            raise BadPosition(
                f"positions of {lanes} destinations together would be too long to resume with",
                "subscribe to fewer of them on one connection",
            )
        cohort = self.cohorts.get(encoding)
        if cohort is None:
            cohort = self.cohorts[encoding] = Cohort(self, encoding)
        cohort.users += 1
        subscription = Subscription(self, cohort, outlet, place)
        self.subscribers.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscriber that closed."""
        self.subscribers.discard(subscription)
        self.parked.pop(subscription, None)

    def wake_parked(self) -> None:
        """Let those who were ahead of the feed look again."""
        parked, self.parked = self.parked, {}
        for subscription in parked:
            subscription.flow()

    @property
    def bytes(self) -> int:
        """Bytes held by the log and what is beside it."""
        return self.log.bytes + (self.newest.bytes if self.newest is not None else 0)

    def halve(self) -> None:
        """Drop the older half: the node's budget is used up."""
        self.log.halve()
        if self.newest is not None:
            self.newest.halve()

    def sweep(self) -> None:
        """Once a second: give up what is kept for a moment, look after those who stand still."""
        for cohort in self.cohorts.values():
            cohort.forget_chunks()
        if self.newest is not None:
            self.newest.forget_chunks()
        for part in self.parts:
            if part.pages is not None and part.name == self.name:
                part.pages.sweep()
        if self.parked:
            self.wake_parked()
        if self.policy == "disconnect":
            for subscription in [each for each in self.subscribers if each.passed()]:
                self.end_slow(subscription)
            if self._ended_slow:
                logger.warning(
                    "%d subscribers of %s did not keep up and were closed ([[slow]] disconnect)",
                    self._ended_slow,
                    self.name,
                )
                self._ended_slow = 0

    def end_slow(self, subscription: Subscription) -> None:
        """Close one who does not keep up, where a rule says so; `sweep` puts it into the log."""
        self._ended_slow += 1
        subscription.fail(
            TooSlow(
                f"the client did not keep up with {self.name}", "come again with the last position"
            )
        )

    def close(self) -> None:
        """Give the log and the pages back; the feed is not used any more."""
        self.log.clear()
        if self.newest is not None:
            self.newest.clear()
        for part in self.parts:
            if part.pages is not None and part.name == self.name:
                part.pages.close()

    def position(self) -> Position:
        """Return where the feed stands: a client that has everything may resume from here."""
        upstream = self.upstream_position()
        if upstream is None:
            return self.log.head.position()
        head = self.log.head.marks
        # Who comes to a quiet feed, nearly everybody, gets the head's own marks.
        if len(head) == len(upstream) == 1:
            [mark], [offset] = head, upstream
            return Position((mark if offset <= mark.offset else Mark(mark.epoch, offset),))
        # In the moment in which lanes are added one of the two is longer.
        ahead = [
            mark if offset <= mark.offset else Mark(mark.epoch, offset)
            for mark, offset in zip(head, upstream, strict=False)
        ]
        return Position(ahead + head[len(upstream) :], self.bounds)

    def covers(self, vector: Vector) -> bool:
        """Tell whether the feed stands everywhere where a vector does, or after it."""
        return all(
            mine.epoch == mark.epoch and mine.offset >= mark.offset
            for mine, mark in zip(self.position(), vector.marks, strict=True)
        )

    def place(self, start: Start) -> Place:
        """Find the place where a subscription starts; raises BadPosition, Unavailable."""
        if start.kind == "live":
            return Place(self.log.next, Vector(self.position()))
        if start.kind == "since":
            assert start.position is not None
            return self._conflated(start.position) or self.since(start.position)
        place, short = self._search(start)
        if not short or (self.history and start.kind != "time"):
            return place
        return self._unretained(place)

    def since(self, position: Position, trusted: Collection[int] = ()) -> Place:
        """Find the place after a position; trusted as in Log.since.

        Raises BadPosition, and Unavailable when another node knows lanes that this one does not.
        """
        position = self._aligned(position)
        vector, ahead = Vector(position), Vector(self.position())
        part = self._lagging(vector, trusted, ahead)
        if part is not None:
            return Place(self.log.next, vector, lags=part)
        return self.log.since(position, ahead, self._all_new, trusted)

    def _conflated(self, position: Position) -> Place | None:
        """Find the place of one who comes back to a feed that conflates; None: as elsewhere."""
        if self.newest is None:
            return None
        vector = Vector(self._aligned(position))
        ahead = Vector(self.position())
        for lane, mark in enumerate(vector.marks):
            if self.log.standing(lane, mark, ahead) is Standing.AHEAD:
                return None
        return Place(self.log.next, vector, newest=True) if self.newest.covers(vector) else None

    def _is_foreign(self, position: Position) -> bool:
        """Tell whether a numbering in a position is none that the log knows."""
        ahead = Vector(self.position())
        marks = enumerate(self._aligned(position))
        return any(self.log.standing(lane, mark, ahead) is Standing.UNKNOWN for lane, mark in marks)

    def _aligned(self, position: Position) -> Position:
        lanes = [part.lanes for part in self.parts]
        found = aligned(position, self.log.head.marks, lanes, may_widen=self.widens)
        return Position(found, self.bounds)

    def lagging(self, vector: Vector, trusted: Collection[int] = ()) -> Part | None:
        """Return a part whose history must be read before the log has what follows a place."""
        return self._lagging(vector, trusted, Vector(self.position()))

    def _lagging(self, vector: Vector, trusted: Collection[int], ahead: Vector) -> Part | None:
        for part in self.parts:
            if part.pages is None:
                continue
            for lane, mark in enumerate(part.of(vector), part.first):
                standing = self.log.standing(lane, mark, ahead)
                if standing is Standing.AHEAD and lane in trusted:
                    continue
                if standing is not Standing.HERE:
                    return part
        return None

    def _search(self, start: Start) -> tuple[Place, set[int]]:
        """Find a start in the log, and the lanes in which the log does not have all of it."""
        lanes = set(range(len(self.log.head.marks)))
        if start.kind == "first":
            return self.log.oldest(), lanes
        if start.kind == "last":
            return self.log.tail(start.count)
        ago = self._wall() - start.time
        if ago < 0:
            return Place(self.log.next, Vector(self.position())), set()
        time = self._now() - ago
        return self.log.from_time(time), lanes if time <= self.complete_since() else set()

    def complete_since(self) -> float:
        """The time after which nothing has come that the log does not have."""
        return max(self._begun, self.log.cut)

    def _unretained(self, place: Place) -> Place:
        if not self._hinted:
            self._hinted = True
            for part in self.parts:
                if part.pages is None and not part.retained:
                    logger.warning(
                        "a replay of %s begins with a gap, nothing is retained there; to keep its "
                        'messages add [[retain]] destination = "%s", age = "1h"',
                        part.name,
                        part.name,
                    )
        return place._replace(gap=Gap("unretained", "", str(place.vector)))

    def _all_new(self, mark: Mark) -> bool:
        # Another numbering. What this log has is new to the client if the broker keeps one
        # history, or if this very process gave the position; from another node's position
        # nobody can tell, and a repetition would be worse than going on from here.
        return self.history or mark.epoch.startswith(self._node)
