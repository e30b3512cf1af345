"""The canary: a message that RabbitMQ drops whenever it may have dropped messages of the feeds.

A restarted broker drops transient messages, in durable classic queues too, and a policy with a
message-ttl drops what waits too long. A transient message in a queue of its own, of the same type
as the feeds' queues, therefore shows after a reconnect whether messages for the feeds may be lost.

A quorum queue keeps transient messages. But in the first moments after a restart of all nodes a
RabbitMQ with Mnesia confirms messages before it has the bindings again by which they are routed.
There an exchange that is not durable is bound to the canary's queue: it is gone after such a
restart, and goes with the queue otherwise. With Khepri (RabbitMQ 4.3) bindings and exchanges stay.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

import pika.exceptions
import pika.spec

from ...errors import NotFound, QueuecastError, Unavailable
from .confirms import ConfirmChannel
from .connection import Link
from .failures import of_channel
from .feedkind import FeedKind
from .topology import check_queue, exchange_exists, try_delete_queue

log = logging.getLogger(__name__)

# A quorum queue without a leader says that it has no messages: looks, and seconds between them.
_LOOKS = 8
_LOOK = 0.5


class Canary:
    """One canary; it belongs to the link by which it was put, and to the queues declared there.

    In a cluster that puts it on the same node of the broker as those queues.
    """

    def __init__(self, name: str, kind: FeedKind) -> None:
        self.name = name
        self._kind = kind
        self.expires_early = False
        """Whether it was seen to expire, so that a policy must limit the age of messages."""
        self.restarted = False
        """Whether the whole broker was restarted since, as far as a quorum queue can show."""

    @classmethod
    async def put(
        cls, link: Link, publishing: Link, prefix: str, kind: FeedKind, expires: int
    ) -> Canary:
        """Create a queue with a transient message; expires: milliseconds without a touch.

        publishing: publishes the message. On the consuming link, a broker that is low on memory
        would block all acks and bindings with it.
        """
        canary = cls(f"{prefix}.canary.{secrets.token_hex(4)}", kind)
        arguments = kind.arguments(expires)
        try:
            async with link.probe() as channel:
                await channel.call("queue_declare", canary.name, durable=True, arguments=arguments)
                if kind.is_quorum:
                    await channel.call(
                        "exchange_declare", canary.name, exchange_type="fanout", auto_delete=True
                    )
                    await channel.call("queue_bind", canary.name, canary.name, "")
            await canary._publish(publishing)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        return canary

    async def _publish(self, publishing: Link) -> None:
        confirming = await ConfirmChannel.open(publishing)
        await confirming.send_once("", self.name, b"alive", pika.spec.BasicProperties())

    async def alive(self, link: Link) -> bool:
        """Return whether nothing was lost since it was put; raises Unavailable."""
        try:
            if self._kind.is_quorum and not await self._has_exchange(link):
                self.restarted = True
                return False
            return not await self._is_empty(link)
        except NotFound:
            return False

    async def _has_exchange(self, link: Link) -> bool:
        try:
            await exchange_exists(link, self.name)
        except NotFound:
            return False
        return True

    async def _is_empty(self, link: Link) -> bool:
        """Return whether the message is gone; raises NotFound, Unavailable."""
        looks = _LOOKS if self._kind.is_quorum else 1
        for look in range(looks):
            if look:
                await asyncio.sleep(_LOOK)
            ready, _consumers = await check_queue(link, self.name)
            if ready:
                return False
        return True

    async def touch(self, link: Link, publishing: Link | None) -> bool:
        """Keep the queue from expiring, and a message in it; False when the queue is gone."""
        try:
            empty = await self._is_empty(link)
            if empty and publishing is not None and publishing.blocked is None:
                await self._renew(publishing)
        except (Unavailable, pika.exceptions.AMQPError):
            log.debug("the broker went away while the canary was touched")
        except QueuecastError as error:
            log.warning(
                "the queue %s, which shows whether RabbitMQ was restarted, is gone: %s; until it "
                "is there again a reconnect is a gap",
                self.name,
                error,
            )
            return False
        return True

    async def _renew(self, publishing: Link) -> None:
        """Put the message again that has expired, or was purged."""
        if not self.expires_early:
            log.warning(
                "messages expire in the gateway's queues: a policy with a message-ttl applies to "
                "them, and a longer reconnect will be a gap; see 'Policies' in docs/rabbitmq.md"
            )
        self.expires_early = True
        await self._publish(publishing)

    async def remove(self, link: Link) -> None:
        """Delete the queue."""
        await try_delete_queue(link, self.name)
