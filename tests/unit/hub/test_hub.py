"""The hub: a feed's life from its first subscriber to some time after its last, and joint feeds."""

from __future__ import annotations

import random

import pytest

from queuecast.destination import Destination
from queuecast.errors import BadPosition, NotFound, QueuecastError, Unavailable
from queuecast.hub.hub import _Held
from queuecast.hub.log import LogLimits
from queuecast.message import Message
from queuecast.position import LIVE, Mark, Position, Start
from tests.support.fake_runtime import Cancelled, FakePromise
from tests.support.fake_session import FakeOutlet, Lines

from .rig import PLAIN, HubRig, since


def held(rig: HubRig) -> list[_Held]:
    return list(rig.hub._held.values())


def close_all(*outlets: FakeOutlet) -> None:
    for outlet in outlets:
        for subscription in outlet.subscriptions:
            subscription.close()


# -- opening ----------------------------------------------------------------------------------


def test_many_subscribers_open_the_reader_once() -> None:
    rig = HubRig()
    rig.opening = FakePromise()
    tasks = [rig.ask("a") for _ in range(50)]
    rig.runtime.settle()
    assert not any(task.done for task in tasks), "the answer waits for the reader"
    rig.opening.set_result(None)
    rig.runtime.settle()
    outlets = [task.result() for task in tasks]
    assert len(rig.readers) == 1
    rig.reader("a").send("x")
    rig.runtime.settle()
    assert all(outlet.bodies() == ["x"] for outlet in outlets)
    assert held(rig)[0].holds == 0


def test_an_open_feed_takes_no_turn_to_join() -> None:
    rig = HubRig()
    rig.subscribe("a")
    task = rig.ask("a")
    rig.runtime.turn()
    assert task.done


@pytest.mark.parametrize(
    ("error", "seen"), [(NotFound("no exchange"), NotFound), (ValueError("bug"), QueuecastError)]
)
def test_an_opening_error_reaches_all_who_wait(error: Exception, seen: type[Exception]) -> None:
    rig = HubRig()
    rig.opening, rig.open_error = FakePromise(), error
    tasks = [rig.ask("a") for _ in range(3)]
    rig.runtime.settle()
    rig.opening.set_result(None)
    rig.runtime.settle()
    for task in tasks:
        with pytest.raises(seen):
            task.result()
    assert list(rig.hub.feeds) == []
    rig.opening = rig.open_error = None
    rig.subscribe("a")
    assert len(rig.readers) == 2


def test_one_who_goes_while_waiting_does_not_cancel_the_opening() -> None:
    rig = HubRig(linger=5)
    rig.opening = FakePromise()
    gone, stays = rig.ask("a"), rig.ask("a")
    rig.runtime.settle()
    gone.cancel()
    rig.runtime.settle()
    with pytest.raises(Cancelled):
        gone.result()
    rig.opening.set_result(None)
    rig.runtime.settle()
    outlet = stays.result()
    assert held(rig)[0].holds == 0
    close_all(outlet)
    rig.sweep()
    rig.sweep(5)
    assert rig.reader("a").closed


def test_all_who_wait_may_go() -> None:
    rig = HubRig(linger=5)
    rig.opening = FakePromise()
    tasks = [rig.ask("a") for _ in range(3)]
    rig.runtime.settle()
    for task in tasks:
        task.cancel()
    rig.runtime.settle()
    rig.opening.set_result(None)
    rig.runtime.settle()
    assert held(rig)[0].holds == 0
    rig.sweep()
    rig.sweep(5)
    assert rig.reader("a").closed
    assert list(rig.hub.feeds) == []


def test_one_who_goes_just_when_it_opens() -> None:
    rig = HubRig()
    rig.opening = FakePromise()
    task = rig.ask("a")
    rig.runtime.settle()
    rig.opening.set_result(None)
    rig.runtime.turn()  # the reader is open, the waiter is woken but did not run yet
    task.cancel()
    rig.runtime.settle()
    assert held(rig)[0].holds == 0
    assert held(rig)[0].state == "open"


