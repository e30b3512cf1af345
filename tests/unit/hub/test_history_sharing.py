"""Many who need the same of a broker's history: few pages, few encodings, with the answer."""

from __future__ import annotations

from itertools import pairwise

import pytest

from queuecast.destination import Destination
from queuecast.errors import QueuecastError
from queuecast.hub.history import Pages
from queuecast.hub.log import LogLimits
from queuecast.hub.page import MOST_SOUGHT, PageBudget, Sheet
from queuecast.position import Start
from tests.support.fake_history import Kept
from tests.support.fake_runtime import FakePromise, FakeRuntime
from tests.support.fake_session import FakeOutlet, Lines

from .rig import PLAIN, HubRig, numbered, rig_with_history, since

A = [Destination.parse("/topic/a")]


def test_a_thousand_at_one_place_are_one_pass_and_one_encoding() -> None:
    rig = rig_with_history(100, page=10)
    rig.kept["a"].asked.clear()
    encodes = rig.hub.stats.encodes
    tasks = [rig.ask("a", start=Start("first")) for _ in range(1000)]
    rig.runtime.settle()
    for task in tasks:
        outlet = task.result()
        assert isinstance(outlet, FakeOutlet)
        assert outlet.bodies() == numbered(1, 100)
    assert len(rig.kept["a"].located) == 1
    assert len(rig.kept["a"].asked) <= 11
    assert rig.hub.stats.encodes - encodes <= 30


def test_many_places_are_few_passes() -> None:
    """Who asks for a place within a page shares it; the others are read in their order."""
    rig = rig_with_history(400, page=20)
    kept = rig.kept["a"]
    kept.hold = FakePromise()
    tasks = [rig.ask("a", start=since(f"kept-{7 * n % 390}")) for n in range(390)]
    rig.runtime.settle()
    kept.asked.clear()
    kept.hold.set_result(None)
    rig.runtime.settle()
    for number, task in enumerate(tasks):
        outlet = task.result()
        assert isinstance(outlet, FakeOutlet)
        assert outlet.bodies() == numbered(7 * number % 390 + 1, 400)
    assert len(kept.asked) < 100
    offsets = [mark.offset for [mark] in kept.asked]
    turns = sum(later < earlier for earlier, later in pairwise(offsets))
    assert turns <= 3, "the pass goes forward"


def test_a_page_without_messages_is_for_those_who_asked_for_it() -> None:
    class Reader:
        """Who has a page, and does not let go."""

        sheet: Sheet | None = None

        def arrived(self, sheet: Sheet) -> None:
            self.sheet = sheet

        def again(self) -> None: ...
        def failed(self, error: QueuecastError) -> None: ...

    kept, runtime = Kept(), FakeRuntime()
    pages = Pages("a", kept, runtime, PageBudget(), lambda: 1)
    first, place = Reader(), tuple(kept.marks())
    pages.ask(place, first)
    runtime.settle()
    assert first.sheet is not None
    assert not first.sheet.entries
    assert pages.find(place) is None
    kept.add("m1")
    second = Reader()
    pages.ask(place, second)
    runtime.settle()
    assert second.sheet is not None
    assert len(second.sheet.entries) == 1
    assert pages.find(place) is second.sheet


def test_equal_encodings_share_history_too() -> None:
    rig = rig_with_history(30, page=None)
    rig.kept["a"].hold = FakePromise()
    outlets = [
        rig.subscribe("a", start=since("kept-0"), encoding=Lines("xy"[n % 2])) for n in range(10)
    ]
    rig.kept["a"].hold.set_result(None)
    encodes = rig.hub.stats.encodes
    rig.runtime.settle()
    assert rig.hub.stats.encodes == encodes + 6, "three chunks, twice"
    assert all(outlet.bodies("xy"[n % 2]) == numbered(1, 30) for n, outlet in enumerate(outlets))


def test_those_who_come_from_everywhere_share_what_they_read_together() -> None:
    rig = rig_with_history(100, page=None)
    kept = rig.kept["a"]
    kept.hold = FakePromise()
    outlets = [rig.subscribe("a", start=since(f"kept-{n % 50}")) for n in range(500)]
    encodes = rig.hub.stats.encodes
    kept.hold.set_result(None)
    rig.runtime.settle()
    for number, outlet in enumerate(outlets):
        assert outlet.bodies() == numbered(number % 50 + 1, 100)
    assert rig.hub.stats.encodes - encodes <= 500 + 20, "one of its own each, then all the same"


