"""Clients that come, stall, go and come back, against a model of what each must have got.

The model knows of each destination only the list of what happened there. A client is a place
in each of its lists: what it gets next must stand there, in order; a gap may be told only where
the log has lost what the client did not have, and never takes anything twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from queuecast.hub.feed import Feed
from queuecast.hub.log import LogLimits
from queuecast.position import Position, Start
from tests.support.fake_session import FakeOutlet, Item, Lines

from .rig import HubRig, since

LIMITS = LogLimits(messages=7, age=60.0)
LOCAL = ("evicted", "epoch", "unretained")
# The wire form of one is larger than the log's estimate.
ENCODINGS = {"x": Lines("x"), "y": Lines("y", pad=600)}
KEYS = [("a",), ("b",), ("a", "b")]


@dataclass
class Lane:
    """What happened at one destination: bodies, `!n` for a gap, and the mark after each."""

    marks: list[str]
    events: list[str] = field(default_factory=list)


@dataclass
class ModelLog:
    """One feed's log: (lane, index in the lane, time); `kept` is what is still there."""

    feed: Feed
    lanes: tuple[str, ...]
    kept: list[tuple[int, int, float]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def drop(self) -> None:
        lane, index, _ = self.kept.pop(0)
        self.starts[lane] = index + 1

    def evict(self, now: float) -> None:
        while self.kept and (
            len(self.kept) > LIMITS.messages or self.kept[0][2] < now - LIMITS.age
        ):
            self.drop()


@dataclass
class Client:
    """A client over its reconnects; `have` is, per lane, how many events it knows."""

    log: ModelLog
    tag: str
    have: list[int]
    outlet: FakeOutlet = field(default_factory=FakeOutlet)
    must_gap: bool = False
    read: int = 0


class HubMachine(RuleBasedStateMachine):
    """One hub, two destinations, and their joint feed."""

    clients = Bundle("clients")

    @initialize(history=st.booleans(), chunk=st.sampled_from([1, 900, 2000, 64 * 1024]))
    def begin(self, history: bool, chunk: int) -> None:
        self.rig = HubRig(limits=LIMITS, chunk_bytes=chunk, history=history, linger=1e9)
        self.history = history
        self.pending: set[str] = set()
        self.lanes: dict[str, Lane] = {}
        self.logs: dict[tuple[str, ...], ModelLog] = {}
        self.everyone: list[Client] = []
        self.witnesses: list[Client] = []
        self.count = 0
        for key in KEYS:
            outlet = self.rig.subscribe(*key, encoding=Lines("witness"))
            log = ModelLog(outlet.subscriptions[0].feed, key, starts=[0] * len(key))
            self.logs[key] = log
            if len(key) == 1:
                self.lanes[key[0]] = Lane([str(log.feed.position())])
            self.witnesses.append(Client(log, "witness", [0] * len(key), outlet))
        self.everyone += self.witnesses

    # -- upstream -------------------------------------------------------------------------

    @rule(name=st.sampled_from("ab"), count=st.integers(1, 9), size=st.sampled_from([5, 300]))
    def append(self, name: str, count: int, size: int) -> None:
        bodies = []
        for _ in range(count):
            self.count += 1
            bodies.append(f"{name}{self.count}".ljust(size, "."))
        self.rig.reader(name).send(*bodies)
        epoch, offset = self.lanes[name].marks[-1].split("-")
        for number, body in enumerate(bodies, int(offset) + 1):
            self._happened(name, body, f"{epoch}-{number}")

    @rule(name=st.sampled_from("ab"))
    def reconnect(self, name: str) -> None:
        self.count += 1
        self.rig.reader(name).feed.gap(f"r{self.count}")
        mark = str(self.logs[(name,)].feed.position())
        assert mark not in self.lanes[name].marks
        self._happened(name, f"!r{self.count}", mark)

    def _happened(self, name: str, event: str, mark: str) -> None:
        lane = self.lanes[name]
        lane.events.append(event)
        lane.marks.append(mark)
        self.pending.add(name)
        for log in self.logs.values():
            if name in log.lanes:
                entry = (log.lanes.index(name), len(lane.events) - 1, self.rig.runtime.time)
                log.kept.append(entry)

    # -- clients --------------------------------------------------------------------------

    @rule(
        target=clients,
        key=st.sampled_from(KEYS),
        tag=st.sampled_from("xy"),
        kind=st.sampled_from(["live", "first", "last"]),
        count=st.integers(1, 9),
        room=st.one_of(st.none(), st.integers(1, 2000)),
    )
    def subscribe(
        self, key: tuple[str, ...], tag: str, kind: str, count: int, room: int | None
    ) -> Client:
        log = self.logs[key]
        have, must_gap = [len(self.lanes[name].events) for name in key], False
        start = Start()
        if kind == "first":
            start, have, must_gap = Start("first"), list(log.starts), not self.history
        elif kind == "last":
            start = Start("last", count=count)
            for lane, name in enumerate(key):
                there = [
                    index
                    for which, index, _ in log.kept
                    if which == lane and not self.lanes[name].events[index].startswith("!")
                ][-count:]
                if there:
                    have[lane] = there[0]
                must_gap = must_gap or (len(there) < count and not self.history)
        client = Client(log, tag, have, FakeOutlet(room), must_gap)
        self._flow(client, start)
        self.everyone.append(client)
        return client

    @rule(target=clients, key=st.sampled_from(KEYS), tag=st.sampled_from("xy"), data=st.data())
    def resume_from_anywhere(self, key: tuple[str, ...], tag: str, data: st.DataObject) -> Client:
        """Any place of each lane: what another node's interleaving may have led to."""
        log = self.logs[key]
        have, marks, must_gap = [], [], False
        for lane, name in enumerate(key):
            length = len(self.lanes[name].events)
            index = data.draw(st.integers(0, length))
            if data.draw(st.integers(0, 9)) == 0:
                marks.append("foreign-5")
                have.append(log.starts[lane] if self.history else length)
                must_gap = True
            else:
                marks.append(self.lanes[name].marks[index])
                have.append(index)
        outlet = FakeOutlet(at_once=data.draw(st.booleans()))
        client = Client(log, tag, have, outlet, must_gap)
        self._flow(client, since(",".join(marks)))
        self.everyone.append(client)
        return client

    @rule(client=clients)
    def reconnect_client(self, client: Client) -> None:
        """Cut off; what the connection got before counts, what it did not comes now."""
        self._check(client, settled=False)
        if client.must_gap:
            return  # it has no position of its own yet
        [subscription] = client.outlet.subscriptions
        subscription.close()
        client.outlet, client.read = FakeOutlet(at_once=client.outlet.at_once), 0
        self._flow(client, since(self._position(client)))

    def _flow(self, client: Client, start: Start) -> None:
        key = client.log.lanes
        feed = client.log.feed
        subscription = feed.subscribe(ENCODINGS[client.tag], start, client.outlet)
        assert feed.name == " + ".join(f"/topic/{name}" for name in key)
        client.outlet.start(subscription)

    @rule(client=clients)
    def pause(self, client: Client) -> None:
        client.outlet.pause()

    @rule(client=clients, room=st.one_of(st.none(), st.integers(1, 2000)))
    def resume(self, client: Client, room: int | None) -> None:
        client.outlet.resume(room)

    @rule(client=consumes(clients))
    def close(self, client: Client) -> None:
        self._check(client, settled=False)
        client.outlet.subscriptions[0].close()
        self.everyone.remove(client)

    # -- time -----------------------------------------------------------------------------

    @rule()
    def turn(self) -> None:
        """One tick only: those who are behind may stay so."""
        self.rig.runtime.turn()
        self._evict()

    @rule()
    def settle(self) -> None:
        self.rig.runtime.settle()
        self._evict()
        for client in self.everyone:
            self._check(client, settled=True)

    @rule(seconds=st.integers(1, 50))
    def sweep(self, seconds: int) -> None:
        self.settle()
        self.rig.sweep(seconds)
        for log in self.logs.values():
            log.evict(self.rig.runtime.time)
        self.settle()

    @precondition(lambda self: not self.pending)
    @rule(key=st.sampled_from(KEYS))
    def halve(self, key: tuple[str, ...]) -> None:
        log = self.logs[key]
        log.feed.log.halve()
        while len(log.kept) > len(log.feed.log):
            log.drop()

    def _evict(self) -> None:
        for log in self.logs.values():
            if self.pending & set(log.lanes):
                log.evict(self.rig.runtime.time)
        self.pending.clear()

    # -- what must hold -------------------------------------------------------------------

    def _position(self, client: Client) -> str:
        names = client.log.lanes
        return "~".join(
            self.lanes[name].marks[have] for name, have in zip(names, client.have, strict=True)
        )

    def _check(self, client: Client, *, settled: bool) -> None:
        items = client.outlet.items(client.tag)
        for item in items[client.read :]:
            if item.gap in LOCAL:
                self._check_gap(client, item)
            else:
                self._check_event(client, item)
        client.read = len(items)
        if settled and not client.outlet.paused:
            ends = [len(self.lanes[name].events) for name in client.log.lanes]
            assert client.have == ends, "at rest everybody has everything"
            assert not client.must_gap
            assert client.outlet.subscriptions[0].live
            assert client.outlet.subscriptions[0].position() == client.log.feed.position()

    def _check_event(self, client: Client, item: Item) -> None:
        assert not client.must_gap, "the gap comes first"
        event = f"!{item.gap}" if item.gap else item.body
        names = client.log.lanes
        lane = [
            lane
            for lane, name in enumerate(names)
            if event in self.lanes[name].events[client.have[lane] : client.have[lane] + 1]
        ]
        assert len(lane) == 1, f"{event} is not what comes next"
        client.have[lane[0]] += 1
        assert item.position == self._position(client)

    def _check_gap(self, client: Client, item: Item) -> None:
        assert client not in self.witnesses, "who takes everything at once misses nothing"
        lost = False
        landed = Position.parse(item.position)
        for lane, name in enumerate(client.log.lanes):
            index = self.lanes[name].marks.index(str(landed[lane]))
            have, start = client.have[lane], client.log.starts[lane]
            assert have <= index <= max(have, start), "neither back nor over what is there"
            lost = lost or index > have
            client.have[lane] = index
        assert lost or client.must_gap, "nothing was lost"
        client.must_gap = False

    @invariant()
    def bytes_are_accounted_for(self) -> None:
        if hasattr(self, "rig"):
            feeds = self.rig.hub.feeds
            assert self.rig.hub.log_bytes == sum(feed.log.bytes for feed in feeds)
            for log in self.logs.values():
                if not self.pending:
                    assert len(log.feed.log) == len(log.kept)

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.settle()
        for client in self.everyone:
            client.outlet.resume()
        self.settle()
        for client in list(self.everyone):
            client.outlet.subscriptions[0].close()
        assert all(not feed.cohorts and not feed.subscribers for feed in self.rig.hub.feeds)


HubMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestHub = HubMachine.TestCase
