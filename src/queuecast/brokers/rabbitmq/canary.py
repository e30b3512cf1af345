"""The canary: a message that a restarted broker loses, and a reset connection does not.

RabbitMQ drops transient messages when it restarts, in durable queues too. A transient message in
a durable queue of its own therefore tells, after a reconnect, whether transient messages for our
feeds may have been lost.
"""

from __future__ import annotations

import logging
import secrets

import pika.exceptions
import pika.spec

from ...errors import NotFound, QueuecastError, Unavailable
from .confirms import ConfirmChannel
from .connection import Link
from .failures import of_channel
from .topology import check_queue, try_delete_queue

log = logging.getLogger(__name__)


class Canary:
    """One canary; it belongs to the link by which it was put, and to the queues declared there.

    In a cluster that puts it on the same node of the broker as those queues.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    async def put(cls, link: Link, publishing: Link, prefix: str, expires: int) -> Canary:
        """Create a queue with a transient message; expires: milliseconds without a touch.

        publishing: publishes the message. On the consuming link, a broker that is low on memory
        would block all acks and bindings with it.
        """
        canary = cls(f"{prefix}.canary.{secrets.token_hex(4)}")
        try:
            async with link.probe() as channel:
                await channel.call(
                    "queue_declare",
                    canary.name,
                    durable=True,
                    arguments={"x-queue-type": "classic", "x-expires": expires},
                )
            confirming = await ConfirmChannel.open(publishing)
            await confirming.send_once("", canary.name, b"alive", pika.spec.BasicProperties())
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        return canary

    async def alive(self, link: Link) -> bool:
        """Tell whether nothing was lost since it was put; raises Unavailable."""
        try:
            ready, _consumers = await check_queue(link, self.name)
        except NotFound:
            return False
        return ready == 1

    async def touch(self, link: Link) -> bool:
        """Keep the queue from expiring; False when it is gone."""
        try:
            await check_queue(link, self.name)
        except Unavailable:
            log.debug("the broker went away while the canary was touched")
        except QueuecastError as error:
            log.warning(
                "the queue %s, which tells whether RabbitMQ was restarted, is gone: %s; until it "
                "is made anew a reconnect is a gap",
                self.name,
                error,
            )
            return False
        return True

    async def remove(self, link: Link) -> None:
        """Delete the queue."""
        await try_delete_queue(link, self.name)
