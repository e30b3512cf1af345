"""What is measured of the store: how long commits take, and how large the files are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

from ...metrics import Family, by_label, counter, gauge, histogram
from .store_batch import Outcome
from .store_file import FILE
from .store_writer import RuleState

# Seconds of a commit. Flash takes about a millisecond, a disk that turns ten.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class StoreMeasures:
    """Counts commits; looks at the files of a directory when asked."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._failed = 0
        self._units = 0
        # By destination, its rule among the writer's, which has the numbers: another thread
        # changes them, each in one step.
        self.retained: dict[str, tuple[Mapping[int, RuleState], int]] = {}

    def committed(self, outcome: Outcome) -> None:
        """Count a batch."""
        if outcome.error is not None:
            self._failed += 1
            return
        self._counts[bisect_left(BOUNDS, outcome.seconds)] += 1
        self._seconds += outcome.seconds
        self._units += len(outcome.batch.units)

    def families(self, waiting: int, *, ok: bool) -> list[Family]:
        """Return the metrics. waiting: bytes that wait for the disk. ok: it can write."""
        rules = {name: states[number] for name, (states, number) in self.retained.items()}
        return [
            by_label(
                "queuecast_retained_messages",
                "gauge",
                "Messages that each [[retain]] rule keeps.",
                "destination",
                {name: rule.count for name, rule in rules.items()},
            ),
            by_label(
                "queuecast_retained_bytes",
                "gauge",
                "Their bytes, as its bound counts them.",
                "destination",
                {name: rule.size for name, rule in rules.items()},
            ),
            gauge("queuecast_store_up", "1 while the last batch could be written.", int(ok)),
            histogram(
                "queuecast_store_commit_seconds",
                "What a commit took, of all that gathered meanwhile.",
                BOUNDS,
                self._counts,
                self._seconds,
            ),
            counter(
                "queuecast_store_units_total",
                "Publishes and other changes that were written together.",
                self._units,
            ),
            counter("queuecast_store_failed_commits_total", "Batches that failed.", self._failed),
            gauge("queuecast_store_waiting_bytes", "Messages that wait for the disk.", waiting),
            gauge("queuecast_store_file_bytes", "Size of the database.", _size(self._file)),
            gauge(
                "queuecast_store_log_bytes",
                "Size of its write-ahead log.",
                _size(self._file.with_name(f"{FILE}-wal")),
            ),
        ]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
