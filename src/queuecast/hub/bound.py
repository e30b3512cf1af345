"""The node's bound on what all its logs hold: the largest of them pay, not whoever comes last.

A hundred thousand feeds over the bound are halved in one pass, and a log file gets a line about
it now and then, not one for each of them: else whoever publishes much would fill the disk too.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence

from .feed import Feed
from .log import Budget

logger = logging.getLogger(__name__)

# Seconds between two lines.
_INTERVAL = 5.0


class Bound:
    """Halves the largest logs until all together fit, and says so."""

    def __init__(self, budget: Budget, total: int) -> None:
        """total: bytes that all logs may hold."""
        self._budget = budget
        self._total = total
        self._next_line = float("-inf")
        # Since the last line: halvings, what they dropped, and the one that was largest first.
        self._halved = 0
        self._dropped = 0
        self._largest = ""

    def enforce(self, feeds: Callable[[], Sequence[Feed]], now: float) -> None:
        """Bring all logs under the bound. feeds: all of the node. now: monotonic seconds."""
        if self._budget.used > self._total:
            self._halve(feeds())
        if self._halved and now >= self._next_line:
            self._next_line = now + _INTERVAL
            logger.warning(
                "logs held more than [log] total, %d bytes: since the last such line the largest "
                "were halved %d times, which dropped %d messages; the first was %s",
                self._total,
                self._halved,
                self._dropped,
                self._largest,
            )
            self._halved = self._dropped = 0

    def _halve(self, feeds: Sequence[Feed]) -> None:
        budget = self._budget
        before = budget.evicted
        sizes = [(-feed.bytes, number) for number, feed in enumerate(feeds)]
        heapq.heapify(sizes)
        while sizes and budget.used > self._total:
            size, number = sizes[0]
            if size == 0:
                break
            feed = feeds[number]
            if not self._halved:
                self._largest = feed.name
            feed.halve()
            self._halved += 1
            heapq.heapreplace(sizes, (-feed.bytes, number))
        self._dropped += budget.evicted - before
