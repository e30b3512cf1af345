"""A subscription's way through the broker's history, until the log has what comes next.

The vector alone says where it stands; a page is held only while the client reads. After each
page the log is asked whether it has everything that follows: then the subscription is a cursor
on the log again. In a joint feed every member's history comes after its own mark, one member
after the other; each keeps its order, and among several there is none.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from ..errors import QueuecastError
from ..position import Vector
from .log import Gap
from .page import Marks, Sheet

if TYPE_CHECKING:
    from .feed import Part
    from .subscription import Subscription


class _Chunk(NamedTuple):
    """Encoded entries: the index after them, the place after them, the bytes."""

    end: int
    after: Vector
    data: bytes


class Replay:
    """One subscription's reading of history. Implements page.Asking."""

    __slots__ = (
        "_asked",
        "_index",
        "_lags",
        "_part",
        "_sheet",
        "_subscription",
        "_told",
        "_trusted",
    )

    def __init__(self, subscription: Subscription, part: Part) -> None:
        """part: whose history is to be read first."""
        self._subscription = subscription
        self._lags: Part | None = part  # found a moment ago, so that it need not be looked for
        self._part: Part | None = None  # the member that is being read
        self._asked: Marks | None = None
        self._sheet: Sheet | None = None
        self._index = 0
        self._told = False  # the page's gap
        # Lanes whose marks come from the broker's history, so that no place of theirs is wrong.
        self._trusted: set[int] = set()

    # -- page.Asking ----------------------------------------------------------------------

    def arrived(self, sheet: Sheet) -> None:
        self._asked = None
        self._begin(sheet)
        self.again()

    def again(self) -> None:
        self._asked = None
        self._subscription.feed.ticker.chase(self._subscription)

    def failed(self, error: QueuecastError) -> None:
        self._asked = None
        self._subscription.fail(error)

    # -- the subscription's calls ---------------------------------------------------------

    def stop(self) -> None:
        """Let go of the page: the client does not read, or has gone."""
        part = self._part
        if part is None or part.pages is None:
            return
        if self._sheet is not None:
            sheet, self._sheet = self._sheet, None
            part.pages.release(sheet)
        part.pages.give_up(self._asked, self)
        self._asked = None

    def step(self) -> bytes | None:
        """Return the next bytes; None when there are none yet, or when the history is read."""
        while True:
            sheet = self._sheet or self._next_sheet()
            if sheet is None:
                return None
            gap = self._gap(sheet)
            if gap is not None:
                return gap
            chunk = self._chunk(sheet)
            if chunk is not None:
                self._index = chunk.end
                self._subscription.vector = chunk.after
                return chunk.data
            self._finish(sheet)

    def turn(self) -> None:
        """Go on behind a page that is read to its end, without any more bytes."""
        sheet = self._sheet
        if sheet is not None and self._index == len(sheet.entries):
            self._finish(sheet)
            self._next_sheet()

    # -- page by page ---------------------------------------------------------------------

    def _next_sheet(self) -> Sheet | None:
        """Find or ask for the next page, or go back to the log."""
        subscription = self._subscription
        if self._asked is not None:
            return None
        part, self._lags = self._lags, None
        if part is None:
            found = subscription.feed.since(subscription.vector.position(), self._trusted)
            part = found.lags
            if part is None:
                subscription.stand(found)
                return None
        assert part.pages is not None
        self._part = part
        place = part.of(subscription.vector)
        sheet = part.pages.find(place)
        if sheet is not None:
            self._begin(sheet)
            return sheet
        self._asked = place
        part.pages.ask(place, self)
        return None

    def _begin(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._index = 0
        self._told = False

    def _gap(self, sheet: Sheet) -> bytes | None:
        """Tell of the gap with which a page begins; who came from behind it has none."""
        subscription = self._subscription
        part = self._part
        assert part is not None
        if not sheet.gap or self._told or part.of(subscription.vector) != sheet.asked:
            return None
        last = str(subscription.vector)
        vector = subscription.vector.copy()
        vector.marks[part.first : part.first + part.lanes] = sheet.start
        first = str(vector)
        data = subscription.cohort.encoding.encode_gap(Gap(sheet.gap, last, first), first)
        self._told = True
        subscription.vector = vector
        subscription.feed.ticker.stats.gap(sheet.gap)
        return data

    def _chunk(self, sheet: Sheet) -> _Chunk | None:
        """Encode what fits into a write, or take what another reader of the page has encoded."""
        subscription = self._subscription
        part = self._part
        assert part is not None
        assert part.pages is not None
        cohort, vector = subscription.cohort, subscription.vector
        entries, marks = sheet.entries, part.of(vector)
        index = self._index
        while index < len(entries) and entries[index].offset <= marks[entries[index].lane].offset:
            index += 1  # who came from behind the page's beginning has these
        if index == len(entries):
            return None
        borders = sheet.borders(subscription.feed.ticker.chunk_bytes)
        key = (cohort, index, tuple(vector.marks))
        kept = sheet.chunks.get(key)
        if isinstance(kept, _Chunk):
            return kept
        wanted = [
            each
            for each in range(index, borders[bisect_right(borders, index)])
            if entries[each].offset > marks[entries[each].lane].offset
        ]
        count, after, data = cohort.encode(
            [entries[each].moved(part.first) if part.first else entries[each] for each in wanted],
            vector,
        )
        chunk = _Chunk(wanted[count - 1] + 1, after, data)
        shared = index == 0 or index in borders
        part.pages.keep(sheet, key, chunk, len(data), shared=shared)
        return chunk

    def _finish(self, sheet: Sheet) -> None:
        """Move on to the end of a page, and let go of it."""
        subscription = self._subscription
        part = self._part
        assert part is not None
        assert part.pages is not None
        before = part.of(subscription.vector)
        vector = subscription.vector.copy()
        for lane, after in enumerate(sheet.after, part.first):
            mark = vector.marks[lane]
            if mark.epoch != after.epoch or mark.offset < after.offset:
                vector.marks[lane] = after
        subscription.vector = vector
        self._trusted.update(range(part.first, part.first + part.lanes))
        self._sheet = None
        part.pages.release(sheet)
        if not sheet.entries and part.of(vector) == before:
            lagging = subscription.feed.lagging(vector, self._trusted)
            if lagging is part:
                # The log has begun behind what the history has so far.
                self._asked = before
                part.pages.later(self)
