"""A destination that gets more lanes while it runs, and positions from before that."""

from __future__ import annotations

import pytest

from queuecast.errors import BadPosition, Unavailable
from queuecast.hub.align import aligned
from queuecast.hub.log import LogLimits
from queuecast.position import Mark, Position
from tests.support.fake_history import Kept
from tests.support.fake_runtime import FakePromise
from tests.support.fake_session import FakeOutlet

from .rig import HubRig, since


def two_lanes(log: int = 100) -> HubRig:
    rig = HubRig(kept={"a": Kept("k", lanes=2)}, limits=LogLimits(messages=log), chunk_bytes=700)
    rig.subscribe("a")
    return rig


def widen(rig: HubRig) -> None:
    rig.reader("a").feed.widen(rig.kept["a"].widen())


def test_everybody_goes_on_with_the_new_lane() -> None:
    rig = two_lanes()
    live, slow = rig.subscribe("a"), rig.subscribe("a")
    rig.publish("a", "0.1")
    rig.runtime.settle()
    slow.pause()
    rig.publish("a", "1.1", lane=1)
    rig.runtime.settle()
    widen(rig)
    rig.publish("a", "2.1", "2.2", lane=2)
    rig.publish("a", "0.2")
    rig.runtime.settle()
    slow.resume()
    rig.runtime.settle()
    assert live.bodies() == slow.bodies() == ["0.1", "1.1", "2.1", "2.2", "0.2"]
    assert [item.position for item in live.items()] == [
        "k-1.0",
        "k-1.1",
        "k-1.1.1",
        "k-1.1.2",
        "k-2.1.2",
    ]
    rig.publish("a", "x", lane=1)
    rig.runtime.settle()
    assert live.writes[-1] is slow.writes[-1], "one cohort again"


@pytest.mark.parametrize("log", [100, 2])
def test_an_older_position_has_the_new_lane_before_it(log: int) -> None:
    rig = two_lanes(log)
    live = rig.subscribe("a")
    rig.publish("a", "0.1")
    rig.runtime.settle()
    widen(rig)
    for body, lane in (("2.1", 2), ("1.1", 1), ("2.2", 2), ("0.2", 0), ("0.3", 0), ("2.3", 2)):
        rig.publish("a", body, lane=lane)
        rig.runtime.settle()
    for place, count in (("k-1.0", 1), ("k-0.0", 0)):
        again = rig.subscribe("a", start=since(place))
        rig.runtime.settle()
        assert sorted(again.bodies()) == sorted(live.bodies()[count:])
        assert again.last_position() == live.last_position()
    assert rig.hub.stats.gaps == 0


def test_a_page_under_way_while_lanes_come() -> None:
    rig = two_lanes(log=2)
    for number in range(20):
        rig.publish("a", f"{number % 2}.{number // 2 + 1}", lane=number % 2)
        rig.runtime.settle()
    kept = rig.kept["a"]
    kept.page_messages = 3
    kept.hold = FakePromise()
    early, mid = rig.subscribe("a", start=since("k-0.0")), FakeOutlet(room=1)
    rig.ask("a", start=since("k-4.0"), outlet=mid)
    rig.runtime.settle()
    widen(rig)
    for number in range(1, 6):
        rig.publish("a", f"2.{number}", lane=2)
        rig.runtime.settle()
    kept.hold.set_result(None)
    kept.hold = None
    rig.runtime.settle()
    rig.runtime.advance(1)
    while mid.paused:
        mid.resume(room=1)
        rig.runtime.settle()
        rig.runtime.advance(1)
    everything = [f"{lane}.{n}" for lane in (0, 1) for n in range(1, 11)]
    everything += [f"2.{n}" for n in range(1, 6)]
    assert sorted(early.bodies()) == sorted(everything)
    assert sorted(mid.bodies()) == sorted(body for body in everything if body not in everything[:4])
    for lane in "012":
        got = [body for body in early.bodies() if body[0] == lane]
        assert got == [f"{lane}.{n}" for n in range(1, len(got) + 1)]


def test_a_joint_feed_is_made_anew_and_its_positions_resume() -> None:
    rig = HubRig(kept={"a": Kept("k", lanes=2), "b": Kept("b")})
    outlet = rig.subscribe("a", "b")
    rig.publish("a", "0.1")
    rig.publish("b", "b1")
    rig.runtime.settle()
    assert outlet.last_position() == Position.parse("k-1.0,b-1")
    widen(rig)
    rig.publish("a", "2.1", lane=2)
    rig.publish("b", "b2")
    rig.runtime.settle()
    assert [type(error) for _, error in outlet.failures] == [Unavailable]
    assert outlet.bodies() == ["0.1", "b1"]
    again = rig.subscribe("a", "b", start=since(outlet.last_position()))
    rig.publish("a", "1.1", lane=1)
    rig.runtime.settle()
    assert again.bodies() == ["2.1", "b2", "1.1"]
    assert str(again.last_position()) == "k-1.1.1~b-2"


