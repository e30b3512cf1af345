"""The pulse of a connection: it is dropped when RabbitMQ stands still, long before TCP notices.

A node that hangs keeps its sockets open. When nothing has been heard for a while RabbitMQ is asked
something that costs it nothing; anything that arrives counts as its answer. A connection that
RabbitMQ blocks (connection.blocked) answers no calls, but it still brings heartbeats: there pika's
own check of the heartbeats is the only one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import pika.exceptions

from ...errors import QueuecastError
from .failures import NoAnswer

if TYPE_CHECKING:
    from .connection import Channel, Link

log = logging.getLogger(__name__)

# Seconds without a byte from RabbitMQ before it is asked, and seconds for its answer. Together
# they are as long as a live node can be silent at the default heartbeat of 10 seconds: it sends
# one after every 5 seconds in which it had nothing else to send, also on a connection whose
# publishes it holds up.
QUIET = 4.0
ANSWER = 6.0
_TICK = 1.0
# A tick that comes later than this (seconds) says that this process stood still, not RabbitMQ.
_LATE = 2.0


class Pulse:
    """Looks after one link until it is lost."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: Channel | None = None
        self._asking: asyncio.Task[None] | None = None
        self._heard = asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="rabbitmq pulse")
        self._task.add_done_callback(self._ended)
        link.lost.add_done_callback(lambda _lost: self.stop())

    @property
    def quiet(self) -> float:
        """Seconds since something was heard, to the second."""
        return asyncio.get_running_loop().time() - self._heard

    def stop(self) -> None:
        """Stop looking."""
        self._task.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("looking after a connection failed", exc_info=task.exception())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        link = self._link
        received = link.received
        before = loop.time()
        asked: float | None = None
        while True:
            await asyncio.sleep(_TICK)
            now = loop.time()
            stood_still = now - before > _TICK + _LATE
            before = now
            if link.received != received or stood_still or link.blocked is not None:
                received, self._heard, asked = link.received, now, None
                continue
            if asked is None and now - self._heard >= QUIET:
                asked = now
                self._ask()
            elif asked is not None and now - asked >= ANSWER:
                link.drop(NoAnswer(f"RabbitMQ has not answered for {now - self._heard:.0f} s"))
                return

    def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._question())

    async def _question(self) -> None:
        # Whatever comes of it: what counts is that something came.
        with contextlib.suppress(QueuecastError, pika.exceptions.AMQPError):
            if self._channel is None or not self._channel.is_open:
                self._channel = await self._link.channel()
            else:
                self._channel.raw.flow(True, callback=_ignore)


def _ignore(_active: bool) -> None:
    """The answer's bytes were counted."""
