"""Queues that exist and cannot be used at the moment: their node is down.

Each is looked at by one task for all consumers and publishers of this login, because a thousand
subscriptions of one such queue must not ask a thousand times: RabbitMQ 4.0 answers only after a
minute, and each question costs a channel until then.
"""

from __future__ import annotations

import asyncio
import logging
import random

import pika.exceptions

from ...errors import NotFound, QueuecastError, Unavailable
from ..background import Background
from .connection import Link
from .failures import Away, away, ends_connections, of_channel
from .supervisor import Supervisor
from .topology import check_queue

log = logging.getLogger(__name__)

_FIRST, _LAST = 0.25, 2.0  # seconds between questions
# Questions at a time: each may wait inside RabbitMQ and has a channel of the first connection,
# which keeps some free for such calls (pool.RESERVED_CHANNELS). When a node comes back all of
# them are answered at once, and the next ones follow.
_QUESTIONS = 64
# Connections that look at one queue each, at a time; and seconds for RabbitMQ to begin a consumer.
_TRIALS = 4
_TRIAL = 5.0
# Queues that are looked at; further ones are asked about by each consumer, now and then. It stops
# a client that names thousands of queues of a dead node.
MAX_WATCHED = 1000
# Seconds that a queue is looked at although no consumer waits for it.
_UNUSED = 30.0
# Seconds in which a warning of a queue is not repeated.
_SAID = 10.0
# Queues that were deleted may be declared again by the script that deleted them.
RECREATED = 2.0


class _Watch:
    """One queue that is away. back: done when it can be tried again."""

    def __init__(self, error: Away, now: float) -> None:
        self.error = error
        self.waiters = 0
        self.used = now
        self.back: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class AwayQueues:
    """The queues that are away. supervisor: the connection that they are asked about on."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._watches: dict[str, _Watch] = {}
        self._questions = asyncio.Semaphore(_QUESTIONS)
        self._trials = asyncio.Semaphore(_TRIALS)
        self._asked: dict[str, asyncio.Future[QueuecastError | None]] = {}
        # Queues whose going was logged, and whose return was not; bounded as the watches are.
        self._told: set[str] = set()
        self._said: set[tuple[str, str]] = set()
        self._background = Background(log)

    def check(self, name: str) -> None:
        """Raise Away at once for a queue that is known to be away."""
        watch = self._watches.get(name)
        if watch is not None:
            watch.used = asyncio.get_running_loop().time()
            raise away(name, watch.error.why, dangerous=watch.error.dangerous)

    def note(self, name: str, error: Away) -> None:
        """Note that a queue is away, and look at it until it is back."""
        if name in self._watches or len(self._watches) >= MAX_WATCHED:
            return
        if name not in self._told and len(self._told) < MAX_WATCHED:
            self._told.add(name)
            log.warning("the queue %r is away, its subscriptions wait: %s", name, error.why)
        watch = self._watches[name] = _Watch(error, asyncio.get_running_loop().time())
        self._background.spawn(self._look_until_back(name, watch), f"looking at queue {name!r}")

    def warn(self, name: str, text: str) -> None:
        """Log what befell a queue, once for all of its subscriptions."""
        said = (name, text)
        if said in self._said or len(self._said) >= MAX_WATCHED:
            return
        self._said.add(said)
        asyncio.get_running_loop().call_later(_SAID, self._said.discard, said)
        log.warning("the queue %r: %s", name, text)

    def used(self, name: str) -> None:
        """Note that a queue can be used: it was consumed or took a message."""
        if self._told and name in self._told and name not in self._watches:
            self._told.discard(name)
            log.info("the queue %r is back", name)

    async def back(self, name: str) -> None:
        """Return when it is worth to try a queue again that was noted as away."""
        watch = self._watches.get(name)
        if watch is None:
            await asyncio.sleep(random.uniform(_LAST / 2, _LAST))
            return
        watch.waiters += 1
        try:
            await asyncio.shield(watch.back)
        finally:
            watch.waiters -= 1

    async def ask(self, name: str) -> None:
        """Ask about a queue, once for all who ask at the same time.

        Raises Away, NotFound, Unavailable, and what else speaks against its use.
        """
        self.check(name)
        asked = self._asked.get(name)
        if asked is None:
            asked = self._asked[name] = asyncio.get_running_loop().create_future()
            self._background.spawn(self._ask(name, asked), f"asking about queue {name!r}")
        error = await asyncio.shield(asked)
        if error is not None:
            raise type(error)(error.text, error.hint)

    async def _ask(self, name: str, asked: asyncio.Future[QueuecastError | None]) -> None:
        found: QueuecastError | None = None
        try:
            await check_queue(await self._supervisor.wait(0), name)
        except QueuecastError as error:
            found = error
            if isinstance(error, Away):
                self.note(name, error)
        finally:
            del self._asked[name]
            asked.set_result(found)

    async def recreated(self, name: str) -> bool:
        """Return whether a queue that was deleted is there again within a short time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + RECREATED
        while True:
            try:
                await self.ask(name)
            except NotFound:
                if loop.time() >= end:
                    return False
            else:
                return True
            await asyncio.sleep(_FIRST)

    async def _look_until_back(self, name: str, watch: _Watch) -> None:
        loop = asyncio.get_running_loop()
        try:
            if watch.error.elsewhere:
                # It exists for every node: only a consumer can find out whether it can be read.
                await asyncio.sleep(random.uniform(_LAST / 2, _LAST))
                return
            delay = _FIRST
            is_back = self._can_be_consumed if watch.error.dangerous else self._is_back
            while not await is_back(name):
                if not watch.waiters and loop.time() - watch.used > _UNUSED:
                    self._told.discard(name)
                    return
                await asyncio.sleep(random.uniform(delay / 2, delay))
                delay = min(delay * 2, _LAST)
        finally:
            del self._watches[name]
            watch.back.set_result(None)
        if not watch.waiters:
            self.used(name)

    async def _is_back(self, name: str) -> bool:
        try:
            link = await self._supervisor.wait(_LAST)
            async with self._questions:
                await _find(link, name)
        except Unavailable:
            return False
        except QueuecastError:
            return True  # it is gone, or somebody else's: the next to ask is told
        return True

    async def _can_be_consumed(self, name: str) -> bool:
        """Consume it for a moment, on a connection of its own, which may end by that.

        RabbitMQ has no other question that shows whether a quorum queue has its majority.
        """
        try:
            await self._supervisor.wait(_LAST)
            async with self._trials:
                link = await self._supervisor.spare()
                try:
                    async with asyncio.timeout(_TRIAL):
                        channel = await link.channel()
                        await channel.qos(1)
                        await channel.consume(name, "trial", lambda *_delivery: None)
                        await channel.close()
                finally:
                    # Closing it in order would wait for RabbitMQ, which may hang in the question.
                    link.drop(pika.exceptions.StreamLostError("the question was answered"))
        except pika.exceptions.AMQPError as error:
            return not ends_connections(error) and not isinstance(of_channel(error), Unavailable)
        except (Unavailable, TimeoutError):
            return False
        except QueuecastError:
            return True
        return True

    async def close(self) -> None:
        """Stop looking."""
        self._background.cancel()
        await self._background.ended()


async def _find(link: Link, name: str) -> None:
    """Return once RabbitMQ has the queue, however long it waits for its node."""
    try:
        channel = await link.channel()
        try:
            await channel.call("queue_declare", name, passive=True)
        finally:
            channel.abandon()
    except pika.exceptions.AMQPError as error:
        raise of_channel(error) from None
