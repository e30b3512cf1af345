"""Bytes are bounded, whatever clients do: logs, pages of history, kept chunks."""

from __future__ import annotations

import pytest

from queuecast.hub.feed import Feed
from queuecast.hub.log import LogLimits
from queuecast.hub.page import FEED_PAGES, NODE_PAGE_BYTES, SHEET_BYTES
from queuecast.position import Start
from tests.support.fake_history import Kept
from tests.support.fake_session import FakeOutlet

from .rig import HubRig, since

# -- logs -------------------------------------------------------------------------------------


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


def test_many_logs_over_the_nodes_bound_are_one_line_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = HubRig(limits=LogLimits(total=20_000))

    def flood() -> None:
        for number in range(100):
            rig.reader(str(number)).send("x" * 100, "x" * 100)
        rig.runtime.settle()

    for number in range(100):
        rig.subscribe(str(number))
    dropped = 0
    for _ in range(4):
        flood()
        before = rig.hub.evicted
        rig.sweep()
        assert rig.hub.log_bytes <= 20_000
        dropped += rig.hub.evicted - before
    assert dropped > 600
    [line] = caplog.messages
    first = int(line.split(" which dropped ")[1].split()[0])
    # What was left out is in the next line, though nothing is over the bound any more.
    rig.sweep(60)
    following = caplog.messages[1]
    assert len(caplog.messages) == 2
    assert f"which dropped {dropped - first} messages" in following
    rig.sweep(60)
    assert len(caplog.messages) == 2


def test_logs_over_the_nodes_bound_are_not_looked_at_again_for_each_halving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = HubRig(limits=LogLimits(total=20_000))
    looks = 0
    measure = vars(Feed)["bytes"].fget

    def looked(feed: Feed) -> int:
        nonlocal looks
        looks += 1
        return int(measure(feed))

    for number in range(500):
        rig.subscribe(str(number))
        rig.reader(str(number)).send("x" * 100, "x" * 100)
    rig.runtime.settle()
    monkeypatch.setattr(Feed, "bytes", property(looked))
    rig.sweep()
    assert rig.hub.log_bytes <= 20_000
    assert looks <= 500 * 4


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


# -- pages of history -------------------------------------------------------------------------


# A page, and its encoded parts as much again.
FEED_BYTES = 2 * FEED_PAGES * SHEET_BYTES


def huge(count: int, *, size: int, log: int = 10) -> HubRig:
    """A destination with a long history and a short log."""
    kept = Kept()
    kept.add(*(f"m{number}".ljust(size) for number in range(1, count + 1)))
    rig = HubRig(kept={"a": kept}, limits=LogLimits(messages=log))
    rig.subscribe("a")
    return rig


def held_pages(rig: HubRig) -> int:
    pages = [part.pages for feed in rig.hub.feeds for part in feed.parts]
    return sum(each.held for each in pages if each is not None)


def test_a_thousand_sleepers_at_a_thousand_places_hold_nothing() -> None:
    rig = huge(10_000, size=1000)
    outlets = [FakeOutlet(room=1) for _ in range(1000)]
    for number, outlet in enumerate(outlets):
        rig.ask("a", start=since(f"kept-{10 * number}"), outlet=outlet)
    most_pages = most_bytes = 0
    while not rig.runtime.idle:
        rig.runtime.turn()
        most_pages = max(most_pages, held_pages(rig))
        most_bytes = max(most_bytes, rig.hub.page_bytes)
    assert all(outlet.paused for outlet in outlets), "each took one write and sleeps"
    assert all(outlet.writes and len(outlet.writes[0]) <= 64 * 1024 for outlet in outlets)
    assert 0 < most_pages <= FEED_PAGES
    assert most_bytes <= FEED_BYTES
    rig.sweep()
    assert (held_pages(rig), rig.hub.page_bytes) == (0, 0)
    # Awake again, one write each at a time: still bounded, and all get everything.
    asked = len(rig.kept["a"].asked)
    for outlet in outlets[::200]:
        outlet.resume()
    while not rig.runtime.idle:
        rig.runtime.turn()
        assert held_pages(rig) <= FEED_PAGES
        assert rig.hub.page_bytes <= FEED_BYTES
    for number in range(0, 1000, 200):
        bodies = outlets[number].bodies()
        assert len(bodies) == 10_000 - 10 * number
        assert bodies[-1].strip() == "m10000"
    assert len(rig.kept["a"].asked) - asked < 5 * 10_000 * 1400 / (256 * 1024)


def test_many_small_messages_are_no_large_page() -> None:
    rig = huge(20_000, size=1)
    rig.kept["a"].overhead = 0  # the broker counts the bodies alone
    outlet = FakeOutlet(room=1)
    rig.ask("a", start=Start("first"), outlet=outlet)
    while not rig.runtime.idle:
        rig.runtime.turn()
        assert rig.hub.page_bytes <= 3 * SHEET_BYTES
    outlet.resume()
    rig.runtime.settle()
    assert len(outlet.bodies()) == 20_000


def test_the_nodes_bound_on_pages_holds_over_many_feeds() -> None:
    names = [f"t{number}" for number in range(40)]
    kept = {name: Kept(f"k{name}") for name in names}
    body = "x" * 100_000
    for each in kept.values():
        each.add(*[body] * 8)
    rig = HubRig(kept=kept)
    rig.hub._pages.total = total = 4 << 20
    tasks = [
        rig.ask(name, start=since(f"k{name}-{place}")) for name in names for place in range(0, 8, 2)
    ]
    most = 0
    while not rig.runtime.idle:
        rig.runtime.turn()
        most = max(most, rig.hub.page_bytes)
    assert most <= total < NODE_PAGE_BYTES
    assert most > total // 2, "as many at a time as there is room for"
    for number, task in enumerate(tasks):
        outlet = task.result()
        assert isinstance(outlet, FakeOutlet)
        assert len(outlet.bodies()) == 8 - number % 4 * 2
    rig.sweep()
    assert rig.hub.page_bytes == 0
