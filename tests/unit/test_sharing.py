"""Feeds that logins share: who may join, who reads, and what becomes of it when that one may not.

The brokers here only know who has which right; tests/e2e/test_sharing.py asks RabbitMQ.
"""

from __future__ import annotations

from typing import Any

import pytest

from queuecast.destination import Destination
from queuecast.errors import NotFound, QueuecastError, Refused, Unavailable
from queuecast.hub.subscription import Subscription
from queuecast.message import Message
from queuecast.position import LIVE
from queuecast.sharing import MAX_VERDICTS, Member, SharedFeeds, Verdicts
from tests.support.fake_runtime import FakePromise, FakeRuntime, Task
from tests.support.fake_session import FakeOutlet
from tests.unit.hub.rig import PLAIN, HubRig

A = Destination.parse("/topic/a")


class Reader:
    def __init__(self, login: Login, sink: Any) -> None:
        self.login = login
        self.sink = sink

    def position(self) -> None:
        return None

    async def close(self) -> None:
        if self in self.login.readers:
            self.login.readers.remove(self)


class Login:
    """The broker as one login sees it."""

    def __init__(self, *, may: bool = True) -> None:
        self.ready = True
        self.refused: QueuecastError | None = None
        self.verdict: QueuecastError | None = None if may else Refused("read access refused")
        self.open_error: QueuecastError | None = None
        self.wait: FakePromise | None = None
        self.checks = 0
        self.readers: list[Reader] = []

    async def check_feed(self, destination: Destination) -> None:
        self.checks += 1
        if self.wait is not None:
            await self.wait
        if self.verdict is not None:
            raise self.verdict

    async def open_feed(self, destination: Destination, sink: Any) -> Any:
        if self.verdict or self.open_error:
            raise self.verdict or self.open_error  # type: ignore[misc]
        reader = Reader(self, sink)
        self.readers.append(reader)
        sink.begin(None)
        return reader

    def send(self, body: str) -> None:
        self.readers[0].sink.append([Message(body.encode())])


class Rig:
    def __init__(self, *, ours: bool = False) -> None:
        self.house = HubRig()
        self.runtime: FakeRuntime = self.house.runtime
        self.feeds = SharedFeeds(self.runtime, self.house.hub, ours=ours)

    def ask(self, member: Member, outlet: FakeOutlet, destination: Destination = A) -> Task:
        async def subscribe() -> Subscription:
            made = await member.subscribe([destination], PLAIN, LIVE, outlet)
            outlet.subscriptions.append(made)
            made.flow()
            return made

        return self.runtime.start(subscribe())

    def subscribe(self, member: Member, destination: Destination = A) -> FakeOutlet:
        outlet = FakeOutlet()
        task = self.ask(member, outlet, destination)
        self.runtime.settle()
        task.result()
        return outlet

    def sweep(self, seconds: float = 1.0) -> None:
        self.runtime.advance(seconds)
        self.feeds.sweep()
        self.house.sweep(0)
        self.runtime.settle()


def test_logins_share_one_feed_and_each_is_asked_once_a_minute() -> None:
    rig = Rig()
    logins = [Login() for _ in range(3)]
    members = [rig.feeds.join(login) for login in logins]
    outlets = [rig.subscribe(member) for member in members for _ in range(5)]
    assert [login.checks for login in logins] == [1, 1, 1]
    assert [len(login.readers) for login in logins] == [1, 0, 0]
    logins[0].send("x")
    rig.runtime.settle()
    assert all(outlet.bodies() == ["x"] for outlet in outlets)
    assert rig.house.hub.stats.encodes == 1
    rig.runtime.advance(61)
    rig.subscribe(members[1])
    assert [login.checks for login in logins] == [1, 2, 1]


