"""A feed: where subscriptions start, numbering, gaps, failure."""

from __future__ import annotations

import pytest

from queuecast.errors import BadPosition, NotFound
from queuecast.hub.log import LogLimits
from queuecast.message import Message
from queuecast.position import MAX_POSITION_TEXT, Mark, Start
from tests.support.fake_session import FakeOutlet

from .rig import FeedRig, numbered, since


def started(start: Start, *, history: bool = False, limits: LogLimits | None = None) -> list[str]:
    """What a subscriber gets that starts after m1 … m5, with m6 following."""
    rig = FeedRig(history=history, limits=limits)
    for _ in range(5):
        rig.send()
    outlet = rig.subscribe(start)
    rig.runtime.settle()
    rig.send()
    return outlet.bodies()


@pytest.mark.parametrize("history", [False, True])
def test_live(history: bool) -> None:
    assert started(Start(), history=history) == ["m6"]


def test_first() -> None:
    assert started(Start("first"), history=True) == numbered(1, 6)
    assert started(Start("first")) == ["!unretained", *numbered(1, 6)]


def test_last() -> None:
    assert started(Start("last", count=2), history=True) == numbered(4, 6)
    assert started(Start("last", count=2)) == numbered(4, 6)
    assert started(Start("last", count=5)) == numbered(1, 6)
    assert started(Start("last", count=9), history=True) == numbered(1, 6)
    assert started(Start("last", count=9)) == ["!unretained", *numbered(1, 6)]


def resumed(
    offset: int, *, epoch: str | None = None, history: bool = False, messages: int = 100
) -> list[str]:
    rig = FeedRig(history=history, limits=LogLimits(messages=messages))
    for _ in range(5):
        rig.send()
    outlet = rig.subscribe(since(f"{epoch or rig.feed.log.head.marks[0].epoch}-{offset}"))
    rig.runtime.settle()
    rig.send()
    return outlet.bodies()


@pytest.mark.parametrize("history", [False, True])
def test_since(history: bool) -> None:
    for offset in range(6):
        assert resumed(offset, history=history) == numbered(offset + 1, 6)
    assert resumed(1, history=history, messages=2) == ["!evicted", *numbered(4, 6)]
    assert resumed(3, history=history, messages=2) == numbered(4, 6)


def test_since_another_epoch() -> None:
    assert resumed(3, epoch="abcd") == ["!epoch", "m6"]
    assert resumed(3, epoch="abcd", history=True) == ["!epoch", *numbered(1, 6)]
    assert resumed(3, epoch="node0000") == ["!epoch", *numbered(1, 6)]
    assert resumed(99, history=True) == ["!epoch", *numbered(1, 6)]


def test_the_position_after_a_gap_resumes_there() -> None:
    for offset, messages in ((1, 2), (99, 100)):
        rig = FeedRig(limits=LogLimits(messages=messages))
        rig.send(5)
        outlet = rig.subscribe(since(f"{rig.feed.log.head.marks[0].epoch}-{offset}"))
        rig.runtime.settle()
        again = rig.subscribe(since(outlet.items()[0].position))
        rig.runtime.settle()
        assert again.bodies() == outlet.bodies()[1:]


def test_a_position_of_another_number_of_destinations() -> None:
    rig = FeedRig()
    with pytest.raises(BadPosition, match="2 destinations"):
        rig.subscribe(since("a-1,b-2"))
    assert rig.feed.cohorts == {}
    assert rig.feed.subscribers == set()


def test_positions_too_long_to_resume_with() -> None:
    rig = FeedRig(start=[Mark(f"{lane:032}", 0) for lane in range(60)])
    with pytest.raises(BadPosition, match="60 destinations"):
        rig.subscribe()
    assert MAX_POSITION_TEXT < 60 * 35


# -- numbering --------------------------------------------------------------------------------


def test_offsets_are_the_brokers_where_it_has_them() -> None:
    backlog = [Message(b"x", offset=7), Message(b"y", offset=9)]
    rig = FeedRig(start=[Mark("broker", 20)], backlog=backlog, history=True)
    outlet = rig.subscribe(Start("first"))
    rig.runtime.settle()
    rig.feed.append([Message(b"z", offset=25)])
    rig.runtime.settle()
    assert [item.position for item in outlet.items()] == ["broker-7", "broker-9", "broker-25"]
    assert outlet.bodies() == ["x", "y", "z"]


