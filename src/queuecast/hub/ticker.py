"""The tick: what was appended in one turn of the event loop goes out at its end.

First those who are behind get a chunk each or join their cohorts; it goes out with the first
round. In each round every dirty feed hands one chunk to each of its cohorts, and every
connection gets one write. A burst larger than a chunk takes several rounds, so that a connection
that fills up is noticed at the next border. Then the logs evict.

A tick with many writes takes milliseconds, while what comes in waits. Where that comes one message
a turn (requests of one publisher are answered one after the other), a tick for each would write
each message alone, however many wait. So after such a tick the next one lets the loop turn as long
as messages keep coming, for no longer than the writes took.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import QueuecastError
from ..metrics import count_up
from ..runtime import Runtime

if TYPE_CHECKING:
    from .cohort import Cohort
    from .feed import Feed
    from .subscription import Outlet, Subscription

logger = logging.getLogger(__name__)

# A write is at most this, or one message: what a connection that stalls can hold of ours.
CHUNK_BYTES = 64 * 1024

# Writes from which on a tick lets messages gather after it. Bounds of the gathering: seconds,
# messages, and turns without a new one.
_MANY = 100
_GATHER_MOST = 0.05
_GATHER_MESSAGES = 500
_GATHER_TURNS = 8


@dataclass(slots=True)
class Stats:
    """Plain counters over the life of the hub.

    appended: messages into logs. encodes: calls of an encoding; encoded: entries in them.
    deliveries: messages times live members. caught_up: chunks to single subscribers behind the
    head. bytes: of all that was handed to connections. writes: writes to connections by ticks.
    gaps: gap notices to single subscribers; gap_reasons tells why. feed_gaps: holes in feeds, of
    which everybody is told who listens, by reason. failed: subscriptions ended by an error, by
    its code.
    """

    appended: int = 0
    encodes: int = 0
    encoded: int = 0
    deliveries: int = 0
    caught_up: int = 0
    bytes: int = 0
    writes: int = 0
    gaps: int = 0
    ticks: int = 0
    gap_reasons: dict[str, int] = field(default_factory=dict)
    feed_gaps: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def gap(self, reason: str) -> None:
        """Count a gap notice to one subscriber."""
        self.gaps += 1
        count_up(self.gap_reasons, reason)


class Ticker:
    """Collects what a turn of the loop changed and sends it once."""

    def __init__(self, runtime: Runtime, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._runtime = runtime
        self.chunk_bytes = chunk_bytes
        self.stats = Stats()
        self._dirty: dict[Feed, None] = {}
        self._behind: dict[Subscription, None] = {}
        self._scheduled = False
        # Until when messages may gather, and what had come when it was last looked.
        self._gather_until = 0.0
        self._sent = 0
        self._seen = 0
        self._quiet_turns = 0

    def mark(self, feed: Feed) -> None:
        """Note that a feed has something new."""
        self._dirty[feed] = None
        self._schedule()

    def due(self, feed: Feed) -> bool:
        """Return whether the feed waits for the next tick."""
        return feed in self._dirty

    def chase(self, subscription: Subscription) -> None:
        """Let a subscription that is behind read on, one chunk a tick."""
        self._behind[subscription] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._quiet_turns = 0
            self._runtime.call_soon(self._turn)

    @property
    def pending(self) -> bool:
        """Whether a tick is due."""
        return self._scheduled

    def _turn(self) -> None:
        if self._gathers():
            self._runtime.call_soon(self._turn)
        else:
            self._tick()

    def _gathers(self) -> bool:
        """Return whether the tick waits for more; see the module's head."""
        appended = self.stats.appended
        if appended != self._seen:
            self._seen = appended
            self._quiet_turns = 0
        else:
            self._quiet_turns += 1
        return (
            self._quiet_turns < _GATHER_TURNS
            and appended - self._sent < _GATHER_MESSAGES
            and self._runtime.now() < self._gather_until
        )

    def _tick(self) -> None:
        self._scheduled = False
        self.stats.ticks += 1
        began, writes = self._runtime.now(), self.stats.writes
        self._sent = self.stats.appended
        dirty, self._dirty = self._dirty, {}
        outlets: list[Outlet] = []
        for feed in dirty:
            if feed.parked:
                feed.wake_parked()
        self._serve_behind(outlets)
        more = [cohort for feed in dirty for cohort in feed.cohorts.values() if cohort.due]
        while more or outlets:
            if len(more) == 1 and not outlets:
                # Nothing is to be joined with anything: each client is looked at once, not twice.
                self._write_alone(more[0], dirty)
            else:
                for cohort in more:
                    self._flush(cohort, outlets)
                self._write(outlets, dirty)
            more = [cohort for cohort in more if cohort.due]
        now = self._runtime.now()
        for feed in dirty:
            feed.log.evict(now)
        writes = self.stats.writes - writes
        if writes >= _MANY:
            ended = self._runtime.now()
            self._gather_until = ended + min(ended - began, _GATHER_MOST)
        if self._behind:
            self._schedule()

    def _serve_behind(self, outlets: list[Outlet]) -> None:
        for subscription in list(self._behind):
            outlet = subscription.outlet
            if subscription.closed or subscription.live or outlet.paused:
                del self._behind[subscription]
                continue
            box = outlet.box
            if box and sum(map(len, box)) >= self.chunk_bytes:
                continue  # other subscriptions filled this tick's write; it is first next time
            try:
                data = subscription.step()
            except Exception:
                logger.exception("encoding %r failed", subscription.cohort.encoding)
                del self._behind[subscription]
                subscription.fail(_broken())
                continue
            del self._behind[subscription]
            if data is None:
                continue
            self._behind[subscription] = None  # at the end: turns among those of one outlet
            if data:
                self.stats.caught_up += 1
                self.stats.bytes += len(data)
                if not box:
                    outlets.append(outlet)
                box.append(data)

    def _flush(self, cohort: Cohort, outlets: list[Outlet]) -> None:
        try:
            cohort.flush(outlets)
        except Exception:
            logger.exception("encoding %r failed, its subscribers are closed", cohort.encoding)
            _end(cohort)

    def _write_alone(self, cohort: Cohort, dirty: Iterable[Feed]) -> None:
        try:
            data = cohort.take()
        except Exception:
            logger.exception("encoding %r failed, its subscribers are closed", cohort.encoding)
            _end(cohort)
            return
        if data is None:
            return
        outlets = list(cohort.members.values())
        self.stats.writes += len(outlets)
        for outlet in outlets:
            try:
                outlet.write(data)
            except Exception:
                logger.exception("a write failed, its subscriptions are closed")
                self._cut_off(outlet, dirty)

    def _write(self, outlets: list[Outlet], dirty: Iterable[Feed]) -> None:
        self.stats.writes += len(outlets)
        for outlet in outlets:
            box = outlet.box
            data = box[0] if len(box) == 1 else b"".join(box)
            box.clear()
            try:
                outlet.write(data)
            except Exception:
                logger.exception("a write failed, its subscriptions are closed")
                self._cut_off(outlet, dirty)
        outlets.clear()

    def _cut_off(self, outlet: Outlet, dirty: Iterable[Feed]) -> None:
        """End a client whose write failed: going on would be a silent hole for it, stopping one
        for all the others."""
        error = QueuecastError("the connection's write failed, see the gateway's log")
        for subscriptions in (self._behind, *(feed.subscribers for feed in dirty)):
            for subscription in list(subscriptions):
                if subscription.outlet is outlet and not subscription.closed:
                    subscription.fail(error)


def _end(cohort: Cohort) -> None:
    for subscription in list(cohort.members):
        subscription.fail(_broken())


def _broken() -> QueuecastError:
    return QueuecastError("a message could not be encoded, see the gateway's log")
