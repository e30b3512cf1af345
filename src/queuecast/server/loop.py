"""The asyncio event loop as the Runtime that hub and sessions are given."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ..runtime import Promise, Timer

logger = logging.getLogger(__name__)

T = TypeVar("T")


class LoopRuntime:
    """Adapter over the running loop; see runtime.Runtime."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        """See Runtime."""
        # The clock of every loop, but not the time at which this turn began: uvloop's is that.
        return time.monotonic()

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        """See Runtime."""
        self._loop.call_soon(call, *args)

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        """See Runtime."""
        return self._loop.call_later(delay, call, *args)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> Callable[[], object]:
        """See Runtime."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task.cancel

    def promise(self) -> Promise:
        """See Runtime."""
        return self._loop.create_future()

    async def sleep(self, delay: float) -> None:
        """See Runtime."""
        await asyncio.sleep(delay)

    async def within(self, seconds: float, work: Awaitable[T]) -> T:
        """See Runtime."""
        # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes in the very
        # turn in which the work is done, and a client that left would keep its subscription.
        async with asyncio.timeout(seconds):
            return await work

    async def settle(self) -> None:
        """Cancel what still runs in the background, and wait for its end."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
