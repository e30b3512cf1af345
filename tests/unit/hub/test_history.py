"""Those whose place lies before the log: pages of the broker's history, then the log."""

from __future__ import annotations

import logging

import pytest

from queuecast.destination import Destination
from queuecast.errors import NotFound, QueuecastError, Unavailable
from queuecast.hub.log import LogLimits
from queuecast.position import Start
from tests.support.fake_history import Kept
from tests.support.fake_runtime import FakePromise
from tests.support.fake_session import FakeOutlet

from .rig import EPOCH, HubRig, numbered, rig_with_history, since

A = [Destination.parse("/topic/a")]


@pytest.mark.parametrize("offset", range(0, 41, 5))
def test_since_before_the_log_reads_the_history_and_then_the_log(offset: int) -> None:
    rig = rig_with_history(40)
    outlet = rig.subscribe("a", start=since(f"kept-{offset}"))
    rig.runtime.settle()
    assert outlet.bodies() == numbered(offset + 1, 40)
    [subscription] = outlet.subscriptions
    assert subscription.live
    rig.publish("a", "m41")
    rig.runtime.settle()
    assert outlet.bodies() == numbered(offset + 1, 41)
    assert [str(item.position) for item in outlet.items()] == [
        f"kept-{number}" for number in range(offset + 1, 42)
    ]
    assert rig.hub.stats.gaps == 0


def test_first_last_and_time() -> None:
    rig = rig_with_history(20)
    for start, first in (
        (Start("first"), 1),
        (Start("last", count=15), 6),
        (Start("last", count=99), 1),
        (Start("last", count=2), 19),
    ):
        outlet = rig.subscribe("a", start=start)
        rig.runtime.settle()
        assert outlet.bodies() == numbered(first, 20), start
    assert [start.kind for start in rig.kept["a"].located] == ["first", "last", "last"]


def test_a_time_is_located_unless_the_log_goes_back_to_it() -> None:
    rig = HubRig(kept={"a": Kept()}, limits=LogLimits(messages=3))
    kept = rig.kept["a"]
    rig.subscribe("a")
    for number in range(1, 11):
        rig.runtime.time += 10
        kept.time = rig.runtime.time + EPOCH
        rig.publish("a", f"m{number}")
        rig.runtime.settle()
    now = rig.runtime.time + EPOCH
    for ago, first in ((-1, 11), (0, 10), (1, 10), (15, 9), (45, 6), (1e6, 1), (-100, 11)):
        outlet = rig.subscribe("a", start=Start("time", time=now - ago))
        rig.runtime.settle()
        assert outlet.bodies() == numbered(first, 10), ago
    assert len(kept.located) == 2


def test_a_cursor_that_the_log_evicted_goes_on_in_the_history() -> None:
    rig = rig_with_history(0)
    slow = rig.subscribe("a")
    slow.pause()
    for number in range(1, 51):
        rig.publish("a", f"m{number}")
        rig.runtime.settle()
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == numbered(1, 50)


def test_one_who_pauses_over_and_over_loses_nothing() -> None:
    rig = rig_with_history(100, page=7)
    outlet = FakeOutlet(room=90)
    rig.ask("a", start=Start("first"), outlet=outlet)
    rig.runtime.settle()
    number = 100
    for _ in range(200):
        if outlet.paused:
            outlet.resume(room=90)
        if number < 130:
            number += 1
            rig.publish("a", f"m{number}")
        rig.runtime.settle()
    assert outlet.bodies() == numbered(1, 130)


def test_a_paused_client_holds_no_page() -> None:
    rig = rig_with_history(200, page=None, size=100)
    outlets = []
    for number in range(50):
        outlet = FakeOutlet(room=1)
        rig.ask("a", start=since(f"kept-{number}"), outlet=outlet)
        outlets.append(outlet)
    rig.runtime.settle()
    assert all(outlet.paused for outlet in outlets)
    rig.sweep()
    assert rig.hub.page_bytes == 0
    for outlet in outlets:
        outlet.resume()
    rig.runtime.settle()
    assert all(len(outlet.bodies()) == 200 - n for n, outlet in enumerate(outlets))


