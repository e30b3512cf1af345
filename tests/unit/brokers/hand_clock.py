"""A clock that the test turns by hand."""

from collections.abc import Callable
from typing import Any


class HandTimer:
    """A call on a HandClock that is due later."""

    def __init__(self, due: float, number: int, call: Callable[[], object]) -> None:
        self.due = due
        self.number = number
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandClock:
    """Time stands still until `turn`; calls that are due run in order."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._timers: list[HandTimer] = []
        self._numbers = 0

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> HandTimer:
        self._numbers += 1
        timer = HandTimer(self.time + delay, self._numbers, lambda: call(*args))
        self._timers.append(timer)
        return timer

    @property
    def waiting(self) -> int:
        """The number of calls that are due later."""
        return sum(1 for timer in self._timers if not timer.cancelled)

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass; with 0 only what is due now runs."""
        end = self.time + seconds
        while True:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            due = [timer for timer in self._timers if timer.due <= end]
            if not due:
                break
            first = min(due, key=lambda timer: (timer.due, timer.number))
            self._timers.remove(first)
            self.time = max(self.time, first.due)
            first.call()
        self.time = end
