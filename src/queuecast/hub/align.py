"""Brings a client's position into the lanes that a feed has now.

A destination may have got more lanes (Kafka partitions) since the position was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..errors import BadPosition, Unavailable
from ..position import Mark, Position


def aligned(
    position: Position, marks: Sequence[Mark], parts: Sequence[int], *, may_widen: bool = True
) -> Position:
    """Return a position with one mark for each lane of a feed.

    marks: the feed's own; parts: how many lanes each of its destinations has, in their order.
    Lanes that the position does not know begin at offset 0 of their epoch: none of their
    messages has been seen. may_widen: whether the feed can get more lanes; otherwise a position
    with more of them is no position of it. Raises BadPosition when it is of other destinations,
    and Unavailable when it knows lanes that this feed does not have yet.
    """
    shares: Sequence[Sequence[Mark]]
    if position.bounds:
        shares = position.parts()
        if len(shares) != len(parts):
            raise _other(position, len(shares), len(parts))
        if [len(share) for share in shares] == list(parts):
            return position
    elif len(position) == len(marks):
        return position
    else:
        shares = _shares(position, marks, parts)
    found: list[Mark] = []
    for share, lanes in zip(shares, parts, strict=True):
        own = marks[len(found) : len(found) + lanes]
        if len(share) > lanes and share[-1].epoch == own[-1].epoch:
            if not may_widen:
                raise _other(position, len(position), len(marks))
            raise Unavailable(
                f"the position knows {len(share)} partitions, this node only {lanes} yet",
                "try again in a moment",
            )
        found += share[:lanes]
        found += [Mark(epoch, 0) for epoch, _ in own[len(share) :]]
    return Position(found)


def _shares(
    position: Position, marks: Sequence[Mark], parts: Sequence[int]
) -> list[Sequence[Mark]]:
    """Divide a position that does not say so among the destinations."""
    several = [index for index, lanes in enumerate(parts) if lanes > 1]
    if len(parts) == 1:
        several = [0]
    if len(several) == 1:
        # Only this one can have another number of lanes than before.
        [index] = several
        end = len(position) - (len(parts) - 1 - index)
        shares: list[Sequence[Mark]] = [position[each : each + 1] for each in range(index)]
        shares.append(position[index:end])
        shares += [position[each : each + 1] for each in range(end, len(position))]
    else:
        # A run of one epoch each, as long as no epoch is that of several destinations.
        shares = [tuple(run) for _, run in groupby(position, key=lambda mark: mark.epoch)]
    if len(shares) != len(parts) or not all(shares) or _strays(shares, marks, parts):
        raise _other(position, len(position), len(marks))
    return shares


def _other(position: Position, its: int, ours: int) -> BadPosition:
    return BadPosition(
        f"the position {str(position)[:64]!r} is of {its} destinations, "
        f"this subscription has {ours}",
        "resume with the same list of destinations, or without a position",
    )


def _strays(shares: Sequence[Sequence[Mark]], marks: Sequence[Mark], parts: Sequence[int]) -> bool:
    """Tell whether a mark is in one destination's share and of another one's epoch."""
    epochs, lane = [], 0
    for lanes in parts:
        epochs.append({mark.epoch for mark in marks[lane : lane + lanes]})
        lane += lanes
    if len(parts) == 1:
        return len({mark.epoch for mark in shares[0]}) > 1 and parts[0] == 1
    return any(
        mark.epoch in other
        for index, share in enumerate(shares)
        for mark in share
        for other in (*epochs[:index], *epochs[index + 1 :])
    )
