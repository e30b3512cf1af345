"""A subscription: one session's cursor on a feed, and what it needs of session and encoding.

It is in one of three states:

    live     in its cohort: the tick hands it the bytes that all members share
    behind   reading on from the log, one chunk a tick, until it is at the head again
    waiting  its connection does not take bytes; nothing happens until it does

A client that is slow, one that resumes and one that asks for a replay are all "behind": one
mechanism.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import QueuecastError
from ..position import Position, Vector
from .log import Entry, Gap, Log, Place

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
    """A cursor. Made by Hub.subscribe; call `flow` once the client has its answer."""

    __slots__ = ("closed", "cohort", "cursor", "feed", "gap", "live", "outlet", "skip", "vector")

    def __init__(self, feed: Feed, cohort: Cohort, outlet: Outlet, place: Place) -> None:
        self.feed = feed
        self.cohort = cohort
        self.outlet = outlet
        self.cursor = place.seq
        self.vector = place.vector
        self.gap = place.gap
        self.skip = place.skip
        self.live = False
        self.closed = False

    def position(self) -> Position:
        """Return the place up to which the client has, or is about to get, everything."""
        return self.cohort.position() if self.live else self.vector.position()

    def flow(self) -> None:
        """Begin, or go on after `pause`."""
        if self.closed or self.live or self.outlet.paused:
            return
        if self.gap is not None or self.skip is not None or not self.cohort.join(self):
            self.feed.ticker.chase(self)

    resume = flow

    def pause(self) -> None:
        """Leave the cohort: the connection takes no bytes. The cursor stays where it is."""
        if self.live:
            self.cohort.part(self)

    def close(self) -> None:
        """End the subscription; harmless when it is over already."""
        if self.closed:
            return
        self.closed = True
        self.live = False
        self.cohort.leave(self)
        self.feed.remove(self)

    def fail(self, error: QueuecastError) -> None:
        """End the subscription and let its session tell the client why."""
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
        if self.cursor < log.base:
            self._fall_out(log)
        if self.gap is not None:
            gap, self.gap = self.gap, None
            self.feed.ticker.stats.gaps += 1
            return self.cohort.encoding.encode_gap(gap, gap.first)
        if self.skip is not None:
            if self.cursor < max(self.skip.values()):
                return self._step_skipping(self.skip)
            self.skip = None
        if self.cohort.join(self):
            return None
        if self.cursor == log.next:
            return b""  # the members come here with the tick that is due
        chunk = self.cohort.run(self.cursor, self.vector)
        self.cursor = chunk.end
        self.vector = chunk.after
        return chunk.data

    def _fall_out(self, log: Log) -> None:
        # What is known of lanes beyond the log's beginning stays known; a gap that was not told
        # yet grows instead of becoming two.
        skip = self.skip or {}
        vector = log.start.copy()
        for lane, mark in enumerate(self.vector.marks):
            start = vector.marks[lane]
            ahead = mark.epoch == start.epoch and mark.offset >= start.offset
            if ahead or skip.get(lane, 0) > log.base:
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
            (seq, entry) for seq, entry in enumerate(entries, start) if seq >= skip[entry.lane]
        ]
        if not wanted:
            return b""
        count, self.vector, data = self.cohort.encode([entry for _, entry in wanted], self.vector)
        if count < len(wanted):
            self.cursor = wanted[count][0]
        return data
