"""Joint feeds: several destinations on one connection."""

from __future__ import annotations

import random

import pytest

from queuecast.errors import BadPosition, NotFound
from queuecast.hub.log import LogLimits
from queuecast.message import Message
from queuecast.position import Mark, Position, Start
from tests.support.fake_history import Kept
from tests.support.fake_runtime import FakePromise
from tests.support.fake_session import FakeOutlet, Lines

from .rig import HubRig, close_all, since


def test_a_joint_feed_interleaves() -> None:
    rig = HubRig()
    outlet = rig.subscribe("a", "b")
    assert len(rig.readers) == 2
    for name, body in (("a", "1"), ("b", "2"), ("a", "3")):
        rig.reader(name).send(body)
    rig.runtime.settle()
    assert outlet.bodies() == ["1", "2", "3"]
    assert [len(Position.parse(item.position)) for item in outlet.items()] == [2, 2, 2]
    assert len(outlet.writes) == 1


def test_equal_lists_share_a_cohort() -> None:
    rig = HubRig()
    outlets = [rig.subscribe("a", "b") for _ in range(100)]
    single = rig.subscribe("a")
    rig.reader("a").send("1")
    rig.reader("b").send("2")
    rig.runtime.settle()
    assert rig.hub.stats.encodes == 2
    assert all(outlet.writes[0] is outlets[0].writes[0] for outlet in outlets)
    assert single.bodies() == ["1"]
    assert len(rig.readers) == 2


def test_positions_of_one_numbering_tell_destinations_from_lanes() -> None:
    rig = HubRig(kept={"a": Kept("k"), "b": Kept("k")})
    joint = rig.subscribe("a", "b")
    [subscription] = joint.subscriptions
    assert str(subscription.position()) == "k-0~0"
    rig.reader("a").send("1")
    rig.reader("b").send("2")
    rig.runtime.settle()
    assert [item.position for item in joint.items()] == ["k-1~0", "k-1~1"]
    assert str(subscription.position()) == "k-1~1"
    assert [str(each) for each in subscription.positions()] == ["k-1", "k-1"]
    again = rig.subscribe("a", "b", start=since("k-1~0"))
    assert again.bodies() == ["2"]
    single = rig.ask("a", start=since("k-1~0"))
    rig.runtime.settle()
    with pytest.raises(BadPosition, match="of 2 destinations, this subscription has 1"):
        single.result()


def test_a_joint_feed_begins_with_what_its_members_have() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.subscribe("b")
    for number in range(6):
        rig.reader("ab"[number % 2]).send(str(number))
        rig.runtime.settle()
        rig.runtime.time += 1
    outlet = rig.subscribe("a", "b", start=Start("last", count=2))
    rig.runtime.settle()
    assert outlet.bodies() == ["2", "3", "4", "5"]


def test_a_joint_feed_takes_even_what_its_members_are_about_to_evict() -> None:
    rig = HubRig(limits=LogLimits(bytes=5000))
    rig.subscribe("a")
    rig.subscribe("b")
    task = rig.ask("a", "b", start=Start("last", count=1))
    rig.runtime.turn()
    rig.reader("a").send(*map(str, range(50)))
    rig.runtime.settle()  # the opening's turn comes before the tick's
    joint = task.result()
    assert joint.bodies() == ["!unretained", "49"]
    assert joint.last_position()[0].offset == 50


def test_last_is_per_destination() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.subscribe("b")
    rig.reader("b").send("old b")
    rig.reader("a").send("1", "2", "3")
    rig.runtime.settle()
    outlet = rig.subscribe("a", "b", start=Start("last", count=1))
    rig.runtime.settle()
    assert sorted(outlet.bodies()) == ["3", "old b"]
    outlet = rig.subscribe("a", "b", start=Start("last", count=2))
    rig.runtime.settle()
    assert outlet.bodies()[0] == "!unretained"
    assert sorted(outlet.bodies()[1:]) == ["2", "3", "old b"]


