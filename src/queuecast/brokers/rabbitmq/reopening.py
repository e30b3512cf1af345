"""Opening a consumer again, after its channel, its connection or its queue was lost.

A queue whose node is down is away, not gone: the consumer waits until it is back. One that was
deleted is gone, unless it is declared again within a moment; what it held is lost then, and so is
what was published meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from ...errors import Conflict, Locked, NotFound, QueuecastError, Refused
from .away import AwayQueues
from .connection import Link
from .failures import Away

log = logging.getLogger(__name__)

FIRST_RETRY = 0.5  # seconds
_LAST_RETRY = 15.0
# Seconds between attempts at a queue that is back by what RabbitMQ says, and yet is not.
_AWAY_RETRY = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)

RECREATED = "the queue was deleted and declared again, or it failed; messages may be lost"
WAS_AWAY = "the node of the subscription's queue was down; messages may have missed it"


class Reopened(Protocol):
    """What is opened again: a consumer."""

    queue: str

    @property
    def closed(self) -> bool: ...

    async def open(self, link: Link) -> None:
        """Consume on this link; raises a QueuecastError."""

    def owe(self, reason: str, *, bound: bool = False) -> None:
        """Note the reason of a gap; bound: only where the queue is bound for the consumer."""

    def end(self, error: QueuecastError) -> None:
        """It cannot be opened again."""


class Reopening:
    """The task that opens one consumer again, while there is one."""

    def __init__(self, consumer: Reopened, away: AwayQueues) -> None:
        self._consumer = consumer
        self._away = away
        self._task: asyncio.Task[None] | None = None

    def start(self, link: Link, *, cancelled: bool = False) -> None:
        """Open it on this link. cancelled: RabbitMQ cancelled it, its queue is perhaps gone."""
        self.stop()
        task = asyncio.get_running_loop().create_task(self._run(link, cancelled))
        task.add_done_callback(self._done)
        self._task = task

    def stop(self) -> None:
        """Give it up."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("reopening a consumer failed", exc_info=task.exception())

    async def _run(self, link: Link, cancelled: bool) -> None:
        consumer, queue = self._consumer, self._consumer.queue
        delay = FIRST_RETRY
        away = 0
        while not consumer.closed and link.is_open:
            try:
                if cancelled:
                    await self._find(after_away=away > 0)
                await consumer.open(link)
                return
            except Away as error:
                self._away.note(queue, error)
                consumer.owe(WAS_AWAY, bound=True)
                await self._away.back(queue)
                # A queue can be there for RabbitMQ a moment before it can be consumed.
                pause = _AWAY_RETRY[min(away, len(_AWAY_RETRY) - 1)]
                away += 1
                await asyncio.sleep(random.uniform(pause / 2, pause))
                continue
            except Locked as error:
                # An exclusive holder, often our own old connection, may go away.
                log.info("the consumer of queue %r waits: %s", queue, error)
            except (NotFound, Refused, Conflict) as error:
                self._away.warn(queue, f"its subscriptions end: {error}")
                consumer.end(error)
                return
            except QueuecastError as error:
                log.info("the consumer of queue %r: %s", queue, error)
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, _LAST_RETRY)

    async def _find(self, *, after_away: bool) -> None:
        """Return once the queue is there; raises NotFound when it stays deleted, and Away.

        A queue that was deleted is not declared again behind the back of who did it.
        """
        queue = self._consumer.queue
        try:
            await self._away.ask(queue)
        except NotFound:
            if not await self._away.recreated(queue):
                raise
        else:
            if after_away:
                return
        self._away.warn(queue, RECREATED)
        self._consumer.owe(RECREATED)
