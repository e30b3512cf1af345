"""What a member begins with in a partition: what the group committed, and what this node knows.

At least once means that a record may be delivered again. What may have been seen before is marked
as redelivered: what a commit says was handed out, what this node knows that it handed out, and,
where the last owner did not say that it let go, as many records as it may have fetched. What this
node knows to be acked is not delivered again at all.

An operator may have moved the offsets meanwhile, or deleted the group or the topic. A commit that
is not of our form was made by another program: nothing is known of what lies before and behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .control import Committed
from .window import Commit

OFFSETS_SET = "the offsets of the consumer group were set by another program"


@dataclass(frozen=True, slots=True)
class Known:
    """What this node last knew of a partition.

    first: the first record that was not done; delivered, acked: as in Commit, from then on.
    """

    epoch: str
    committed: Commit | None
    first: int
    delivered: int
    acked: frozenset[int]


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a window begins. commit: as Kafka has it, None for the first record that is there.

    delivered: records below it are marked as redelivered. acked: these are not delivered.
    doubt: how many more, of those that are there now, may have been delivered by the last owner.
    gap: what subscribers are to be told, "" for nothing.
    """

    commit: Commit | None = None
    delivered: int = 0
    acked: frozenset[int] = frozenset()
    doubt: int = 0
    gap: str = ""


# A doubt without a limit: all that is there now.
ALL = 1 << 62


def recreated(topic: str) -> str:
    """Return the gap's reason for a topic that was deleted and recreated."""
    return f"the topic {topic} was deleted and recreated"


def beginning(
    topic: str, epoch: str, owner: str, found: Committed | None, known: Known | None, most: int
) -> Beginning:
    """Judge what a group committed for a partition.

    epoch: the topic's now. owner: this node's name in commits. most: records that an owner may
    have fetched beyond its commit.
    """
    gap = ""
    if known is not None and known.epoch != epoch:
        known, gap = None, recreated(topic)
    if found is None or found.offset is None:
        if known is None:
            return Beginning(gap=gap)
        if known.committed is None:
            return Beginning(delivered=known.delivered, acked=known.acked)
        # The group was deleted. Its operator wants all of it again; it is said to be that.
        return Beginning(delivered=known.delivered)
    commit = found.commit
    assert commit is not None
    if commit.epoch and commit.epoch != epoch:
        # Of the topic before. Kafka deletes such offsets, but a late commit may bring one back.
        return Beginning(gap=recreated(topic))
    if commit.foreign:
        forward = known is None or commit.offset > known.first
        delivered = max(commit.delivered, known.delivered if known else 0)
        return Beginning(commit, delivered, doubt=ALL, gap=gap or (OFFSETS_SET if forward else ""))
    delivered, acked = commit.delivered, commit.acked
    if known is not None:
        delivered = max(delivered, known.delivered)
        if known.committed is None or known.committed.offset <= commit.offset:
            acked |= frozenset(each for each in known.acked if each >= commit.offset)
    doubt = 0 if commit.owner in ("", owner) else most
    return Beginning(commit, delivered, acked, doubt, gap)
