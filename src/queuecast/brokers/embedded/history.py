"""The last messages of every routing key, in memory, for pages that open late.

Bounded three ways: messages per key, age, and bytes in all. What was evicted leaves its offset
behind (the watermark), so that a resuming client is told of a gap exactly when there is one.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...message import Message
from .memory import OVERHEAD, weight

# Keys whose last evicted offset is known exactly. A publisher with ever new keys must not grow
# memory: the oldest are merged into their exchange's floor, which may tell of a gap too many but
# never of one too few.
WATERMARKS = 100_000


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """How much is kept: messages per key, age in seconds, bytes for all keys.

    Beyond the bytes the key that has been silent longest goes.
    """

    messages: int = 100
    age: float = 300.0
    bytes: int = 64 << 20


DEFAULT_LIMITS = HistoryLimits()


class _Log:
    """The messages of one key, oldest first, each with the time it came and its weight."""

    __slots__ = ("entries", "weight")

    def __init__(self) -> None:
        self.entries: deque[tuple[float, int, Message]] = deque()
        self.weight = OVERHEAD


class History:
    """The last messages of all exchanges. bytes: what they take now."""

    def __init__(
        self,
        now: Callable[[], float],
        limits: HistoryLimits = DEFAULT_LIMITS,
        *,
        watermarks: int = WATERMARKS,
    ) -> None:
        self._now = now
        self._limits = limits
        self._max_watermarks = watermarks
        self.bytes = 0
        # Until then nobody knows what came before.
        self._began = math.inf
        # What was before it is gone, on every exchange: a broker that was started again.
        self.floor = 0
        # Silent longest first, so that age and pressure both evict from the front.
        self._recent: OrderedDict[tuple[str, str], _Log] = OrderedDict()
        self._logs: dict[str, dict[str, _Log]] = {}
        # Of each key the newest message that is gone: its offset, and when it came.
        self._evicted: dict[str, dict[str, tuple[int, float]]] = {}
        self._evictions: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._floors: dict[str, tuple[int, float]] = {}

    def begin(self) -> None:
        """Note when the broker started; what comes from then on is known."""
        self._began = min(self._began, self._now())

    def add(self, exchange: str, message: Message) -> None:
        """Keep a message (its offset is set) that was published to an exchange."""
        now = self._now()
        size = weight(message)
        if size + OVERHEAD > self._limits.bytes or not self._limits.messages:
            # What cannot be kept is evicted at once, and so is all before it.
            self._evict_log(exchange, message.routing_key)
            self._mark(exchange, message.routing_key, message.offset or 0, now)
            return
        place = (exchange, message.routing_key)
        log = self._recent.get(place)
        if log is None:
            log = self._recent[place] = _Log()
            self._logs.setdefault(exchange, {})[message.routing_key] = log
            self.bytes += log.weight
        else:
            self._recent.move_to_end(place)
        log.entries.append((now, size, message))
        log.weight += size
        self.bytes += size
        if len(log.entries) > self._limits.messages:
            self._evict_oldest(exchange, message.routing_key, log)
        self._trim(exchange, message.routing_key, log, now)
        self._sweep(now)

    def read(
        self, exchange: str, key: str | None, matches: Callable[[str], bool]
    ) -> tuple[int, list[Message]]:
        """Return the watermark and the messages of a destination, oldest first.

        key: the one routing key that it stands for, or None to try `matches` on all keys.
        Messages at or before the watermark are what is left of other keys; after it the list
        is complete.
        """
        now = self._now()
        logs = self._logs.get(exchange, {})
        keys: Iterable[str]
        if key is not None:
            keys = (key,) if key in logs else ()
        else:
            keys = [name for name in logs if matches(name)]
        found: list[Message] = []
        for name in keys:
            log = logs[name]
            self._trim(exchange, name, log, now)
            found.extend(message for _, _, message in log.entries)
        found.sort(key=_offset)
        return self._watermark(exchange, key, matches)[0], found

    def complete(self, exchange: str, key: str | None, matches: Callable[[str], bool]) -> float:
        """Return the seconds within which nothing came for a destination that is gone again."""
        return max(0.0, self._now() - self._watermark(exchange, key, matches)[1])

    def forget(self, exchange: str, offset: int) -> None:
        """Drop the history of an exchange that was deleted; all up to `offset` is gone."""
        for key in list(self._logs.get(exchange, ())):
            self._evict_log(exchange, key)
        for key in self._evicted.pop(exchange, {}):
            del self._evictions[exchange, key]
        self._floors[exchange] = offset, self._now()

    def _watermark(
        self, exchange: str, key: str | None, matches: Callable[[str], bool]
    ) -> tuple[int, float]:
        began = self.floor, self._began
        floor = max(began, self._floors.get(exchange, began))
        evicted = self._evicted.get(exchange)
        if not evicted:
            return floor
        if key is not None:
            return max(floor, evicted.get(key, floor))
        marks = (mark for name, mark in evicted.items() if mark > floor and matches(name))
        return max(floor, max(marks, default=floor))

    def _trim(self, exchange: str, key: str, log: _Log, now: float) -> None:
        while log.entries and log.entries[0][0] <= now - self._limits.age:
            self._evict_oldest(exchange, key, log)
        if not log.entries:
            self._evict_log(exchange, key)

    def _sweep(self, now: float) -> None:
        while self._recent:
            exchange, key = next(iter(self._recent))
            log = self._recent[exchange, key]
            if self.bytes <= self._limits.bytes and log.entries[-1][0] > now - self._limits.age:
                return
            self._evict_log(exchange, key)

    def _evict_oldest(self, exchange: str, key: str, log: _Log) -> None:
        came, size, message = log.entries.popleft()
        log.weight -= size
        self.bytes -= size
        self._mark(exchange, key, message.offset or 0, came)

    def _evict_log(self, exchange: str, key: str) -> None:
        log = self._recent.pop((exchange, key), None)
        if log is None:
            return
        logs = self._logs[exchange]
        del logs[key]
        if not logs:
            del self._logs[exchange]
        self.bytes -= log.weight
        if log.entries:
            came, _, message = log.entries[-1]
            self._mark(exchange, key, message.offset or 0, came)

    def _mark(self, exchange: str, key: str, offset: int, came: float) -> None:
        self._evicted.setdefault(exchange, {})[key] = offset, came
        self._evictions[exchange, key] = None
        self._evictions.move_to_end((exchange, key))
        if len(self._evictions) <= self._max_watermarks:
            return
        (exchange, key), _ = self._evictions.popitem(last=False)
        mark = self._evicted[exchange].pop(key)
        self._floors[exchange] = max(self._floors.get(exchange, mark), mark)


def _offset(message: Message) -> int:
    return message.offset or 0
