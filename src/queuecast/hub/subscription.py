"""A subscription: one session's cursor on a feed, and what it needs of session and encoding.

It is in one of four states:

    live     in its cohort: the tick hands it the bytes that all members share
    behind   reading on from the log, one chunk a tick, until it is at the head again
    history  reading the broker's history, page by page, until the log has what follows (replay.py)
    waiting  its connection does not take bytes; nothing happens until it does

A client that is slow, one that resumes and one that asks for a replay are all "behind", or in
"history" where the log does not reach back to their place: one mechanism.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import QueuecastError
from ..metrics import count_up
from ..position import Mark, Position, Vector
from .log import AHEAD, NOT_WRITTEN, Entry, Gap, Log, Place
from .newest import Conflation
from .replay import Replay

if TYPE_CHECKING:
    from .cohort import Cohort
    from .feed import Feed

logger = logging.getLogger(__name__)


class Encoding(Hashable, Protocol):
    """The value that decides the bytes on the wire; equal encodings give equal bytes.

    It must cover all framing: two subscriptions with equal encodings share every byte.
    """

    def encode(self, entries: Sequence[Entry], vector: Vector) -> bytes:
        """Return the wire bytes of entries; advances `vector`, the place before them."""

    def encode_gap(self, gap: Gap, position: str) -> bytes:
        """Return the wire bytes that tell of a gap; position is the place after it."""


class Outlet(Protocol):
    """A connection, as the hub sees it."""

    box: list[bytes]
    """What this tick has for it; filled by the hub, emptied by one write."""

    paused: bool
    """Whether it takes no bytes now. Its session calls pause() and resume() when that changes."""

    def write(self, data: bytes) -> None:
        """Send bytes; may set `paused` and call Subscription.pause from within."""

    def feed_failed(self, subscription: Subscription, error: QueuecastError) -> None:
        """Learn that the feed is over; the subscription is closed already."""


class Subscription:
    """A cursor. Made by Hub.subscribe; call `flow` once the client has its answer, or write what
    `begin` returns with the answer."""

    __slots__ = (
        "closed",
        "cohort",
        "cursor",
        "feed",
        "gap",
        "live",
        "outlet",
        "replay",
        "skip",
        "vector",
    )

    def __init__(self, feed: Feed, cohort: Cohort, outlet: Outlet, place: Place) -> None:
        self.feed = feed
        self.cohort = cohort
        self.outlet = outlet
        self.gap: Gap | None = None
        self.live = False
        self.closed = False
        self.stand(place)

    def stand(self, place: Place) -> None:
        """Go on from a place."""
        self.cursor = place.seq
        self.vector = place.vector
        self.gap = place.gap
        self.skip = place.skip
        self.replay: Replay | Conflation | None = None
        if place.lags is not None:
            self.replay = Replay(self, place.lags)
        elif place.newest:
            self.replay = Conflation(self)

    def position(self) -> Position:
        """Return the place up to which the client has, or is about to get, everything."""
        return self.cohort.position() if self.live else self.vector.position()

    def positions(self) -> list[Position]:
        """Return the same for each of its destinations alone, in their order."""
        position, bounds = self.position(), self.feed.bounds
        if not bounds:
            return [position]
        return [
            Position(position[first:after])
            for first, after in zip(bounds, (*bounds[1:], None), strict=True)
        ]

    @property
    def told(self) -> bool:
        """Whether its position may be given to the client, since no gap before it is still to be
        told: a client that is cut off in between would go on behind the gap and never know."""
        return self.gap is None

    @property
    def lag(self) -> int:
        """Messages of the feed that it has not got.

        While it reads the broker's history: as far as offsets tell, which may count others'
        messages as well.
        """
        log = self.feed.log
        if self.live:
            return log.next - self.cohort.cursor
        if self.replay is None:
            return log.next - self.cursor
        return sum(
            max(0, mine.offset - mark.offset)
            for mine, mark in zip(self.feed.position(), self.vector.marks, strict=False)
            if mine.epoch == mark.epoch
        )

    @property
    def lag_bytes(self) -> int:
        """Bytes of those that are in the log; it looks at each of them."""
        seq = self.cohort.cursor if self.live else self.cursor
        log = self.feed.log
        return sum(entry.size - NOT_WRITTEN for entry in log.read(max(seq, log.base), log.bytes)[0])

    @property
    def state(self) -> str:
        """Where it reads: live, log, history; or paused, when its connection takes no bytes."""
        if self.live:
            return "live"
        if self.outlet.paused:
            return "paused"
        return "log" if self.replay is None else "history"

    def flow(self) -> None:
        """Begin, or go on after `pause`."""
        if self.closed or self.live or self.outlet.paused:
            return
        catching_up = self.gap or self.skip or self.replay
        if catching_up is not None or not self.cohort.join(self):
            self.feed.ticker.chase(self)

    resume = flow

    def begin(self) -> bytes:
        """Return what can be written with the answer, in place of the first call of `flow`.

        Who is back after a restart, or joins a feed with a history, gets what it missed in the
        same write if that is in memory and fits, and is live at once.
        """
        catching_up = self.gap or self.skip or self.replay
        if self.closed or self.outlet.paused or (catching_up is None and self.cohort.join(self)):
            return b""
        data = self.step()
        if data:
            stats = self.feed.ticker.stats
            stats.caught_up += 1
            stats.bytes += len(data)
            if isinstance(self.replay, Replay):
                self.replay.turn()
        self.flow()
        return data or b""

    def pause(self) -> None:
        """Leave the cohort: the connection takes no bytes. The cursor stays where it is."""
        if self.live:
            self.cohort.part(self)
        elif self.replay is not None:
            self.replay.stop()
            return
        newest = self.feed.newest
        if newest is not None and self._keeps_order and newest.covers(self.vector):
            self.skip = None
            self.replay = Conflation(self)

    def close(self) -> None:
        """End the subscription; harmless when it is over already."""
        if self.closed:
            return
        self.closed = True
        self.live = False
        if self.replay is not None:
            self.replay.stop()
        self.cohort.leave(self)
        self.feed.remove(self)

    def fail(self, error: QueuecastError) -> None:
        """End the subscription and let its session tell the client why."""
        if not self.closed:
            count_up(self.feed.ticker.stats.failed, error.code)
        self.close()
        try:
            self.outlet.feed_failed(self, error)
        except Exception:  # one broken session must not keep the others from being told
            logger.exception("a session could not be told of: %s", error)

    def step(self) -> bytes | None:
        """Return the next chunk for one who is behind, or None when there is nothing to do.

        Called once a tick while it is behind and its connection takes bytes.
        """
        log = self.feed.log
        if self.passed():
            if self.feed.policy == "disconnect":
                self.feed.end_slow(self)
                return None
            self._fall_out(log)
        if self.gap is not None:
            gap, self.gap = self.gap, None
            self.feed.ticker.stats.gap(gap.reason)
            return self.cohort.encoding.encode_gap(gap, gap.first)
        if self.replay is not None:
            data = self.replay.step()
            return data if self.replay is not None else self.step()
        if self.skip is not None:
            if self.cursor < min(log.next, max(self.skip.values())):
                return self._step_skipping(self.skip)
            if max(self.skip.values()) >= AHEAD and not self.feed.covers(self.vector):
                self.feed.parked[self] = None
                return None
            self.skip = None
        if self.cohort.join(self):
            return None
        if self.cursor == log.next:
            return b""  # the members come here with the tick that is due
        chunk = self.cohort.run(self.cursor, self.vector)
        self.cursor = chunk.end
        self.vector = chunk.after
        return chunk.data

    @property
    def _keeps_order(self) -> bool:
        """Whether its vector alone says what it has."""
        return self.gap is None and (self.skip is None or max(self.skip.values()) < AHEAD)

    def passed(self) -> bool:
        """Tell whether the log has gone past one who reads from it."""
        return not self.live and self.replay is None and self.cursor < self.feed.log.base

    def widen(self, marks: Sequence[Mark]) -> None:
        """Begin at these marks in the lanes that the feed has got."""
        if self.live:
            return  # its vector is the cohort's
        self.vector = Vector([*self.vector.marks, *marks])
        if self.skip is not None:
            for lane in range(len(self.vector.marks) - len(marks), len(self.vector.marks)):
                self.skip[lane] = self.feed.log.base
        if self.replay is not None:
            self.replay.stop()
            self.flow()

    def _fall_out(self, log: Log) -> None:
        part = self.feed.lagging(self.vector)
        if part is not None:
            self.skip = None
            self.replay = Replay(self, part)
            return
        # What is known of lanes beyond the log's beginning stays known; a gap that was not told
        # yet grows instead of becoming two.
        skip = self.skip or {}
        vector = log.start.copy()
        for lane, mark in enumerate(self.vector.marks):
            start = vector.marks[lane]
            ahead = mark.epoch == start.epoch and mark.offset >= start.offset
            if ahead or skip.get(lane, 0) % AHEAD > log.base:
                vector.marks[lane] = mark
        if self.gap is not None or vector.marks != self.vector.marks:
            reason, last, _ = self.gap or Gap("evicted", str(self.vector), "")
            self.gap = Gap(reason, last, str(vector))
        self.cursor = log.base
        self.vector = vector

    def _step_skipping(self, skip: dict[int, int]) -> bytes:
        start = self.cursor
        entries, self.cursor = self.feed.log.read(start, self.feed.ticker.chunk_bytes)
        wanted = [
            (seq, entry)
            for seq, entry in enumerate(entries, start)
            if seq >= skip[entry.lane] % AHEAD
            and not (skip[entry.lane] >= AHEAD and self._knows(entry))
        ]
        if not wanted:
            return b""
        count, self.vector, data = self.cohort.encode([entry for _, entry in wanted], self.vector)
        if count < len(wanted):
            self.cursor = wanted[count][0]
        return data

    def _knows(self, entry: Entry) -> bool:
        """Tell whether the vector covers an entry of a lane in which it is ahead of the log."""
        mark = self.vector.marks[entry.lane]
        return entry.epoch in (None, mark.epoch) and entry.offset <= mark.offset
