"""The hub: a feed's life from its first subscriber to some time after its last."""

from __future__ import annotations

import pytest

from queuecast.destination import Destination
from queuecast.errors import BadPosition, NotFound, QueuecastError, Unavailable
from queuecast.hub.log import LogLimits
from queuecast.hub.subscription import Subscription
from queuecast.position import LIVE, Position, Start
from tests.support.fake_history import Kept
from tests.support.fake_runtime import Cancelled, FakePromise
from tests.support.fake_session import FakeOutlet

from .rig import PLAIN, HubRig, close_all, since

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
    assert rig.held()[0].holds == 0


def test_an_open_feed_takes_no_turn_to_join() -> None:
    rig = HubRig()
    rig.subscribe("a")
    task = rig.ask("a")
    rig.runtime.turn()
    assert task.done


def test_at_once_needs_an_open_feed() -> None:
    rig = HubRig(kept={"kept": Kept("e")})
    a = [Destination.parse("/topic/a")]

    def at_once(start: Start = LIVE, name: str = "a") -> Subscription | None:
        destinations = [Destination.parse(f"/topic/{name}")]
        return rig.hub.subscribe_at_once(destinations, PLAIN, start, FakeOutlet())

    assert at_once() is None
    assert rig.readers == [], "it opens none"
    rig.opening = FakePromise()
    task = rig.ask("a")
    rig.runtime.settle()
    assert at_once() is None, "not while it is opening"
    rig.opening.set_result(None)
    rig.runtime.settle()
    outlet = FakeOutlet()
    subscription = rig.hub.subscribe_at_once(a, PLAIN, LIVE, outlet)
    assert subscription is not None
    subscription.flow()
    rig.reader("a").send("x")
    rig.runtime.settle()
    assert outlet.bodies() == task.result().bodies() == ["x"]
    assert at_once(Start("last", count=1)) is not None, "the log is all there is"
    # Where the broker has a history, only places that need no search in it.
    rig.opening = None
    rig.subscribe("kept")
    assert at_once(Start("last", count=1), "kept") is None
    assert at_once(Start("first"), "kept") is None
    assert at_once(name="kept") is not None
    assert at_once(since("e-0"), "kept") is not None
    assert at_once(since("f-0"), "kept") is not None, "a strange place waits for nobody …"
    [kept] = [feed for feed in rig.hub.feeds if feed.name == "/topic/kept"]

    async def settle() -> None: ...

    kept.settle = settle
    assert at_once(since("f-0"), "kept") is None, "… but for what is on its way from elsewhere"
    assert at_once(since("e-0"), "kept") is not None
    with pytest.raises(BadPosition):
        at_once(since("e-0,f-0"))
    rig.fail("a", Unavailable("gone"))
    assert at_once() is None
    rig.runtime.run(rig.hub.close())
    assert at_once(name="kept") is None


def test_who_joins_at_once_keeps_a_lingering_feed() -> None:
    rig = HubRig(linger=60)
    for each in rig.subscribe("a").subscriptions:
        each.close()
    rig.sweep(1)
    rig.sweep(59)
    found = rig.hub.subscribe_at_once([Destination.parse("/topic/a")], PLAIN, LIVE, FakeOutlet())
    assert found is not None
    found.close()
    rig.sweep(2)
    assert not rig.readers[0].closed
    rig.sweep(60)
    assert rig.readers[0].closed


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
    assert rig.held()[0].holds == 0
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
    assert rig.held()[0].holds == 0
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
    assert rig.held()[0].holds == 0
    assert rig.held()[0].state == "open"


def test_a_bad_position_leaves_no_hold() -> None:
    rig = HubRig()
    task = rig.ask("a", start=since("x-1,y-2"))
    rig.runtime.settle()
    with pytest.raises(BadPosition):
        task.result()
    assert rig.held()[0].holds == 0


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


# -- a place of another node ------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_a_place_of_another_node_waits_for_what_is_on_its_way(names: tuple[str, ...]) -> None:
    rig = HubRig()
    there = rig.subscribe(*names)
    rig.reader("a").send("1")
    rig.runtime.settle()
    mine = there.subscriptions[0].position()
    asked, arrived = 0, FakePromise()

    async def settle() -> None:
        nonlocal asked
        asked += 1
        await arrived

    for reader in rig.readers:
        if reader.destination.name == "a":
            reader.feed.settle = settle
    foreign = Position([mark._replace(epoch="other") for mark in mine])
    task = rig.ask(*names, start=since(foreign))
    known = rig.subscribe(*names, start=since(mine))
    rig.runtime.settle()
    assert not task.done
    assert asked == 1, "a place of this node does not wait"
    # What the client has from the other node.
    rig.reader("a").send("2")
    arrived.set_result(None)
    rig.runtime.settle()
    rig.reader("a").send("3")
    rig.runtime.settle()
    fresh = task.result()
    assert isinstance(fresh, FakeOutlet)
    assert [item.body for item in fresh.items()] == ["", "3"]
    assert fresh.items()[0].gap == "epoch"
    assert known.bodies() == ["2", "3"]
