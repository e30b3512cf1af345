"""The hub: finds or opens the feed of a destination, and closes it when nobody is left.

Several destinations on one connection are a joint feed: its log interleaves the entries of its
members, one lane each, so that connections with equal lists of destinations share cohorts too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from ..destination import Destination
from ..errors import QueuecastError, Unavailable
from ..position import Start, new_epoch
from ..retention import SlowPolicy, SlowRule, rule_for
from ..runtime import Promise, Runtime
from .bound import Bound
from .feed import Feed
from .history import Pages
from .joint import join
from .log import Budget, LogLimits
from .page import PageBudget
from .subscription import Encoding, Outlet, Subscription
from .ticker import Stats, Ticker

logger = logging.getLogger(__name__)

# Feeds that linger at a time. One client that subscribes to ever new destinations makes thousands
# a second, each with its memory and its binding at the broker; those idle longest close early.
MOST_IDLE = 10_000

Key = tuple[Destination, ...]
# Ends an open feed's reader.
CloseReader = Callable[[], Awaitable[None]]
# Opens a destination's reader into a feed: brokers.base.Broker.open_feed, wrapped by the gateway
# so that the hub need not know brokers.
OpenReader = Callable[[Destination, Feed], Awaitable[CloseReader]]


class _Held:
    """A feed with its life: opening, open, closing."""

    __slots__ = ("close_reader", "failed", "feed", "holds", "idle_since", "state", "waiters")

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.state = "opening"
        self.holds = 0  # joint feeds, and subscribers on their way in
        self.idle_since: float | None = None
        self.waiters: list[Promise] = []
        self.close_reader: CloseReader | None = None
        self.failed: QueuecastError | None = None

    @property
    def used(self) -> bool:
        return bool(self.feed.subscribers) or self.holds > 0


class Hub:
    """All feeds of this node."""

    def __init__(
        self,
        runtime: Runtime,
        open_reader: OpenReader,
        *,
        limits: LogLimits | None = None,
        linger: float = 60.0,
        most_idle: int = MOST_IDLE,
        chunk_bytes: int | None = None,
        wall: Callable[[], float] = time.time,
        slow: Sequence[SlowRule] = (),
        trunk: Hub | None = None,
    ) -> None:
        """linger: seconds that a feed outlives its last subscriber. most_idle: feeds that do.
        wall: the clock that tells Unix seconds. slow: what the clients of which destinations get
        that do not keep up. trunk: see `branch`.
        """
        self._runtime = runtime
        self._open_reader = open_reader
        self._limits = limits or LogLimits()
        self._linger = linger
        self._most_idle = most_idle
        self._wall = wall
        self._slow = slow
        self._budget: Budget = trunk._budget if trunk is not None else Budget()
        self._bound = Bound(self._budget, self._limits.total)
        self._pages: PageBudget = trunk._pages if trunk is not None else PageBudget()
        # The letter keeps it apart from brokers' epochs, which are hexadecimal.
        self._node = "n" + new_epoch()[:6]
        self._held: dict[Key, _Held] = {}
        self._closed = False
        self._trunk = trunk
        self._branches: list[Hub] = []
        if trunk is not None:
            # One ticker: a connection gets one write a tick, whatever hubs it subscribes in.
            self.ticker: Ticker = trunk.ticker
        else:
            self.ticker = Ticker(runtime) if chunk_bytes is None else Ticker(runtime, chunk_bytes)

    def branch(self, open_reader: OpenReader) -> Hub:
        """Return a hub whose feeds are read by others: it shares nothing but the node's bound,
        the tick and the sweep.

        Close it when they are gone.
        """
        made = Hub(
            self._runtime,
            open_reader,
            limits=self._limits,
            linger=self._linger,
            most_idle=self._most_idle,
            wall=self._wall,
            slow=self._slow,
            trunk=self,
        )
        self._branches.append(made)
        return made

    @property
    def stats(self) -> Stats:
        """The counters of all feeds."""
        return self.ticker.stats

    @property
    def feeds(self) -> Sequence[Feed]:
        """The feeds that are there now."""
        return [held.feed for hub in self._all() for held in hub._held.values()]

    @property
    def log_bytes(self) -> int:
        """Bytes held by all logs."""
        return self._budget.used

    @property
    def evicted(self) -> int:
        """Messages that all logs have dropped so far."""
        return self._budget.evicted

    @property
    def page_bytes(self) -> int:
        """Bytes of the broker's history held, or on their way, for those behind the logs."""
        return self._pages.used

    async def subscribe(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription:
        """Subscribe once the feed is live upstream; call `flow` on the result.

        Raises what the broker raises when it cannot open the feed or search its history, and
        BadPosition.
        """
        held = await self._acquire(tuple(destinations))
        try:
            start, unretained = await held.feed.locate(held.feed.understood(start))
            if held.state != "open":  # it failed meanwhile
                raise held.failed or Unavailable(f"{held.feed.name} was closed")
            return held.feed.subscribe(encoding, start, outlet, unretained=unretained)
        finally:
            held.holds -= 1

    def subscribe_at_once(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription | None:
        """Subscribe where nothing has to be waited for; None: `subscribe` has to be asked.

        Nearly everybody comes to a feed that is open, and needs no task for it. Raises
        BadPosition, Unavailable.
        """
        held = self._held.get(tuple(destinations))
        if held is None or held.state != "open" or self._closed:
            return None
        start = held.feed.understood(start)
        if not held.feed.is_at_hand(start):
            return None
        held.idle_since = None  # polls come and go between two sweeps
        return held.feed.subscribe(encoding, start, outlet)

    async def sweep(self) -> None:
        """Once a second: close feeds that nobody uses, apply age and the node's bound."""
        for hub in self._all():
            await hub._sweep_own()

    def _all(self) -> list[Hub]:
        return [self, *self._branches]

    async def _sweep_own(self) -> None:
        now = self._runtime.now()
        over: list[tuple[Key, _Held]] = []
        lingering: list[tuple[Key, _Held]] = []
        for key, held in self._held.items():
            if not self.ticker.due(held.feed):  # its tick evicts, after the encoding
                held.feed.log.evict(now)
            held.feed.sweep()
            if held.state != "open" or held.used:
                held.idle_since = None
            elif held.idle_since is None:
                held.idle_since = now
                lingering.append((key, held))
            elif now - held.idle_since >= self._linger:
                over.append((key, held))
            else:
                lingering.append((key, held))
        excess = len(lingering) - self._most_idle
        if excess > 0:
            lingering.sort(key=lambda each: each[1].idle_since or now)
            over += lingering[:excess]
        trunk = self._trunk or self
        trunk._bound.enforce(lambda: trunk.feeds, now)
        # Closing waits for the broker, so it comes last.
        for key, held in over:
            if held.state == "open" and not held.used:
                await self._close(key, held)

    async def close(self) -> None:
        """Close every feed; those who wait for one get Unavailable."""
        self._closed = True
        for branch in list(self._branches):
            await branch.close()
        if self._trunk is not None and self in self._trunk._branches:
            self._trunk._branches.remove(self)
        for key, held in list(self._held.items()):
            if held.state == "open":
                await self._close(key, held)
            elif held.state == "opening":
                self._wake(held, _shutting_down())  # its reader closes once it is open

    # -- a feed's life --------------------------------------------------------------------

    async def _acquire(self, key: Key) -> _Held:
        """Return the open feed of a key with one hold on it."""
        while True:
            if self._closed:
                raise _shutting_down()
            held = self._held.get(key)
            if held is None:
                held = self._held[key] = _Held(self._new_feed(key))
                self._runtime.spawn(self._open(key, held), f"open {held.feed.name}")
            held.holds += 1  # counts while waiting too: it must not be closed under us
            held.idle_since = None  # polls come and go between two sweeps
            if held.state == "open":
                return held
            waiter = self._runtime.promise()
            held.waiters.append(waiter)
            try:
                await waiter
            except BaseException:
                held.holds -= 1
                raise
            if held.state == "open":
                return held
            held.holds -= 1

    def _new_feed(self, key: Key) -> Feed:
        name = " + ".join(str(destination) for destination in key)
        return Feed(
            name,
            self.ticker,
            self._runtime.now,
            self._limits,
            self._budget,
            self._node,
            self._wall,
            self._policy(key),
        )

    def _policy(self, key: Key) -> SlowPolicy:
        """Return what the slow get: of several destinations' policies the strictest that holds.

        One that disconnects decides for all, because the connection is one. Conflation holds
        only where all say so: the others' messages must not be left out.
        """
        rules = [rule_for(self._slow, destination) for destination in key]
        policies = {"catch-up" if rule is None else rule.policy for rule in rules}
        if "disconnect" in policies:
            return "disconnect"
        return "conflate" if policies == {"conflate"} else "catch-up"

    async def _open(self, key: Key, held: _Held) -> None:
        held.feed.on_failure = lambda error: self._failed(key, held, error)
        error: QueuecastError | None
        try:
            if len(key) == 1:
                held.close_reader = await self._open_reader(key[0], held.feed)
                self._open_past(held.feed)
            else:
                held.close_reader = await self._open_joint(key, held.feed)
            error = _shutting_down() if self._closed else held.failed
        except QueuecastError as caught:
            error = caught
        except Exception as caught:
            logger.exception("opening %s failed", held.feed.name)
            error = QueuecastError(f"the feed could not be opened: {caught}")
        if error is not None:
            await self._close(key, held, error)
            return
        held.state = "open"
        self._wake(held)

    async def _open_joint(self, key: Key, joint: Feed) -> CloseReader:
        members: list[_Held] = []
        try:
            for destination in key:
                members.append(await self._acquire((destination,)))
            for held in members:
                if held.state != "open":  # it failed while others were opening
                    raise held.failed or Unavailable(f"{held.feed.name} was closed")
        except BaseException:
            for held in members:
                held.holds -= 1
            raise
        part = join(joint, [held.feed for held in members])

        async def close() -> None:
            part()
            for held in members:
                held.holds -= 1

        return close

    def _open_past(self, feed: Feed) -> None:
        """Let a feed whose broker keeps history read it."""
        if feed.past is not None:
            [part] = feed.parts
            part.pages = Pages(feed.name, feed.past, self._runtime, self._pages, lambda: part.lanes)

    async def _close(self, key: Key, held: _Held, error: QueuecastError | None = None) -> None:
        """Close a feed's reader, if there is one; who waits gets the error, or opens it anew."""
        held.state = "closing"
        held.feed.close()
        try:
            if held.close_reader is not None:
                await held.close_reader()
        except Exception:
            logger.exception("closing the reader of %s failed", held.feed.name)
        finally:
            held.state = "closed"
            del self._held[key]
            held.feed.close()  # of what came while it closed
            self._wake(held, error)

    def _failed(self, key: Key, held: _Held, error: QueuecastError) -> None:
        held.failed = error
        if held.state != "open":
            return
        held.state = "closing"
        self._runtime.spawn(self._close(key, held), f"close {held.feed.name}")

    def _wake(self, held: _Held, error: QueuecastError | None = None) -> None:
        waiters, held.waiters = held.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


def _shutting_down() -> Unavailable:
    return Unavailable("the gateway is shutting down")