def test_a_bad_position_leaves_no_hold() -> None:
    rig = HubRig()
    task = rig.ask("a", start=since("x-1,y-2"))
    rig.runtime.settle()
    with pytest.raises(BadPosition):
        task.result()
    assert held(rig)[0].holds == 0


def test_a_feed_that_fails_while_it_opens() -> None:
    rig = HubRig()
    rig.opening = FakePromise()
    task = rig.ask("a")
    rig.runtime.settle()
    rig.fail("a", NotFound("the exchange went"))
    rig.opening.set_result(None)
    rig.runtime.settle()
    with pytest.raises(NotFound):
        task.result()
    assert rig.reader("a").closed
    assert list(rig.hub.feeds) == []


def test_a_feed_that_fails_while_it_opens_and_does_not_close_either() -> None:
    rig = HubRig()
    rig.opening, rig.close_error = FakePromise(), OSError("broker away")
    task = rig.ask("a")
    rig.runtime.settle()
    rig.fail("a", NotFound("the exchange went"))
    rig.opening.set_result(None)
    rig.runtime.settle()
    with pytest.raises(NotFound):
        task.result()
    assert list(rig.hub.feeds) == []


# -- lingering and closing --------------------------------------------------------------------


def test_a_feed_outlives_its_last_subscriber_a_while() -> None:
    rig = HubRig(linger=10)
    outlet = rig.subscribe("a")
    close_all(outlet)
    rig.sweep()
    rig.sweep(9)
    assert not rig.reader("a").closed
    again = rig.subscribe("a", start=since(outlet_position(rig)))
    rig.sweep(60)
    assert not rig.reader("a").closed
    close_all(again)
    rig.sweep()
    rig.sweep(10)
    assert rig.reader("a").closed
    assert list(rig.hub.feeds) == []
    assert rig.hub.log_bytes == 0


def outlet_position(rig: HubRig) -> Position:
    [feed] = rig.hub.feeds
    return feed.position()


def test_polls_between_two_sweeps_keep_a_feed() -> None:
    rig = HubRig(linger=10)
    for _ in range(30):
        close_all(rig.subscribe("a"))
        rig.sweep()
    assert len(rig.readers) == 1
    assert not rig.reader("a").closed


def test_what_came_while_nobody_was_there_is_there_on_return() -> None:
    rig = HubRig()
    outlet = rig.subscribe("a")
    rig.reader("a").send("x")
    rig.runtime.settle()
    close_all(outlet)
    rig.reader("a").send("y")
    rig.runtime.settle()
    again = rig.subscribe("a", start=since(outlet.last_position()))
    rig.runtime.settle()
    assert again.bodies() == ["y"]


def test_of_too_many_that_linger_those_idle_longest_close_early() -> None:
    rig = HubRig(linger=60, most_idle=2)
    close_all(rig.subscribe("a"))
    rig.sweep()
    for name in ("b", "c", "used"):
        outlet = rig.subscribe(name)
        if name != "used":
            close_all(outlet)
    rig.sweep(1)
    assert rig.reader("a").closed
    assert not any(rig.reader(name).closed for name in ("b", "c", "used"))


def test_after_closing_and_opening_again_the_client_is_told() -> None:
    rig = HubRig(linger=0)
    outlet = rig.subscribe("a")
    rig.reader("a").send("x")
    rig.runtime.settle()
    close_all(outlet)
    rig.sweep()
    rig.sweep()
    assert rig.reader("a").closed
    rig.subscribe("a")
    rig.reader("a").send("y")
    rig.runtime.settle()
    again = rig.subscribe("a", start=since(outlet.last_position()))
    rig.runtime.settle()
    assert again.bodies() == ["!epoch", "y"]


