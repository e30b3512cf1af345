"""Brings a client's position into the lanes that a feed has now.

A destination may have got more lanes (Kafka partitions) since the position was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..errors import BadPosition, Unavailable
from ..position import Mark, Position


def aligned(position: Position, marks: Sequence[Mark], parts: Sequence[int]) -> Position:
    """Return a position with one mark for each lane of a feed.

    marks: the feed's own; parts: how many lanes each of its destinations has, in their order.
    Lanes that the position does not know begin at offset 0 of their epoch: none of their
    messages has been seen. Raises BadPosition when it is of other destinations, and Unavailable
    when it knows lanes that this feed does not have yet.
    """
    if len(position) == len(marks):
        return position
    theirs = _runs(position)
    ours = _runs(marks)
    borders = _borders(parts)
    found: list[Mark] = []
    for (epoch, seen), (own_epoch, own) in zip(theirs, ours, strict=False):
        first = len(found)
        if epoch != own_epoch:
            # Another numbering, of which no lane says anything here: it is told as a gap.
            found += [Mark(epoch, 0)] * len(own)
        elif len(seen) == len(own):
            found += seen
        elif any(first < border < first + len(own) for border in borders):
            break  # several destinations in one numbering: which of them has more lanes?
        elif len(seen) > len(own):
            raise Unavailable(
                f"the position knows {len(seen)} partitions, this node only {len(own)} yet",
                "try again in a moment",
            )
        else:
            found += [*seen, *(Mark(epoch, 0) for _ in own[len(seen) :])]
    if len(theirs) != len(ours) or len(found) != len(marks):
        raise BadPosition(
            f"the position {str(position)[:64]!r} is of {len(position)} destinations, "
            f"this subscription has {len(marks)}",
            "resume with the same list of destinations",
        )
    return Position(found)


def _runs(marks: Sequence[Mark]) -> list[tuple[str, list[Mark]]]:
    return [(epoch, list(run)) for epoch, run in groupby(marks, key=lambda mark: mark.epoch)]


def _borders(parts: Sequence[int]) -> list[int]:
    borders, lane = [], 0
    for lanes in parts:
        borders.append(lane)
        lane += lanes
    return borders