def test_the_pass_goes_on_before_it_begins_again() -> None:
    """Else those who ask for the beginning, one after the other, would starve all others."""
    rig = rig_with_history(300, page=20)
    kept = rig.kept["a"]
    kept.hold = FakePromise()
    outlets = [rig.subscribe("a", start=since(f"kept-{place}")) for place in (100, 0, 200)]
    kept.hold.set_result(None)
    rig.runtime.settle()
    assert [mark.offset for [mark] in kept.asked][:3] == [100, 200, 0]
    assert [len(outlet.bodies()) for outlet in outlets] == [200, 300, 100]


def test_what_is_in_memory_comes_with_the_answer() -> None:
    rig = rig_with_history(40, page=100)
    rig.subscribe("a", start=since("kept-30"))
    rig.runtime.settle()
    encodes, pages = rig.hub.stats.encodes, len(rig.kept["a"].asked)
    outlets = []
    for _ in range(100):
        outlet = FakeOutlet(at_once=True)
        subscription = rig.hub.subscribe_at_once(A, PLAIN, since("kept-30"), outlet)
        assert subscription is not None
        outlet.start(subscription)
        assert subscription.live, "in the very call"
        assert len(outlet.writes) == 1
        assert outlet.bodies() == numbered(31, 40)
        outlets.append(outlet)
    assert len(rig.kept["a"].asked) == pages, "one page serves them all"
    assert rig.hub.stats.encodes <= encodes + 1, "and one encoding, though none waited for another"
    rig.publish("a", "m41")
    rig.runtime.settle()
    assert {tuple(outlet.bodies()) for outlet in outlets} == {tuple(numbered(31, 41))}
    assert rig.hub.stats.encodes <= encodes + 2


def test_the_second_who_comes_from_within_a_page_shares_with_the_third() -> None:
    rig = rig_with_history(40, page=100)
    rig.subscribe("a", start=since("kept-30"))
    rig.runtime.settle()
    encodes = rig.hub.stats.encodes
    for count in (1, 2, 2, 2):
        outlet = rig.subscribe("a", start=since("kept-33"))
        rig.runtime.settle()
        assert outlet.bodies() == numbered(34, 40)
        assert rig.hub.stats.encodes == encodes + count


def test_strangers_fill_no_page_with_what_they_asked_for() -> None:
    rig = rig_with_history(40, page=100)
    rig.subscribe("a", start=since("kept-30"))
    rig.runtime.settle()
    [sheet] = rig.hub.feeds[0].parts[0].pages._sheets  # type: ignore[union-attr]
    for number in range(MOST_SOUGHT + 50):
        rig.subscribe("a", start=since("kept-33"), encoding=Lines(f"{number}"))
    rig.runtime.settle()
    assert len(sheet.sought) == MOST_SOUGHT


def test_the_answer_waits_for_no_page() -> None:
    rig = rig_with_history(40, page=100)
    rig.kept["a"].hold = FakePromise()
    outlet = FakeOutlet(at_once=True)
    subscription = rig.hub.subscribe_at_once(A, PLAIN, since("kept-5"), outlet)
    assert subscription is not None
    outlet.start(subscription)
    assert outlet.writes == []
    rig.kept["a"].hold.set_result(None)
    rig.runtime.settle()
    assert outlet.bodies() == numbered(6, 40)
    assert subscription.live


def test_one_write_is_never_more_than_a_chunk() -> None:
    rig = rig_with_history(100, page=100, size=200)
    rig.subscribe("a", start=since("kept-5"))
    rig.runtime.settle()
    outlet = FakeOutlet(at_once=True)
    subscription = rig.hub.subscribe_at_once(A, PLAIN, since("kept-5"), outlet)
    assert subscription is not None
    outlet.start(subscription)
    assert not subscription.live
    [first] = outlet.writes
    assert len(first) <= 2000
    rig.runtime.settle()
    assert [body.strip() for body in outlet.bodies()] == numbered(6, 100)


def test_what_cannot_be_encoded_is_raised_before_the_answer() -> None:
    rig = HubRig(kept={"a": Kept()}, limits=LogLimits(messages=3))
    rig.subscribe("a", encoding=Lines("other"))
    rig.publish("a", "one", "poison")
    outlet = FakeOutlet(at_once=True)
    subscription = rig.hub.subscribe_at_once(A, PLAIN, since("kept-0"), outlet)
    assert subscription is not None
    with pytest.raises(ValueError, match="cannot be encoded"):
        outlet.start(subscription)
    assert outlet.writes == []
