"""The store's one writer: a thread that turns batches of changes into transactions.

The law of group commit: a batch holds whatever gathered while the one before was written, in the
order of the calls, and is written as a whole or not at all. Who waits for it hears of it only
after the commit. What a client may be told of failing (a publish) fails with its batch; what has
happened already (an ack, a declaration, a dead letter) is written with the next.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ...errors import OutcomeUnknown, QueuecastError, Unavailable
from .age import AgeClock
from .store_batch import Batch, Outcome
from .store_file import write_anchor

logger = logging.getLogger(__name__)

# Seconds between looks at what is too old, and at space to give back.
TICK = 1.0
# Seconds between notes of where the clock of ages stands: what another boot may lose of it.
_ANCHORED = 60.0
# Retained messages dropped, and pages given back, in one transaction: a publish waits behind it.
_EVICTED_A_TIME = 5000
_PAGES_A_TIME = 2048
# Free pages that stay in the file for the next messages, at least (1 MB).
_FREE_PAGES = 256
# The write-ahead log is cut back when a reader kept it from being reused for so long.
_WAL_MOST = 32 << 20


@dataclass(slots=True)
class RuleState:
    """A retained rule as it stands in the store.

    floor: the last offset that is gone; what follows it is complete. count and size: what there
    is now. age in seconds, bytes and messages: its bounds, 0 for none.
    """

    id: int
    floor: int
    count: int
    size: int
    age: float = 0.0
    bytes: int = 0
    messages: int = 0

    @property
    def table(self) -> str:
        return f"retained_{self.id}"

    def is_over(self, at: float, now: float) -> bool:
        """Tell whether the oldest message, of a time, has to go."""
        return bool(
            (self.messages and self.count > self.messages)
            or (self.bytes and self.size > self.bytes)
            or (self.age and at < now - self.age)
        )


class Writer:
    """The thread and its connection. report: called from the thread with each outcome."""

    def __init__(
        self,
        database: sqlite3.Connection,
        path: Path,
        rules: dict[int, RuleState],
        report: Callable[[Outcome], None],
        ages: AgeClock,
    ) -> None:
        self.database = database
        self._wal = path.with_name(f"{path.name}-wal")
        self._rules = rules
        self._report = report
        self._ages = ages
        self._anchored = time.monotonic()
        # At most one batch and the word to stop: the store keeps the next one open meanwhile.
        self._jobs: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._maintained = time.monotonic()
        self._is_neglected = False
        self._thread = threading.Thread(target=self._run, name="queuecast store", daemon=True)

    def start(self) -> None:
        """Look at what became too old meanwhile, then take batches."""
        self._maintain()
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Take a batch; the next one only after its outcome was reported."""
        self._jobs.put(batch)

    def stop(self) -> None:
        """End the thread after the batch that it has; blocks."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                batch = self._jobs.get(timeout=TICK)
            except queue.Empty:
                self._maintain()
                continue
            if batch is None:
                return
            since = time.perf_counter()
            error = self._commit(batch)
            self._report(Outcome(batch, error, time.perf_counter() - since))
            if time.monotonic() - self._maintained > TICK:
                self._maintain()

    def _commit(self, batch: Batch) -> QueuecastError | None:
        database = self.database
        added: dict[int, list[int]] = {}
        for unit in batch.units:
            for number, size in unit.retained:
                added.setdefault(number, []).append(size)
        trial = {number: replace(self._rules[number]) for number in added}
        committing = False
        try:
            database.execute("BEGIN IMMEDIATE")
            for sql, changes in groupby(batch.changes(), key=lambda change: change[0]):
                database.executemany(sql, [values for _, values in changes])
            for number, sizes in added.items():
                rule = trial[number]
                rule.count += len(sizes)
                rule.size += sum(sizes)
                # Twice what came, so that a bound that was lowered is reached too.
                self._evict(rule, 2 * len(sizes) + 100)
            committing = True
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - every publisher of the batch has to hear of it
            return self._undo(error, committing)
        self._rules.update(trial)
        return None

    def _undo(self, error: Exception, committing: bool) -> QueuecastError:
        try:
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
        except sqlite3.Error as second:
            logger.error("the store's rollback failed: %s", second)
        if not isinstance(error, sqlite3.Error):
            logger.error("the store cannot write a batch", exc_info=error)
        is_full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        if committing and not is_full:
            # The log may hold the whole transaction, and a kill now would bring it back.
            return OutcomeUnknown(f"the store failed in the commit: {error}")
        return Unavailable(
            f"the store cannot write: {error}",
            "make room on the disk of broker.data" if is_full else "the gateway's log has more",
        )

    def _evict(self, rule: RuleState, most: int) -> bool:
        """Drop the oldest messages of a rule while it is over a bound; returns whether any."""
        now = self._ages.now()
        cut = None
        rows = self.database.execute(
            f"SELECT offset, at, size FROM {rule.table} ORDER BY offset LIMIT ?", (most,)
        )
        for offset, at, size in rows:
            if not rule.is_over(at, now):
                break
            cut = offset
            rule.count -= 1
            rule.size -= size
        rows.close()
        if cut is not None:
            rule.floor = cut
            self.database.execute(f"DELETE FROM {rule.table} WHERE offset <= ?", (cut,))
        self.database.execute(
            "UPDATE rules SET floor = ?, count = ?, bytes = ? WHERE id = ?",
            (rule.floor, rule.count, rule.size, rule.id),
        )
        return cut is not None

    def _maintain(self) -> None:
        """Drop what became too old, and give free space back to the disk."""
        self._maintained = time.monotonic()
        try:
            for number, rule in self._rules.items():
                if not rule.count:
                    continue
                trial = replace(rule)
                self.database.execute("BEGIN IMMEDIATE")
                evicted = self._evict(trial, _EVICTED_A_TIME)
                self.database.execute("COMMIT" if evicted else "ROLLBACK")
                if evicted:
                    self._rules[number] = trial
            if time.monotonic() - self._anchored >= _ANCHORED:
                self._anchored = time.monotonic()
                write_anchor(self.database, self._ages.anchor())
            self._give_back()
        except sqlite3.Error as error:
            # Once: it is tried again every second.
            logger.log(
                logging.DEBUG if self._is_neglected else logging.WARNING,
                "the store's upkeep failed: %s",
                error,
            )
            self._is_neglected = True
            self._undo(error, False)
        else:
            self._is_neglected = False

    def _give_back(self) -> None:
        ((free,),) = self.database.execute("PRAGMA freelist_count").fetchall()
        ((pages,),) = self.database.execute("PRAGMA page_count").fetchall()
        spare = free - max(_FREE_PAGES, pages // 8)
        if spare > 0:
            amount = min(spare, _PAGES_A_TIME)
            # Not execute: it ends a statement without columns after its first step, one page.
            self.database.executescript(f"PRAGMA incremental_vacuum({amount})")
        try:
            wal = self._wal.stat().st_size
        except FileNotFoundError:
            return
        if spare > 0 or wal > _WAL_MOST:
            # The file itself shrinks at a checkpoint. With a reader in the way: at the next.
            self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
