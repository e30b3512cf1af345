"""A page of the broker's history in memory, and the bound on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import QueuecastError
from ..message import Message
from ..position import Mark, Start, Vector
from .log import NOT_WRITTEN, Entry, size_of

# Bytes of bodies asked for at a time, and what a page may take in memory: of many small messages
# the rest is cut off, and asked for again.
PAGE_BYTES = 256 * 1024
SHEET_BYTES = 2 * PAGE_BYTES
# Pages held for one feed, and bytes of those of all feeds: thousands of clients that come back
# at as many places, each after a day, would otherwise hold a page each. One who waits for room
# waits for others to read theirs, or to stop reading: a paused client holds none.
FEED_PAGES = 16
NODE_PAGE_BYTES = 64 << 20
# Parts of a page of which it is noted that somebody has read them: strangers who read it with an
# encoding each, or from a place each, must not fill the memory with that.
MOST_SOUGHT = 256
Marks = tuple[Mark, ...]


class PageLike(Protocol):
    """brokers.base.Page."""

    @property
    def messages(self) -> Sequence[Message]: ...
    @property
    def after(self) -> Sequence[Mark]: ...
    @property
    def gap(self) -> str: ...
    @property
    def start(self) -> Sequence[Mark] | None: ...
    @property
    def end(self) -> bool: ...


class History(Protocol):
    """brokers.base.HistoryReader, as far as the hub needs it."""

    async def locate(self, start: Start) -> Sequence[Mark]: ...
    async def history(self, after: Sequence[Mark], max_bytes: int) -> PageLike: ...


class Asking(Protocol):
    """One who waits for a page."""

    def arrived(self, sheet: Sheet) -> None:
        """Take the page, which now counts as read by this one until it is released."""

    def again(self) -> None:
        """Ask again: what was there was not enough."""

    def failed(self, error: QueuecastError) -> None:
        """Learn that it will never come."""


class Holder(Protocol):
    """Who holds a page: the Pages of a feed."""

    def drop(self, sheet: Sheet) -> None:
        """Forget it, and give its bytes back."""

    def wake(self) -> None:
        """Look again whether there is room."""


class Sheet:
    """A page as the log would have it; `chunks` are encoded parts that its readers share.

    size: bytes in memory; chunk_bytes: those of the chunks among them. sought: what chunks were
    made for one reader.
    """

    __slots__ = (
        "_borders",
        "after",
        "asked",
        "chunk_bytes",
        "chunks",
        "entries",
        "gap",
        "readers",
        "size",
        "sought",
        "start",
    )

    def __init__(self, asked: Marks, page: PageLike, now: float) -> None:
        self.asked = asked
        self.gap = page.gap
        self.start: Marks = asked if page.start is None else tuple(page.start)
        self.after: Marks = tuple(page.after)
        self.entries: list[Entry] = []
        self.size = 0
        self.readers = 0
        self.chunks: dict[object, object] = {}
        self.chunk_bytes = 0
        self.sought: set[object] = set()
        self._borders: list[int] = []
        for message in page.messages:
            size = size_of(message)
            if self.entries and self.size + size > SHEET_BYTES:
                self._cut()
                break
            self.entries.append(Entry(message.lane, message.offset or 0, message, now, size))
            self.size += size

    def _cut(self) -> None:
        reached = Vector(self.start)
        for entry in self.entries:
            reached.advance(entry.lane, entry.offset)
        self.after = tuple(reached.marks)

    def borders(self, max_bytes: int) -> list[int]:
        """Return the indices at which writes end, whoever reads: so that they can be shared."""
        if not self._borders:
            size = 0
            for index, entry in enumerate(self.entries):
                size += entry.size - NOT_WRITTEN
                if size > max_bytes:
                    self._borders.append(index)
                    size = entry.size - NOT_WRITTEN
            self._borders.append(len(self.entries))
        return self._borders

    def serves(self, place: Marks) -> bool:
        """Tell whether a place can be read on from here."""
        if place == self.asked:
            return True
        ends = False
        for mark, start, after in zip(place, self.start, self.after, strict=True):
            if not mark.epoch == start.epoch == after.epoch or mark.offset < start.offset:
                return False
            ends = ends or mark.offset < after.offset
        return ends


class PageBudget:
    """Pages held by all feeds of the node.

    used: bytes, those that are on their way included. Pages that nobody reads stay until their
    room is needed, or to the next sweep.
    """

    def __init__(self, total: int = NODE_PAGE_BYTES) -> None:
        self.total = total
        self.used = 0
        self.idle: dict[Sheet, Holder] = {}
        self.waiting: dict[Holder, None] = {}

    def take(self, size: int) -> bool:
        """Take some bytes if there is room, or idle pages can give it; returns whether."""
        while self.used + size > self.total and self.idle:
            sheet, holder = next(iter(self.idle.items()))
            holder.drop(sheet)
        if self.used and self.used + size > self.total:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back; the one that waits longest looks again."""
        self.used -= size
        if self.waiting:
            next(iter(self.waiting)).wake()
