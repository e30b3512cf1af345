"""The broker's work, one piece after the other and never one inside another.

Sinks are called in the middle of publishing and acking, and may themselves ack, nack or resume.
What that causes is queued here: every feed and queue sees messages in one order, and a consumer
that gives back all it gets recurses into nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .clock import Clock

R = TypeVar("R")

logger = logging.getLogger(__name__)

# Pieces done before the event loop has its turn: two consumers that nack a message to and fro
# must not stop everybody else.
PIECES = 100


class Turn:
    """A queue of work that runs itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._work: deque[Callable[[], object]] = deque()
        self._running = False
        self._scheduled = False
        self._is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let what is done meanwhile cause nothing before the end; the event loop may turn."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self._run()

    def do(self, work: Callable[[], object]) -> None:
        """Run a piece of work: at once, or after the piece that is running now."""
        self._work.append(work)
        self._run()

    def first(self, work: Callable[[], R]) -> R:
        """Run a piece before all that waits and return its result, then do what it caused."""
        if self._running:
            raise RuntimeError("a sink must not drive the broker's coroutines by hand")
        self._running = True
        try:
            return work()
        finally:
            self._running = False
            self._run()

    def _run(self) -> None:
        if self._running or self._is_held:
            return
        self._running = True
        try:
            for _ in range(PIECES):
                if not self._work:
                    return
                try:
                    self._work.popleft()()
                except Exception:
                    logger.exception("embedded broker: a piece of work failed")
        finally:
            self._running = False
        if self._work and not self._scheduled:
            self._scheduled = True
            self._clock.call_later(0, self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        self._run()