def test_what_retention_took_is_a_gap_in_its_place() -> None:
    rig = rig_with_history(40)
    kept = rig.kept["a"]
    kept.delete(20)
    outlet = rig.subscribe("a", start=since("kept-5"))
    rig.runtime.settle()
    assert outlet.bodies() == ["!deleted", *numbered(21, 40)]
    told = outlet.items()[0]
    assert (told.last, told.position) == ("kept-5", "kept-20")
    assert rig.hub.stats.gaps == 1


def test_retention_that_deletes_under_the_reader() -> None:
    rig = rig_with_history(60, page=10)
    outlet = FakeOutlet(room=1)
    rig.ask("a", start=Start("first"), outlet=outlet)
    rig.runtime.settle()
    got = len(outlet.bodies())
    assert 0 < got < 20
    rig.sweep()
    rig.kept["a"].delete(40)
    outlet.resume()
    rig.runtime.settle()
    assert outlet.bodies() == [*numbered(1, got), "!deleted", *numbered(41, 60)]
    assert outlet.items()[got].last == f"kept-{got}"


@pytest.mark.parametrize("place", ["other-5", "kept-99"])
def test_a_place_that_the_broker_does_not_know(place: str) -> None:
    rig = rig_with_history(20)
    outlet = rig.subscribe("a", start=since(place))
    rig.runtime.settle()
    assert outlet.bodies() == ["!recreated", *numbered(1, 20)]
    assert outlet.items()[0].last == place
    assert outlet.subscriptions[0].live


def test_a_feed_that_lags_behind_the_history() -> None:
    """Another node gave the position: what is ahead of this feed is no error."""
    rig = rig_with_history(5)
    kept = rig.kept["a"]
    late = kept.add("m6", "m7", "m8")
    outlet = rig.subscribe("a", start=since("kept-7"))
    rig.runtime.settle()
    assert outlet.bodies() == ["m8"]
    [subscription] = outlet.subscriptions
    assert not subscription.live
    assert str(subscription.position()) == "kept-8"
    assert rig.runtime.idle
    rig.reader("a").feed.append(late[:2])
    rig.runtime.settle()
    assert not subscription.live
    rig.reader("a").feed.append(late[2:])
    rig.publish("a", "m9")
    rig.runtime.settle()
    assert outlet.bodies() == ["m8", "m9"]
    assert subscription.live


def test_a_stream_made_anew_while_the_feed_has_not_heard_of_it() -> None:
    rig = rig_with_history(5)
    kept = rig.kept["a"]
    kept.recreate("fresh")
    kept.add("n1", "n2")
    outlet = rig.subscribe("a", start=since("kept-0"))
    rig.runtime.settle()
    assert outlet.bodies() == ["!recreated", "n1", "n2"]
    rig.runtime.advance(1)
    assert outlet.bodies() == ["!recreated", "n1", "n2"]
    feed = rig.reader("a").feed
    feed.gap("recreated", kept.marks())
    rig.publish("a", "n3")
    rig.runtime.settle()
    rig.runtime.advance(1)
    assert outlet.bodies() == ["!recreated", "n1", "n2", "n3"]
    assert outlet.subscriptions[0].live


# -- a broker that is away --------------------------------------------------------------------


def test_a_page_is_asked_for_again_while_the_broker_is_away() -> None:
    rig = rig_with_history(30)
    kept = rig.kept["a"]
    kept.go_away()
    kept.asked.clear()
    outlet = rig.subscribe("a", start=since("kept-0"))
    rig.runtime.settle()
    rig.runtime.advance(60)
    assert outlet.bodies() == []
    assert not outlet.failures
    assert 1 < len(kept.asked) < 15, "with pauses"
    kept.error = None
    rig.runtime.advance(20)
    assert outlet.bodies() == numbered(1, 30)