def test_the_place_may_run_ahead_of_the_last_message() -> None:
    """Other destinations' messages count too: a quiet page must not age into a false gap."""
    rig = FeedRig(start=[Mark("broker", 20)])
    outlet = rig.subscribe()
    rig.feed.upstream_position = lambda: [50]
    assert str(rig.feed.position()) == "broker-50"
    assert str(outlet.subscriptions[0].position()) == "broker-50"
    again = rig.subscribe(since("broker-50"))
    rig.feed.append([Message(b"z", offset=51)])
    rig.runtime.settle()
    assert again.bodies() == outlet.bodies() == ["z"]


def test_several_lanes_of_one_destination() -> None:
    rig = FeedRig(start=[Mark("p", 0), Mark("q", 0)])
    outlet = rig.subscribe()
    for lane, offset in ((0, 1), (1, 1), (1, 2), (0, 2)):
        rig.feed.append([Message(f"{lane}.{offset}".encode(), offset=offset, lane=lane)])
    rig.runtime.settle()
    assert outlet.bodies() == ["0.1", "1.1", "1.2", "0.2"]
    assert [item.position for item in outlet.items()] == [
        "p-1,q-0",
        "p-1,q-1",
        "p-1,q-2",
        "p-2,q-2",
    ]
    other_node = rig.subscribe(since("p-2,q-0"))
    rig.runtime.settle()
    assert other_node.bodies() == ["1.1", "1.2"]
    assert other_node.last_position() == rig.feed.position()
    rig.feed.append([Message(b"0.3", offset=3)])
    rig.runtime.settle()
    assert other_node.writes[-1] is outlet.writes[-1]


# -- gaps ---------------------------------------------------------------------------------------


def test_everybody_meets_the_gap_in_its_place() -> None:
    rig = FeedRig()
    live, slow = rig.subscribe(), rig.subscribe(room=1)
    rig.send(2)
    rig.send(1)
    old = rig.feed.position()
    rig.feed.gap("reconnect")
    rig.send(2)
    slow.resume()
    late = rig.subscribe(Start("last", count=3))
    rig.runtime.settle()
    assert live.bodies() == slow.bodies() == ["m1", "m2", "m3", "!reconnect", "m4", "m5"]
    assert late.bodies() == ["m3", "!reconnect", "m4", "m5"]
    told = live.items()[3]
    assert told.last == str(old)
    epochs = [item.position.split("-")[0] for item in live.items()]
    assert len(set(epochs[:3])) == len(set(epochs[3:])) == 1
    assert epochs[0] != epochs[3]
    assert all(epoch.startswith("node") for epoch in epochs)
    assert rig.feed.position() == live.last_position()


def test_resuming_across_a_gap() -> None:
    rig = FeedRig()
    live = rig.subscribe()
    rig.send(2)
    rig.feed.gap("reconnect")
    rig.send(2)
    everything = live.bodies()
    for number, item in enumerate(live.items(), 1):
        again = rig.subscribe(since(item.position))
        rig.runtime.settle()
        assert again.bodies() == everything[number:]


def test_a_gap_to_where_the_broker_says() -> None:
    rig = FeedRig(start=[Mark("old", 5)])
    outlet = rig.subscribe()
    rig.feed.gap("recreated", [Mark("new", 3)])
    rig.feed.append([Message(b"x", offset=4)])
    rig.runtime.settle()
    assert [item.position for item in outlet.items()] == ["new-3", "new-4"]


def test_a_gap_concerns_every_lane() -> None:
    rig = FeedRig(start=[Mark("p", 4), Mark("q", 8)])
    rig.feed.gap("lost")
    assert all(mark.epoch.startswith("node") for mark in rig.feed.position())


# -- failure ------------------------------------------------------------------------------------


def test_failing_tells_everybody_once() -> None:
    rig = FeedRig()
    told: list[object] = []
    rig.feed.on_failure = told.append
    outlets = [rig.subscribe(), rig.subscribe(room=1), FakeOutlet()]
    rig.send()
    rig.subscribe(Start("last", count=1), outlet=outlets[2])
    error = NotFound("the exchange is gone")
    rig.feed.fail(error)
    rig.runtime.settle()
    for outlet in outlets:
        [subscription] = outlet.subscriptions
        assert outlet.failures == [(subscription, error)]
        assert subscription.closed
    assert told == [error]
    assert rig.feed.subscribers == set()
    assert rig.feed.cohorts == {}
