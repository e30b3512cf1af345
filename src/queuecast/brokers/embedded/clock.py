"""The clock that the embedded broker lives by, so that tests can turn it by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ...runtime import Timer


class Clock(Protocol):
    """What the broker needs of time; every Runtime has it. Seconds, monotonic."""

    def now(self) -> float:
        """Return the monotonic clock in seconds."""

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        """Run `call` after `delay` seconds; 0: in the next turn of the loop."""


class LoopClock:
    """The clock of the running asyncio loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(delay, call, *args)
