"""Retained destinations: which rule keeps a message, its log in memory, and a feed's reader.

On disk the log is store_reader.StoredLog; without a data directory it is MemoryLog here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from heapq import nlargest
from itertools import islice
from typing import NamedTuple, Protocol

from ...message import Message
from ...pattern import is_pattern
from ...position import Mark, Start
from ...retention import RetainRule
from ..base import FeedSink, Page
from ..matching import TopicIndex, matcher
from .age import AgeClock
from .feed import Feed
from .memory import weight


class Filter(NamedTuple):
    """Which of a rule's messages a destination has: those of one key, or those that match."""

    key: str | None
    matches: Callable[[str], bool]


def new_filter(exchange_type: str, key: str) -> Filter:
    """Return the filter of a feed that binds with a key to an exchange of a type."""
    literal = exchange_type == "direct" or (exchange_type == "topic" and not is_pattern(key))
    return Filter(key if literal else None, matcher(exchange_type, key))


class Rules:
    """All rules: which of them keep a message."""

    def __init__(self, rules: Sequence[RetainRule]) -> None:
        self._rules = rules
        self._all: dict[str, tuple[int, ...]] = {}
        self._by_key: dict[str, TopicIndex[int]] = {}
        for number, rule in enumerate(rules):
            self._all[rule.exchange] = (*self._all.get(rule.exchange, ()), number)
            self._by_key.setdefault(rule.exchange, TopicIndex()).add(rule.pattern, number)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def keeping(self, exchange: str, exchange_type: str, key: str) -> Sequence[int]:
        """Return the numbers of the rules that keep what is published so."""
        if exchange not in self._all:
            return ()
        if exchange_type in ("fanout", "headers"):
            # There a feed gets every message, whatever its key.
            return self._all[exchange]
        return tuple(self._by_key[exchange].match(key))


class Run(NamedTuple):
    """A run of a log: messages, the offset up to which it is complete, whether it is the end.

    floor: the last offset that the log has dropped. missed: whether that was asked for.
    """

    messages: list[Message]
    after: int
    floor: int
    missed: bool
    end: bool


class RetainedLog(Protocol):
    """The messages of one rule. upto: the last offset that anybody may see yet."""

    async def first(self) -> int:
        """Return the offset before the first message."""

    async def last(self, only: Filter, count: int, upto: int) -> int:
        """Return the offset before the last `count` messages; count is at least 1."""

    async def since(self, at: float, upto: int) -> int:
        """Return the offset before the first message of a time or later. at: see AgeClock."""

    async def page(self, only: Filter, after: int, upto: int, max_bytes: int) -> Run:
        """Return what follows an offset, at least one message unless there is none."""


class MemoryLog:
    """The messages of one rule, in memory; bounded by the rule. now: see AgeClock."""

    def __init__(self, rule: RetainRule, now: Callable[[], float]) -> None:
        self._rule = rule
        self._now = now
        self._floor = 0
        self._offsets: list[int] = []
        self._kept: list[tuple[float, int, Message]] = []
        self._gone = 0  # entries at the front that are dead; cut when they are the half
        self._by_key: dict[str, deque[int]] = {}
        self.bytes = 0

    def add(self, message: Message) -> None:
        """Keep a message (its offset is set), and drop what is too much."""
        size = weight(message)
        offset = message.offset or 0
        self._offsets.append(offset)
        self._kept.append((self._now(), size, message))
        self._by_key.setdefault(message.routing_key, deque()).append(offset)
        self.bytes += size
        self._evict()

    def __len__(self) -> int:
        return len(self._kept) - self._gone

    def _evict(self) -> None:
        rule = self._rule
        oldest = self._now() - rule.age if rule.age else None
        while len(self):
            at, size, message = self._kept[self._gone]
            if not (
                (rule.messages and len(self) > rule.messages)
                or (rule.bytes and self.bytes > rule.bytes)
                or (oldest is not None and at < oldest)
            ):
                break
            self._floor = message.offset or 0
            self.bytes -= size
            offsets = self._by_key[message.routing_key]
            offsets.popleft()
            if not offsets:
                del self._by_key[message.routing_key]
            self._gone += 1
        if self._gone > len(self):
            del self._kept[: self._gone]
            del self._offsets[: self._gone]
            self._gone = 0

    async def first(self) -> int:
        self._evict()
        return self._floor

    async def last(self, only: Filter, count: int, upto: int) -> int:
        self._evict()
        if only.key is not None:
            offsets = self._by_key.get(only.key, ())
            return offsets[-count] - 1 if len(offsets) >= count else self._floor
        # Key by key, so that a pattern that few match does not look at everything.
        newest = nlargest(
            count,
            (
                offset
                for key, offsets in self._by_key.items()
                if only.matches(key)
                for offset in islice(reversed(offsets), count)
            ),
        )
        return newest[-1] - 1 if len(newest) == count else self._floor

    async def since(self, at: float, upto: int) -> int:
        self._evict()
        index = bisect_left(self._kept, at, lo=self._gone, key=lambda kept: kept[0])
        return self._offsets[index] - 1 if index < len(self._kept) else upto

    async def page(self, only: Filter, after: int, upto: int, max_bytes: int) -> Run:
        self._evict()
        missed = after < self._floor
        after = max(after, self._floor)
        found: list[Message] = []
        used = 0
        for index in range(bisect_right(self._offsets, after, lo=self._gone), len(self._kept)):
            _, size, message = self._kept[index]
            if not only.matches(message.routing_key):
                continue
            if found and used + size > max_bytes:
                return Run(found, found[-1].offset or 0, self._floor, missed, False)
            used += size
            found.append(message)
        return Run(found, max(after, upto), self._floor, missed, True)


class RetainedFeed(Feed):
    """A feed whose messages are kept by a rule; implements base.HistoryReader."""

    __slots__ = ("_ages", "_epoch", "_log", "_only")

    def __init__(
        self,
        exchange: str,
        key: str,
        sink: FeedSink,
        handed: Callable[[], int],
        on_close: Callable[[Feed], None],
        *,
        epoch: str,
        log: RetainedLog,
        only: Filter,
        ages: AgeClock,
    ) -> None:
        super().__init__(exchange, key, sink, handed, on_close)
        self._epoch = epoch
        self._log = log
        self._only = only
        self._ages = ages

    async def locate(self, start: Start) -> Sequence[Mark]:
        upto = self._handed()
        if start.kind == "first":
            offset = await self._log.first()
        elif start.kind == "last" and start.count > 0:
            offset = await self._log.last(self._only, start.count, upto)
        elif start.kind == "time":
            offset = await self._log.since(self._ages.of_wall(start.time), upto)
        elif start.kind == "since" and start.position is not None:
            return start.position
        else:
            offset = upto
        return (Mark(self._epoch, min(offset, upto)),)

    async def history(self, after: Sequence[Mark], max_bytes: int) -> Page:
        upto = self._handed()
        asked = after[0]
        is_known = asked.epoch == self._epoch and asked.offset <= upto
        offset = asked.offset if is_known else 0
        run = await self._log.page(self._only, offset, upto, max_bytes)
        gap = "epoch" if not is_known else "evicted" if run.missed else ""
        return Page(
            run.messages,
            (Mark(self._epoch, run.after),),
            gap,
            (Mark(self._epoch, run.floor),) if gap else None,
            run.end,
        )