@pytest.mark.parametrize("seed", range(30))
def test_resuming_on_a_node_that_interleaves_otherwise(seed: int) -> None:
    """Each lane exactly once, wherever the client was cut off."""
    pick = random.Random(seed)
    starts = {f"/topic/{name}": [Mark(name, 0)] for name in "abc"}

    def play(rig: HubRig, order: list[str]) -> None:
        counts = dict.fromkeys("abc", 0)
        for name in order:
            counts[name] += 1
            body = f"{name}{counts[name]}".encode()
            rig.reader(name).feed.append([Message(body, offset=counts[name])])
            if pick.random() < 0.3:
                rig.runtime.settle()
        rig.runtime.settle()

    order = list("abc" * 8)
    one, two = HubRig(starts=starts), HubRig(starts=starts, chunk_bytes=pick.choice([500, 5000]))
    client = one.subscribe("a", "b", "c")
    two.subscribe("a", "b", "c")
    pick.shuffle(order)
    play(one, order)
    pick.shuffle(order)
    play(two, order)
    everything = sorted(client.bodies())
    for number, item in enumerate(client.items(), 1):
        again = two.subscribe("a", "b", "c", start=since(item.position))
        two.runtime.settle()
        got = client.bodies()[:number] + again.bodies()
        assert sorted(got) == everything
        for name in "abc":
            assert [body for body in got if body[0] == name] == [f"{name}{n}" for n in range(1, 9)]
        if again.items():
            assert sorted(again.last_position()) == [Mark(name, 8) for name in "abc"]
            middle = again.items()[len(again.items()) // 2]
            third = one.subscribe("a", "b", "c", start=since(middle.position))
            one.runtime.settle()
            seen = again.bodies()[: len(again.items()) // 2 + 1]
            assert sorted(client.bodies()[:number] + seen + third.bodies()) == everything


def test_a_lane_evicted_while_paused_does_not_repeat_the_other() -> None:
    starts = {f"/topic/{name}": [Mark(name, 0)] for name in "ab"}
    rig = HubRig(starts=starts, limits=LogLimits(messages=4))
    rig.subscribe("a", "b")
    for offset in range(1, 5):
        name = "ab"[offset % 2]
        rig.reader(name).feed.append([Message(f"{name}{offset}".encode(), offset=offset)])
    rig.runtime.settle()  # b1 a2 b3 a4
    outlet = FakeOutlet()
    outlet.paused = True
    rig.ask("a", "b", start=since("a-4,b-0"), outlet=outlet)
    rig.runtime.settle()
    rig.reader("b").feed.append([Message(b"b5", offset=5)])
    rig.runtime.settle()  # b1 is evicted
    outlet.resume()
    rig.runtime.settle()
    assert outlet.bodies() == ["!evicted", "b3", "b5"]
    assert outlet.items()[0].position == "a-4~b-1"


def test_a_gap_of_one_member_is_told_to_the_joint_feed() -> None:
    rig = HubRig()
    outlet = rig.subscribe("a", "b")
    rig.reader("a").send("1")
    rig.reader("b").feed.gap("reconnect")
    rig.reader("b").send("2")
    rig.runtime.settle()
    assert outlet.bodies() == ["1", "!reconnect", "2"]
    marks = [Position.parse(item.position) for item in outlet.items()]
    assert marks[0][1].epoch != marks[1][1].epoch == marks[2][1].epoch
    assert len({position[0] for position in marks}) == 1
    again = rig.subscribe("a", "b", start=since(marks[0]))
    rig.runtime.settle()
    assert again.bodies() == ["!reconnect", "2"]


def test_a_joint_feed_holds_its_members_and_lets_them_go() -> None:
    rig = HubRig(linger=5)
    outlet = rig.subscribe("a", "b")
    rig.sweep()
    rig.sweep(100)
    assert not any(reader.closed for reader in rig.readers)
    close_all(outlet)
    for _ in range(4):
        rig.sweep(5)
    assert list(rig.hub.feeds) == []
    assert all(reader.closed for reader in rig.readers)
    assert all(not reader.feed.taps for reader in rig.readers)


def test_a_joint_feed_fails_with_its_member() -> None:
    rig = HubRig()
    outlet = rig.subscribe("a", "b")
    rig.fail("b", NotFound("the exchange went"))
    assert len(outlet.failures) == 1
    assert [reader.closed for reader in rig.readers] == [False, True]
    assert [len(reader.feed.taps) for reader in rig.readers] == [0, 0]
    again = rig.subscribe("a", "b")
    rig.reader("b").send("x")
    rig.runtime.settle()
    assert again.bodies() == ["x"]


def test_a_member_that_fails_while_others_still_open() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.opening = FakePromise()
    task = rig.ask("a", "b")
    rig.runtime.settle()
    rig.fail("a", NotFound("the exchange went"))
    rig.opening.set_result(None)
    rig.runtime.settle()
    with pytest.raises(NotFound):
        task.result()
    assert [one.holds for one in rig.held()] == [0]


def test_a_member_that_cannot_be_opened_leaves_no_hold() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.open_error = NotFound("no exchange")
    task = rig.ask("a", "b", encoding=Lines())
    rig.runtime.settle()
    with pytest.raises(NotFound):
        task.result()
    assert [(one.holds, one.state) for one in rig.held()] == [(0, "open")]
