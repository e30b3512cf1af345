"""The log: bounds, budget, and the search for places."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.hub.log import ENTRY_OVERHEAD, Budget, Entry, Log, LogLimits, Place, size_of
from queuecast.message import Message, Properties
from queuecast.position import Mark, Position, Vector

ROOMY = LogLimits()


def entry(offset: int, *, lane: int = 0, at: float = 0.0, body: bytes = b"") -> Entry:
    message = Message(body)
    return Entry(lane, offset, message, at, size_of(message))


def gap(epoch: str, offset: int = 0, *, lane: int = 0) -> Entry:
    return Entry(lane, offset, None, 0.0, epoch=epoch, reason="lost")


def make(
    *entries: Entry, marks: Sequence[Mark] = (Mark("a", 0),), limits: LogLimits = ROOMY
) -> Log:
    log = Log(marks, limits, Budget())
    for item in entries:
        log.append(item)
    return log


def find(log: Log, text: str, *, ours: bool = False) -> Place:
    return log.since(Position.parse(text), log.head.copy(), lambda mark: ours)


def rest(log: Log, place: Place) -> list[int | str]:
    """What a subscriber gets from a place: offsets, and epochs where a gap is."""
    skip = place.skip or {}
    entries, _ = log.read(place.seq, 1 << 30)
    return [
        item.epoch or item.offset
        for seq, item in enumerate(entries, place.seq)
        if seq >= skip.get(item.lane, 0)
    ]


# -- bounds -------------------------------------------------------------------------------


def test_evict_applies_the_count() -> None:
    log = make(*map(entry, range(1, 11)), limits=LogLimits(messages=4))
    assert len(log) == 10, "bounds come after the tick"
    log.evict(0.0)
    assert (len(log), log.base, log.next) == (4, 6, 10)
    assert str(log.start) == "a-6"
    assert str(log.complete) == "a-6"
    assert str(log.head) == "a-10"


def test_evict_applies_the_bytes() -> None:
    log = make(
        *(entry(offset, body=bytes(600)) for offset in range(1, 6)), limits=LogLimits(bytes=2500)
    )
    log.evict(0.0)
    assert log.bytes == 2000
    assert [item.offset for item in log.entries()] == [4, 5]


def test_evict_applies_the_age() -> None:
    log = make(entry(1, at=0), entry(2, at=5), entry(3, at=9), limits=LogLimits(age=5))
    log.evict(10.0)
    assert [item.offset for item in log.entries()] == [2, 3]


def test_a_message_over_the_bound_goes_too() -> None:
    log = make(entry(1, body=bytes(5000)), limits=LogLimits(bytes=1000))
    log.evict(0.0)
    assert (len(log), log.bytes) == (0, 0)


def test_halve_drops_the_older_half() -> None:
    log = make(*map(entry, range(1, 11)))
    log.halve()
    assert [item.offset for item in log.entries()] == [6, 7, 8, 9, 10]
    for _ in range(5):
        log.halve()
    assert log.bytes == 0


def test_headers_count() -> None:
    headers = {"x-trace": "0" * 1000}
    assert size_of(Message(b"", properties=Properties(headers=headers))) > ENTRY_OVERHEAD + 1000


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 3000)),
            st.tuples(st.just("gap"), st.just(0)),
            st.tuples(st.just("evict"), st.integers(0, 30)),
            st.tuples(st.just("halve"), st.just(0)),
            st.tuples(st.just("clear"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_budget_never_drifts(steps: list[tuple[str, int]]) -> None:
    budget = Budget()
    logs = [Log([Mark("a", 0)], LogLimits(messages=5, bytes=5000, age=20), budget) for _ in "ab"]
    now = 0.0
    for number, (what, value) in enumerate(steps, 1):
        log = logs[number % 2]
        if what == "append":
            log.append(entry(number, at=now, body=bytes(value)))
        elif what == "gap":
            log.append(gap(f"e{number}"))
        elif what == "evict":
            now += value
            log.evict(now)
            assert len(log) <= 5
            assert log.bytes <= 5000
        elif what == "halve":
            before = log.bytes
            log.halve()
            assert log.bytes <= before // 2
        else:
            log.clear()
        for one in logs:
            assert one.bytes == sum(item.size for item in one.entries())
            assert len(one) == len(one.entries())
        assert budget.used == sum(one.bytes for one in logs)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2000))
def test_read_is_contiguous_and_bounded(count: int, dropped: int, limit: int) -> None:
    log = make(*map(entry, range(1, count + 1)), limits=LogLimits(messages=max(count - dropped, 1)))
    log.evict(0.0)
    seq, got = log.base, []
    while seq < log.next:
        entries, end = log.read(seq, limit)
        assert end - seq == len(entries) >= 1
        got += [item.offset for item in entries]
        seq = end
    assert got == list(range(log.base + 1, count + 1))


# -- since, one lane ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("a-0", [1, 2, "b", 1, 2]),
        ("a-1", [2, "b", 1, 2]),
        ("a-2", ["b", 1, 2]),
        ("a-7", ["b", 1, 2]),  # the old numbering went on elsewhere; here the gap follows
        ("b-0", [1, 2]),
        ("b-1", [2]),
        ("b-2", []),
    ],
)
def test_since_meets_the_gap_in_its_place(position: str, expected: list[int | str]) -> None:
    log = make(entry(1), entry(2), gap("b"), entry(1), entry(2))
    place = find(log, position)
    assert place.gap is None
    assert rest(log, place) == expected
    assert str(place.vector) == position


@given(
    st.lists(st.one_of(st.integers(1, 3), st.none()), max_size=20),
    st.integers(0, 25),
    st.integers(0, 25),
)
def test_since_finds_exactly_what_follows(steps: list[int | None], keep: int, pick: int) -> None:
    """Offsets with holes, gaps anywhere, any eviction; the position of any entry."""
    log = Log([Mark("e0", 0)], LogLimits(messages=keep), Budget())
    places: list[tuple[Mark, bool]] = [(Mark("e0", 0), False)]
    epoch, offset = "e0", 0
    for number, step in enumerate(steps, 1):
        if step is None:
            epoch, offset = f"e{number}", 0
            log.append(gap(epoch))
        else:
            offset += step
            log.append(entry(offset))
        places.append((Mark(epoch, offset), step is None))
    log.evict(0.0)
    pick = min(pick, len(steps))
    place = log.since(Position([places[pick][0]]), log.head.copy(), lambda mark: True)
    assert place.seq == max(pick, log.base)
    if pick >= log.base:
        assert place.gap is None
        assert place.vector.position() == Position([places[pick][0]])
    else:
        assert place.gap is not None
        assert place.gap.last == str(places[pick][0])
        assert place.gap.first == str(log.start) == str(place.vector)


def test_since_within_holes_of_the_numbering() -> None:
    log = make(entry(10), entry(20), marks=[Mark("a", 5)])
    assert rest(log, find(log, "a-10")) == [20]
    assert rest(log, find(log, "a-15")) == [20]
    assert find(log, "a-4").gap is not None


@pytest.mark.parametrize("ours", [False, True])
def test_since_another_numbering(ours: bool) -> None:
    log = make(entry(1), entry(2))
    place = find(log, "zz-1", ours=ours)
    assert rest(log, place) == ([1, 2] if ours else [])
    assert place.gap == ("epoch", "zz-1", "a-0" if ours else "a-2")


def test_since_the_future_is_another_numbering() -> None:
    log = make(entry(1), entry(2))
    place = find(log, "a-3")
    assert place.gap is not None
    assert place.gap.reason == "epoch"


def test_since_up_to_where_the_feed_stands_is_no_future() -> None:
    log = make(entry(1))
    place = log.since(Position.parse("a-9"), Vector([Mark("a", 9)]), lambda mark: False)
    assert (place.gap, place.seq) == (None, 1)


def test_a_gap_that_keeps_the_numbering() -> None:
    """A broker may know that its own offsets go on after a loss."""
    log = make(entry(1), gap("a", 5), entry(6), entry(7))
    assert rest(log, find(log, "a-1")) == ["a", 6, 7]
    assert rest(log, find(log, "a-3")) == ["a", 6, 7]
    assert rest(log, find(log, "a-5")) == [6, 7]
    assert rest(log, find(log, "a-6")) == [7]


def test_knowing_the_epoch_is_not_knowing_the_gap() -> None:
    """Another node entered the new numbering earlier than this one."""
    log = make(entry(1), gap("b", 10), entry(11))
    assert rest(log, find(log, "b-7")) == ["b", 11]
    assert rest(log, find(log, "b-10")) == [11]


def test_an_evicted_gap_takes_its_epoch_along() -> None:
    log = make(entry(1), gap("b"), entry(1), entry(2), limits=LogLimits(messages=2))
    log.evict(0.0)
    assert find(log, "b-0").gap is None
    log.append(entry(3))
    log.evict(0.0)
    place = find(log, "b-0")
    assert place.gap == ("evicted", "b-0", "b-1")
    place = find(log, "a-1")
    assert place.gap is not None
    assert place.gap.reason == "epoch"


# -- preload --------------------------------------------------------------------------------


def preloaded() -> Log:
    """Messages 3 and 7 are leftovers, from 8 on everything is there."""
    log = Log([Mark("a", 12)], ROOMY, Budget())
    log.preload([entry(3), entry(7), entry(9)], [Mark("a", 2)], [Mark("a", 8)])
    return log


def test_preload_keeps_the_head_where_the_broker_is() -> None:
    log = preloaded()
    assert (str(log.start), str(log.complete), str(log.head)) == ("a-2", "a-8", "a-12")
    log.append(entry(13))
    assert rest(log, find(log, "a-9")) == [13]


def test_before_complete_there_may_be_holes() -> None:
    log = preloaded()
    place = find(log, "a-5")
    assert place.gap == ("evicted", "a-5", "a-5")
    assert rest(log, place) == [7, 9]
    assert find(log, "a-8").gap is None
    assert rest(log, log.oldest()) == [3, 7, 9]


def test_complete_moves_on_with_eviction() -> None:
    log = preloaded()
    for _ in range(2):
        log.drop_oldest()
    assert str(log.complete) == "a-8"
    log.drop_oldest()
    assert (str(log.start), str(log.complete)) == ("a-9", "a-9")


def test_preload_of_several_lanes_with_gaps() -> None:
    log = Log([Mark("b", 1), Mark("x", 5)], ROOMY, Budget())
    log.preload(
        [entry(1), gap("b"), entry(1)], [Mark("a", 0), Mark("x", 5)], [Mark("a", 0), Mark("x", 5)]
    )
    assert str(log.head) == "b-1,x-5"


# -- tail -----------------------------------------------------------------------------------


def test_tail_counts_messages_only() -> None:
    log = make(entry(1), entry(2), gap("b"), entry(1))
    place, short = log.tail(2)
    assert not short
    assert rest(log, place) == [2, "b", 1]
    assert str(place.vector) == "a-1"


def test_tail_after_a_gap_knows_its_epoch() -> None:
    log = make(entry(1), gap("b"), entry(1), entry(2))
    for count, vector in ((1, "b-1"), (2, "b-0"), (3, "a-0")):
        assert str(log.tail(count)[0].vector) == vector


def test_tail_with_too_few() -> None:
    place, short = make(entry(1)).tail(5)
    assert short == {0}
    assert place.seq == 0
    place, short = make().tail(1)
    assert (short, place.seq) == ({0}, 0)


def two_lanes() -> Log:
    return make(
        entry(1),
        entry(1, lane=1),
        entry(2, lane=1),
        entry(2),
        entry(3, lane=1),
        marks=[Mark("a", 0), Mark("b", 0)],
    )


def test_tail_is_per_lane() -> None:
    log = two_lanes()
    place, short = log.tail(1)
    assert not short
    assert rest(log, place) == [2, 3]
    assert str(place.vector) == "a-1,b-2"
    place, short = log.tail(3)
    assert short == {0}
    assert rest(log, place) == [1, 1, 2, 2, 3]


# -- since, several lanes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("a-0,b-0", [1, 1, 2, 2, 3]),
        ("a-2,b-0", [1, 2, 3]),
        ("a-0,b-2", [1, 2, 3]),
        ("a-1,b-3", [2]),
        ("a-2,b-3", []),
    ],
)
def test_each_lane_skips_what_it_knows(position: str, expected: list[int]) -> None:
    log = two_lanes()
    place = find(log, position)
    assert place.gap is None
    assert rest(log, place) == expected
    assert str(place.vector) == position


def test_a_lost_lane_does_not_repeat_the_others() -> None:
    log = two_lanes()
    log.drop_oldest()
    log.drop_oldest()
    place = find(log, "a-2,b-0")
    assert place.gap == ("evicted", "a-2,b-0", "a-2,b-1")
    assert str(place.vector) == "a-2,b-1"
    assert rest(log, place) == [2, 3]


@pytest.mark.parametrize(("ours", "expected"), [(True, [1, 2, 3]), (False, [])])
def test_an_unknown_lane_does_not_repeat_the_others(ours: bool, expected: list[int]) -> None:
    log = two_lanes()
    place = find(log, "a-2,zz-9", ours=ours)
    assert place.gap == ("epoch", "a-2,zz-9", "a-2,b-0" if ours else "a-2,b-3")
    assert rest(log, place) == expected


def test_a_gap_in_one_lane() -> None:
    log = make(
        entry(1),
        entry(1, lane=1),
        gap("c", lane=1),
        entry(2),
        entry(1, lane=1),
        marks=[Mark("a", 0), Mark("b", 0)],
    )
    assert rest(log, find(log, "a-1,b-1")) == ["c", 2, 1]
    assert rest(log, find(log, "a-1,b-0")) == [1, "c", 2, 1]
    assert rest(log, find(log, "a-2,b-1")) == ["c", 1]
    assert rest(log, find(log, "a-1,c-0")) == [2, 1]
    assert rest(log, find(log, "a-1,c-1")) == [2]
