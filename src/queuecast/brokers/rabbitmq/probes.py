"""Channels for risky calls: those that RabbitMQ answers by closing the channel, or not for long.

A call about a queue whose node is down can wait inside RabbitMQ for a minute (4.0: 64 seconds).
Such a call has a limit, and it does not keep the others from their channels.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Channel, Link

# Risky calls at a time, so that a client that names thousands of missing exchanges cannot take
# all channels of a connection.
PROBES = 16
# Seconds after which a slow call gives its place to the next, and the number of calls that may do
# so: they keep their channels until RabbitMQ has answered.
_SLOW = 0.5
SLOW_PROBES = 128
_IDLE = 4


class Probes:
    """The channels for risky calls of one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(PROBES)
        self._slow = 0  # channels of calls that gave their place away, or were given up
        self._idle: list[Channel] = []

    @contextlib.asynccontextmanager
    async def borrow(self, *, fresh: bool, patience: float | None) -> AsyncIterator[Channel]:
        """Borrow a channel; see Link.probe."""
        async with self._place(may_be_slow=patience is not None):
            while self._idle and not self._idle[-1].is_open:
                self._idle.pop()
            channel = self._idle.pop() if self._idle and not fresh else await self._link.channel()
            clean = False
            try:
                async with asyncio.timeout(patience):
                    yield channel
                clean = True
            finally:
                if clean and channel.is_open and len(self._idle) < _IDLE:
                    self._idle.append(channel)
                else:
                    channel.abandon()
                    if patience is not None and not channel.closed.done():
                        # RabbitMQ closes it only when the call inside has ended.
                        self._slow += 1
                        channel.closed.add_done_callback(self._ended)

    @contextlib.asynccontextmanager
    async def _place(self, *, may_be_slow: bool) -> AsyncIterator[None]:
        """Have one of the places; a slow call keeps it for a moment only."""
        await self._places.acquire()
        given = False

        def give() -> None:
            nonlocal given
            if self._slow < SLOW_PROBES:
                given = True
                self._slow += 1
                self._places.release()

        timer = self._loop.call_later(_SLOW, give) if may_be_slow else None
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            if given:
                self._slow -= 1
            else:
                self._places.release()

    def _ended(self, _closed: asyncio.Future[BaseException]) -> None:
        self._slow -= 1
