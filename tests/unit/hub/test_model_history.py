"""Clients of destinations that the broker keeps, against a model of what each must have got.

The model knows of each lane the list of what happened in it: messages, and the moments in which
the broker lost everything and began to count anew. A client is a place in each of these lists.
What it gets next must stand there; a gap may be told only where something is not there any more.
The feed may lag behind the broker, retention deletes under the readers, the broker goes away, and
lanes are added while everything runs.
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

from queuecast.errors import Unavailable
from queuecast.hub.log import LogLimits
from queuecast.hub.page import FEED_PAGES
from queuecast.message import Message
from queuecast.position import Mark, Position, Start
from tests.support.fake_history import Kept
from tests.support.fake_session import FakeOutlet, Item, Lines

from .rig import EPOCH, HubRig

LIMITS = LogLimits(messages=6, age=1e9)
ENCODINGS = {"x": Lines("x"), "y": Lines("y", pad=600)}
KEYS = [("a",), ("b",), ("a", "b")]
MOST_LANES = 4


@dataclass
class Lane:
    """What happened: bodies, or "!" where all was lost; and the mark before the first and after
    each. kept: the first event that the broker still has."""

    marks: list[Mark]
    events: list[str] = field(default_factory=list)
    kept: int = 0

    def index(self, mark: Mark) -> int:
        """How many events are at or before a mark."""
        return self.marks.index(mark)


@dataclass
class Client:
    """A client over its reconnects; `have` is, per destination and lane, what it knows."""

    key: tuple[str, ...]
    tag: str
    id: str
    outlet: FakeOutlet
    have: dict[str, list[int]]
    read: int = 0
    gone: bool = False


class HistoryMachine(RuleBasedStateMachine):
    """One hub, a destination of two lanes, one of one lane, and their joint feed."""

    clients = Bundle("clients")

    @initialize(chunk=st.sampled_from([1, 900, 64 * 1024]), page=st.sampled_from([1, 3, None]))
    def begin(self, chunk: int, page: int | None) -> None:
        self.kept = {"a": Kept("a0", lanes=2), "b": Kept("b0")}
        for each in self.kept.values():
            each.page_messages = page
        self.rig = HubRig(kept=self.kept, limits=LIMITS, chunk_bytes=chunk, linger=1e9)
        self.lanes = {
            name: [Lane([mark]) for mark in kept.marks()] for name, kept in self.kept.items()
        }
        self.late: dict[str, list[Message]] = {"a": [], "b": []}
        self.lost: dict[str, bool] = {"a": False, "b": False}
        self.everyone: list[Client] = []
        self.count = 0
        self.epochs = 0
        for name in "ab":
            self.rig.subscribe(name)  # the feeds stay open

    # -- upstream -------------------------------------------------------------------------

    @rule(
        name=st.sampled_from("ab"),
        count=st.integers(1, 12),
        lane=st.integers(0, MOST_LANES - 1),
        lag=st.booleans(),
    )
    def publish(self, name: str, count: int, lane: int, lag: bool) -> None:
        kept = self.kept[name]
        lane %= len(kept.heads)
        kept.time = self.rig.runtime.time + EPOCH
        for _ in range(count):
            self.count += 1
            body = f"{name}{self.count}"
            self.late[name] += kept.add(body, lane=lane)
            self.lanes[name][lane].events.append(body)
            self.lanes[name][lane].marks.append(kept.marks()[lane])
        if not lag:
            self.hand_over(name)

    @rule(name=st.sampled_from("ab"))
    def hand_over(self, name: str) -> None:
        """The feed's reader gets what it does not have yet, or learns that all was lost."""
        feed = self.rig.reader(name).feed
        if self.lost[name]:
            self.lost[name] = False
            feed.gap("lost", [Mark(self.kept[name].epoch, 0)] * len(self.kept[name].heads))
        late, self.late[name] = self.late[name], []
        feed.append(late)

    @rule(name=st.sampled_from("ab"), at_once=st.booleans())
    def lose_everything(self, name: str, at_once: bool) -> None:
        kept = self.kept[name]
        self.epochs += 1
        kept.recreate(f"{name}{self.epochs}")
        self.late[name] = []
        self.lost[name] = True
        for lane in self.lanes[name]:
            lane.events.append("!")
            lane.marks.append(Mark(kept.epoch, 0))
            lane.kept = len(lane.events)
        if at_once:
            self.hand_over(name)

    @rule(name=st.sampled_from("ab"), count=st.integers(1, 30))
    def retention(self, name: str, count: int) -> None:
        kept = self.kept[name]
        kept.delete(count)
        for lane, offset in zip(self.lanes[name], kept.deleted, strict=True):
            lane.kept = max(lane.kept, lane.index(Mark(kept.epoch, offset)))

    @precondition(lambda self: len(self.lanes["a"]) < MOST_LANES and not self.lost["a"])
    @rule()
    def widen(self) -> None:
        # What was handed over late may be of the new lane, so it comes after it.
        marks = self.kept["a"].widen()
        self.lanes["a"].append(Lane(list(marks)))
        for client in self.everyone:
            if "a" in client.key:
                client.have["a"].append(0)
        self.rig.reader("a").feed.widen(marks)

    @rule(name=st.sampled_from("ab"), away=st.booleans())
    def broker(self, name: str, away: bool) -> None:
        self.kept[name].error = Unavailable("away") if away else None

    # -- clients --------------------------------------------------------------------------

    @rule(
        target=clients,
        key=st.sampled_from(KEYS),
        tag=st.sampled_from("xy"),
        kind=st.sampled_from(["live", "first", "last", "time"]),
        count=st.integers(1, 20),
        room=st.one_of(st.none(), st.integers(1, 2000)),
        at_once=st.booleans(),
    )
    def subscribe(
        self,
        key: tuple[str, ...],
        tag: str,
        kind: str,
        count: int,
        room: int | None,
        at_once: bool,
    ) -> Client:
        start = {
            "live": Start(),
            "first": Start("first"),
            "last": Start("last", count=count),
            "time": Start("time", time=self.rig.runtime.time + EPOCH - count),
        }[kind]
        client = Client(key, tag, "", FakeOutlet(room, at_once=at_once), {})
        self._come(client, start)
        if client.gone:
            return client
        self._stand(client)
        if kind == "first":
            for name in key:
                assert client.have[name] == [lane.kept for lane in self.lanes[name]]
        if kind == "last":
            for name in key:
                for lane, have in zip(self.lanes[name], client.have[name], strict=True):
                    missing = sum(event != "!" for event in lane.events[have:])
                    assert missing >= min(count, len(lane.events) - lane.kept), "never fewer"
        return client

    @rule(target=clients, key=st.sampled_from(KEYS), tag=st.sampled_from("xy"), data=st.data())
    def resume_from_anywhere(self, key: tuple[str, ...], tag: str, data: st.DataObject) -> Client:
        """Any place of each lane: what another node's interleaving may have led to."""
        have = {
            name: [data.draw(st.integers(0, len(lane.events))) for lane in self.lanes[name]]
            for name in key
        }
        marks = [
            lane.marks[index]
            for name in key
            for lane, index in zip(self.lanes[name], have[name], strict=True)
        ]
        outlet = FakeOutlet(at_once=data.draw(st.booleans()))
        client = Client(key, tag, str(Position(marks)), outlet, have)
        self._come(client)
        return client

    @rule(client=clients)
    def reconnect(self, client: Client) -> None:
        """Cut off; what the connection got before counts, what it did not comes now."""
        if client.gone:
            return
        self._check(client)
        for subscription in client.outlet.subscriptions:
            subscription.close()
        self._come_again(client)

    @rule(client=clients)
    def pause(self, client: Client) -> None:
        client.outlet.pause()

    @rule(client=clients, room=st.one_of(st.none(), st.integers(1, 2000)))
    def resume(self, client: Client, room: int | None) -> None:
        client.outlet.resume(room)

    @rule(client=consumes(clients))
    def close(self, client: Client) -> None:
        if client.gone:
            return
        self._check(client)
        self._leave(client)

    def _leave(self, client: Client) -> None:
        for subscription in client.outlet.subscriptions:
            subscription.close()
        client.gone = True
        if client in self.everyone:
            self.everyone.remove(client)

    def _come(self, client: Client, start: Start | None = None) -> None:
        if start is None:
            start = Start("since", position=Position.parse(client.id))
        task = self.rig.ask(
            *client.key, start=start, encoding=ENCODINGS[client.tag], outlet=client.outlet
        )
        while not task.done and not self.rig.runtime.idle:
            self.rig.runtime.turn()
        try:
            task.result()
        except Unavailable:
            client.gone = True
            return
        if client not in self.everyone:
            self.everyone.append(client)
        if start.kind != "since":
            client.id = client.outlet.began

    def _come_again(self, client: Client) -> None:
        client.outlet, client.read = FakeOutlet(at_once=client.outlet.at_once), 0
        self._come(client)
        assert not client.gone, "a position needs no search"

    def _stand(self, client: Client) -> None:
        marks = iter(Position.parse(client.id))
        client.have = {
            name: [lane.index(next(marks)) for lane in self.lanes[name]] for name in client.key
        }

    # -- time -----------------------------------------------------------------------------

    @rule()
    def turn(self) -> None:
        """One tick only: those who are behind may stay so."""
        self.rig.runtime.turn()

    @rule(seconds=st.integers(1, 30))
    def sweep(self, seconds: int) -> None:
        self.rig.runtime.settle()
        self.rig.sweep(seconds)
        self.rig.runtime.settle()

    @rule(key=st.sampled_from(KEYS))
    def halve(self, key: tuple[str, ...]) -> None:
        if not self.rig.runtime.idle:
            self.rig.runtime.settle()
        for feed in self.rig.hub.feeds:
            if feed.name == " + ".join(f"/topic/{name}" for name in key):
                feed.log.halve()

    @rule()
    def settle(self) -> None:
        """Everything works and has its time: then everybody has everything."""
        for name, kept in self.kept.items():
            kept.error = None
            self.hand_over(name)
        for _ in range(3):
            self.rig.runtime.settle()
            self.rig.runtime.advance(20)
            for client in list(self.everyone):
                self._check(client)
        for client in self.everyone:
            if client.outlet.paused:
                continue
            assert client.have == {
                name: [len(lane.events) for lane in self.lanes[name]] for name in client.key
            }
            [subscription] = client.outlet.subscriptions
            assert subscription.live
            assert subscription.position() == subscription.feed.position()
        self.rig.sweep()
        assert self.rig.hub.page_bytes == 0

    # -- what must hold -------------------------------------------------------------------

    def _check(self, client: Client) -> None:
        items = client.outlet.items(client.tag)
        for item in items[client.read :]:
            if item.gap:
                self._check_gap(client, item)
            else:
                self._check_message(client, item)
            client.id = item.position
        client.read = len(items)
        if client.outlet.failures:
            assert [type(error) for _, error in client.outlet.failures] == [Unavailable]
            assert client.key == ("a", "b"), "only a joint feed is made anew"
            self._come_again(client)

    def _check_message(self, client: Client, item: Item) -> None:
        name = item.body[0]
        lanes = self.lanes[name]
        found = [
            number
            for number, (lane, have) in enumerate(zip(lanes, client.have[name], strict=True))
            if lane.events[have : have + 1] == [item.body]
        ]
        assert len(found) == 1, f"{item.body} is not what comes next"
        lane = found[0]
        client.have[name][lane] += 1
        marks = Position.parse(item.position)
        first = sum(self._lanes_of(client, each, marks) for each in client.key if each < name)
        assert marks[first + lane] == lanes[lane].marks[client.have[name][lane]]

    def _lanes_of(self, client: Client, name: str, marks: Position) -> int:
        """How many lanes a destination had when these marks were written."""
        others = sum(len(self.lanes[each]) for each in client.key if each not in (name, "a"))
        return len(marks) - others if name == "a" else len(self.lanes[name])

    def _check_gap(self, client: Client, item: Item) -> None:
        assert item.gap in ("lost", "deleted", "recreated"), item
        marks = iter(Position.parse(item.position))
        total = len(Position.parse(item.position))
        due = False
        for name in client.key:
            count = self._lanes_of(client, name, Position.parse(item.position))
            for number in range(count):
                lane, have = self.lanes[name][number], client.have[name][number]
                index = lane.index(next(marks))
                assert index >= have, "never back"
                assert index <= max(have, lane.kept), "not over what is there"
                due = due or index > have
                client.have[name][number] = index
        assert due, "nothing was lost"
        assert total

    @invariant()
    def pages_are_bounded(self) -> None:
        if hasattr(self, "rig"):
            for feed in self.rig.hub.feeds:
                for part in feed.parts:
                    assert part.pages is not None
                    assert part.pages.held <= FEED_PAGES

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.settle()
        for client in self.everyone:
            client.outlet.resume()
        self.settle()
        for client in list(self.everyone):
            self._leave(client)
        self.rig.sweep()
        assert self.rig.hub.page_bytes == 0


HistoryMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestHistory = HistoryMachine.TestCase