def test_a_broker_that_never_answers_is_away() -> None:
    rig = rig_with_history(30)
    kept = rig.kept["a"]
    kept.hold = FakePromise()
    outlet = rig.subscribe("a", start=since("kept-0"))
    rig.runtime.settle()
    kept.hold = None
    rig.runtime.advance(31)
    rig.runtime.advance(31)
    assert outlet.bodies() == numbered(1, 30)


@pytest.mark.parametrize(
    ("error", "seen"), [(NotFound("the stream went"), NotFound), (ValueError("x"), QueuecastError)]
)
def test_a_history_that_is_over_ends_those_who_need_it(
    error: Exception, seen: type[Exception]
) -> None:
    rig = rig_with_history(30)
    rig.kept["a"].error = error
    outlet = rig.subscribe("a", start=since("kept-0"))
    live = rig.subscribe("a")
    rig.runtime.settle()
    assert isinstance(outlet.failures[0][1], seen)
    assert outlet.subscriptions[0].closed
    rig.publish("a", "m31")
    rig.runtime.settle()
    assert live.bodies() == ["m31"]


def test_a_start_that_cannot_be_searched_is_refused() -> None:
    rig = rig_with_history(5)
    rig.kept["a"].go_away()
    task = rig.ask("a", start=Start("first"))
    rig.runtime.settle()
    with pytest.raises(Unavailable):
        task.result()
    rig.kept["a"].error = None
    assert rig.subscribe("a", start=Start("first")).bodies() == numbered(1, 5)


# -- leaving ----------------------------------------------------------------------------------


def test_leaving_while_a_page_is_under_way() -> None:
    rig = rig_with_history(30)
    kept = rig.kept["a"]
    kept.hold = FakePromise()
    outlets = [rig.subscribe("a", start=since(f"kept-{n}")) for n in range(3)]
    rig.runtime.settle()
    outlets[0].subscriptions[0].close()
    outlets[1].pause()
    kept.hold.set_result(None)
    rig.runtime.settle()
    assert outlets[0].bodies() == outlets[1].bodies() == []
    assert outlets[2].bodies() == numbered(3, 30)
    outlets[1].resume()
    rig.runtime.settle()
    assert outlets[1].bodies() == numbered(2, 30)
    for outlet in outlets[1:]:
        outlet.subscriptions[0].close()
    rig.sweep()
    assert rig.hub.page_bytes == 0


@pytest.mark.parametrize("how", ["fail", "close"])
def test_a_feed_that_ends_while_a_page_is_under_way(how: str) -> None:
    rig = rig_with_history(30)
    kept = rig.kept["a"]
    kept.hold = FakePromise()
    outlet = rig.subscribe("a", start=since("kept-0"))
    asking = rig.ask("a", start=Start("first"))
    rig.runtime.settle()
    if how == "fail":
        rig.fail("a", NotFound("the exchange went"))
    else:
        rig.runtime.run(rig.hub.close())
    assert asking.done
    with pytest.raises(QueuecastError):
        asking.result()
    if not kept.hold.done():
        kept.hold.set_result(None)
    rig.runtime.settle()
    assert outlet.bodies() == []
    assert rig.hub.page_bytes == 0
    assert list(rig.hub.feeds) == []


# -- several destinations ---------------------------------------------------------------------


def test_each_members_history_comes_after_its_own_mark() -> None:
    kept = {"a": Kept("ea"), "b": Kept("eb")}
    for each in kept.values():
        each.page_messages = 7
    rig = HubRig(kept=kept, limits=LogLimits(messages=5), chunk_bytes=1000)
    live = rig.subscribe("a", "b")
    for number in range(1, 31):
        rig.publish("a", f"a{number}")
        rig.publish("b", f"b{number}")
        rig.runtime.settle()
    everything = live.bodies()
    for place in ("ea-0,eb-0", "ea-10,eb-29", "ea-30,eb-3", "ea-29,eb-29"):
        outlet = rig.subscribe("a", "b", start=since(place))
        rig.runtime.settle()
        a, b = (int(mark.split("-")[1]) for mark in place.split(","))
        for name, have in (("a", a), ("b", b)):
            got = [body for body in outlet.bodies() if body[0] == name]
            assert got == [f"{name}{number}" for number in range(have + 1, 31)]
        assert outlet.subscriptions[0].live
        # Wherever it is cut off, its id resumes both.
        for index, item in enumerate(outlet.items()):
            again = rig.subscribe("a", "b", start=since(item.position))
            rig.runtime.settle()
            assert sorted(outlet.bodies()[: index + 1] + again.bodies()) == sorted(
                body for body in everything if int(body[1:]) > {"a": a, "b": b}[body[0]]
            )
    assert rig.hub.stats.gaps == 0


