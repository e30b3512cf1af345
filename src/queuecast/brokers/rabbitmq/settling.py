"""When a feed's queue has handed on what the broker had for it.

Whoever comes with another node's place is asked to wait for that: in front of what this node has
not read yet, messages that the client has from there would come once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Settling:
    """Looks at a queue, once for all who ask before a look begins."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return after a look that began later than this call; raises what the look raises."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run(), name="settle a feed")
            self._next.add_done_callback(_heard)
        await asyncio.shield(self._next)

    async def _run(self) -> None:
        async with self._turn:
            self._next = None
            await self._look()


def _heard(task: asyncio.Task[None]) -> None:
    """Take the error, in case all who waited for it have left."""
    if not task.cancelled():
        task.exception()
