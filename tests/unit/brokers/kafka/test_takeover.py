"""What a member makes of a commit: whose it is, and what may have been delivered before."""

from __future__ import annotations

from queuecast.brokers.kafka.control import Committed
from queuecast.brokers.kafka.takeover import (
    ALL,
    OFFSETS_SET,
    Beginning,
    Known,
    beginning,
    recreated,
)
from queuecast.brokers.kafka.window import Commit

EPOCH, ME = "0123456789", "me"


def judge(commit: Commit | None, known: Known | None = None, metadata: str = "") -> Beginning:
    found = None if commit is None else Committed(commit.offset, metadata or commit.metadata)
    return beginning("T", EPOCH, ME, found, known, 1000)


def ours(offset: int, delivered: int, *acked: int, owner: str = "other") -> Commit:
    return Commit(offset, delivered, frozenset(acked), EPOCH, owner)


def knew(committed: Commit | None, first: int, delivered: int, *acked: int) -> Known:
    return Known(EPOCH, committed, first, delivered, frozenset(acked))


def test_a_new_group_begins_at_the_beginning_without_marks() -> None:
    assert judge(None) == Beginning()


def test_an_owner_that_let_go_leaves_no_doubt() -> None:
    commit = ours(5, 8, 6, owner="")
    assert judge(commit) == Beginning(commit, 8, frozenset((6,)))


def test_an_owner_that_did_not_let_go_leaves_a_window_of_doubt() -> None:
    commit = ours(5, 8)
    assert judge(commit) == Beginning(commit, 8, doubt=1000)
    own = ours(5, 8, owner=ME)
    assert judge(own, knew(own, 5, 20)) == Beginning(own, 20)


def test_what_this_node_knows_to_be_acked_is_not_delivered_again() -> None:
    commit = ours(5, 8, owner=ME)
    known = knew(commit, 7, 30, 9, 12)
    assert judge(commit, known) == Beginning(commit, 30, frozenset((9, 12)))
    # Without any commit yet as well.
    assert judge(None, knew(None, 7, 30, 9)) == Beginning(None, 30, frozenset((9,)))


def test_offsets_set_forward_are_a_gap_and_backward_are_marked() -> None:
    known = knew(ours(50, 60), 50, 60, 55)
    forward = judge(Commit(80, 80), known, "of another program")
    assert (forward.gap, forward.acked, forward.doubt) == (OFFSETS_SET, frozenset(), ALL)
    backward = judge(Commit(10, 10), known, "of another program")
    assert (backward.gap, backward.acked, backward.delivered) == ("", frozenset(), 60)
    # A node that knows nothing cannot see which it was.
    assert judge(Commit(10, 10), None, "of another program").gap == OFFSETS_SET


def test_a_deleted_group_delivers_again_with_marks() -> None:
    assert judge(None, knew(ours(50, 60), 50, 60, 55)) == Beginning(None, 60)


def test_offsets_of_a_topic_that_was_recreated_are_not_used() -> None:
    old = Commit(50, 60, frozenset(), "another", "")
    assert judge(old) == Beginning(gap=recreated("T"))
    stale = Known("another", old, 50, 60, frozenset((55,)))
    assert judge(None, stale) == Beginning(gap=recreated("T"))
