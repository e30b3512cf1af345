"""A feed under a rule: what the rule's reader hands it, and its history."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence

from ...errors import QueuecastError, Unavailable
from ...message import Message
from ...pattern import is_pattern
from ...position import Mark, Start
from ..base import FeedSink, Page
from ..matching import matcher
from .stream_index import Known
from .stream_reader import StreamReader
from .stream_request import LastRequest, PageRequest, keys_of

log = logging.getLogger(__name__)

# The reasons of gaps, as the hub has them.
EVICTED, EPOCH = "evicted", "epoch"
# For a `last=N` beyond, or one whose messages are further back than that, all that there is: what
# it costs to find the place has a bound.
_MOST_LAST = 100_000
_MOST_SCANNED = 300_000  # messages, of all destinations of the rule
_BACKFILL_PATIENCE = 3.0  # seconds; then the place is looked for ahead of everybody else's


class RetainedFeed:
    """An open feed of a retained destination; implements base.HistoryReader."""

    def __init__(self, stream: StreamReader, pattern: str, sink: FeedSink, patience: float) -> None:
        self._stream = stream
        self._sink = sink
        self._patience = patience
        self._closed = False
        # A fanout exchange routes everything to everybody, whatever the key.
        self.pattern = "#" if stream.kind == "fanout" else pattern
        self._matches = matcher("topic", self.pattern)
        self._literal = not is_pattern(self.pattern)

    def open(self) -> None:
        """Begin at the reader's place: what is published from now on comes after it."""
        self._stream.add(self)
        try:
            self._sink.begin([self._mark(self._stream.last + 1)], (), history=True)
        except BaseException:
            self._end()
            raise

    def _mark(self, offset: int) -> Mark:
        return Mark(self._stream.epoch, offset)

    # -- what the reader hands it ---------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> None:
        """Hand messages to the sink."""
        if self._closed:
            return
        try:
            self._sink.append(messages)
        except Exception:
            log.exception("a feed's sink failed")
            self._break()

    def gap(self, why: str, start: Mark) -> None:
        """Tell the sink of messages that are lost."""
        try:
            self._sink.gap(why, [start])
        except Exception:
            log.exception("a feed's sink failed")
            self._break()

    def _break(self) -> None:
        """End a feed whose sink cannot take messages: it has a hole now."""
        self.fail(QueuecastError("the feed failed inside the gateway, see its log"))

    def fail(self, error: QueuecastError) -> None:
        """End the feed and tell its sink."""
        self._end()
        try:
            self._sink.fail(error)
        except Exception:
            log.exception("a feed's sink failed")

    def position(self) -> Sequence[int]:
        """Return the place up to which everything was handed to the sink."""
        return (self._stream.last + 1,)

    async def close(self) -> None:
        """Stop reading."""
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._stream.remove(self)

    # -- history --------------------------------------------------------------------------

    async def locate(self, start: Start) -> Sequence[Mark]:
        """Return where to begin; see base.HistoryReader."""
        stream = self._stream
        await stream.ready(self._patience)
        if start.kind == "time":
            if start.time > time.time():
                return [self._mark(stream.last + 1)]
            begin = await stream.past.begin()
            return [self._mark(max(begin, await stream.past.at_time(start.time)))]
        if start.kind == "first":
            return [self._mark(await stream.past.begin())]
        if start.kind == "last" and start.count:
            return [self._mark(await self._last(start.count))]
        return [self._mark(stream.last + 1)]

    async def _last(self, count: int) -> int:
        stream = self._stream
        begin = await stream.past.begin()
        if count > _MOST_LAST:
            return begin
        known = await self._known_last(count)
        if stream.past.filling is not None and not _is_enough(known, count, begin):
            # What was published before the gateway's start is being looked up, for everybody.
            await asyncio.wait({stream.past.filling.done}, timeout=_BACKFILL_PATIENCE)
            known = await self._known_last(count)
        offsets = [offset for offset in known.offsets if offset > known.lost and offset >= begin]
        if not _is_enough(known, count, begin):
            # Of what the index has lost, the pass finds it: one sweep for all who ask.
            low = max(begin, known.lost - _MOST_SCANNED)
            missing = LastRequest(
                self.pattern, low, min(known.lost, stream.last), count - len(offsets)
            )
            await stream.past.history.ask(missing)
            if low > begin and len(missing.offsets) + len(offsets) < count:
                return begin
            offsets = [*missing.offsets, *offsets]
        first = offsets[0] if offsets else stream.last + 1
        # Of fewer than were asked for, others may have been among those that are missing.
        hole = stream.past.holes.last(begin, first - 1) if len(offsets) < count else None
        return hole.offset if hole is not None else first

    async def _known_last(self, count: int) -> Known:
        index = self._stream.past.index
        if not self._literal:
            return await index.last(self._matches, count)
        known = index.of(self.pattern)
        return Known(list(known.offsets[-count:]), known.lost)

    async def history(self, after: Sequence[Mark], max_bytes: int) -> Page:
        """Return what follows a place; see base.HistoryReader."""
        stream = self._stream
        mark = after[0]
        await stream.ready(self._patience)
        while True:
            epoch = stream.epoch
            try:
                return await self._page(mark, max_bytes)
            except Unavailable:
                if stream.epoch == epoch:
                    raise
                # Made anew meanwhile: the answer is a gap.

    async def _page(self, mark: Mark, max_bytes: int) -> Page:
        stream = self._stream
        want, gap = mark.offset, ""
        if mark.epoch == stream.epoch and want > stream.last + 1:
            # Another node may have been a moment ahead of this one.
            await stream.catch_up()
            if want <= stream.last + 1:
                return self._made([], want, "", want, end=True)
        head = stream.last
        if mark.epoch != stream.epoch or want > head + 1:
            want, gap = await stream.past.begin(), EPOCH
        elif stream.rule.age:
            begin = await stream.past.begin()
            if want < begin:
                hole = stream.past.holes.next(want, begin - 1)
                gap = hole.why if hole is not None else ""
                if not await self._nothing(want, begin):
                    gap = EVICTED
                want = begin
        known = await self._known_after(want)
        exact = known.lost < want and stream.past.holes.lost < want
        end = head
        if exact or stream.window.covers(want):
            hole = stream.past.holes.next(want, head)
            while hole is not None and (
                hole.offset == want or (exact and _first(known, want) > hole.offset)
            ):
                gap, want = gap or hole.why, hole.offset + 1
                hole = stream.past.holes.next(want, head)
            if hole is not None:
                end = hole.offset - 1  # the next page begins with it
        start = want
        offsets = [offset for offset in known.offsets if want <= offset <= end] if exact else []
        if offsets:
            want = at = offsets[0]
            final: int | None = offsets[-1]
        elif exact or want > head:
            return self._made([], end + 1, gap, start, end=end == head)
        else:
            at, final = max(want - 1, 0), None
        request = PageRequest(self.pattern, want, end, at, final, max_bytes)
        if stream.window.covers(want):
            self._fill(request)
        else:
            await stream.past.history.ask(request)
        if request.gap_at is not None:
            gap = gap or request.missed or EVICTED
            start = max(start, request.gap_at)
        return self._made(request.messages, request.after, gap, start, end=request.after > head)

    def _fill(self, request: PageRequest) -> None:
        """Serve a page from the newest messages, which are here."""
        for offset, message in self._stream.window.read(request.want):
            if offset > request.head:
                break
            wanted = any(self._matches(key) for key in keys_of(message))
            if wanted and request.take(offset, message):
                request.finish(offset + 1)
                return
        request.finish(request.head + 1)

    def _made(
        self, messages: Sequence[Message], after: int, gap: str, start: int, *, end: bool
    ) -> Page:
        return Page(
            messages,
            [self._mark(after)],
            gap,
            [self._mark(start)] if gap else None,
            end,
        )

    async def _nothing(self, want: int, begin: int) -> bool:
        """Tell whether it is certain that nothing of this feed lies between two offsets."""
        known = await self._known_after(want)
        return known.lost < want and not any(offset < begin for offset in known.offsets)

    async def _known_after(self, want: int) -> Known:
        index = self._stream.past.index
        if not self._literal:
            return await index.after(self._matches, want - 1)
        known = index.of(self.pattern)
        return Known([offset for offset in known.offsets if offset >= want], known.lost)


def _first(known: Known, want: int) -> int:
    """Return the first known offset from `want` on."""
    return next((offset for offset in known.offsets if offset >= want), sys.maxsize)


def _is_enough(known: Known, count: int, begin: int) -> bool:
    """Tell whether the last `count` offsets are known, of those at or after `begin`."""
    return known.lost < begin or sum(offset > known.lost for offset in known.offsets) >= count
