"""A message in a queue, and the line it stands in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from ...message import Message


class Entry:
    """A message with its place in the queue.

    number: the place, given once and kept over every redelivery. expires: when it expires, on
    the broker's clock. weight: what the memory budget counts for it. returns: how often it came
    back from a consumer. kept: its id in the store, 0 for none. cleared: whether it may be
    delivered; a kept one only when the store knows of it, or else a kill would bring it again
    as if for the first time.
    """

    __slots__ = (
        "cleared",
        "expires",
        "kept",
        "message",
        "number",
        "priority",
        "redelivered",
        "returns",
        "weight",
    )

    def __init__(
        self, message: Message, number: int, weight: int, priority: int, expires: float | None
    ) -> None:
        self.message = message
        self.number = number
        self.weight = weight
        self.priority = priority
        self.expires = expires
        self.redelivered = False
        self.returns = 0
        self.kept = 0
        self.cleared = True


class Line:
    """The ready entries of one priority, by number.

    What comes back was taken from the front, so it stands before everything that is fresh.
    """

    __slots__ = ("_fresh", "_returned")

    def __init__(self) -> None:
        self._fresh: deque[Entry] = deque()
        self._returned: list[tuple[int, Entry]] = []

    def __len__(self) -> int:
        return len(self._fresh) + len(self._returned)

    def __iter__(self) -> Iterator[Entry]:
        for _, entry in sorted(self._returned, key=lambda pair: pair[0]):
            yield entry
        yield from self._fresh

    def put(self, entry: Entry) -> None:
        """Add a new entry at the end."""
        self._fresh.append(entry)

    def give_back(self, entry: Entry) -> None:
        """Add an entry that was taken, at its old place."""
        heappush(self._returned, (entry.number, entry))

    def head(self) -> Entry | None:
        """Return the first entry without taking it."""
        if self._returned:
            return self._returned[0][1]
        return self._fresh[0] if self._fresh else None

    def take(self) -> Entry:
        """Take the first entry; raises IndexError when there is none."""
        if self._returned:
            return heappop(self._returned)[1]
        return self._fresh.popleft()
