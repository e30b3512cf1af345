"""Deliveries of kept messages are known to the store before they are made.

Else a kill would bring a message again that a client has seen, and not say that it is a
redelivery. A message that finds a consumer waiting is stored as delivered from the start and
costs nothing more; one from a backlog waits for a commit, together with all that the consumers
can take, and with some more once a backlog turns out to be long.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ...errors import QueuecastError
from .consumer import QueueConsumer
from .entry import Entry
from .queue import Queue
from .store import Store
from .store_batch import Unit

# Entries cleared by one commit: after a kill at most so many are marked that were not delivered.
_MOST = 1000
_MOST_AHEAD = 256
# Commits of its own that a backlog is given before it is cleared ahead.
_PATIENCE = 8


class Clearance:
    """What one queue asks of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking = False
        self._ahead = 0
        self._asked = 0

    def ask(self, queue: Queue, takers: Iterable[QueueConsumer]) -> None:
        """Clear the entries that the takers can take, and wake the queue then."""
        if self._asking:
            return
        room = 0
        for taker in takers:
            room += taker.room
            if room >= _MOST:
                break
        entries = list(islice(queue.uncleared(), min(_MOST, room + self._ahead)))
        # One message after the other (prefetch 1) must not cost a commit each.
        is_long = len(entries) == room + self._ahead
        self._asked = self._asked + 1 if is_long else 0
        if self._asked < _PATIENCE:
            self._ahead = 0
        else:
            self._ahead = min(_MOST_AHEAD, 2 * self._ahead + 1)
        self._asking = True

        def applied() -> None:
            self._asking = False
            for entry in entries:
                entry.cleared = True
            queue.wake()

        def failed(error: QueuecastError) -> None:
            # A disk that is full must not stop those who empty the queues.
            for entry in entries:
                self._store.delivered(entry.kept, 1)
            applied()

        changes = [
            ("UPDATE entries SET deliveries = ? WHERE id = ?", (1, entry.kept)) for entry in entries
        ]
        self._store.submit(Unit(changes, applied=applied, failed=failed))

    def hand(self, entry: Entry) -> None:
        """Count a delivery; the first one was counted when it was cleared."""
        if entry.kept and entry.returns:
            self._store.delivered(entry.kept, entry.returns + 1)

    def take_back(self, entry: Entry) -> None:
        """Undo the count of a delivery that the consumer did not take."""
        if entry.kept and entry.returns:
            self._store.delivered(entry.kept, entry.returns)

    def drop(self, entry: Entry) -> None:
        """Forget an entry that was acked."""
        self._store.drop(entry.kept)