def test_who_has_no_right_joins_no_open_feed() -> None:
    rig = Rig()
    entitled, stranger = Login(), Login(may=False)
    member, other = rig.feeds.join(entitled), rig.feeds.join(stranger)
    outlet = rig.subscribe(member)
    with pytest.raises(Refused):
        rig.subscribe(other)
    entitled.send("x")
    rig.runtime.settle()
    assert outlet.bodies() == ["x"]
    # A refusal is not kept: who is given the right has it at once.
    stranger.verdict = None
    rig.subscribe(other)
    assert stranger.checks == 2


def test_a_right_that_is_withdrawn_ends_with_the_verdict() -> None:
    rig = Rig()
    login = Login()
    member = rig.feeds.join(login)
    outlet = rig.subscribe(member)
    login.verdict = Refused("no more")
    rig.runtime.advance(59)
    rig.subscribe(member)
    rig.runtime.advance(2)
    with pytest.raises(Refused):
        rig.subscribe(member)
    login.send("x")
    rig.runtime.settle()
    assert outlet.bodies() == ["x"], "what is there goes on"


def test_at_once_joins_only_whose_right_is_known() -> None:
    rig = Rig()
    member, stranger = rig.feeds.join(Login()), rig.feeds.join(Login(may=False))

    def at_once(who: Member, destination: Destination = A) -> Subscription | None:
        return who.subscribe_at_once([destination], PLAIN, LIVE, FakeOutlet())

    assert at_once(member) is None
    rig.subscribe(member)
    assert at_once(stranger) is None
    assert at_once(member, Destination.parse("/topic/b")) is None
    found = at_once(member)
    assert found is not None
    # It ends with the login, as the others do.
    member.end_subscriptions(Refused("no more"))
    assert found.closed
    rig.runtime.advance(61)
    assert at_once(member) is None


def test_at_once_joins_what_the_urls_user_reads() -> None:
    rig = Rig(ours=True)
    member = rig.feeds.join(Login())
    outlet = rig.subscribe(member)
    found = member.subscribe_at_once([A], PLAIN, LIVE, FakeOutlet())
    assert found is not None
    assert found.feed is outlet.subscriptions[0].feed is rig.house.hub.feeds[0]


def test_those_who_ask_together_are_one_question_and_may_leave() -> None:
    rig = Rig()
    login = Login()
    login.wait = rig.runtime.promise()
    member = rig.feeds.join(login)
    tasks = [rig.ask(member, FakeOutlet()) for _ in range(5)]
    rig.runtime.settle()
    tasks[0].cancel()
    login.wait.set_result(None)
    rig.runtime.settle()
    for task in tasks[1:]:
        task.result()
    assert login.checks == 1
    assert len(login.readers) == 1


def test_a_missing_exchange_and_a_broker_that_is_away_are_no_refusal() -> None:
    rig = Rig()
    login = Login()
    member = rig.feeds.join(login)
    for error in (NotFound("no exchange"), Unavailable("away")):
        login.verdict = error
        with pytest.raises(type(error)):
            rig.subscribe(member)


def test_in_its_own_virtual_host_the_urls_user_reads() -> None:
    rig = Rig(ours=True)
    login = Login()
    outlet = rig.subscribe(rig.feeds.join(login))
    assert login.readers == []
    rig.house.reader("a").send("x")
    rig.runtime.settle()
    assert outlet.bodies() == ["x"]


def test_what_the_urls_user_may_not_read_is_apart_from_sessions_without_login() -> None:
    rig = Rig(ours=True)
    rig.house.open_error = Refused("not for the gateway")
    login = Login()
    outlet = rig.subscribe(rig.feeds.join(login))
    assert len(login.readers) == 1
    with pytest.raises(Refused):
        rig.house.subscribe("a")
    login.send("x")
    rig.runtime.settle()
    assert outlet.bodies() == ["x"]
    # For a minute it is not tried again; then the URL's user may have been given the right.
    asked = len(rig.house.readers)
    other = Login()
    rig.subscribe(rig.feeds.join(other))
    assert len(rig.house.readers) == asked
    assert other.readers == []
    rig.house.open_error = None
    rig.runtime.advance(61)
    rig.subscribe(rig.feeds.join(Login()))
    rig.house.reader("a").send("y")
    assert len(rig.house.readers) == asked + 1


