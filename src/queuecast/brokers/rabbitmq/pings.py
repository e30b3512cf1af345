"""Pings: small messages of the gateway's own, published straight to its feeds' queues.

A ping shows that a queue still delivers. After a reconnect it marks the end of what the queue
held: everything before it was there earlier. Pings go over the publishing connection, so that a
broker that is low on memory does not block the acks with them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

import pika.exceptions
import pika.spec

from ...errors import QueuecastError
from ...message import Message
from .connection import Channel, Link
from .failures import ACCESS_REFUSED, reason
from .supervisor import Supervisor

log = logging.getLogger(__name__)

_PATIENCE = 3.0  # seconds to wait for the connection, and to open a channel
_TYPE = "queuecast.ping"


def is_ping(message: Message) -> bool:
    """Return whether a message of a feed's queue is no message of its exchange."""
    return not message.exchange


class Pings:
    """Publishes pings for all feeds of a login. publishing: the connection that it uses."""

    def __init__(self, publishing: Supervisor) -> None:
        self._publishing = publishing
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._refused: Link | None = None

    async def send(self, queue: str) -> bool:
        """Publish a ping to a queue; False where that is not possible now.

        After a reconnect the publishing connection may be the later one: it is waited for.
        """
        try:
            link = await self._publishing.wait(_PATIENCE)
            if link.blocked is not None or link is self._refused:
                return False
            async with asyncio.timeout(_PATIENCE), self._opening:
                channel = self._channel
                if channel is None or channel.link is not link or not channel.is_open:
                    channel = self._channel = await link.channel()
                    channel.on_closed = self._on_closed
            # Transient and with a body of its own, by which a repeated one is recognised.
            channel.publish(
                "",
                queue,
                secrets.token_bytes(8),
                pika.spec.BasicProperties(delivery_mode=1, type=_TYPE),
                False,
            )
        except (QueuecastError, pika.exceptions.AMQPError, TimeoutError) as error:
            log.debug("no ping to %s: %s", queue, reason(error))
            return False
        return True

    def _on_closed(self, why: BaseException) -> None:
        refused = (
            isinstance(why, pika.exceptions.ChannelClosedByBroker)
            and why.reply_code == ACCESS_REFUSED
        )
        if refused and self._channel is not None:
            # Said once by the canary, which needs the same right.
            self._refused = self._channel.link
        self._channel = None
