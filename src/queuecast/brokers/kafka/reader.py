"""A feed's reader: where it stands, and its history, which is the topic itself.

History is read partition by partition and merged by the records' timestamps, so that a replay
looks like what once was live. Within a partition the order is Kafka's in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...message import Message
from ...position import Mark, Start
from ..base import Page
from ..matching import matcher
from .content import key_of
from .control import Topic
from .damage import DAMAGED, Damaged
from .live import Live
from .names import Target
from .records import OutOfRange, Records, Run
from .topic import Member, TopicFeed

log = logging.getLogger(__name__)

# Records that a `last=N` looks at, backwards from the end, before it is content with fewer: the
# last record of a key may lie anywhere in a topic of any length.
LAST_LOOKS_AT = 100_000
# Records of one partition that it looks at in its first step.
_FIRST_STEP = 1024
# Seconds for which one who is ahead of this node waits for it to catch up.
_CATCH_UP = 5.0


class _Found(NamedTuple):
    """A record that matches: its time, and where it stands."""

    time: int
    lane: int
    offset: int


class KafkaReader:
    """An open feed; HistoryReader and WideningReader of brokers.base."""

    widens = True

    def __init__(
        self, live: Live, records: Records, target: Target, feed: TopicFeed, member: Member
    ) -> None:
        self._live = live
        self._records = records
        self._target = target
        self._feed = feed
        self._member = member
        self._matches = _matcher(target.key)

    def position(self) -> Sequence[int] | None:
        """Return, per partition, up to where everything was handed on."""
        return self._feed.next

    async def close(self) -> None:
        """Leave the topic's feed."""
        self._live.leave(self._feed, self._member)

    # -- history --------------------------------------------------------------------------

    async def locate(self, start: Start) -> Sequence[Mark]:
        """Return the place before the first, the last N, or those from a time on."""
        name, ends = self._target.topic, list(self._feed.next)
        count = len(ends)
        if start.kind == "first":
            found = await self._records.begins(name, count)
        elif start.kind == "time":
            times = await self._records.at(name, count, start.time)
            found = [end if at is None else at for at, end in zip(times, ends, strict=True)]
        elif start.kind == "last":
            found = await self._before_last(start.count, ends)
        else:
            found = ends
        return self._marks(found)

    async def _before_last(self, count: int, ends: list[int]) -> list[int]:
        """Return the place before the last `count` records that match, by their timestamps."""
        begins = await self._records.begins(self._target.topic, len(ends))
        if count > LAST_LOOKS_AT:
            # Too many to look at: each partition's last ones, which is at least as many.
            return [max(begin, end - count) for begin, end in zip(begins, ends, strict=True)]
        # Steps are whole, so that many who ask share what is fetched.
        reached = list(ends)
        found: list[_Found] = []
        looked, step = 0, max(_FIRST_STEP, count)
        while len(found) < count and looked < LAST_LOOKS_AT:
            lanes = [lane for lane, begin in enumerate(begins) if reached[lane] > begin]
            if not lanes:
                break
            for lane in lanes:
                low = max(begins[lane], (reached[lane] - step) // _FIRST_STEP * _FIRST_STEP)
                looked += reached[lane] - low
                found += await self._scan(lane, low, reached[lane])
                reached[lane] = low
            step *= 4
        if len(found) < count and looked >= LAST_LOOKS_AT:
            log.info(
                "last=%d of %s: %d among the %d newest records",
                count, self._target.key, len(found), looked,
            )  # fmt: skip
        found.sort(reverse=True)
        place = list(ends)
        for each in found[:count]:
            place[each.lane] = min(place[each.lane], each.offset)
        return place

    async def _scan(self, lane: int, low: int, high: int) -> list[_Found]:
        found: list[_Found] = []
        made, name = self._feed.topic, self._target.topic
        while low < high:
            try:
                run = await self._records.read(made, lane, low)
            except OutOfRange:
                # Retention was faster.
                low = max(low + 1, (await self._records.begins(name, len(self._feed.next)))[lane])
                continue
            except Damaged as damaged:
                low = damaged.following
                continue
            for at in range(run.index(low), len(run.offsets)):
                if run.offsets[at] >= high:
                    return found
                if self._matches(run.messages[at]):
                    found.append(_Found(run.times[at], lane, run.offsets[at]))
            low = run.following
        return found

    async def history(self, after: Sequence[Mark], max_bytes: int) -> Page:
        """Return what follows a place; see brokers.base.HistoryReader."""
        feed, name = self._feed, self._target.topic
        # The topic's, for what is fetched, and the destination's, for positions.
        made, count = feed.topic, len(feed.next)
        epoch = feed.epoch(self._target.key)
        gap = ""
        if len(after) != count or any(mark.epoch != epoch for mark in after):
            gap, place = "epoch", await self._records.begins(name, count)
        else:
            place = [mark.offset for mark in after]
            if any(at > end for at, end in zip(place, feed.next, strict=True)):
                ends = await self._records.ends(name, count)
                if any(at > end for at, end in zip(place, ends, strict=True)):
                    gap, place = "epoch", await self._records.begins(name, count)
                else:
                    await self._catch_up(place)
        start = list(place)
        messages: list[Message] = []
        while True:
            ends = list(feed.next)
            try:
                runs = await self._runs(made, place, ends)
            except OutOfRange:
                # What was at our place has been deleted. What was read before it stands.
                if messages:
                    break
                begins = await self._records.begins(name, count)
                place = [max(at, begin) for at, begin in zip(place, begins, strict=True)]
                start, gap = list(place), gap or "evicted"
                continue
            except Damaged as damaged:
                if messages:
                    break
                place[damaged.partition] = damaged.following
                start, gap = list(place), gap or DAMAGED
                continue
            if not runs:
                break
            full = _merge(runs, place, ends, max_bytes, messages, self._matches)
            if full or messages:
                break
            await asyncio.sleep(0)  # a filter may skip very many
        end = all(at >= last for at, last in zip(place, feed.next, strict=True))
        marks = tuple(Mark(epoch, offset) for offset in start) if gap else None
        if feed.topic.epoch != made.epoch:
            # Recreated meanwhile: the same question once more gets a gap.
            return Page((), tuple(after), end=True)
        return Page(messages, self._marks(place), gap, marks, end)

    async def _runs(self, made: Topic, place: list[int], ends: list[int]) -> dict[int, Run]:
        """Return a run for each partition that has something; raises OutOfRange, Damaged."""
        lanes = [lane for lane, end in enumerate(ends) if place[lane] < end]
        runs = await asyncio.gather(
            *(self._records.read(made, lane, place[lane]) for lane in lanes)
        )
        return dict(zip(lanes, runs, strict=True))

    async def _catch_up(self, place: list[int]) -> None:
        """Wait until this node has read as far as somebody whom another node has served."""
        deadline = asyncio.get_running_loop().time() + _CATCH_UP
        while any(at > end for at, end in zip(place, self._feed.next, strict=True)):
            if asyncio.get_running_loop().time() > deadline or self._member.closed:
                return
            await asyncio.sleep(0.02)

    def _marks(self, offsets: Sequence[int]) -> tuple[Mark, ...]:
        epoch = self._feed.epoch(self._target.key)
        return tuple(Mark(epoch, offset) for offset in offsets)


def _merge(
    runs: dict[int, Run],
    place: list[int],
    ends: list[int],
    max_bytes: int,
    into: list[Message],
    matches: Callable[[Message], bool],
) -> bool:
    """Take records by their time until a partition's run is used up; moves `place` on.

    Returns whether there are max_bytes of them.
    """
    at = {lane: run.index(place[lane]) for lane, run in runs.items()}
    size = 0
    while True:
        best, oldest = -1, 0
        for lane, run in runs.items():
            index = at[lane]
            if index < len(run.offsets) and run.offsets[index] < ends[lane]:
                time = run.times[index]
                if best < 0 or time < oldest:
                    best, oldest = lane, time
            elif run.following < ends[lane]:
                # More of it is to come, and may be older than what the others have.
                place[lane] = max(place[lane], run.following)
                return False
            else:
                place[lane] = max(place[lane], min(run.following, ends[lane]))
        if best < 0:
            return False
        run, index = runs[best], at[best]
        message = run.messages[index]
        at[best] = index + 1
        place[best] = run.offsets[index] + 1
        if matches(message):
            into.append(message)
            size += len(message.body)
            if size >= max_bytes:
                return True


def _matcher(pattern: str | None) -> Callable[[Message], bool]:
    if pattern is None:
        return lambda message: True
    matches = matcher("topic", pattern)
    return lambda message: matches(key_of(message))