def test_a_feed_outlives_the_sessions_of_the_login_that_reads_it() -> None:
    rig = Rig()
    reading, other = Login(), Login()
    member, second = rig.feeds.join(reading), rig.feeds.join(other)
    first = rig.subscribe(member)
    outlet = rig.subscribe(second)
    first.subscriptions[0].close()
    rig.sweep(100)
    assert member.relays, "its account is needed"
    reading.send("x")
    rig.runtime.settle()
    assert outlet.bodies() == ["x"]
    outlet.subscriptions[0].close()
    rig.sweep()
    rig.sweep(61)
    assert not member.relays
    assert reading.readers == []


def test_a_login_that_is_refused_later_hands_its_feeds_on() -> None:
    rig = Rig()
    logins = [Login(), Login(may=False), Login()]
    members = [rig.feeds.join(login) for login in logins]
    lost, heir = rig.subscribe(members[0]), rig.subscribe(members[2])
    logins[0].refused = Refused("the user was deleted")
    rig.sweep()
    assert [len(login.readers) for login in logins] == [0, 0, 1]
    assert logins[1].checks == 1, "asked, and left out"
    logins[2].send("x")
    rig.runtime.settle()
    assert heir.bodies() == ["!the feed is read with another login from here on", "x"]
    assert lost.bodies() == []
    assert lost.subscriptions[0].closed
    assert not members[0].relays
    assert members[2].relays


def test_a_feed_that_nobody_else_may_read_ends() -> None:
    rig = Rig()
    login = Login()
    outlet = rig.subscribe(rig.feeds.join(login))
    rig.feeds.join(Login(may=False))
    login.readers[0].sink.fail(Refused("read access refused"))
    rig.runtime.settle()
    assert outlet.subscriptions[0].closed
    assert list(rig.house.hub.feeds) == []


def test_while_the_broker_is_away_a_feed_waits_for_its_new_reader() -> None:
    rig = Rig()
    reading, other = Login(), Login()
    rig.subscribe(rig.feeds.join(reading))
    outlet = rig.subscribe(rig.feeds.join(other))
    other.open_error = Unavailable("away")
    reading.refused = Refused("the user was deleted")
    rig.sweep()
    assert not outlet.subscriptions[0].closed
    rig.runtime.advance(1)
    other.open_error = None
    rig.runtime.advance(5)
    other.send("x")
    rig.runtime.settle()
    assert outlet.bodies()[-1] == "x"


def test_a_feed_that_nobody_listens_to_any_more_looks_for_no_reader() -> None:
    rig = Rig()
    reading, other = Login(), Login()
    rig.subscribe(rig.feeds.join(reading))
    outlet = rig.subscribe(rig.feeds.join(other))
    other.open_error = Unavailable("away")
    reading.refused = Refused("the user was deleted")
    rig.sweep()
    outlet.subscriptions[0].close()
    rig.sweep()
    rig.sweep(61)
    other.open_error = None
    rig.runtime.advance(60)
    assert other.readers == []
    assert list(rig.house.hub.feeds) == []


def test_the_latest_verdict_reads_and_a_login_that_is_away_is_passed_over() -> None:
    rig = Rig()
    first, second = Login(), Login()
    one, two = rig.feeds.join(first), rig.feeds.join(second)
    rig.runtime.run(one.verify(A))
    rig.runtime.advance(1)
    rig.runtime.run(two.verify(A))
    second.ready = False
    rig.subscribe(two)
    assert (len(first.readers), len(second.readers)) == (1, 0)


def test_verdicts_are_bounded() -> None:
    verdicts = Verdicts(lambda: 0.0)
    for n in range(MAX_VERDICTS + 10):
        verdicts.add(Destination.parse(f"/topic/{n}"), 0.0)
    assert len(verdicts._times) == MAX_VERDICTS
    assert verdicts.at(Destination.parse("/topic/9")) is None
    assert verdicts.at(Destination.parse("/topic/10")) == 0.0
