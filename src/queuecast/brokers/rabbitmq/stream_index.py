"""What a gateway remembers of a stream: where each routing key's last messages are, the newest
messages themselves, and when which offset was reached.

All of it is bounded, and each part knows from where on it is complete: an answer is either exact
or says that it is not.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple

from ...message import Message

# Offsets remembered for each routing key, of how many keys, and in all. A publisher with ever new
# keys, or one with very many, must not grow memory: the keys silent longest are forgotten.
PER_KEY = 100
MAX_KEYS = 50_000
MAX_OFFSETS = 1_000_000
# Keys compared with a pattern before others have their turn on the loop.
_SLICE = 500
# Beyond so many offsets of a pattern, reading on is as good as knowing them.
_MANY = 2_000


class Known(NamedTuple):
    """Offsets of messages, rising; they are all there are after `lost`."""

    offsets: Sequence[int]
    lost: int


class _Key:
    __slots__ = ("lost", "offsets")

    def __init__(self, lost: int) -> None:
        self.offsets = array("Q")
        self.lost = lost  # whose messages up to here may be missing


class KeyIndex:
    """The last offsets of each routing key.

    known_from: the offset from which on all messages were added.
    """

    def __init__(
        self,
        known_from: int,
        *,
        per_key: int = PER_KEY,
        max_keys: int = MAX_KEYS,
        max_offsets: int = MAX_OFFSETS,
    ) -> None:
        self._known_from = known_from
        self._per_key = per_key
        self._max_keys = max_keys
        self._max_offsets = max_offsets
        self._forgotten = -1  # the last offset of any key that was dropped
        self._keys: OrderedDict[str, _Key] = OrderedDict()  # silent longest first
        self.offsets = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def known_from(self) -> int:
        return self._known_from

    @property
    def floor(self) -> int:
        """The offset up to which keys that are not here may have messages."""
        return max(self._known_from - 1, self._forgotten)

    def add(self, key: str, offset: int) -> None:
        """Add a message; offsets rise."""
        entry = self._keys.get(key)
        if entry is None:
            entry = self._keys[key] = _Key(self.floor)
        else:
            self._keys.move_to_end(key)
        entry.offsets.append(offset)
        self.offsets += 1
        # A quarter more, so that cutting the front costs little.
        if len(entry.offsets) > self._per_key + self._per_key // 4:
            self._cut(entry)
        self._forget()

    def _cut(self, entry: _Key) -> None:
        surplus = len(entry.offsets) - self._per_key
        if surplus > 0:
            entry.lost = entry.offsets[surplus - 1]
            del entry.offsets[:surplus]
            self.offsets -= surplus

    def _forget(self) -> None:
        while len(self._keys) > self._max_keys or self.offsets > self._max_offsets:
            _, entry = self._keys.popitem(last=False)
            self._forgotten = max(self._forgotten, entry.offsets[-1])
            self.offsets -= len(entry.offsets)

    def merge(self, past: KeyIndex) -> None:
        """Take over what was learned of the messages right before this index's first."""
        fresh: list[tuple[str, _Key]] = []
        for key, before in past._keys.items():
            entry = self._keys.get(key)
            if entry is None:
                # It may have been here and been forgotten again.
                before.lost = max(before.lost, self._forgotten)
                fresh.append((key, before))
                self.offsets += len(before.offsets)
            elif entry.lost < self._known_from:  # none of its later ones was cut
                self.offsets += len(before.offsets)
                entry.offsets = before.offsets + entry.offsets
                entry.lost = before.lost
                self._cut(entry)
        # Keys that came since, and that the past knows nothing of or has forgotten.
        floor = past.floor
        for key, entry in self._keys.items():
            if entry.lost < self._known_from and key not in past._keys:
                entry.lost = floor
        for key, entry in reversed(fresh):
            self._keys[key] = entry
            self._keys.move_to_end(key, last=False)
        self._known_from = past._known_from
        self._forgotten = max(self._forgotten, past._forgotten)
        self._forget()

    # -- asking ---------------------------------------------------------------------------

    def of(self, key: str) -> Known:
        """Return what is known of one key."""
        entry = self._keys.get(key)
        return Known((), self.floor) if entry is None else Known(entry.offsets, entry.lost)

    async def last(self, matches: Callable[[str], bool], count: int) -> Known:
        """Return the last `count` offsets of all keys that match."""
        lost = self.floor
        newest: list[int] = []
        seen: set[int] = set()  # a message with several keys stands under each
        async for entry in self._newest_first():
            if len(newest) == count and entry.offsets[-1] < newest[0]:
                break
            if not matches(entry.key):
                continue
            lost = max(lost, entry.lost)
            for offset in reversed(entry.offsets):
                if len(newest) < count:
                    if offset not in seen:
                        heapq.heappush(newest, offset)
                        seen.add(offset)
                elif offset < newest[0]:
                    break
                elif offset not in seen:
                    seen.add(offset)
                    seen.discard(heapq.heapreplace(newest, offset))
        return Known(sorted(newest), lost)

    async def after(self, matches: Callable[[str], bool], offset: int) -> Known:
        """Return the offsets after one of all keys that match; far too many are not listed."""
        lost = self.floor
        found: set[int] = set()
        async for entry in self._newest_first():
            if entry.offsets[-1] <= offset:
                break
            if matches(entry.key):
                lost = max(lost, entry.lost)
                found.update(each for each in entry.offsets if each > offset)
                if len(found) > _MANY:
                    return Known((), max(found))
        return Known(sorted(found), lost)

    async def _newest_first(self) -> AsyncIterator[_Snapshot]:
        for number, (key, entry) in enumerate(list(reversed(self._keys.items())), 1):
            yield _Snapshot(key, entry.offsets, entry.lost)
            if not number % _SLICE:
                await asyncio.sleep(0)


