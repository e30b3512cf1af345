"""A partition's window: what is committed is done, and what is done is never given out again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.brokers.kafka.window import MAX_BYTES, MAX_RECORDS, Commit, Item, Window
from queuecast.message import Message


def fill(window: Window, *offsets: int) -> list[Item]:
    items = [window.add(offset, Message(b"%d" % offset)) for offset in offsets]
    return [item for item in items if item is not None]


def after(commit: Commit | None) -> Window:
    """Return the window of a node that takes the partition over."""
    if commit is None:
        return Window(0, None)
    return Window(0, commit, delivered=commit.delivered, acked=commit.acked)


def due(window: Window) -> Commit:
    found = window.due()
    assert found is not None
    window.was_committed(*found)
    return found[0]


def test_the_highest_contiguous_ack_is_committed() -> None:
    window = Window(0, None)
    assert window.due() is None
    items = fill(window, 5, 6, 8, 9)  # 7 is a transaction's own
    for item in items:
        window.delivered(item)
    assert due(window) == Commit(5, 10)
    window.settle(items[1])
    window.settle(items[3])
    assert due(window) == Commit(5, 10, frozenset((6, 9)))
    window.settle(items[0])
    assert due(window) == Commit(8, 10, frozenset((9,)))
    window.settle(items[2])
    assert due(window) == Commit(10, 10)
    assert window.due() is None


def test_the_next_owner_skips_what_is_acked_and_marks_what_was_delivered() -> None:
    window = after(Commit(5, 8, frozenset((6, 9))))
    items = fill(window, 5, 6, 7, 8, 9, 10)
    assert [item.offset for item in items] == [5, 7, 8, 10]
    assert [item.message.redelivered for item in items] == [True, True, False, False]
    for item in items:
        window.settle(item)
    assert due(window).offset == 11


def test_what_another_owner_acked_is_not_forgotten_before_it_is_reached() -> None:
    window = after(Commit(5, 20, frozenset((19,))))
    (item,) = fill(window, 5)
    window.settle(item)
    assert due(window) == Commit(6, 20, frozenset((19,)))


def test_room_counts_from_the_commit() -> None:
    window = Window(0, None)
    items = fill(window, *range(MAX_RECORDS))
    assert window.room == 0
    for item in items[:600]:
        window.settle(item)
    assert window.room == 0  # Kafka does not know of it yet
    due(window)
    assert window.room == 600
    heavy = Window(0, None)
    heavy.add(0, Message(bytes(MAX_BYTES)))
    assert heavy.room == 0


def test_a_record_that_comes_again_is_marked_and_its_first_message_is_not_touched() -> None:
    window = Window(0, None)
    (item,) = fill(window, 1)
    first = item.message
    item.again()
    assert item.message.redelivered
    assert not first.redelivered
    assert (item.message.body, item.message.offset) == (first.body, first.offset)


@given(
    st.integers(0, 2**62),
    st.integers(0, 5000),
    st.sets(st.integers(0, 3000), max_size=200),
    st.sampled_from(("", "a1b2c3d4")),
)
def test_a_commit_is_read_back(offset: int, ahead: int, acked: set[int], owner: str) -> None:
    done = frozenset(offset + each for each in acked)
    commit = Commit(offset, offset + ahead, done, "0123456789", owner)
    assert len(commit.metadata) < 4096
    assert Commit.parse(offset, commit.metadata) == commit


def test_acks_too_far_ahead_are_left_out() -> None:
    commit = Commit(5, 10, frozenset((7, 10**15)))
    assert len(commit.metadata) < 100
    assert Commit.parse(5, commit.metadata).acked == {7}


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "of another program",
        "queuecast1 x ",
        "queuecast1 3 !!",
        "queuecast1 -1 ",
        "queuecast2 e o -1 ",
        "queuecast2 e o 3 !!",
        "queuecast2 e o 3",
        "a b c",
    ],
)
def test_metadata_of_others_is_no_harm(metadata: str) -> None:
    assert Commit.parse(7, metadata) == Commit(7, 7, foreign=True)


def test_a_commit_of_the_first_version_is_of_an_owner_that_did_not_let_go() -> None:
    assert Commit.parse(7, "queuecast1 3 AQ==") == Commit(7, 10, frozenset((7,)), owner="?")


def test_nothing_is_fetched_before_the_partition_is_claimed() -> None:
    window = Window(0, Commit(5, 5, owner=""), delivered=5, owner="me")
    assert window.room == 0
    assert due(window) == Commit(5, 5, owner="me")
    assert window.room == MAX_RECORDS
    released = window.due(release=True)
    assert released is not None
    assert released[0] == Commit(5, 5)


def test_what_an_owner_without_a_last_word_may_have_handed_out_is_marked() -> None:
    window = Window(0, Commit(5, 6), delivered=6, doubt=2)
    window.end = 7
    assert [item.message.redelivered for item in fill(window, 5, 6, 7)] == [True, True, False]
    window = Window(0, Commit(5, 5), delivered=5, doubt=2)
    window.end = 100
    assert [item.message.redelivered for item in fill(window, 5, 7, 8)] == [True, True, False]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_acks_and_owners_gives_each_record_once(seed: int) -> None:
    # Owners come and go; each acks some of what it was given, in any order.
    chance = random.Random(seed)
    acked: list[int] = []
    commit: Commit | None = None
    for _ in range(50):
        window = after(commit)
        first = commit.offset if commit else 0
        items = fill(window, *range(first, min(first + chance.randrange(1, 30), 200)))
        for item in items:
            assert item.offset not in acked
            window.delivered(item)
        for item in chance.sample(items, chance.randrange(len(items) + 1)):
            window.settle(item)
            acked.append(item.offset)
        found = window.due()
        if found is not None:
            commit = Commit.parse(found[0].offset, found[0].metadata)
        if commit is not None and commit.offset >= 200:
            break
    assert len(acked) == len(set(acked))
    assert commit is None or set(range(commit.offset)) <= set(acked)
