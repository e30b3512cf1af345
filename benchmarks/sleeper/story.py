"""What a client that slept has seen: runs of numbers without a hole, and gaps between them."""

from __future__ import annotations

from collections.abc import Sequence

# A run's first and last number, or a gap's reason.
Story = Sequence[Sequence[int] | str]


def missing(story: Story) -> int:
    """Return how many messages a client was told that it missed.

    Raises ValueError for a hole in silence, a repetition, or messages out of order.
    """
    following: int | None = None
    told = False
    count = 0
    for each in story:
        if isinstance(each, str):
            told = True
            continue
        first, last = each
        if following is not None:
            if first < following:
                raise ValueError(f"{first} again or out of order, {following} is next: {story}")
            if not told:
                raise ValueError(f"{following}..{first - 1} are missing in silence: {story}")
            count += first - following
        following = last + 1
        told = False
    return count


def gaps(story: Story) -> list[str]:
    """Return the reasons of the gaps."""
    return [each for each in story if isinstance(each, str)]


def last(story: Story) -> int:
    """Return the newest number; -1 when there is none."""
    return max((each[1] for each in story if not isinstance(each, str)), default=-1)
