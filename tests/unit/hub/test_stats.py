"""What the hub counts, and how far behind it says that a subscription is."""

from __future__ import annotations

from queuecast.errors import Unavailable
from queuecast.hub.log import LogLimits
from queuecast.position import Position, Start
from tests.support.fake_history import Kept
from tests.support.fake_runtime import Task
from tests.support.fake_session import FakeOutlet
from tests.unit.hub.rig import FeedRig, HubRig, since


def test_a_cohorts_bytes_are_counted_for_each_member() -> None:
    rig = FeedRig()
    outlets = [rig.subscribe() for _ in range(5)]
    rig.send(3)
    written = [sum(map(len, outlet.writes)) for outlet in outlets]
    assert rig.stats.bytes == sum(written) > 0
    assert rig.stats.caught_up == 0
    late = rig.subscribe(Start("last", count=2))
    rig.runtime.settle()
    assert rig.stats.caught_up == 1
    assert rig.stats.bytes == sum(written) + sum(map(len, late.writes))


def test_gaps_and_failures_are_counted_by_reason() -> None:
    rig = FeedRig(limits=LogLimits(messages=4))
    outlet = rig.subscribe(room=1)
    rig.send(1)
    for _ in range(10):
        rig.send(1)
    outlet.resume()
    rig.runtime.settle()
    assert rig.stats.gap_reasons == {"evicted": 1}
    rig.feed.gap("the broker restarted")
    rig.runtime.settle()
    assert rig.stats.feed_gaps == {"the broker restarted": 1}
    assert rig.stats.gaps == 1, "a hole in the feed is nobody's own"
    rig.feed.fail(Unavailable("gone"))
    assert rig.stats.failed == {"unavailable": 1}


def test_evictions_are_counted_for_all_logs() -> None:
    rig = HubRig(limits=LogLimits(messages=3))
    rig.subscribe("a")
    rig.subscribe("b")
    rig.reader("a").send("1", "2", "3", "4", "5")
    rig.reader("b").send("1", "2")
    rig.runtime.settle()
    assert rig.hub.evicted == 2
    rig.sweep(1000)
    assert rig.hub.evicted == 7, "the rest for its age"


def test_lag_is_what_was_not_read() -> None:
    rig = FeedRig()
    live, slow = rig.subscribe(), rig.subscribe(room=1)
    rig.send(1, size=1000)
    [quick] = live.subscriptions
    [behind] = slow.subscriptions
    assert (quick.lag, quick.lag_bytes, quick.state) == (0, 0, "live")
    assert (behind.lag, behind.state) == (0, "paused")
    rig.send(4, size=1000)
    assert (quick.lag, quick.state) == (0, "live")
    assert (behind.lag, behind.state) == (4, "paused")
    assert 4000 <= behind.lag_bytes < 8000
    slow.room = None
    slow.resume()
    assert (behind.lag, behind.state) == (4, "log")
    rig.runtime.settle()
    assert (behind.lag, behind.lag_bytes, behind.state) == (0, 0, "live")


def subscribed(task: Task) -> FakeOutlet | None:
    outlet = task.result() if task.done else None
    assert outlet is None or isinstance(outlet, FakeOutlet)
    return outlet


def test_lag_of_one_who_reads_the_history_is_told_by_offsets() -> None:
    kept = Kept()
    rig = HubRig(kept={"a": kept}, limits=LogLimits(messages=2))
    start = Position(kept.marks())
    rig.subscribe("a")
    for number in range(10):
        rig.publish("a", f"m{number}")
        rig.runtime.settle()
    task = rig.ask("a", start=since(start))
    while not (outlet := subscribed(task)):
        rig.runtime.turn()
    [subscription] = outlet.subscriptions
    assert (subscription.lag, subscription.state) == (10, "history")
    rig.runtime.settle()
    assert (subscription.lag, subscription.state) == (0, "live")
