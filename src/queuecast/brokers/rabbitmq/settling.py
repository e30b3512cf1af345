"""When a feed's queue has handed on what the broker had for it.

Whoever comes with another node's place is asked to wait for that: in front of what this node has
not read yet, messages that the client has from there would come once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Settling:
    """Looks at a queue, once for all who ask before a look begins."""

    def __init__(self, look: Callable[[float], Awaitable[None]], patience: float) -> None:
        """look: given when it has to end, by the loop's clock. patience: seconds that the first
        who asks for a look waits at most, until it begins and for itself together.
        """
        self._look = look
        self._patience = patience
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return after a look that began later than this call; raises what the look raises."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            ends = loop.time() + self._patience
            self._next = loop.create_task(self._run(ends), name="settle a feed")
            self._next.add_done_callback(_heard)
        await asyncio.shield(self._next)

    async def _run(self, ends: float) -> None:
        async with self._turn:
            self._next = None
            await self._look(ends)


def _heard(task: asyncio.Task[None]) -> None:
    """Take the error, in case all who waited for it have left."""
    if not task.cancelled():
        task.exception()
