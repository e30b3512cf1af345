"""Feeds that logins share: one for each virtual host and destination, whoever listens.

Sharing must not give anybody a right. A login may join, or open, a feed only after its own
connection to the broker has gone through the motions of listening to that destination, and that
verdict holds for a minute at most. Who reads is another question:

* In the virtual host of the broker's URL the URL's user reads, as it does for sessions without a
  login. What that user has no right to is kept apart, in a hub that only logins reach.
* There, and in every other virtual host, a login that has just been found to have the right
  reads. Its account is kept while it does, also when its own sessions are gone.
* When the broker refuses that login later on, its own subscriptions end, and the feed goes to
  another login that has the right: with a gap, because nobody read in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .brokers.base import FeedReader, FeedSink, HistoryReader, SettlingReader, WideningReader
from .destination import Destination
from .errors import QueuecastError, Refused, Unavailable
from .hub.feed import Feed, settled
from .hub.hub import CloseReader, Hub
from .hub.subscription import Encoding, Outlet, Subscription
from .message import Message
from .position import Mark, Start
from .runtime import Promise, Runtime

logger = logging.getLogger(__name__)

# Seconds that a verdict of the broker holds: whose right is withdrawn joins no feed after that.
VERDICT = 60.0
# Verdicts kept for each login, and for the URL's user: a client that names ever new destinations
# costs no more memory. One that was dropped is asked for again.
MAX_VERDICTS = 10_000
# Seconds between attempts to find a new reader while the broker is away.
_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0


class FeedBroker(Protocol):
    """The broker as one login sees it."""

    @property
    def ready(self) -> bool:
        """See brokers.base.Broker."""

    @property
    def refused(self) -> QueuecastError | None:
        """Why the broker does not let this login come back, if it does not."""

    async def check_feed(self, destination: Destination) -> None:
        """Return if this login may read the destination; raises as open_feed."""

    async def open_feed(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """See brokers.base.Broker."""


class Verdicts:
    """What was found out lately; bounded in number, and none older than VERDICT."""

    def __init__(self, now: Callable[[], float], most: int = MAX_VERDICTS) -> None:
        self._now = now
        self._most = most
        self._times: dict[Destination, float] = {}  # oldest first

    def add(self, destination: Destination, at: float) -> None:
        """Note a verdict that was asked for at this time."""
        self._times.pop(destination, None)
        self._times[destination] = at
        if len(self._times) > self._most:
            del self._times[next(iter(self._times))]

    def at(self, destination: Destination) -> float | None:
        """Return when a verdict that still holds was asked for."""
        at = self._times.get(destination)
        if at is None:
            return None
        if self._now() - at < VERDICT:
            return at
        del self._times[destination]
        return None


class Member:
    """One login among those that share the feeds of a virtual host; its sessions' hub."""

    def __init__(self, feeds: SharedFeeds, broker: FeedBroker, runtime: Runtime) -> None:
        self.broker = broker
        self.relays: set[Relay] = set()  # the feeds that are read with this login
        self._feeds = feeds
        self._runtime = runtime
        self._verdicts = Verdicts(runtime.now)
        self._asking: dict[Destination, list[Promise]] = {}
        self._joining: list[Destination] = []  # one SUBSCRIBE of each session at a time
        # Its sessions' own, bounded by what they may have; closed ones are swept.
        self._subscriptions: set[Subscription] = set()

    async def subscribe(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription:
        """Join feeds that this login may read; as hub.Hub.subscribe."""
        for destination in destinations:
            await self.verify(destination)
        self._joining.extend(destinations)
        try:
            subscription = await self._feeds.subscribe(destinations, encoding, start, outlet)
        finally:
            for destination in destinations:
                self._joining.remove(destination)
        self._subscriptions.add(subscription)
        return subscription

    def subscribe_at_once(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription | None:
        """Join feeds that are open and that this login is known to have the right to."""
        if any(self._verdicts.at(each) is None for each in destinations):
            return None
        subscription = self._feeds.subscribe_at_once(destinations, encoding, start, outlet)
        if subscription is not None:
            self._subscriptions.add(subscription)
        return subscription

    def verdict(self, destination: Destination) -> float | None:
        """Return when this login was last found to have the right, if that still holds."""
        at = self._verdicts.at(destination)
        # It held when the opening began.
        return 0.0 if at is None and destination in self._joining else at

    async def verify(self, destination: Destination) -> None:
        """Return if this login has the right; raises what the broker raises."""
        if self._verdicts.at(destination) is not None:
            return
        waiters = self._asking.get(destination)
        if waiters is None:
            waiters = self._asking[destination] = []
            self._runtime.spawn(self._ask(destination, waiters), f"may read {destination}")
        waiter = self._runtime.promise()
        waiters.append(waiter)
        await waiter

    async def _ask(self, destination: Destination, waiters: list[Promise]) -> None:
        """Ask the broker once for all who wait; runs on its own, since any of them may leave."""
        asked = self._runtime.now()
        # What they are told when a shutdown cancels this.
        error: QueuecastError | None = Unavailable("the gateway is shutting down")
        try:
            await self.broker.check_feed(destination)
        except QueuecastError as caught:
            error = caught
        except Exception as caught:
            logger.exception("asking for the right to read %s failed", destination)
            error = QueuecastError(f"the right could not be checked: {type(caught).__name__}")
        else:
            error = None
            self._verdicts.add(destination, asked)
        finally:
            del self._asking[destination]
            for waiter in waiters:
                if waiter.done():
                    continue
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)

    def end_subscriptions(self, error: QueuecastError, feed: Feed | None = None) -> None:
        """End what this login's sessions are subscribed to: all of it, or one feed."""
        for subscription in [each for each in self._subscriptions if feed in (None, each.feed)]:
            self._subscriptions.discard(subscription)
            if not subscription.closed:
                subscription.fail(error)

    def sweep(self) -> None:
        """Forget what is over; let go of everything when the broker refused the login."""
        self._subscriptions = {each for each in self._subscriptions if not each.closed}
        refused = self.broker.refused
        if refused is None:
            return
        self.end_subscriptions(refused)
        for relay in list(self.relays):
            relay.move(refused)


class SharedFeeds:
    """The feeds of one virtual host, for the logins there.

    ours: whether it is the virtual host of the broker's URL, whose user reads first.
    """

    def __init__(self, runtime: Runtime, trunk: Hub, *, ours: bool) -> None:
        self._runtime = runtime
        self._trunk = trunk if ours else None
        self._hub = trunk.branch(self._open_reader)
        # What the URL's user may not read.
        self._denied = Verdicts(runtime.now)
        self.members: list[Member] = []

    def join(self, broker: FeedBroker) -> Member:
        """Take a login in; call `leave` when its account ends."""
        member = Member(self, broker, self._runtime)
        self.members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """Forget a login; it reads nothing any more."""
        self.members.remove(member)

    async def subscribe(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription:
        """Subscribe somebody who has the right to all of these destinations."""
        if self._trunk is not None and not self._is_denied(destinations):
            asked = self._runtime.now()
            try:
                return await self._trunk.subscribe(destinations, encoding, start, outlet)
            except Refused:
                for destination in destinations:
                    self._denied.add(destination, asked)
        return await self._hub.subscribe(destinations, encoding, start, outlet)

    def subscribe_at_once(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription | None:
        """As `subscribe`, where nothing has to be waited for."""
        hub = self._hub
        if self._trunk is not None and not self._is_denied(destinations):
            hub = self._trunk
        return hub.subscribe_at_once(destinations, encoding, start, outlet)

    def _is_denied(self, destinations: Sequence[Destination]) -> bool:
        """Tell whether the URL's user was found to have no right to one of these."""
        return any(self._denied.at(each) is not None for each in destinations)

    async def _open_reader(self, destination: Destination, feed: Feed) -> CloseReader:
        relay = Relay(self, self._runtime, destination, feed)
        await relay.open(list(self._entitled(destination)))
        return relay.close

    def _entitled(self, destination: Destination) -> Iterator[Member]:
        """Yield who was found to have the right, the latest first."""
        verdicts = [(member.verdict(destination), member) for member in self.members]
        found = [(at, member) for at, member in verdicts if at is not None]
        for _, member in sorted(found, key=lambda each: each[0], reverse=True):
            yield member

    async def successors(self, destination: Destination, lost: Member) -> list[Member]:
        """Return who may read instead of one who may not any more, asking them all.

        Raises Unavailable when none of them may for certain, but the broker did not say of all.
        """
        found: list[Member] = []
        away: Unavailable | None = None
        for member in list(self.members):
            if member is lost or member.broker.refused is not None:
                continue
            try:
                await member.verify(destination)
            except Unavailable as error:
                away = error
            except QueuecastError as error:
                logger.debug("%s cannot be read by another login: %s", destination, error)
            else:
                found.append(member)
        if not found and away is not None:
            raise away
        return found

    def sweep(self) -> None:
        """Once a second: look after the logins."""
        for member in list(self.members):
            member.sweep()

    async def close(self) -> None:
        """Close the feeds that logins read."""
        await self._hub.close()


def follow(feed: Feed, reader: FeedReader) -> None:
    """Let a feed use what its reader can do."""
    feed.upstream_position = reader.position
    feed.past = reader if isinstance(reader, HistoryReader) else None
    feed.settle = reader.settle if isinstance(reader, SettlingReader) else settled
    feed.widens = isinstance(reader, WideningReader)


class Relay:
    """Stands between a feed of the hub and the login's reader, which may become another's."""

    def __init__(
        self, feeds: SharedFeeds, runtime: Runtime, destination: Destination, feed: Feed
    ) -> None:
        self._feeds = feeds
        self._runtime = runtime
        self._destination = destination
        self._feed = feed
        self._member: Member | None = None
        self._reader: FeedReader | None = None
        self._began = False
        self._closed = False
        self._moving: Callable[[], object] | None = None

    async def open(self, members: Sequence[Member]) -> None:
        """Have the first of these read that can; raises what the last one's broker raised."""
        error: QueuecastError = Refused(f"nobody may read {self._destination}")
        # Waiting for connections that are away, one after the other, would take for ever.
        for member in [each for each in members if each.broker.ready] or members[:1]:
            # At once: its account must not end while it opens.
            member.relays.add(self)
            try:
                reader = await member.broker.open_feed(self._destination, self)
            except (Refused, Unavailable) as caught:
                member.relays.discard(self)
                error = caught
                continue
            except BaseException:
                member.relays.discard(self)
                raise
            self._member, self._reader = member, reader
            follow(self._feed, reader)
            return
        raise error

    async def close(self) -> None:
        """Stop reading: nobody listens any more."""
        self._closed = True
        if self._moving is not None:
            self._moving()
        await self._release()

    async def _release(self) -> Member | None:
        member, self._member = self._member, None
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                await reader.close()
        finally:
            # Only now may the account end.
            if member is not None:
                member.relays.discard(self)
        return member

    # -- from the broker: brokers.base.FeedSink -------------------------------------------

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        """Begin, or go on with another login's reader."""
        if self._began:
            self._feed.gap("the feed is read with another login from here on", start)
        else:
            self._began = True
            self._feed.begin(start, backlog, history=history, complete=complete)

    def append(self, messages: Sequence[Message]) -> None:
        """Take the next messages."""
        self._feed.append(messages)

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        """Tell of lost messages."""
        self._feed.gap(reason, start)

    def widen(self, marks: Sequence[Mark]) -> None:
        """Add lanes."""
        self._feed.widen(marks)

    def fail(self, error: QueuecastError) -> None:
        """The reader is over: somebody else reads on if the right was all that was missing."""
        if isinstance(error, Refused):
            self.move(error)
        else:
            self._feed.fail(error)

    # -- changing the reader --------------------------------------------------------------

    def move(self, error: QueuecastError) -> None:
        """Let another login read on; the feed ends with the error if none may."""
        if self._moving is None and not self._closed and self._member is not None:
            logger.warning("%s changes its reader: %s", self._destination, error)
            self._moving = self._runtime.spawn(self._move(error), f"move {self._destination}")

    async def _move(self, error: QueuecastError) -> None:
        lost = await self._release()
        assert lost is not None
        lost.end_subscriptions(error, self._feed)
        delay = _FIRST_RETRY
        while not self._closed:
            try:
                successors = await self._feeds.successors(self._destination, lost)
                if not successors:
                    self._feed.fail(error)
                    return
                await self.open(successors)
            except Unavailable:
                await self._runtime.sleep(delay)
                delay = min(delay * 2, _LAST_RETRY)
            except Refused:
                continue  # the right went while it was used: ask again
            except QueuecastError as caught:
                self._feed.fail(caught)
                return
            except Exception:
                logger.exception("changing the reader of %s failed", self._destination)
                self._feed.fail(error)
                return
            else:
                self._moving = None
                return
