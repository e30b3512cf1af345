"""Keeps a log readable under attack: few lines per interval, and the count of those left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

# Different lines in one interval: enough that one refusal does not hide another, too few for
# somebody who makes up a new name with each request to fill the log.
_LINES = 8


class Throttle:
    """Logs a line once per interval, and few different lines, whoever provokes how many."""

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
        self._said: set[str] = set()
        self._left_out = 0

    def warning(self, text: str) -> None:
        """Log a warning, or count it when it, or enough others, were logged a moment ago."""
        now = self._now()
        if now >= self._next:
            self._next = now + self._interval
            self._said.clear()
        if text in self._said or len(self._said) >= _LINES:
            self._left_out += 1
            return
        self._said.add(text)
        left_out, self._left_out = self._left_out, 0
        more = f" (and {left_out} more since the last such line)" if left_out else ""
        self._logger.warning("%s%s", text, more)
