"""What is written together: changes, the units that they belong to, and a batch of units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import QueuecastError

# An entry's id is its queue's and its number in the queue: one range of ids for each queue.
NUMBER_BITS = 40

# A statement and its values.
Change = tuple[str, tuple[Any, ...]]


@dataclass(slots=True)
class Unit:
    """Changes that belong together, and what hangs on them.

    retained: rules and sizes of messages added to them. applied: called after the commit.
    failed: called instead when there was none; a unit without it is written with the next batch.
    weight: bytes of memory.
    """

    changes: list[Change]
    applied: Callable[[], None] | None = None
    failed: Callable[[QueuecastError], None] | None = None
    retained: tuple[tuple[int, int], ...] = ()
    weight: int = 0


class Batch:
    """Units in order, the newest number of deliveries of entries, and what left streams."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        # Bounded by the entries there are: a message that goes to and fro while the disk is full
        # must not gather changes.
        self.deliveries: dict[int, int] = {}
        # The last number gone from the front of streams, by queue id: bounded by the streams.
        self.floors: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self.units or self.deliveries or self.floors)

    def add(self, change: Change) -> None:
        """Add a change that nobody waits for, in its place among the others."""
        if self.units and self.units[-1].applied is None and self.units[-1].failed is None:
            self.units[-1].changes.append(change)
        else:
            self.units.append(Unit([change]))

    def changes(self) -> Iterator[Change]:
        """Yield all changes in order."""
        for unit in self.units:
            yield from unit.changes
        for entry, count in self.deliveries.items():
            yield "UPDATE entries SET deliveries = ? WHERE id = ?", (count, entry)
        for queue, floor in self.floors.items():
            low = queue << NUMBER_BITS
            yield "DELETE FROM entries WHERE id BETWEEN ? AND ?", (low, low + floor)
            yield "UPDATE queues SET floor = ? WHERE id = ?", (floor, queue)


@dataclass(slots=True)
class Outcome:
    """What became of a batch; error None when it is on disk. seconds: that the commit took."""

    batch: Batch
    error: QueuecastError | None = None
    seconds: float = 0.0
