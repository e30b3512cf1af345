"""One cursor: pause and resume, nothing lost, nothing twice, and the gap in its place."""

from __future__ import annotations

from queuecast.hub.log import LogLimits
from queuecast.position import Start
from tests.support.fake_session import FakeOutlet, Lines

from .rig import FeedRig, numbered, since


def test_nothing_is_lost_or_repeated_over_many_pauses() -> None:
    rig = FeedRig(chunk_bytes=3000)
    outlets = [rig.subscribe(room=100 * number) for number in range(1, 30)]
    for _ in range(40):
        rig.send(3, size=30)
        for outlet in outlets[rig.count % 7 :: 7]:
            if outlet.paused:
                outlet.resume(room=200)
    for _ in range(100):
        for outlet in outlets:
            if outlet.paused:
                outlet.resume(room=1000)
        rig.runtime.settle()
    for outlet in outlets:
        assert [body.strip() for body in outlet.bodies()] == numbered(1, 120)


def test_a_pause_before_anything_came() -> None:
    rig = FeedRig()
    outlet = rig.subscribe()
    outlet.pause()
    rig.send(3)
    assert outlet.writes == []
    outlet.resume()
    rig.runtime.settle()
    assert outlet.bodies() == numbered(1, 3)


def test_a_pause_between_append_and_tick() -> None:
    rig = FeedRig()
    outlet = rig.subscribe()
    rig.append(2)
    outlet.pause()
    rig.runtime.settle()
    assert outlet.writes == []
    outlet.resume()
    rig.append(1)
    rig.runtime.settle()
    assert outlet.bodies() == numbered(1, 3)


def test_resuming_twice_is_resuming_once() -> None:
    rig = FeedRig()
    outlet = rig.subscribe(room=1)
    rig.send(2)
    rig.send(2)
    outlet.resume()
    outlet.resume()
    rig.runtime.settle()
    outlet.resume()
    rig.send(1)
    assert outlet.bodies() == numbered(1, 5)


def test_a_pause_while_behind() -> None:
    rig = FeedRig(chunk_bytes=2000, history=True)
    rig.send(50)
    outlet = rig.subscribe(Start("first"), room=50)
    rig.runtime.settle()
    assert 0 < len(outlet.bodies()) < 50
    outlet.resume()
    rig.runtime.settle()
    assert outlet.bodies() == numbered(1, 50)


def test_evicted_while_paused_is_one_gap_and_then_the_rest() -> None:
    rig = FeedRig(limits=LogLimits(messages=5))
    outlet = rig.subscribe(room=1)
    rig.send(1)
    for _ in range(20):
        rig.send(1)
    outlet.resume()
    rig.runtime.settle()
    rig.send(1)
    assert outlet.bodies() == ["m1", "!evicted", *numbered(17, 22)]
    told = outlet.items()[1]
    epoch = rig.feed.log.head.marks[0].epoch
    assert told.last == f"{epoch}-1"
    assert told.position == f"{epoch}-16"
    assert rig.stats.gaps == 1


def test_all_evicted_while_paused() -> None:
    rig = FeedRig(limits=LogLimits(age=10))
    outlet = rig.subscribe(room=1)
    rig.send(3)
    rig.send(3)
    rig.runtime.time += 60
    rig.feed.log.evict(rig.runtime.now())
    outlet.resume()
    rig.runtime.settle()
    assert outlet.bodies() == [*numbered(1, 3), "!evicted"]
    rig.send(1)
    assert outlet.bodies()[-1] == "m7"


def test_a_gap_not_yet_told_grows_instead_of_becoming_two() -> None:
    rig = FeedRig(limits=LogLimits(messages=3))
    rig.send(10)
    start = f"{rig.feed.log.head.marks[0].epoch}-2"
    outlet = FakeOutlet()
    outlet.paused = True
    rig.subscribe(since(start), outlet=outlet)
    rig.send(10)
    outlet.resume()
    rig.runtime.settle()
    assert outlet.bodies() == ["!evicted", *numbered(18, 20)]
    assert outlet.items()[0].last == start


def test_nothing_flows_before_the_client_has_its_answer() -> None:
    rig = FeedRig()
    outlet = FakeOutlet()
    subscription = rig.feed.subscribe(Lines(), Start(), outlet)
    rig.send(3)
    assert outlet.writes == []
    subscription.flow()
    rig.runtime.settle()
    assert outlet.bodies() == numbered(1, 3)


def test_closing_ends_everything() -> None:
    rig = FeedRig()
    live, waiting, behind = rig.subscribe(), rig.subscribe(room=1), rig.subscribe()
    rig.send(2)
    rig.append(2)
    late = rig.subscribe(Start("last", count=1))
    for outlet in (live, waiting, behind, late):
        [subscription] = outlet.subscriptions
        subscription.close()
        subscription.close()
        subscription.pause()
        subscription.resume()
    rig.runtime.settle()
    assert live.bodies() == waiting.bodies() == numbered(1, 2)
    assert late.writes == []
    assert rig.feed.cohorts == {}


def test_the_position_is_up_to_where_the_client_has_everything() -> None:
    rig = FeedRig()
    outlet = rig.subscribe()
    [subscription] = outlet.subscriptions
    for _ in range(3):
        rig.send(2)
        assert subscription.position() == outlet.last_position() == rig.feed.position()
    rig.append(1)
    assert subscription.position() == outlet.last_position()
    rig.runtime.settle()
    outlet.pause()
    rig.send(3)
    assert subscription.position() == outlet.last_position()
    again = rig.subscribe(since(subscription.position()))
    rig.runtime.settle()
    assert again.bodies() == numbered(8, 10)
