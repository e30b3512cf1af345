"""The broker's history, page by page, for those whose place lies before the log.

One background task for each feed reads for all its subscribers, one page after the other, in
the order of the places they ask for: many who come back at many places are one pass over the
history, not one each. A page serves everybody whose place lies in it, and is kept only while
somebody is reading it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Callable

from ..errors import QueuecastError, Unavailable
from ..position import Position, Start
from ..runtime import Promise, Runtime
from .page import (
    FEED_PAGES,
    MOST_SOUGHT,
    PAGE_BYTES,
    SHEET_BYTES,
    Asking,
    History,
    Marks,
    PageBudget,
    PageLike,
    Sheet,
)

logger = logging.getLogger(__name__)

# Seconds until the broker is asked again while it is away; doubled up to the second value.
_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
# Seconds that one page may take: a broker that never answers is one that is away.
_PAGE_SECONDS = 30.0
# Seconds until the broker is asked again for what its history does not have yet.
_NOT_YET = 0.2


class Pages:
    """The pages of one feed's history: those that are held, and those that are asked for."""

    def __init__(
        self,
        name: str,
        history: History,
        runtime: Runtime,
        budget: PageBudget,
        lanes: Callable[[], int],
    ) -> None:
        """name: the feed's, for people. lanes: how many it has now."""
        self._name = name
        self._history = history
        self._runtime = runtime
        self._budget = budget
        self._lanes = lanes
        self._sheets: dict[Sheet, None] = {}
        self._asking: dict[Marks, dict[Asking, None]] = {}
        # The places asked for, in order: (sum of the offsets, place).
        self._order: list[tuple[int, Marks]] = []
        self._reached: tuple[int, Marks] = (0, ())  # … up to where the present pass has come
        self._late: dict[Asking, None] = {}  # the broker does not have yet what they need
        self._late_timer = False
        self._room: Promise | None = None
        self._running = False
        self._cancel: Callable[[], object] = lambda: None
        self._locating: dict[Start, list[Promise]] = {}
        self._closed = False
        self.fetched = 0

    @property
    def held(self) -> int:
        """Pages in memory."""
        return len(self._sheets)

    # -- readers --------------------------------------------------------------------------

    def find(self, place: Marks) -> Sheet | None:
        """Return a page that is held and serves a place, counted as read by one more.

        Not one without messages: that there was nothing may be untrue by now.
        """
        for sheet in self._sheets:
            if sheet.entries and sheet.serves(place):
                self._take(sheet)
                return sheet
        return None

    def ask(self, place: Marks, asking: Asking) -> None:
        """Fetch the page of a place; `arrived` or `failed` is called once unless given up."""
        if self._closed:
            return
        waiting = self._asking.get(place)
        if waiting is None:
            waiting = self._asking[place] = {}
            insort(self._order, _key(place))
        waiting[asking] = None
        if not self._running:
            self._running = True
            self._cancel = self._runtime.spawn(self._run(), f"history of {self._name}")

    def later(self, asking: Asking) -> None:
        """Call `again` in a moment: the history ends before what the log has."""
        self._late[asking] = None
        if not self._late_timer:
            self._late_timer = True
            self._runtime.call_later(_NOT_YET, self._ask_late)

    def give_up(self, place: Marks | None, asking: Asking) -> None:
        """Forget who asked; harmless when the page has come."""
        self._late.pop(asking, None)
        if place is None:
            return
        waiting = self._asking.get(place)
        if waiting is None or asking not in waiting:
            return
        del waiting[asking]
        if not waiting:
            self._forget(place)

    def release(self, sheet: Sheet) -> None:
        """Count one reader less."""
        sheet.readers -= 1
        if sheet.readers or sheet not in self._sheets:
            return
        if sheet.entries:
            self._budget.idle[sheet] = self
            self._budget.give(0)
        else:
            self.drop(sheet)  # that there was nothing may be untrue by now
        self.wake()

    def keep(self, sheet: Sheet, key: object, chunk: object, size: int, *, shared: bool) -> None:
        """Keep an encoded part for the page's other readers, if there are any and there is room.

        shared: whoever reads the page as a whole comes to this part. Others are kept for the
        second one who needs them, and so is any part where one client comes after the other.
        All parts of a page take no more than a page may.
        """
        if sheet not in self._sheets:
            return
        if not (shared and sheet.readers > 1) and key not in sheet.sought:
            if len(sheet.sought) < MOST_SOUGHT:
                sheet.sought.add(key)
            return
        if sheet.chunk_bytes + size <= SHEET_BYTES and self._budget.take(size):
            sheet.chunks[key] = chunk
            sheet.chunk_bytes += size
            sheet.size += size

    async def locate(self, start: Start) -> Position:
        """Return the place of a `first`, `last` or `time`; equal questions are asked once.

        Raises Unavailable.
        """
        if self._closed:
            raise Unavailable(f"{self._name} was closed")
        waiting = self._locating.get(start)
        if waiting is None:
            waiting = self._locating[start] = []
            self._runtime.spawn(self._locate(start, waiting), f"history of {self._name}")
        promise = self._runtime.promise()
        waiting.append(promise)
        found: Position = await promise
        return found

    async def _locate(self, start: Start, waiting: list[Promise]) -> None:
        found: Position | None = None
        error: QueuecastError = _broken()
        try:
            work = self._history.locate(start)
            found = Position(await self._runtime.within(_PAGE_SECONDS, work))
        except QueuecastError as caught:
            error = caught
        except TimeoutError:
            error = Unavailable("the broker does not answer")
        except Exception:
            logger.exception("the history of %s could not be searched", self._name)
        finally:
            self._locating.pop(start, None)
        for promise in waiting:
            if promise.done():
                continue
            if found is not None:
                promise.set_result(found)
            else:
                promise.set_exception(error)

    # -- life -----------------------------------------------------------------------------

    def sweep(self) -> None:
        """Give up the pages that nobody reads."""
        for sheet in [sheet for sheet in self._sheets if sheet.readers == 0]:
            self.drop(sheet)

    def forget(self) -> None:
        """Drop every page: the feed has other lanes now. Whoever reads one finishes it."""
        for sheet in list(self._sheets):
            self.drop(sheet)
        self.wake()

    def close(self) -> None:
        """End the fetching and drop everything."""
        self._closed = True
        self._cancel()
        for waiting in self._locating.values():
            for promise in waiting:
                if not promise.done():
                    promise.set_exception(Unavailable(f"{self._name} was closed"))
        self._locating.clear()
        self._asking.clear()
        self._order.clear()
        self._late.clear()
        self._budget.waiting.pop(self, None)
        self.forget()

    def drop(self, sheet: Sheet) -> None:
        """Forget one page."""
        if sheet in self._sheets:
            del self._sheets[sheet]
            self._budget.idle.pop(sheet, None)
            self._budget.give(sheet.size)

    def wake(self) -> None:
        """Look again whether there is room."""
        self._budget.waiting.pop(self, None)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # -- fetching -------------------------------------------------------------------------

    async def _run(self) -> None:
        delay = _FIRST_RETRY
        try:
            while self._order and not self._closed:
                if not self._has_room():
                    self._room = self._runtime.promise()
                    await self._room
                    continue
                try:
                    await self._fetch(self._next())
                    delay = _FIRST_RETRY
                except (Unavailable, TimeoutError) as error:
                    logger.warning(
                        "the history of %s cannot be read, next attempt in %.1f s: %s",
                        self._name,
                        delay,
                        str(error) or "no answer",
                    )
                    await self._runtime.sleep(delay)
                    delay = min(delay * 2, _LAST_RETRY)
                except Exception:
                    # A defect must not leave those who ask waiting for ever without a word.
                    logger.exception("serving the history of %s failed", self._name)
                    delay = _LAST_RETRY
                    await self._runtime.sleep(delay)
        finally:
            self._running = False

    async def _fetch(self, place: Marks) -> None:
        """Fetch one page into the room that was taken for it. Raises Unavailable, TimeoutError."""
        try:
            work = self._history.history(place, PAGE_BYTES)
            page = await self._runtime.within(_PAGE_SECONDS, work)
        except (Unavailable, TimeoutError):
            raise
        except QueuecastError as error:
            self._fail(place, error)
        except Exception:
            logger.exception("reading the history of %s failed", self._name)
            self._fail(place, _broken())
        else:
            self._arrived(place, page)
        finally:
            self._budget.give(SHEET_BYTES)

    def _next(self) -> Marks:
        """The next place on the way through the history, or the first one again."""
        index = bisect_left(self._order, self._reached)
        return self._order[index if index < len(self._order) else 0][1]

    def _has_room(self) -> bool:
        if len(self._sheets) >= FEED_PAGES:
            idle = [sheet for sheet in self._sheets if sheet.readers == 0]
            if not idle:
                return False
            self.drop(idle[0])
        if self._budget.take(SHEET_BYTES):
            return True
        self._budget.waiting[self] = None
        return False

    def _arrived(self, place: Marks, page: PageLike) -> None:
        self.fetched += 1
        if place not in self._asking or self._closed:
            return  # everybody has gone
        lanes = self._lanes()
        if not len(place) == len(page.after) == len(page.start or place) == lanes:
            # More lanes have come meanwhile: those who asked come again with a mark for each.
            logger.info("the history of %s has other lanes than the %d known", self._name, lanes)
            for asking in self._taken(place):
                self.later(asking)
            return
        sheet = Sheet(place, page, self._runtime.now())
        self._sheets[sheet] = None
        self._budget.used += sheet.size  # within what was taken for it, but for one large message
        low = bisect_left(self._order, _key(min(place, sheet.start, key=_sum)))
        high = bisect_left(self._order, _key(sheet.after))
        places = [found for _, found in self._order[low:high] if sheet.serves(found)]
        if place not in places:
            places.append(place)
        readers = [asking for found in places for asking in self._taken(found)]
        # All are counted before the first may let go.
        sheet.readers = len(readers)
        for asking in readers:
            asking.arrived(sheet)
        self._reached = _key(sheet.after)

    def _fail(self, place: Marks, error: QueuecastError) -> None:
        for asking in self._taken(place):
            asking.failed(error)

    def _taken(self, place: Marks) -> list[Asking]:
        """Take out who asks for a place."""
        waiting = self._asking.get(place)
        if waiting is None:
            return []
        self._forget(place)
        return list(waiting)

    def _forget(self, place: Marks) -> None:
        del self._asking[place]
        del self._order[bisect_left(self._order, _key(place))]

    def _take(self, sheet: Sheet) -> None:
        sheet.readers += 1
        self._budget.idle.pop(sheet, None)

    def _ask_late(self) -> None:
        self._late_timer = False
        late, self._late = self._late, {}
        for asking in late:
            asking.again()


def _sum(place: Marks) -> int:
    return sum(mark.offset for mark in place)


def _key(place: Marks) -> tuple[int, Marks]:
    return _sum(place), place


def _broken() -> QueuecastError:
    return QueuecastError("the broker's history could not be read, see the gateway's log")