# -- positions and lanes ----------------------------------------------------------------------


def marks(text: str) -> Position:
    return Position.parse(text)


@pytest.mark.parametrize(
    ("position", "feed", "parts", "result"),
    [
        ("k-5.6", "k-9.9.9", [3], "k-5.6.0"),
        ("k-5", "k-9.9.9", [3], "k-5.0.0"),
        ("k-5.6,b-1", "k-9.9.9,b-7", [3, 1], "k-5.6.0,b-1"),
        ("b-1,k-5.6", "b-7,k-9.9.9", [1, 3], "b-1,k-5.6.0"),
        ("old-5.6", "k-9.9.9", [3], "old-5.6,k-0"),
        ("old-5,k-6", "k-9.9.9", [3], "old-5,k-6.0"),
        ("old-5.6.7.8", "k-9.9.9", [3], "old-5.6.7"),
        ("old-5.6", "k-9", [1], "old-5"),
        ("k-5.6,old-3", "k-9.9.9,b-7", [3, 1], "k-5.6.0,old-3"),
        ("old-5,k-6,b-3", "k-9.9.9,b-7", [3, 1], "old-5,k-6.0,b-3"),
        ("k-5,m-3.4", "k-9.9,m-7.7", [2, 2], "k-5.0,m-3.4"),
        ("k-5~m-3.4", "k-9.9,m-7.7", [2, 2], "k-5.0,m-3.4"),
        ("k-5,old-6~m-3", "k-9.9.9,m-7", [3, 1], "k-5,old-6,k-0,m-3"),
    ],
)
def test_a_position_grows_into_the_lanes(
    position: str, feed: str, parts: list[int], result: str
) -> None:
    assert aligned(marks(position), marks(feed), parts) == marks(result)


@pytest.mark.parametrize(
    ("position", "feed", "parts"),
    [
        ("k-5", "k-9.9", [1, 1]),  # one of two destinations of one numbering
        ("k-5.6.7", "k-9.9", [1, 1]),
        ("k-5,b-1", "k-9", [1]),
        ("a-5,b-1", "k-9", [1]),
        ("k-5,x-1,m-3.4", "k-9.9.9,m-7.7", [3, 2]),
        ("k-5", "k-9,b-1", [1, 1]),
        ("k-5.6", "k-9.9.9", [2, 1]),
    ],
)
def test_a_position_of_other_destinations(position: str, feed: str, parts: list[int]) -> None:
    with pytest.raises(BadPosition, match="same list of destinations"):
        aligned(marks(position), marks(feed), parts)


@pytest.mark.parametrize(
    ("position", "feed"),
    [
        ("k-5~6", "k-9"),
        ("k-5~6", "k-9.9"),
        ("k-5.6~7", "k-9"),
        ("o-5~6", "k-9"),
        ("b-1~k-5.6", "k-9.9.9"),
    ],
)
def test_a_position_of_several_destinations_is_none_of_one(position: str, feed: str) -> None:
    with pytest.raises(
        BadPosition, match="is of 2 destinations, this subscription has 1"
    ) as caught:
        aligned(marks(position), marks(feed), [len(marks(feed))])
    assert "same list of destinations" in caught.value.hint


@pytest.mark.parametrize("position", ["k-5~6", "k-5.6"])
def test_a_position_of_two_destinations_is_one_of_them(position: str) -> None:
    assert aligned(marks(position), marks("k-9.9"), [1, 1]) == marks(position)


def test_a_position_from_a_node_that_knows_more_lanes() -> None:
    with pytest.raises(Unavailable, match="3 partitions"):
        aligned(marks("k-5.6.7"), [Mark("k", 9), Mark("k", 9)], [2])


def test_a_member_goes_on_while_its_joint_feed_is_made_anew() -> None:
    rig = HubRig(kept={"a": Kept("k", lanes=2), "b": Kept("b")})
    rig.subscribe("a", "b")
    single = rig.subscribe("a")
    widen(rig)
    widen(rig)
    rig.publish("a", "2.1", lane=2)
    rig.publish("a", "3.1", lane=3)
    rig.runtime.settle()
    assert single.bodies() == ["2.1", "3.1"]


def test_a_gap_in_one_lane_is_one_gap() -> None:
    rig = two_lanes()
    live = rig.subscribe("a")
    rig.publish("a", "0.1")
    rig.publish("a", "1.1", lane=1)
    rig.runtime.settle()
    rig.reader("a").feed.gap("evicted", [Mark("k", 1), Mark("k", 7)])
    rig.runtime.settle()
    assert str(live.last_position()) == "k-1.7"
    assert [item.gap for item in live.items() if item.gap] == ["evicted"]
