"""Dead letters: what RabbitMQ drops from the feeds' queues.

A policy (max-length, max-length-bytes, message-ttl, delivery-limit) applies to the gateway's queues
too, and RabbitMQ drops messages without a word. The queues therefore name a dead-letter queue
of this gateway. A message there means that the feeds missed it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import pika.exceptions

from ...errors import NotFound, Unavailable
from ...message import Message
from .connection import Channel, Link
from .failures import of_channel, reason
from .feedkind import FeedKind
from .topology import check_queue

log = logging.getLogger(__name__)

# Letters kept while the gateway is away: one is enough to know that messages were dropped.
_LENGTH = 100
_PREFETCH = 100
_PATIENCE = 2.0  # seconds for the letters that the queue says it holds

_REASONS = {
    "maxlen": "RabbitMQ dropped messages: a policy limits the length of the gateway's queues",
    "expired": "RabbitMQ dropped messages: a policy limits their age (message-ttl)",
    "delivery_limit": "RabbitMQ dropped messages: a policy limits redeliveries (delivery-limit)",
}
_OTHER = "RabbitMQ dropped messages"
AWAY = "RabbitMQ dropped messages while the gateway was away: a policy limits the gateway's queues"

OnDropped = Callable[[str, list[str], str], None]


class Letters:
    """The dead-letter queue of this gateway's feeds.

    on_dropped: called with a queue's name, the routing keys of a message that was dropped from it,
    and the reason in words.
    """

    def __init__(self, prefix: str, expires: int, on_dropped: OnDropped) -> None:
        self.name = ""
        self._prefix = prefix
        self._expires = expires
        self._on_dropped = on_dropped
        self._channel: Channel | None = None
        self._waiting = 0  # letters from before the connection that have not come yet
        self._missed = False  # one of these tells of a message that the feeds missed
        self._read = asyncio.Event()
        self._warned: set[str] = set()

    async def open(self, link: Link, kind: FeedKind, *, away: bool) -> bool:
        """Read the letters; returns whether some came since they were read last.

        away: the feeds were not read meanwhile, so that a queue of letters that is gone counts as
        one that had some. Raises NotFound, Refused, Unavailable.
        """
        self._channel = None
        ready, gone = 0, False
        if self.name:
            try:
                ready, _consumers = await check_queue(link, self.name)
            except NotFound:
                gone = True
            except Unavailable:
                if not link.is_open:
                    raise
                # Its node is down. Feeds' queues that are elsewhere go on naming it.
                self.name = ""
        try:
            if gone or not self.name:
                await self._declare(link, kind)
            await self._consume(link, ready)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        if ready:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._read.wait()
            except TimeoutError:
                self._waiting = 0
        # One that is gone may have held letters. The feeds' queues name it, so it keeps its name.
        self._missed = self._missed or (gone and away)
        if self._missed:
            log.warning("%s; see 'Policies' in docs/rabbitmq.md", AWAY)
        return self._missed

    async def _declare(self, link: Link, kind: FeedKind) -> None:
        name = self.name or f"{self._prefix}.letters.{secrets.token_hex(4)}"
        arguments = kind.arguments(self._expires) | {"x-max-length": _LENGTH}
        async with link.probe() as channel:
            await channel.call("queue_declare", name, durable=True, arguments=arguments)
        self.name = name

    async def _consume(self, link: Link, ready: int) -> None:
        channel = await link.channel()
        channel.on_closed = lambda why: self._on_closed(channel, why)
        channel.on_cancel = lambda _tag: channel.abandon()
        self._waiting, self._missed = ready, False
        self._read.clear()

        def on_message(message: Message, tag: int) -> None:
            channel.ack(tag)
            if channel is self._channel:
                self._take(message)

        self._channel = channel
        try:
            await channel.qos(_PREFETCH)
            await channel.consume(self.name, "letters", on_message)
        except BaseException:
            self._channel = None
            channel.abandon()
            raise

    @property
    def is_read(self) -> bool:
        """Whether letters come in now."""
        return self._channel is not None and self._channel.is_open

    def _on_closed(self, channel: Channel, why: BaseException) -> None:
        if channel is self._channel:
            self._channel = None
            log.debug("the letters are not read: %s", reason(why))

    def _take(self, message: Message) -> None:
        death = _death(message)
        if self._waiting:
            self._missed = self._missed or death is not None
            self._waiting -= 1
            if not self._waiting:
                self._read.set()
            return
        if death is None:
            return
        queue, keys, why = death
        if why not in self._warned:
            self._warned.add(why)
            log.warning("%s; see 'Policies' in docs/rabbitmq.md", why)
        self._on_dropped(queue, keys, why)


def _death(message: Message) -> tuple[str, list[str], str] | None:
    """Return the queue, the routing keys and the reason of the newest death; None: its own time.

    A message that its publisher gave an expiration has ended as its publisher wished.
    """
    deaths = message.properties.headers.get("x-death")
    newest: Any = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(newest, Mapping):
        return None
    if newest.get("reason") == "expired" and newest.get("original-expiration"):
        return None
    keys = newest.get("routing-keys")
    names = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
    return str(newest.get("queue")), names, _REASONS.get(str(newest.get("reason")), _OTHER)