def test_subscribing_while_it_closes_opens_it_again() -> None:
    rig = HubRig(linger=0)
    close_all(rig.subscribe("a"))
    rig.closing = FakePromise()
    rig.sweep()
    rig.runtime.time += 1
    sweep = rig.runtime.start(rig.hub.sweep())
    rig.runtime.settle()
    tasks = [rig.ask("a") for _ in range(3)]
    rig.runtime.settle()
    assert not any(task.done for task in tasks)
    assert len(rig.readers) == 1
    rig.closing.set_result(None)
    rig.runtime.settle()
    assert sweep.done
    assert len(rig.readers) == 2
    assert rig.readers[0].closed
    assert not rig.readers[1].closed
    rig.reader("a").send("x")
    rig.runtime.settle()
    assert all(task.result().bodies() == ["x"] for task in tasks)


def test_one_who_comes_while_another_feed_closes_keeps_its_own() -> None:
    rig = HubRig(linger=0)
    close_all(rig.subscribe("a"), rig.subscribe("b"))
    rig.closing = FakePromise()
    rig.sweep()
    rig.runtime.time += 1
    rig.runtime.start(rig.hub.sweep())
    rig.runtime.settle()
    outlet = rig.subscribe("b")
    rig.closing.set_result(None)
    rig.runtime.settle()
    assert (rig.reader("a").closed, rig.reader("b").closed) == (True, False)
    rig.reader("b").send("x")
    rig.runtime.settle()
    assert outlet.bodies() == ["x"]


def test_a_reader_that_does_not_close_cleanly_is_forgotten() -> None:
    rig = HubRig(linger=0)
    close_all(rig.subscribe("a"), rig.subscribe("b"))
    rig.close_error = OSError("broker away")
    rig.sweep()
    rig.sweep()
    assert list(rig.hub.feeds) == []


def test_a_failed_feed_is_opened_anew_by_the_next() -> None:
    rig = HubRig()
    outlet = rig.subscribe("a")
    rig.fail("a", NotFound("the exchange went"))
    assert len(outlet.failures) == 1
    assert rig.readers[0].closed
    rig.subscribe("a")
    assert len(rig.readers) == 2


# -- the node's bound -------------------------------------------------------------------------


def test_the_largest_logs_pay_for_the_nodes_bound() -> None:
    rig = HubRig(limits=LogLimits(total=20_000))
    for name, count in (("big", 100), ("small", 5)):
        rig.subscribe(name)
        rig.reader(name).send(*("x" * 100 for _ in range(count)))
    rig.runtime.settle()
    assert rig.hub.log_bytes > 20_000
    rig.sweep()
    assert rig.hub.log_bytes <= 20_000
    sizes = [len(feed.log) for feed in rig.hub.feeds]
    assert 0 < sizes[0] < 100
    assert sizes[1] == 5


def test_the_nodes_bound_between_append_and_tick_is_told() -> None:
    rig = HubRig(limits=LogLimits(total=20_000))
    outlet = rig.subscribe("a")
    rig.reader("a").send(*map(str, range(100)))
    task = rig.runtime.start(rig.hub.sweep())
    task._step(None)  # the sweep's turn comes before the tick's
    rig.runtime.settle()
    bodies = outlet.bodies()
    assert bodies[0] == "!evicted"
    assert bodies[1:] == [str(number) for number in range(101 - len(bodies), 100)]


def test_a_sweep_does_not_evict_what_was_not_sent_yet() -> None:
    rig = HubRig(limits=LogLimits(messages=3))
    outlet = rig.subscribe("a")
    rig.reader("a").send(*map(str, range(100)))
    task = rig.runtime.start(rig.hub.sweep())
    task._step(None)
    rig.runtime.settle()
    assert outlet.bodies() == [str(number) for number in range(100)]


