"""One feed, or a hub with readers made by hand, on a loop turned by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from queuecast.destination import Destination
from queuecast.errors import QueuecastError
from queuecast.hub.feed import Feed
from queuecast.hub.hub import CloseReader, Hub, _Held
from queuecast.hub.log import Budget, LogLimits
from queuecast.hub.subscription import Encoding, Subscription
from queuecast.hub.ticker import Stats, Ticker
from queuecast.message import Message
from queuecast.position import LIVE, Mark, Position, Start
from queuecast.retention import SlowPolicy, SlowRule
from tests.support.fake_history import Kept
from tests.support.fake_runtime import FakePromise, FakeRuntime, Task
from tests.support.fake_session import FakeOutlet, Lines

PLAIN = Lines()
# What the wall clock is ahead of the monotonic one.
EPOCH = 1_800_000_000.0


def since(position: Position | str) -> Start:
    if isinstance(position, str):
        position = Position.parse(position)
    return Start("since", position=position)


def numbered(first: int, last: int) -> list[str]:
    """The bodies m<first> … m<last>."""
    return [f"m{number}" for number in range(first, last + 1)]


def close_all(*outlets: FakeOutlet) -> None:
    for outlet in outlets:
        for subscription in outlet.subscriptions:
            subscription.close()


class FeedRig:
    """A feed whose upstream is the test."""

    def __init__(
        self,
        *,
        limits: LogLimits | None = None,
        chunk_bytes: int = 64 * 1024,
        start: Sequence[Mark] | None = None,
        backlog: Sequence[Message] = (),
        history: bool = False,
    ) -> None:
        self.runtime = FakeRuntime()
        self.ticker = Ticker(self.runtime, chunk_bytes)
        self.budget = Budget()
        self.feed = Feed(
            "/topic/a", self.ticker, self.runtime.now, limits or LogLimits(), self.budget, "node"
        )
        self.feed.begin(start, backlog, history=history)
        self.count = 0

    @property
    def stats(self) -> Stats:
        return self.ticker.stats

    def append(self, count: int = 1, size: int = 0) -> None:
        """Append m1, m2 … without a tick; size fills the bodies up."""
        messages = []
        for _ in range(count):
            self.count += 1
            messages.append(Message(f"m{self.count}".encode().ljust(size)))
        self.feed.append(messages)

    def send(self, count: int = 1, size: int = 0) -> None:
        """Append and let everything come to rest."""
        self.append(count, size)
        self.runtime.settle()

    def subscribe(
        self,
        start: Start = LIVE,
        encoding: Encoding = PLAIN,
        outlet: FakeOutlet | None = None,
        room: int | None = None,
    ) -> FakeOutlet:
        outlet = outlet or FakeOutlet(room)
        subscription = self.feed.subscribe(encoding, start, outlet)
        outlet.start(subscription)
        return outlet


class Reader:
    """A destination's upstream in a HubRig."""

    def __init__(self, rig: HubRig, destination: Destination, feed: Feed) -> None:
        self.rig = rig
        self.destination = destination
        self.feed = feed
        self.closed = False

    def send(self, *bodies: str) -> None:
        self.feed.append([Message(body.encode()) for body in bodies])

    async def close(self) -> None:
        if self.rig.closing is not None:
            await self.rig.closing
        if self.rig.close_error is not None:
            raise self.rig.close_error
        self.closed = True


class HubRig:
    """A hub; `opening` and `closing`, when set, hold its readers up until they are kept."""

    def __init__(
        self,
        *,
        limits: LogLimits | None = None,
        linger: float = 60.0,
        most_idle: int = 10_000,
        chunk_bytes: int | None = None,
        starts: Mapping[str, Sequence[Mark]] | None = None,
        history: bool = False,
        kept: Mapping[str, Kept] | None = None,
        slow: Mapping[str, SlowPolicy] | None = None,
    ) -> None:
        """kept: what the broker keeps, slow: the policies, by the destination's name."""
        self.runtime = FakeRuntime()
        self.hub = Hub(
            self.runtime,
            self._open,
            limits=limits,
            linger=linger,
            most_idle=most_idle,
            chunk_bytes=chunk_bytes,
            wall=lambda: self.runtime.time + EPOCH,
            slow=[
                SlowRule(Destination.parse(f"/topic/{name}"), policy)
                for name, policy in (slow or {}).items()
            ],
        )
        self.kept = kept or {}
        self.readers: list[Reader] = []
        self.opening: FakePromise | None = None
        self.closing: FakePromise | None = None
        self.open_error: Exception | None = None
        self.close_error: Exception | None = None
        self.starts = starts or {}
        self.history = history

    async def _open(self, destination: Destination, feed: Feed) -> CloseReader:
        reader = Reader(self, destination, feed)
        self.readers.append(reader)
        kept = self.kept.get(destination.name)
        if kept is None:
            feed.begin(self.starts.get(str(destination)), history=self.history)
        else:
            feed.begin(kept.marks(), history=True)
            feed.past = kept
        if self.opening is not None:
            await self.opening
        if self.open_error is not None:
            raise self.open_error
        return reader.close

    def held(self) -> list[_Held]:
        """The feeds with their lives."""
        return list(self.hub._held.values())

    def reader(self, name: str) -> Reader:
        """The newest reader of /topic/<name>."""
        return [reader for reader in self.readers if reader.destination.name == name][-1]

    def ask(
        self,
        *names: str,
        start: Start = LIVE,
        encoding: Encoding = PLAIN,
        outlet: FakeOutlet | None = None,
    ) -> Task:
        """Begin to subscribe to /topic/<name> …; the task's value is the outlet."""
        return self.runtime.start(self._subscribe(names, start, encoding, outlet or FakeOutlet()))

    def subscribe(self, *names: str, start: Start = LIVE, encoding: Encoding = PLAIN) -> FakeOutlet:
        task = self.ask(*names, start=start, encoding=encoding)
        self.runtime.settle()
        outlet = task.result()
        assert isinstance(outlet, FakeOutlet)
        return outlet

    async def _subscribe(
        self, names: Sequence[str], start: Start, encoding: Encoding, outlet: FakeOutlet
    ) -> FakeOutlet:
        destinations = [Destination.parse(f"/topic/{name}") for name in names]
        subscription: Subscription = await self.hub.subscribe(destinations, encoding, start, outlet)
        outlet.start(subscription)
        return outlet

    def publish(self, name: str, *bodies: str, lane: int = 0, key: str = "") -> None:
        """Publish to a destination that the broker keeps; its feed gets it if it is open."""
        messages = self.kept[name].add(*bodies, lane=lane, key=key)
        for reader in self.readers:
            if reader.destination.name == name and not reader.closed:
                reader.feed.append(messages)

    def sweep(self, seconds: float = 1.0) -> None:
        self.runtime.time += seconds
        self.runtime.run(self.hub.sweep())

    def fail(self, name: str, error: QueuecastError) -> None:
        self.reader(name).feed.fail(error)
        self.runtime.settle()


def rig_with_history(count: int, *, log: int = 3, page: int | None = 10, size: int = 0) -> HubRig:
    """m1 … m<count> were published while the feed was open with a log of a few messages."""
    kept = Kept()
    kept.page_messages = page
    rig = HubRig(kept={"a": kept}, limits=LogLimits(messages=log), chunk_bytes=2000)
    rig.subscribe("a")
    for body in numbered(1, count):
        rig.publish("a", body.ljust(size))
        rig.runtime.settle()
    return rig
