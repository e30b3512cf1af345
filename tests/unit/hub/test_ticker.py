"""The tick: one write a connection, rounds of bounded chunks, and nobody stops the others."""

from __future__ import annotations

import pytest

from queuecast.hub.log import LogLimits
from queuecast.hub.subscription import Subscription
from queuecast.message import Message
from queuecast.position import Start
from tests.support.fake_session import FakeOutlet, Lines

from .rig import FeedRig, HubRig, numbered


def test_everything_of_a_turn_goes_out_in_one_write() -> None:
    rig = FeedRig()
    outlet = rig.subscribe()
    for _ in range(10):
        rig.append()
    rig.runtime.turn()
    assert len(outlet.writes) == 1
    assert outlet.bodies() == numbered(1, 10)
    assert rig.runtime.idle


def test_several_subscriptions_share_a_write() -> None:
    rig = FeedRig()
    outlet = FakeOutlet()
    for tag in "xyz":
        rig.subscribe(encoding=Lines(tag), outlet=outlet)
    rig.send(2)
    assert len(outlet.writes) == 1
    assert all(outlet.bodies(tag) == numbered(1, 2) for tag in "xyz")


def test_live_and_behind_share_a_write() -> None:
    rig = FeedRig()
    outlet = FakeOutlet()
    rig.subscribe(encoding=Lines("live"), outlet=outlet)
    rig.send(3)
    rig.subscribe(Start("last", count=2), Lines("replay"), outlet)
    rig.append()
    outlet.writes.clear()
    rig.runtime.turn()
    assert len(outlet.writes) == 1
    assert outlet.bodies("live") == ["m4"]
    assert outlet.bodies("replay") == numbered(2, 4)


def test_feeds_of_one_hub_share_a_write() -> None:
    rig = HubRig()
    outlet = FakeOutlet()
    for name in "ab":
        rig.ask(name, encoding=Lines(name), outlet=outlet)
    rig.runtime.settle()
    rig.reader("a").send("1")
    rig.reader("b").send("2")
    rig.runtime.settle()
    assert len(outlet.writes) == 1
    assert (outlet.bodies("a"), outlet.bodies("b")) == (["1"], ["2"])


def test_a_burst_takes_rounds_of_bounded_writes() -> None:
    rig = FeedRig(chunk_bytes=4000)
    outlets = [rig.subscribe() for _ in range(2)]
    rig.append(100)
    rig.append(1, size=9000)
    rig.append(10)
    rig.runtime.turn()
    for outlet in outlets:
        assert [body.strip() for body in outlet.bodies()] == numbered(1, 111)
        assert len(outlet.writes) > 3
        assert all(len(data) <= 4000 or data.count(b"\n") == 1 for data in outlet.writes)


def test_one_who_fills_up_in_a_burst_leaves_at_the_next_border() -> None:
    rig = FeedRig(chunk_bytes=4000)
    slow, fast = rig.subscribe(room=1), rig.subscribe()
    rig.send(100)
    assert len(slow.writes) == 1
    assert fast.bodies() == numbered(1, 100)
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == numbered(1, 100)


def test_subscriptions_behind_take_turns_on_one_connection() -> None:
    rig = FeedRig(chunk_bytes=4000, history=True)
    rig.send(100, size=800)
    outlet = FakeOutlet()
    for tag in "abcdefgh":
        rig.subscribe(Start("first"), Lines(tag), outlet)
    rig.runtime.turn()
    rig.runtime.turn()
    assert max(map(len, outlet.writes)) <= 8000
    progress = [len(outlet.bodies(tag)) for tag in "abcdefgh"]
    assert max(progress) > 0
    for _ in range(4):
        rig.runtime.turn()
    assert all(outlet.bodies(tag) for tag in "abcdefgh"), "nobody starves"
    rig.runtime.settle()
    assert all(len(outlet.bodies(tag)) == 100 for tag in "abcdefgh")
    assert max(map(len, outlet.writes)) <= 8000


def test_one_who_is_behind_joins_although_every_turn_brings_more() -> None:
    rig = FeedRig()
    steady, outlet = rig.subscribe(), rig.subscribe(room=1)
    rig.send(3)
    outlet.resume()
    for _ in range(3):
        rig.append()
        rig.runtime.turn()
    assert outlet.subscriptions[0].live
    assert outlet.bodies() == steady.bodies() == numbered(1, 6)
    assert outlet.writes[-1] is steady.writes[-1]


def test_a_write_that_raises_ends_only_its_own() -> None:
    rig = FeedRig()
    outlets = [rig.subscribe() for _ in range(3)]
    rig.send()
    outlets[1].broken = True
    rig.send()
    assert len(outlets[1].failures) == 1
    assert outlets[1].subscriptions[0].closed
    rig.send()
    assert outlets[0].bodies() == outlets[2].bodies() == numbered(1, 3)
    assert len(rig.feed.subscribers) == 2


def test_a_write_that_raises_for_one_who_is_behind() -> None:
    rig = FeedRig(history=True)
    rig.send(3)
    broken = FakeOutlet()
    broken.broken = True
    rig.subscribe(Start("first"), outlet=broken)
    other = rig.subscribe(Start("first"))
    rig.runtime.settle()
    assert len(broken.failures) == 1
    assert other.bodies() == numbered(1, 3)


def test_a_session_that_raises_when_told_does_not_stop_the_others() -> None:
    class Rude(FakeOutlet):
        def feed_failed(self, subscription: Subscription, error: Exception) -> None:
            raise RuntimeError("on purpose")

    rig = FeedRig()
    outlets = [rig.subscribe(outlet=outlet) for outlet in (Rude(), FakeOutlet(), Rude())]
    fine = rig.subscribe(encoding=Lines("fine"))
    rig.feed.append([Message(b"ok")])
    rig.runtime.settle()
    rig.feed.append([Message(b"poison")])
    rig.runtime.settle()
    assert len(outlets[1].failures) == 1
    assert len(fine.failures) == 1
    assert rig.feed.subscribers == set()


def test_what_is_appended_during_the_tick_is_not_lost() -> None:
    rig = FeedRig()

    class Echo(FakeOutlet):
        def write(self, data: bytes) -> None:
            super().write(data)
            if rig.count < 5:
                rig.append()

    echo = rig.subscribe(outlet=Echo())
    plain = rig.subscribe(encoding=Lines("plain"))
    rig.send()
    assert echo.bodies() == plain.bodies("plain") == numbered(1, 5)


def test_one_who_subscribes_during_the_tick_is_not_lost() -> None:
    """The newcomer stands beyond the members until the tick that is due."""
    rig = FeedRig()
    rig.subscribe()
    late: list[FakeOutlet] = []
    rig.append()
    late.append(rig.subscribe())
    rig.runtime.settle()
    rig.send(2)
    assert late[0].bodies() == numbered(2, 3)
    assert late[0].subscriptions[0].live


def test_eviction_comes_after_the_encoding() -> None:
    rig = FeedRig(limits=LogLimits(messages=3))
    outlet = rig.subscribe()
    rig.send(50)
    assert outlet.bodies() == numbered(1, 50)
    assert len(rig.feed.log) == 3


@pytest.mark.parametrize("paused", [False, True])
def test_the_loop_rests_when_nothing_can_be_done(paused: bool) -> None:
    rig = FeedRig()
    outlet = rig.subscribe(room=1 if paused else None)
    rig.send(3)
    rig.send(3)
    assert outlet.paused == paused
    assert rig.runtime.idle