def test_a_member_without_history_has_its_gap() -> None:
    kept = Kept("ea")
    rig = HubRig(kept={"a": kept}, limits=LogLimits(messages=5))
    rig.subscribe("a", "b")
    start = rig.hub.feeds[-1].position() if len(rig.hub.feeds[-1].parts) == 2 else None
    start = start or next(feed for feed in rig.hub.feeds if len(feed.parts) == 2).position()
    for number in range(1, 21):
        rig.publish("a", f"a{number}")
        rig.reader("b").send(f"b{number}")
        rig.runtime.settle()
    outlet = rig.subscribe("a", "b", start=since(start))
    rig.runtime.settle()
    bodies = outlet.bodies()
    assert [body for body in bodies if body[0] == "a"] == [f"a{n}" for n in range(1, 21)]
    assert bodies.count("!evicted") == 1
    assert [body for body in bodies if body[0] == "b"][-1] == "b20"
    first = rig.subscribe("a", "b", start=Start("first"))
    rig.runtime.settle()
    assert first.bodies()[0] == "!unretained"
    assert [body for body in first.bodies() if body[0] == "a"] == [f"a{n}" for n in range(1, 21)]


def test_last_of_several_destinations() -> None:
    rig = HubRig(kept={"a": Kept("ea"), "b": Kept("eb")}, limits=LogLimits(messages=5))
    rig.subscribe("a", "b")
    rig.publish("b", *(f"b{number}" for number in range(1, 4)))
    rig.runtime.settle()
    rig.publish("a", *(f"a{number}" for number in range(1, 31)))
    rig.runtime.settle()
    outlet = rig.subscribe("a", "b", start=Start("last", count=2))
    rig.runtime.settle()
    assert sorted(outlet.bodies()) == ["a29", "a30", "b2", "b3"]
    assert outlet.subscriptions[0].live


# -- what is not retained ---------------------------------------------------------------------


def test_the_log_names_the_rule_that_would_keep_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rig = HubRig()
    for _ in range(3):
        assert rig.subscribe("a", start=Start("first")).bodies() == ["!unretained"]
    assert caplog.text.count('[[retain]] destination = "/topic/a"') == 1


def test_a_time_without_history() -> None:
    rig = HubRig(limits=LogLimits(messages=4))
    rig.subscribe("a")
    begun = rig.runtime.time + EPOCH
    for number in range(1, 4):
        rig.runtime.time += 10
        rig.reader("a").send(f"m{number}")
        rig.runtime.settle()
    for after, first in ((1, 1), (10, 1), (11, 2), (30, 3), (31, 4), (99, 4)):
        outlet = rig.subscribe("a", start=Start("time", time=begun + after))
        rig.runtime.settle()
        assert outlet.bodies() == numbered(first, 3), after
    outlet = rig.subscribe("a", start=Start("time", time=begun - 1))
    rig.runtime.settle()
    assert outlet.bodies() == ["!unretained", *numbered(1, 3)]
    for number in range(4, 8):
        rig.runtime.time += 10
        rig.reader("a").send(f"m{number}")
        rig.runtime.settle()
    for after, expected in ((41, numbered(5, 7)), (25, ["!unretained", *numbered(4, 7)])):
        outlet = rig.subscribe("a", start=Start("time", time=begun + after))
        rig.runtime.settle()
        assert outlet.bodies() == expected