def test_age_applies_without_traffic() -> None:
    rig = HubRig(limits=LogLimits(age=30))
    rig.subscribe("a")
    rig.reader("a").send("x")
    rig.runtime.settle()
    rig.sweep(31)
    assert rig.hub.log_bytes == 0


def test_a_sweep_gives_kept_chunks_back() -> None:
    rig = HubRig()
    slow = rig.subscribe("a")
    rig.subscribe("a")
    slow.pause()
    rig.reader("a").send("x")
    rig.runtime.settle()
    rig.sweep()
    [feed] = rig.hub.feeds
    [cohort] = feed.cohorts.values()
    assert not cohort._chunks
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == ["x"]


# -- closing the hub --------------------------------------------------------------------------


def test_close() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.subscribe("b", "c")
    rig.runtime.run(rig.hub.close())
    assert list(rig.hub.feeds) == []
    assert all(reader.closed for reader in rig.readers)
    assert rig.hub.log_bytes == 0
    task = rig.ask("a")
    rig.runtime.settle()
    with pytest.raises(Unavailable):
        task.result()


def test_close_does_not_stop_at_a_reader_that_fails() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.subscribe("b")
    rig.close_error = OSError("broker away")
    rig.runtime.run(rig.hub.close())
    assert list(rig.hub.feeds) == []


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_subscribing_while_the_hub_closes(names: tuple[str, ...]) -> None:
    rig = HubRig()
    rig.opening = FakePromise()
    task = rig.ask(*names)
    rig.runtime.settle()
    rig.runtime.run(rig.hub.close())
    with pytest.raises(Unavailable):
        task.result()
    rig.opening.set_result(None)
    rig.runtime.settle()
    assert all(reader.closed for reader in rig.readers), "a late reader is closed at once"
    assert list(rig.hub.feeds) == []


# -- joint feeds ------------------------------------------------------------------------------


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
    assert outlet.items()[0].position == "a-4,b-1"


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
    assert [one.holds for one in held(rig)] == [0]


def test_a_member_that_cannot_be_opened_leaves_no_hold() -> None:
    rig = HubRig()
    rig.subscribe("a")
    rig.open_error = NotFound("no exchange")
    task = rig.ask("a", "b", encoding=Lines())
    rig.runtime.settle()
    with pytest.raises(NotFound):
        task.result()
    assert [(one.holds, one.state) for one in held(rig)] == [(0, "open")]


# -- branches: other logins -------------------------------------------------------------------


def test_a_branch_shares_the_tick_and_the_bound_but_no_feed() -> None:
    rig = HubRig(limits=LogLimits(total=20_000))
    branch = rig.hub.branch(rig._open)
    ours = rig.subscribe("a")
    outlet = FakeOutlet()

    async def subscribe() -> None:
        destinations = [Destination.parse("/topic/a")]
        (await branch.subscribe(destinations, PLAIN, LIVE, outlet)).flow()

    rig.runtime.run(subscribe())
    theirs, mine = rig.readers[1], rig.readers[0]
    assert theirs.feed is not mine.feed
    theirs.send(*("x" * 100 for _ in range(100)))
    rig.runtime.settle()
    assert len(outlet.bodies()) == 100
    assert ours.bodies() == []
    assert rig.hub.log_bytes > 20_000
    rig.sweep()
    assert 0 < rig.hub.log_bytes <= 20_000
    rig.runtime.run(branch.close())
    assert theirs.closed
    assert not mine.closed
    assert list(rig.hub.feeds) == [mine.feed]


def test_closing_the_hub_closes_its_branches() -> None:
    rig = HubRig()
    branch = rig.hub.branch(rig._open)
    rig.runtime.run(rig.hub.close())

    async def subscribe() -> None:
        await branch.subscribe([Destination.parse("/topic/a")], PLAIN, LIVE, FakeOutlet())

    task = rig.runtime.start(subscribe())
    rig.runtime.settle()
    with pytest.raises(Unavailable):
        task.result()
