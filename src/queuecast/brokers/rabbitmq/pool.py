"""The connections that consumers live on: one at first, more when its channels are used up.

A consumer has a channel, and RabbitMQ allows 2,047 of them on a connection by default. The first
connection is shared with the feeds; a further one is opened when all are full, comes back by
itself as the first does, and is closed when it has had no consumer for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ...errors import LimitExceeded, Unavailable
from ..background import Background
from .connection import Link
from .probes import PROBES, SLOW_PROBES
from .supervisor import Supervisor

if TYPE_CHECKING:
    from .consumer import QueueConsumer

log = logging.getLogger(__name__)

# Connections for each login: clients of work queues must not use up the broker's. With the usual
# channel_max these are some 16,000 consumers.
MAX_CONNECTIONS = 8
# Channels that consumers leave to feeds and to questions about exchanges and queues on the first
# connection, and to questions on the others: work queues must not stop everybody's feeds.
RESERVED_CHANNELS = 256
_RESERVED_ELSEWHERE = 2 * PROBES + SLOW_PROBES
EMPTY = 30.0  # seconds that a further connection is kept without consumers

OnUp = Callable[[Link], Awaitable[None]]
OnDown = Callable[[str], None]
# Makes a connection, not started: what it is for, told of its ups and downs.
MakeSupervisor = Callable[[str, OnUp, OnDown], Supervisor]


class Line:
    """One connection and the consumers on it. reserved: channels that it keeps free."""

    def __init__(self, reserved: int) -> None:
        self.consumers: set[QueueConsumer] = set()
        self.opening = 0
        self.supervisor: Supervisor
        self.end: asyncio.TimerHandle | None = None  # when it has been empty for long enough
        self._reserved = reserved

    @property
    def is_empty(self) -> bool:
        return not self.consumers and not self.opening

    def has_room(self, link: Link) -> bool:
        """Whether one more consumer has a channel."""
        return len(self.consumers) + self.opening < link.channel_max - self._reserved

    async def on_up(self, link: Link) -> None:
        """Open every consumer again on a new link."""
        for consumer in self.consumers:
            consumer.on_up(link)

    def on_down(self, why: str) -> None:
        """Tell every consumer that its deliveries are void."""
        for consumer in list(self.consumers):
            consumer.on_down()


class ConsumerPool:
    """The connections of one login's consumers.

    first: the connection that is there anyway; its owner tells `lines[0]` of its ups and downs.
    """

    def __init__(self, first: Supervisor, make: MakeSupervisor, *, patience: float) -> None:
        line = Line(RESERVED_CHANNELS)
        line.supervisor = first
        self.lines = [line]
        self._make = make
        self._patience = patience
        self._growing = asyncio.Lock()
        self._numbers = 1
        self._closed = False
        self._background = Background(log)

    async def take(self, *, first: bool = False) -> tuple[Line, Link]:
        """Return a connection with a free channel, counted as opening; call `opened` then.

        first: it must be the first. Raises LimitExceeded when all are full, and what connecting
        raises.
        """
        found = await self._find(first)
        if found is None and first:
            raise self._full()
        if found is None:
            # One at a time: a crowd that comes at once needs one more connection, not many.
            async with self._growing:
                found = await self._find() or await self._grow()
        found[0].opening += 1
        return found

    async def _find(self, first: bool = False) -> tuple[Line, Link] | None:
        await self.lines[0].supervisor.wait(self._patience)
        for line in self.lines[:1] if first else self.lines:
            link = line.supervisor.link
            if link is not None and link.is_open and line.has_room(link):
                return line, link
        return None

    async def _grow(self) -> tuple[Line, Link]:
        if self._closed:
            raise Unavailable("the gateway is closing its connections to RabbitMQ")
        if len(self.lines) >= MAX_CONNECTIONS:
            raise self._full()
        self._numbers += 1
        line = Line(_RESERVED_ELSEWHERE)
        line.supervisor = self._make(f"consuming {self._numbers}", line.on_up, line.on_down)
        try:
            await line.supervisor.start()
            link = await line.supervisor.wait(self._patience)
            if not line.has_room(link):
                raise self._full()
            if self._closed:
                raise Unavailable("the gateway is closing its connections to RabbitMQ")
        except BaseException:
            await line.supervisor.close()
            raise
        self.lines.append(line)
        log.info("opened connection %d for consumers", len(self.lines))
        return line, link

    def _full(self) -> LimitExceeded:
        count = sum(len(line.consumers) for line in self.lines)
        return LimitExceeded(
            f"this login has {count} consumers on {len(self.lines)} connections to RabbitMQ, "
            "that is the limit",
            "raise channel_max in RabbitMQ's configuration",
        )

    def opened(self, line: Line, consumer: QueueConsumer | None) -> None:
        """Say how an opening ended; None: in vain."""
        line.opening -= 1
        if consumer is not None:
            line.consumers.add(consumer)
        self._look_at(line)

    def release(self, line: Line, consumer: QueueConsumer) -> None:
        """Forget a consumer that is over."""
        line.consumers.discard(consumer)
        self._look_at(line)

    def _look_at(self, line: Line) -> None:
        if line.end is not None:
            line.end.cancel()
            line.end = None
        if line.is_empty and line is not self.lines[0] and not self._closed:
            loop = asyncio.get_running_loop()
            line.end = loop.call_later(EMPTY, self._close_if_empty, line)

    def _close_if_empty(self, line: Line) -> None:
        if not line.is_empty or line not in self.lines or self._closed:
            return
        self.lines.remove(line)
        self._background.spawn(line.supervisor.close(), "closing a connection for consumers")

    async def close(self) -> None:
        """Close the further connections; their consumers are gone."""
        self._closed = True
        await asyncio.gather(*(line.supervisor.close() for line in self.lines[1:]))
        await self._background.ended()
