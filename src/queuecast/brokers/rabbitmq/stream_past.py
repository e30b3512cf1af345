"""A stream's past as one rule's reader knows it: index, times, and the pass over the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ...retention import RetainRule
from .stream_index import KeyIndex, Samples
from .stream_pass import StreamPass
from .stream_request import Backfill

# Messages before the gateway's start whose keys are looked up in the background.
_BACKFILL = 500_000
_BEGIN_KEPT = 1.0  # seconds for which the first offset is not asked for again


class Past:
    """What was in the stream before now, and where.

    index: of the messages that the reader saw, and in time of those before. wall: Unix seconds;
    steady: seconds that nobody sets.
    """

    def __init__(
        self,
        rule: RetainRule,
        history: StreamPass,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._wall = wall
        self._steady = steady
        self._ahead = wall() - steady()
        self.history = history
        self.index = KeyIndex(0)
        self.samples = Samples()
        self.holes = history.holes
        self.filling: Backfill | None = None
        """Looks up where the messages before the gateway's start are; None when that is done."""
        self._beginning = asyncio.Lock()
        self._begin: int | None = None
        self._begin_at = 0.0

    def note(self, offset: int) -> None:
        """Note that all messages up to this offset have come by now."""
        self.samples.note(self._steady(), offset)

    def _oldest(self) -> float:
        """Return the Unix time before which messages are too old.

        Of the system's clock and one that goes on from the gateway's start the one that is
        behind: a clock that jumps ahead must not hide what is kept.
        """
        return min(self._wall(), self._steady() + self._ahead) - self._rule.age

    def renew(self, offset: int) -> None:
        """Begin anew: the reader sees all from this offset on."""
        self.index = KeyIndex(offset)
        self.samples.clear()
        self.holes.clear()
        self.filling = None
        self._begin = None

    def backfill(self) -> None:
        """Look up what was there before the reader, unless that is done or under way."""
        known_from = self.index.known_from
        if not known_from or self.filling is not None:
            return
        filling = self.filling = Backfill(max(0, known_from - _BACKFILL), known_from - 1)
        filling.done.add_done_callback(lambda _done: self._filled(filling))
        self.history.when_idle(filling)

    def _filled(self, filling: Backfill) -> None:
        if filling is not self.filling:
            return
        self.filling = None
        if not filling.done.cancelled() and filling.done.exception() is None:
            self.index.merge(filling.index)

    async def begin(self) -> int:
        """Return the first offset that is not too old, as of a moment ago; raises Unavailable."""
        asked = asyncio.get_running_loop().time()
        async with self._beginning:
            if self._rule.age:
                known = self.samples.before(self._steady() - self._rule.age)
                if known is not None:
                    return known + 1
            # One answer is for all who asked before it was looked for.
            if self._begin is not None and self._begin_at >= asked - _BEGIN_KEPT:
                return self._begin
            begun = asyncio.get_running_loop().time()
            if self._rule.age:
                found = await self._probe(self._oldest())
            else:
                found = await self.history.probe("first")
            self._begin, self._begin_at = found, begun
            return found

    async def at_time(self, when: float) -> int:
        """Return the first offset at or after a time that has been (Unix seconds), or an earlier
        one; raises Unavailable."""
        known = self.samples.before(self._steady() - (self._wall() - when))
        if known is not None:
            return known + 1
        return await self._probe(when)

    async def _probe(self, when: float) -> int:
        return await self.history.probe(datetime.fromtimestamp(max(0, int(when)), UTC))