class _Snapshot(NamedTuple):
    key: str
    offsets: array[int]
    lost: int


class Window:
    """A run of a stream's messages without holes, the newest, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._offsets: list[int] = []
        self._messages: list[Message] = []
        self._sizes: list[int] = []
        self._first = 0  # index of the first living one; the dead prefix is cut now and then
        self._bytes = 0
        self._start: int | None = None

    def __len__(self) -> int:
        return len(self._offsets) - self._first

    def clear(self, start: int | None = None) -> None:
        """Begin anew: what is added next are all messages from `start` on (None: not known)."""
        self._offsets, self._messages, self._sizes = [], [], []
        self._first = self._bytes = 0
        self._start = start

    def add(self, offset: int, message: Message, size: int) -> None:
        """Add the next message; size: bytes that it holds in memory."""
        self._offsets.append(offset)
        self._messages.append(message)
        self._sizes.append(size)
        self._bytes += size
        while self._bytes > self._max_bytes and len(self) > 1:
            self._bytes -= self._sizes[self._first]
            self._start = self._offsets[self._first] + 1
            self._first += 1
        if self._first > 256 and self._first > len(self):
            del self._offsets[: self._first]
            del self._messages[: self._first]
            del self._sizes[: self._first]
            self._first = 0

    def covers(self, offset: int) -> bool:
        """Tell whether all from this offset on, up to what was added last, is here."""
        return self._start is not None and self._start <= offset

    def read(self, offset: int) -> Iterator[tuple[int, Message]]:
        """Yield the messages from an offset on that it covers; do not add meanwhile."""
        low = bisect_left(self._offsets, offset, self._first)
        for at in range(low, len(self._offsets)):
            yield self._offsets[at], self._messages[at]


class Samples:
    """When which offset was reached, by a clock that nobody sets, at most twice a second."""

    _INTERVAL = 1.0
    _MOST = 8192  # more than an hour; asking for an earlier time asks the broker

    def __init__(self) -> None:
        self._times: list[float] = []
        self._offsets: list[int] = []

    def note(self, now: float, offset: int) -> None:
        """Say that all messages up to this offset have come by now (monotonic seconds)."""
        if len(self._times) > 1 and now - self._times[-2] < self._INTERVAL:
            self._times[-1], self._offsets[-1] = now, offset
            return
        self._times.append(now)
        self._offsets.append(offset)
        if len(self._times) > self._MOST:
            del self._times[: self._MOST // 4], self._offsets[: self._MOST // 4]

    def before(self, time: float) -> int | None:
        """Return an offset that had come by a time, the last that is known; None for none."""
        at = bisect_right(self._times, time)
        return self._offsets[at - 1] if at else None

    def clear(self) -> None:
        """Forget all: the offsets are another stream's."""
        self._times.clear()
        self._offsets.clear()
