"""A feed: one destination's shared broadcast on this node.

It takes messages from its upstream reader into the log, marks itself for the tick, and keeps
the cohorts of its subscribers. Opening and closing the reader is the hub's business (hub.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import BadPosition, QueuecastError
from ..message import Message
from ..position import MAX_POSITION_TEXT, Mark, Position, Start, Vector, new_epoch
from .cohort import Cohort
from .log import Budget, Entry, Gap, Log, LogLimits, Place, size_of
from .subscription import Encoding, Outlet, Subscription
from .ticker import Ticker

logger = logging.getLogger(__name__)


class Tap(Protocol):
    """A joint feed's ear on one of its members."""

    def entry(self, entry: Entry) -> None:
        """Take a new entry, right after it was appended."""

    def failed(self, error: QueuecastError) -> None:
        """Learn that the member is over."""


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
    ) -> None:
        self.name = name
        self.ticker = ticker
        self.cohorts: dict[Encoding, Cohort] = {}
        self.subscribers: set[Subscription] = set()
        self.taps: list[Tap] = []
        self.on_failure: Callable[[QueuecastError], None] = lambda error: None
        self.upstream_position: Callable[[], Sequence[int] | None] = lambda: None
        self.history = False
        self._now = now
        self._limits = limits
        self._budget = budget
        self._node = node
        self._numbering = True  # the broker has no offsets: count here
        self.log = Log([Mark(new_epoch(node), 0)], limits, budget)

    # -- upstream: brokers.base.FeedSink --------------------------------------------------

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
    ) -> None:
        """Begin where the broker says; see brokers.base.FeedSink."""
        self.history = history
        if start is None:
            return
        self._numbering = False
        self.log = Log(start, self._limits, self._budget)
        now = self._now()
        entries = [self._entry(message, now) for message in backlog]
        before = list(start)
        for entry in reversed(entries):
            mark = before[entry.lane]
            before[entry.lane] = mark._replace(offset=min(mark.offset, entry.offset - 1))
        self.log.preload(entries, before, start)
        self.log.evict(now)

    def begin_with(
        self,
        entries: Sequence[Entry],
        *,
        start: Sequence[Mark],
        complete: Sequence[Mark],
        head: Sequence[Mark],
        history: bool,
    ) -> None:
        """Begin from other feeds' logs; the marks are those of log.Log."""
        self.history = history
        self._numbering = False
        self.log = Log(head, self._limits, self._budget)
        self.log.preload(entries, start, complete)
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
        self.ticker.stats.appended += len(messages)
        self.ticker.mark(self)

    def append_entry(self, entry: Entry) -> None:
        """Append a ready entry (a joint feed's)."""
        self.log.append(entry)
        self.ticker.mark(self)

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        """Append a gap, and go on with a new epoch."""
        logger.warning("gap on %s: %s", self.name, reason)
        marks = start or [Mark(new_epoch(self._node), 0)] * len(self.log.head.marks)
        now = self._now()
        for lane, (epoch, offset) in enumerate(marks):
            entry = Entry(lane, offset, None, now, epoch=epoch, reason=reason)
            self.log.append(entry)
            for tap in self.taps:
                tap.entry(entry)
        self.ticker.mark(self)

    def fail(self, error: QueuecastError) -> None:
        """End the feed: its subscribers are told why."""
        logger.warning("feed %s ends: %s", self.name, error)
        for subscription in list(self.subscribers):
            subscription.fail(error)
        for tap in list(self.taps):
            tap.failed(error)
        self.on_failure(error)

    def _entry(self, message: Message, now: float) -> Entry:
        offset = message.offset
        if offset is None or self._numbering:
            offset = self.log.head.marks[0].offset + 1
        return Entry(message.lane, offset, message, now, size_of(message))

    # -- subscribers ----------------------------------------------------------------------

    def subscribe(self, encoding: Encoding, start: Start, outlet: Outlet) -> Subscription:
        """Add a subscriber at its starting place; it flows when told to. Raises BadPosition."""
        place = self.place(start)
        if len(str(place.vector)) > MAX_POSITION_TEXT:
            raise BadPosition(
                f"positions of {len(place.vector.marks)} destinations together would be too long "
                "to resume with",
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

    def position(self) -> Position:
        """Return where the feed stands: a client that has everything may resume from here."""
        upstream = self.upstream_position()
        if upstream is None:
            return self.log.head.position()
        return Position(
            Mark(mark.epoch, max(mark.offset, offset))
            for mark, offset in zip(self.log.head.marks, upstream, strict=True)
        )

    def place(self, start: Start) -> Place:
        """Find the place where a subscription starts; raises BadPosition."""
        if start.kind == "live":
            return self._live()
        if start.kind == "since":
            assert start.position is not None
            return self._since(start.position)
        if start.kind == "first":
            place, satisfied = self.log.oldest(), self.history
        else:
            place, satisfied = self.log.tail(start.count)
        if satisfied or self.history:
            return place
        logger.info("%s keeps no history, so %s begins with a gap", self.name, start.kind)
        return place._replace(gap=Gap("unretained", "", str(place.vector)))

    def _live(self) -> Place:
        return Place(self.log.next, Vector(self.position()))

    def _since(self, position: Position) -> Place:
        lanes = len(self.log.head.marks)
        if len(position) != lanes:
            raise BadPosition(
                f"the position {str(position)[:64]!r} is of {len(position)} destinations, "
                f"this subscription has {lanes}",
                "resume with the same list of destinations",
            )
        return self.log.since(position, Vector(self.position()), self._all_new)

    def _all_new(self, mark: Mark) -> bool:
        # Another numbering. What this log has is new to the client if the broker keeps one
        # history, or if this very process gave the position; from another node's position
        # nobody can tell, and a repetition would be worse than going on from here.
        return self.history or mark.epoch.startswith(self._node)
