"""Work queues: a delivery, where it goes, and the consumer that settles it.

The law is in brokers/base.py; these stand on the lowest floor because brokers implement them
and sessions use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .errors import QueuecastError
from .message import Message


class Delivery:
    """One message of a work queue, to be acked or nacked by its tag.

    tag: unique for the consumer over its whole life, reconnects included.
    """

    __slots__ = ("message", "tag")

    def __init__(self, message: Message, tag: int) -> None:
        self.message = message
        self.tag = tag


class DeliveryBudget:
    """Bytes of bodies that wait in the gateway, of all work queues together; limit: their bound.

    It stops a thousand subscriptions to queues of large messages, whose clients do not read, from
    taking the memory: what has no room stays at the broker, or goes back there.
    """

    __slots__ = ("limit", "used", "users")

    def __init__(self, limit: int = 256 << 20) -> None:
        self.limit = limit
        self.used = 0
        self.users = 0  # subscriptions that may hold something

    @property
    def share(self) -> int:
        """Bytes that one subscription may hold, so that the first ones leave room for others."""
        return self.limit // max(1, self.users)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be held as well."""
        return self.used + size <= self.limit


class DeliverySink(Protocol):
    """Where a consumer's deliveries go."""

    def deliver(self, delivery: Delivery) -> bool | None:
        """Take one delivery; called from the event loop, must not raise.

        False: it cannot be held now. The sink has paused the consumer, and it goes back.
        """

    def reset(self) -> None:
        """Forget what is unacked: the broker connection was lost and it will come again."""

    def gap(self, reason: str) -> None:
        """Tell that messages may be lost before the next delivery: the queue was made anew."""

    def cancelled(self, error: QueuecastError) -> None:
        """Tell that the consumer is over (its queue was deleted, the broker refuses it)."""


class Consumer(Protocol):
    """A subscription's own competing consumer. Unknown or stale tags are ignored: False."""

    def ack(self, tag: int) -> bool:
        """Settle one delivery; returns whether the tag was outstanding."""

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        """Give one delivery back (requeue) or dead-letter it; as ack otherwise."""

    def pause(self) -> None:
        """Stop new deliveries (the client does not read); unacked ones stay outstanding."""

    def suspend(self, tags: Sequence[int]) -> None:
        """Give these back and stop, as `pause`; but nothing is held meanwhile: what was on its
        way goes back too. `resume` ends it."""

    def resume(self) -> None:
        """Take deliveries again, after `pause` and `suspend`."""

    async def close(self) -> None:
        """End the consumer; unacked deliveries go back to the queue."""
