"""Keeps a log readable under attack: one line per interval, and the count of those left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Throttle:
    """Logs at most one line per interval, whoever provokes how many."""

    def __init__(
        self,
        logger: logging.Logger,
        interval: float = 5.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """interval: seconds. now: a monotonic clock in seconds."""
        self._logger = logger
        self._interval = interval
        self._now = now
        self._next = float("-inf")
        self._left_out = 0

    def warning(self, text: str) -> None:
        """Log a warning, or count it when one was logged a moment ago."""
        now = self._now()
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + self._interval
        left_out, self._left_out = self._left_out, 0
        more = f" (and {left_out} more since the last such line)" if left_out else ""
        self._logger.warning("%s%s", text, more)
