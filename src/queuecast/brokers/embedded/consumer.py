"""A consumer on a queue: what it holds unacked, and whether it may take more."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from ...errors import QueuecastError
from ...message import Message
from ..base import Delivery, DeliverySink
from .entry import Entry
from .queue import Queue

logger = logging.getLogger(__name__)


class QueueConsumer:
    """One competing consumer; implements base.Consumer.

    priority: those with a higher one are served first, while they may take.
    """

    def __init__(self, queue: Queue, sink: DeliverySink, prefetch: int, priority: int = 0) -> None:
        self.priority = priority
        self._queue = queue
        self._sink = sink
        self._prefetch = prefetch
        self._unacked: dict[int, Entry] = {}
        self._tag = 0
        # The caller needs the consumer in hand before the first delivery can be acked.
        self._paused = False
        self._started = False
        self._over = False

    @property
    def may_take(self) -> bool:
        """Whether it wants a delivery and its prefetch allows one."""
        return (
            self._started
            and not self._paused
            and not self._over
            and len(self._unacked) < self._prefetch
        )

    @property
    def room(self) -> int:
        """How many deliveries more its prefetch allows."""
        return self._prefetch - len(self._unacked)

    def start(self) -> None:
        """Begin to take."""
        self._started = True
        self._queue.open_to(self)

    def hand(self, entry: Entry) -> None:
        """Deliver an entry; a sink that raises ends this consumer, and the entry goes back."""
        self._tag += 1
        self._unacked[self._tag] = entry
        message = entry.message
        if entry.redelivered:
            # A message is shared with other queues and feeds, where it is no redelivery.
            properties = message.properties
            if self._queue.arguments.counts_deliveries:
                headers = {**properties.headers, "x-delivery-count": entry.returns}
                properties = replace(properties, headers=headers)
            message = Message(
                message.body,
                message.exchange,
                message.routing_key,
                properties,
                True,
                message.offset,
                message.lane,
            )
        try:
            if self._sink.deliver(Delivery(message, self._tag)) is False:
                del self._unacked[self._tag]
                self._queue.take_back(entry)
        except Exception:
            logger.exception("a consumer of queue %r failed: it is cancelled", self._queue.name)
            self._queue.detach(self, self.end(QueuecastError("the consumer failed")))

    def end(self, error: QueuecastError | None) -> Collection[Entry]:
        """Take nothing more and return what is unacked; the sink is told of an error."""
        if self._over:
            return ()
        self._over = True
        unacked = list(self._unacked.values())
        self._unacked.clear()
        if error is not None:
            try:
                self._sink.cancelled(error)
            except Exception:
                logger.exception("a consumer of queue %r: cancelled() failed", self._queue.name)
        return unacked

    def ack(self, tag: int) -> bool:
        entry = self._unacked.pop(tag, None)
        if entry is None:
            return False
        self._queue.settle(entry)
        self._queue.open_to(self)
        return True

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        entry = self._unacked.pop(tag, None)
        if entry is None:
            return False
        if requeue:
            self._queue.give_back((entry,))
        else:
            self._queue.reject(entry)
        self._queue.open_to(self)
        return True

    def pause(self) -> None:
        self._paused = True
        self._queue.shut_to(self)

    def suspend(self, tags: Sequence[int]) -> None:
        self.pause()
        self._queue.give_back([self._unacked.pop(tag) for tag in tags if tag in self._unacked])

    def resume(self) -> None:
        self._paused = False
        self._queue.open_to(self)

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        """End the consumer at once; what it has not acked goes back."""
        if not self._over:
            self._queue.detach(self, self.end(None))
