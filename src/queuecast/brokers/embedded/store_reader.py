"""Reading retained messages from the store: a thread and a connection beside the writer's.

Each call is one short transaction, so that the write-ahead log can be reused, and bounded work,
so that many readers take turns.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ...errors import Unavailable
from ...message import Message
from .memory import OVERHEAD
from .retained import Filter, Run
from .store_codec import decode_properties
from .store_file import connect

R = TypeVar("R")

# Rows looked at in one call.
_ROWS = 1000
# For the last N of a pattern: rows looked at from the newest on, before keys are asked one by one.
_ROWS_BACK = 4 * _ROWS
# Keys asked in one call.
_KEYS = 200
# The largest number of messages that `last` counts back; for more it begins at the first.
MOST_LAST = 100_000

_COLUMNS = "offset, key, properties, body"


class Reader:
    """The connection that all retained destinations share."""

    def __init__(self, path: Path) -> None:
        self._database = connect(path, read_only=True)
        # One at a time; waiting are at most as many as there are subscribers behind their logs.
        self._thread = ThreadPoolExecutor(1, "queuecast history")
        self._is_closed = False

    async def run(self, read: Callable[[sqlite3.Connection], R]) -> R:
        """Call `read` in the thread, within one transaction; raises Unavailable."""
        if self._is_closed:
            raise Unavailable("the embedded broker is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, read)

    def _run(self, read: Callable[[sqlite3.Connection], R]) -> R:
        try:
            self._database.execute("BEGIN")
            try:
                return read(self._database)
            finally:
                self._database.execute("ROLLBACK")
        except (sqlite3.Error, ValueError) as error:
            raise Unavailable(f"the store cannot be read: {error}") from error

    def close(self) -> None:
        """End the thread after the call that it is in; blocks."""
        self._is_closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._database.close()


class StoredLog:
    """The messages of one rule, on disk; implements retained.RetainedLog."""

    def __init__(self, reader: Reader, rule: int, exchange: str) -> None:
        self._reader = reader
        self._rule = rule
        self._table = f"retained_{rule}"
        self._exchange = exchange

    async def first(self) -> int:
        return await self._reader.run(self._floor)

    def _floor(self, database: sqlite3.Connection) -> int:
        ((floor,),) = database.execute("SELECT floor FROM rules WHERE id = ?", (self._rule,))
        return int(floor)

    async def page(self, only: Filter, after: int, upto: int, max_bytes: int) -> Run:
        while True:
            run = await self._reader.run(
                lambda database, after=after: self._page(  # type: ignore[misc]
                    database, only, after, upto, max_bytes
                )
            )
            # Nothing of it among so many others: on, after everybody else's turn.
            if run.messages or run.end or run.missed:
                return run
            after = run.after

    def _page(
        self, database: sqlite3.Connection, only: Filter, after: int, upto: int, max_bytes: int
    ) -> Run:
        floor = self._floor(database)
        missed = after < floor
        after = max(after, floor)
        messages: list[Message] = []
        size = 0
        for seen, (offset, message) in enumerate(self._rows(database, only, after, upto), 1):
            if message is not None:
                size += len(message.body) + OVERHEAD
                if messages and size > max_bytes:
                    break
                messages.append(message)
            after = offset
            if seen == _ROWS:
                break
        else:
            return Run(messages, max(after, upto), floor, missed, True)
        return Run(messages, after, floor, missed, False)

    def _rows(
        self, database: sqlite3.Connection, only: Filter, after: int, upto: int
    ) -> Iterator[tuple[int, Message | None]]:
        """Yield the rows in order, None for a message that does not match."""
        if only.key is not None:
            for row in database.execute(
                f"SELECT {_COLUMNS} FROM {self._table} "
                "WHERE key = ? AND offset > ? AND offset <= ? ORDER BY offset",
                (only.key, after, upto),
            ):
                yield row[0], self._message(*row)
            return
        # Bodies are fetched apart: a long one lies on pages of its own, not read for nothing.
        heads = database.execute(
            f"SELECT offset, key FROM {self._table} "
            "WHERE offset > ? AND offset <= ? ORDER BY offset",
            (after, upto),
        )
        for offset, key in heads:
            if not only.matches(key):
                yield offset, None
                continue
            row = database.execute(
                f"SELECT {_COLUMNS} FROM {self._table} WHERE offset = ?", (offset,)
            ).fetchone()
            yield offset, self._message(*row)

    def _message(self, offset: int, key: str, properties: str, body: bytes) -> Message:
        return Message(body, self._exchange, key, decode_properties(properties), offset=offset)

    async def last(self, only: Filter, count: int, upto: int) -> int:
        if count > MOST_LAST:
            return await self.first()
        if only.key is not None:
            return await self._reader.run(
                lambda database: self._last_of_key(database, only.key or "", count, upto)
            )
        found = await self._reader.run(
            lambda database: self._last_rows(database, only, count, upto)
        )
        if found is not None:
            return found
        return await self._last_by_keys(only, count, upto)

    def _last_of_key(self, database: sqlite3.Connection, key: str, count: int, upto: int) -> int:
        row = database.execute(
            f"SELECT offset FROM {self._table} WHERE key = ? AND offset <= ? "
            "ORDER BY offset DESC LIMIT 1 OFFSET ?",
            (key, upto, count - 1),
        ).fetchone()
        return self._floor(database) if row is None else int(row[0]) - 1

    def _last_rows(
        self, database: sqlite3.Connection, only: Filter, count: int, upto: int
    ) -> int | None:
        """Count back from the newest row; None when it was not there among the newest rows."""
        rows = database.execute(
            f"SELECT offset, key FROM {self._table} WHERE offset <= ? ORDER BY offset DESC",
            (upto,),
        )
        for seen, (offset, key) in enumerate(rows, 1):
            if only.matches(key):
                count -= 1
                if not count:
                    return int(offset) - 1
            if seen == _ROWS_BACK:
                return None
        return self._floor(database)

    async def _last_by_keys(self, only: Filter, count: int, upto: int) -> int:
        """Find the newest offsets of all keys that match, key by key through the index."""
        newest: list[int] = []
        key: str | None = ""
        first = True
        while key is not None:
            newest, key = await self._reader.run(
                lambda database, newest=newest, key=key, first=first: self._some_keys(  # type: ignore[misc]
                    database, only, count, upto, newest, key, first
                )
            )
            first = False
        if len(newest) < count:
            return await self.first()
        return newest[count - 1] - 1

    def _some_keys(
        self,
        database: sqlite3.Connection,
        only: Filter,
        count: int,
        upto: int,
        newest: list[int],
        key: str,
        first: bool,
    ) -> tuple[list[int], str | None]:
        """Take in some keys after `key`; returns the newest offsets, and where to go on."""
        for _ in range(_KEYS):
            row = database.execute(
                f"SELECT key FROM {self._table} WHERE key {'>=' if first else '>'} ? "
                "ORDER BY key LIMIT 1",
                (key,),
            ).fetchone()
            first = False
            if row is None:
                return newest, None
            key = row[0]
            if not only.matches(key):
                continue
            # Only what is newer than the count that is there already.
            least = newest[count - 1] if len(newest) >= count else -1
            rows = database.execute(
                f"SELECT offset FROM {self._table} WHERE key = ? AND offset > ? AND offset <= ? "
                "ORDER BY offset DESC LIMIT ?",
                (key, least, upto, count),
            )
            newest = sorted((*newest, *(offset for (offset,) in rows)), reverse=True)[:count]
        return newest, key

    async def since(self, at: float, upto: int) -> int:
        return await self._reader.run(lambda database: self._since(database, at, upto))

    def _since(self, database: sqlite3.Connection, at: float, upto: int) -> int:
        # Times never fall from one message to the next, so halving finds the first that is late
        # enough without an index of its own.
        low = self._floor(database)
        high = upto
        while low < high:
            middle = (low + high) // 2
            row = database.execute(
                f"SELECT offset, at FROM {self._table} WHERE offset > ? AND offset <= ? "
                "ORDER BY offset LIMIT 1",
                (middle, high),
            ).fetchone()
            if row is None or row[1] >= at:
                high = middle
            else:
                low = int(row[0])
        return low
