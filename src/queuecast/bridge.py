"""A bridge: what a queue holds is consumed once and published for everybody.

Every message is acked only when its publish was confirmed. One that could not be published goes
back to the queue, and the bridge waits a little before it goes on: order may suffer then,
messages do not. One that was published may come again when its ack was lost; such a copy says
so with the header `redelivered`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from .delivery import Consumer, Delivery
from .destination import Destination
from .errors import QueuecastError
from .message import Message, Properties
from .runtime import Runtime
from .sessions.services import Consume, Publish

logger = logging.getLogger(__name__)

# Seconds between attempts, while the queue is missing or the broker does not take messages.
_RETRY = 1.0


class Bridge:
    """One `[[bridge]]`; opens again by itself for as long as the gateway runs."""

    def __init__(
        self,
        runtime: Runtime,
        publish: Publish,
        consume: Consume,
        source: Destination,
        target: Destination,
        prefetch: int = 100,
    ) -> None:
        """prefetch: messages between consumed and confirmed, the most that a crash repeats."""
        self._runtime = runtime
        self._publish = publish
        self._consume = consume
        self._source = source
        self._target = target
        self._prefetch = prefetch
        self._consumer: Consumer | None = None
        self._stopped = False
        self._cancel: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Begin in the background."""
        self._cancel = self._runtime.spawn(self._open(), f"bridge {self._source}")

    async def close(self) -> None:
        """Stop consuming; what was not confirmed goes back to the queue."""
        self._stopped = True
        self._cancel()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()

    async def _open(self) -> None:
        told = ""
        while not self._stopped:
            try:
                self._consumer = await self._consume(self._source, self, prefetch=self._prefetch)
            except QueuecastError as error:
                if str(error) != told:
                    told = str(error)
                    logger.warning("bridge %s -> %s waits: %s", self._source, self._target, error)
                await self._runtime.sleep(_RETRY)
            else:
                logger.info("bridge %s -> %s", self._source, self._target)
                return

    # -- delivery.DeliverySink ------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Publish one; tasks start in the order in which they are made, so order holds."""
        self._runtime.spawn(self._pass_on(delivery), f"bridge {self._source}")

    def reset(self) -> None:
        """What was unacked comes again by itself."""

    def gap(self, reason: str) -> None:
        """The queue lost messages; what was published is as it was."""
        logger.warning("bridge %s -> %s: %s", self._source, self._target, reason)

    def cancelled(self, error: QueuecastError) -> None:
        """The queue is gone: open again when it is back."""
        logger.warning("bridge %s -> %s lost its queue: %s", self._source, self._target, error)
        self._consumer = None
        if not self._stopped:
            self.start()

    async def _pass_on(self, delivery: Delivery) -> None:
        message = delivery.message
        properties = _passed_on(message)
        try:
            await self._publish(self._target, message.body, properties)
        except Exception as error:
            if not isinstance(error, QueuecastError):
                logger.exception("bridge %s -> %s", self._source, self._target)
            else:
                logger.warning("bridge %s -> %s: %s", self._source, self._target, error)
            await self._runtime.sleep(_RETRY)
            if self._consumer is not None:
                self._consumer.nack(delivery.tag, requeue=True)
            return
        if self._consumer is not None:
            self._consumer.ack(delivery.tag)


def _passed_on(message: Message) -> Properties:
    """Return what goes along with a bridged message.

    Not user-id, which brokers check to be the publisher's own; nor CC and BCC, by which RabbitMQ
    would route the message to more places than the bridge's target. That the message came again
    stands in a header: the broker's own mark ends here, and the copy would look like a new one.
    """
    properties = message.properties
    headers = {
        name: value for name, value in properties.headers.items() if name not in ("CC", "BCC")
    }
    if message.redelivered:
        headers["redelivered"] = True
    return replace(properties, user_id=None, headers=headers)
