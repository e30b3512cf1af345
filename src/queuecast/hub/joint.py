"""A joint feed: several destinations on one connection, interleaved in one log.

Each member has its lanes in it. The members stay what they are; the joint feed reads along, and
a place that lies before its log is read from each member's history.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ..errors import QueuecastError, Unavailable
from .feed import Feed, Part
from .log import Entry


class _Tap:
    """Reads one member along into a lane (or the first of its lanes) of the joint feed."""

    __slots__ = ("_joint", "_lane", "_over")

    def __init__(self, joint: Feed, lane: int) -> None:
        self._joint = joint
        self._lane = lane
        self._over = False

    def entry(self, entry: Entry) -> None:
        if not self._over:
            self._joint.append_entry(entry.moved(self._lane))

    def widened(self) -> None:
        # A lane in the middle: the feed is made anew, and positions of it are made longer.
        self.failed(Unavailable("a destination has more partitions now", "come again"))

    def failed(self, error: QueuecastError) -> None:
        if not self._over:
            self._over = True  # until it is taken off, the member goes on
            self._joint.fail(error)


def join(joint: Feed, feeds: list[Feed]) -> Callable[[], None]:
    """Let a joint feed begin with what its members' logs have, and read along.

    Returns what ends that.
    """
    lanes = _first_lanes(feeds)
    streams = [
        [entry.moved(lane) for entry in feed.log.entries()]
        for feed, lane in zip(feeds, lanes, strict=True)
    ]
    joint.begin_with(
        list(heapq.merge(*streams, key=_one_clock(feeds))),
        start=[mark for feed in feeds for mark in feed.log.start.marks],
        complete=[mark for feed in feeds for mark in feed.log.complete.marks],
        head=[mark for feed in feeds for mark in feed.position()],
        parts=[
            Part(feed.name, lane, part.lanes, part.retained, part.pages)
            for feed, lane in zip(feeds, lanes, strict=True)
            for part in feed.parts
        ],
        complete_since=max(feed.complete_since() for feed in feeds),
    )
    joint.upstream_position = lambda: [mark.offset for feed in feeds for mark in feed.position()]

    async def settle() -> None:
        for feed in feeds:
            await feed.settle()

    joint.settle = settle
    joint.widens = any(feed.widens for feed in feeds)
    taps = [_Tap(joint, lane) for lane in lanes]
    for feed, tap in zip(feeds, taps, strict=True):
        feed.taps.append(tap)

    def part() -> None:
        for feed, tap in zip(feeds, taps, strict=True):
            feed.taps.remove(tap)

    return part


def _one_clock(feeds: list[Feed]) -> Callable[[Entry], float]:
    """Return what orders the entries of several logs: offsets if they are of one numbering."""
    epochs = {mark.epoch for feed in feeds for mark in (*feed.log.start.marks, *feed.position())}
    if len(epochs) == 1:
        return lambda entry: entry.offset
    return lambda entry: entry.at


def _first_lanes(feeds: list[Feed]) -> list[int]:
    lanes, first = [], 0
    for feed in feeds:
        lanes.append(first)
        first += len(feed.log.head.marks)
    return lanes
