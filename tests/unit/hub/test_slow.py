"""What a client gets that does not keep up: catch-up, conflate, disconnect."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.disconnect import SLOW, for_error
from queuecast.errors import TooSlow
from queuecast.hub import newest
from queuecast.hub.log import LogLimits
from queuecast.message import Message
from queuecast.position import Mark, Position, Start
from queuecast.retention import SlowPolicy
from tests.support.fake_history import Kept
from tests.support.fake_session import FakeOutlet

from .rig import HubRig, close_all, numbered, since


def tickers(limits: LogLimits | None = None, chunk: int = 64 * 1024) -> HubRig:
    rig = HubRig(slow={"a": "conflate"}, limits=limits, chunk_bytes=chunk)
    rig.starts = {"/topic/a": [Mark("e", 0)]}
    rig.subscribe("a")
    return rig


def quote(rig: HubRig, *quotes: str) -> None:
    """Publish `key=value` to the key; one tick each."""
    feed = rig.reader("a").feed
    for each in quotes:
        offset = feed.log.head.marks[0].offset + 1
        feed.append([Message(each.encode(), "", each.partition("=")[0], offset=offset)])
        rig.runtime.settle()


# -- conflate ---------------------------------------------------------------------------------


def test_one_who_is_behind_gets_the_newest_of_each_key_in_order() -> None:
    rig = tickers()
    slow, fast = rig.subscribe("a"), rig.subscribe("a")
    quote(rig, "x=1")
    slow.pause()
    quote(rig, "x=2", "y=1", "x=3", "z=1", "y=2")
    slow.resume()
    rig.runtime.settle()
    assert fast.bodies() == ["x=1", "x=2", "y=1", "x=3", "z=1", "y=2"]
    assert slow.bodies() == ["x=1", "x=3", "z=1", "y=2"]
    assert [item.position for item in slow.items()] == ["e-1", "e-4", "e-5", "e-6"]
    quote(rig, "x=4")
    assert slow.bodies()[-1] == "x=4"
    assert slow.writes[-1] is fast.writes[-1]
    assert rig.hub.stats.gaps == 0


def test_what_the_log_evicted_is_no_gap() -> None:
    rig = tickers(LogLimits(messages=2))
    slow = rig.subscribe("a")
    slow.pause()
    quote(rig, "y=1", *(f"x={number}" for number in range(50)))
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == ["y=1", "x=49"]
    assert slow.subscriptions[0].live


def test_one_who_comes_back_is_conflated_too() -> None:
    rig = tickers(LogLimits(messages=2))
    quote(rig, "y=1", "y=2", *(f"x={number}" for number in range(50)))
    for place, expected in (
        ("e-0", ["y=2", "x=49"]),
        ("e-1", ["y=2", "x=49"]),
        ("e-2", ["x=49"]),
        ("e-40", ["x=49"]),
        ("e-52", []),
        ("e-53", ["!epoch"]),
    ):
        outlet = rig.subscribe("a", start=since(place))
        rig.runtime.settle()
        assert outlet.bodies() == expected, place
        assert outlet.subscriptions[0].live


def test_who_asks_for_the_last_gets_them_as_they_were() -> None:
    rig = tickers()
    quote(rig, "x=1", "x=2", "x=3")
    outlet = rig.subscribe("a", start=Start("last", count=2))
    rig.runtime.settle()
    assert outlet.bodies() == ["x=2", "x=3"]


def test_a_pause_in_the_middle_and_newer_messages_meanwhile() -> None:
    rig = tickers(chunk=100)
    outlet = FakeOutlet()
    outlet.paused = True
    rig.ask("a", outlet=outlet)
    rig.runtime.settle()
    quote(rig, *(f"k{number}=0" for number in range(30)))
    outlet.resume(room=1)
    rig.runtime.settle()
    got = outlet.bodies()
    assert 0 < len(got) < 30
    assert got == [f"k{number}=0" for number in range(len(got))]
    quote(rig, "k0=1", "k29=1")
    outlet.resume()
    rig.runtime.settle()
    rest = [f"k{number}=0" for number in range(len(got), 29)]
    assert outlet.bodies() == [*got, *rest, "k0=1", "k29=1"]
    offsets = [int(item.position.split("-")[1]) for item in outlet.items()]
    assert offsets == sorted(offsets)


def test_a_gap_is_met_in_its_place() -> None:
    rig = tickers()
    slow = rig.subscribe("a")
    slow.pause()
    quote(rig, "x=1", "y=1")
    rig.reader("a").feed.gap("reconnect", [Mark("f", 10)])
    quote(rig, "x=2")
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == ["y=1", "!reconnect", "x=2"]
    assert [item.position for item in slow.items()] == ["e-2", "f-10", "f-11"]
    again = rig.subscribe("a", start=since("e-1"))
    rig.runtime.settle()
    assert again.bodies() == ["y=1", "!reconnect", "x=2"]


def test_too_many_keys_are_read_from_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "MOST_KEYS", 5)
    rig = tickers()
    slow = rig.subscribe("a")
    slow.pause()
    quote(rig, *(f"k{number}=0" for number in range(20)), "k19=1")
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == [*(f"k{number}=0" for number in range(20)), "k19=1"]
    table = rig.reader("a").feed.newest
    assert table is not None
    assert len(table) == 5


def test_too_many_keys_for_the_log_too_are_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "MOST_KEYS", 5)
    rig = tickers(LogLimits(messages=8))
    slow = rig.subscribe("a")
    slow.pause()
    quote(rig, *(f"k{number}=0" for number in range(20)))
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == ["!evicted", *(f"k{number}=0" for number in range(12, 20))]


def test_its_bytes_count_and_are_given_back() -> None:
    rig = tickers(LogLimits(bytes=5000, total=6000))
    quote(rig, *(f"k{number}=".ljust(200) for number in range(100)))
    feed = rig.reader("a").feed
    assert feed.newest is not None
    assert feed.newest.bytes <= 5000
    assert rig.hub.log_bytes == feed.bytes
    rig.sweep()
    assert rig.hub.log_bytes == feed.bytes <= 6000
    rig.runtime.run(rig.hub.close())
    assert rig.hub.log_bytes == 0


def test_those_at_one_place_share_the_encoding() -> None:
    rig = tickers()
    outlets = [rig.subscribe("a") for _ in range(100)]
    for outlet in outlets:
        outlet.pause()
    quote(rig, "x=1", "y=1", "x=2")
    encodes = rig.hub.stats.encodes
    for outlet in outlets:
        outlet.resume()
    rig.runtime.settle()
    assert rig.hub.stats.encodes == encodes + 1
    assert all(outlet.bodies() == ["y=1", "x=2"] for outlet in outlets)


def test_history_is_read_as_it_was_and_then_conflated() -> None:
    kept = Kept("k")
    rig = HubRig(kept={"a": kept}, slow={"a": "conflate"}, limits=LogLimits(messages=3))
    kept.add(*(f"x={number}" for number in range(5)), key="x")
    rig.subscribe("a")
    rig.publish("a", *(f"x={number}" for number in range(5, 30)), key="x")
    rig.runtime.settle()
    for place, expected in (
        ("k-2", [f"x={number}" for number in range(2, 30)]),
        ("k-5", ["x=29"]),
    ):
        outlet = rig.subscribe("a", start=since(place))
        rig.runtime.settle()
        assert outlet.bodies() == expected
        assert outlet.subscriptions[0].live


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("quote"), st.sampled_from("xyz")),
            st.tuples(st.just("pause"), st.just("")),
            st.tuples(st.just("resume"), st.sampled_from(["", "1", "60", "150"])),
            st.tuples(st.just("return"), st.just("")),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
    st.sampled_from([1, 200, 64 * 1024]),
)
def test_whatever_was_left_out_was_replaced(
    steps: list[tuple[str, str]], log: int, chunk: int
) -> None:
    rig = tickers(LogLimits(messages=log), chunk)
    outlet = rig.subscribe("a")
    got: list[int] = []  # offsets, over all connections
    keys: dict[int, str] = {}

    def take() -> None:
        for item in outlet.items():
            assert not item.gap
            mark = Position.parse(item.position)[0]
            assert item.body == f"{keys[mark.offset]}={mark.offset}"
            got.append(mark.offset)
        outlet.writes.clear()

    for what, value in [*steps, ("resume", "")]:
        if what == "quote":
            offset = len(keys) + 1
            keys[offset] = value
            quote(rig, f"{value}={offset}")
        elif what == "pause":
            outlet.pause()
        elif what == "resume":
            outlet.resume(int(value) if value else None)
        else:
            take()
            close_all(outlet)
            outlet = rig.subscribe("a", start=since(f"e-{got[-1] if got else 0}"))
        rig.runtime.settle()
    take()
    assert got == sorted(set(got)), "in order, and once"
    for offset, key in keys.items():
        later = [each for each in got if each >= offset and keys[each] == key]
        assert later, "the newest of each key came"
        assert offset in got or any(keys[each] == key for each in range(offset + 1, later[-1] + 1))
    assert outlet.subscriptions[0].live


# -- disconnect -------------------------------------------------------------------------------


def strict(**others: SlowPolicy) -> HubRig:
    rig = HubRig(slow={"a": "disconnect", **others}, limits=LogLimits(messages=3))
    rig.subscribe("a")
    return rig


def test_one_whom_the_log_has_passed_is_told_to_come_again() -> None:
    rig = strict()
    slow = rig.subscribe("a")
    slow.pause()
    rig.reader("a").send(*numbered(1, 3))
    rig.runtime.settle()
    rig.sweep()
    assert not slow.failures, "still in the log"
    rig.reader("a").send("m4")
    rig.runtime.settle()
    slow.resume()
    rig.runtime.settle()
    [(_, error)] = slow.failures
    assert isinstance(error, TooSlow)
    assert for_error(error)[:3] == SLOW[:3]
    assert SLOW.retry
    assert slow.bodies() == []


def test_one_who_sleeps_is_closed_by_the_sweep() -> None:
    rig = strict()
    sleeping, awake = rig.subscribe("a"), rig.subscribe("a")
    sleeping.pause()
    rig.reader("a").send(*numbered(1, 9))
    rig.runtime.settle()
    rig.sweep()
    assert isinstance(sleeping.failures[0][1], TooSlow)
    assert sleeping.subscriptions[0].closed
    assert awake.bodies() == numbered(1, 9)
    assert not awake.failures


def test_the_log_says_how_many_were_closed(caplog: pytest.LogCaptureFixture) -> None:
    rig = strict()
    slow = [rig.subscribe("a") for _ in range(3)]
    for each in slow:
        each.pause()
    rig.reader("a").send(*numbered(1, 9))
    rig.runtime.settle()
    slow[0].resume()  # closed when it reads on; the others sleep on
    rig.runtime.settle()
    rig.sweep()
    rig.sweep()
    [line] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert line.startswith("3 subscribers of /topic/a did not keep up and were closed")


def test_one_who_comes_back_late_gets_the_gap() -> None:
    rig = strict()
    start = rig.reader("a").feed.position()
    rig.reader("a").send(*numbered(1, 9))
    rig.runtime.settle()
    outlet = rig.subscribe("a", start=since(start))
    rig.runtime.settle()
    assert outlet.bodies() == ["!evicted", *numbered(7, 9)]


# -- several destinations ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policies", "joint"),
    [
        ({}, "catch-up"),
        ({"a": "conflate"}, "catch-up"),
        ({"a": "conflate", "b": "conflate"}, "conflate"),
        ({"a": "conflate", "b": "disconnect"}, "disconnect"),
        ({"b": "disconnect"}, "disconnect"),
    ],
)
def test_a_joint_feeds_policy(policies: dict[str, SlowPolicy], joint: SlowPolicy) -> None:
    rig = HubRig(slow=policies)
    rig.subscribe("a", "b")
    [feed] = [feed for feed in rig.hub.feeds if len(feed.parts) == 2]
    assert feed.policy == joint
    assert (feed.newest is not None) == (joint == "conflate")


def test_a_joint_feed_conflates_each_lane() -> None:
    rig = HubRig(slow={"a": "conflate", "b": "conflate"}, limits=LogLimits(messages=2))
    slow = rig.subscribe("a", "b")
    slow.pause()
    for number in range(5):
        for name in "ab":
            rig.reader(name).feed.append([Message(f"{name}{number}".encode(), "", "k")])
            rig.runtime.settle()
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == ["a4", "b4"]
    assert slow.subscriptions[0].live
    assert slow.last_position() == slow.subscriptions[0].position()


def test_without_a_rule_nothing_is_kept_beside_the_log() -> None:
    rig = HubRig(slow={"b": "conflate"})
    rig.subscribe("a")
    assert rig.reader("a").feed.newest is None


def test_one_who_comes_back_from_an_earlier_numbering() -> None:
    rig = tickers(LogLimits(messages=2))
    quote(rig, "x=1")
    feed = rig.reader("a").feed
    feed.gap("first", [Mark("f", 10)])
    quote(rig, "y=1", "x=2")
    feed.gap("second", [Mark("g", 20)])
    quote(rig, *(f"z={number}" for number in range(9)))
    rest = ["x=2", "!second", "z=8"]
    for place, expected in (
        ("e-1", ["!first", "y=1", *rest]),
        ("f-10", ["y=1", *rest]),
        ("f-11", rest),
        ("f-12", rest[1:]),
        ("g-20", ["z=8"]),
    ):
        outlet = rig.subscribe("a", start=since(place))
        rig.runtime.settle()
        assert outlet.bodies() == expected, place
        assert outlet.subscriptions[0].live
