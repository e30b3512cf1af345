"""A work-queue subscription: one consumer's deliveries on their way to one client.

Deliveries of a turn of the loop go out in one write. Without client acks a delivery is acked
when it was written. While the connection takes no bytes deliveries are held, unacked, up to a
number of bytes; beyond that the consumer is paused and further ones stay in the queue, so
that a client that does not read costs bounded memory and its messages stay in the broker. All
subscriptions of the node together have a budget.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from ..delivery import Consumer, Delivery
from ..destination import Destination
from ..errors import BadRequest, QueuecastError
from ..message import Message
from ..queuespec import PLAIN, ConsumeSpec
from ..runtime import Promise

if TYPE_CHECKING:
    from .base import Session

# A write is at most this, or one message (as the hub's chunks).
WRITE_BYTES = 64 * 1024


class WorkEncoding(Protocol):
    """Turns a delivery into wire bytes."""

    def encode_delivery(self, message: Message, ack: str | None) -> bytes: ...


class WorkSubscription:
    """The sink of one consumer.

    number: unique within the session, part of its ack ids. spec: what it asks the broker for.
    """

    __slots__ = (
        "_budget",
        "_client_acks",
        "_consumer",
        "_counts",
        "_encoding",
        "_flowing",
        "_held",
        "_held_bytes",
        "_notice",
        "_paused",
        "_scheduled",
        "_session",
        "closed",
        "destination",
        "number",
        "spec",
    )

    def __init__(
        self,
        session: Session,
        destination: Destination,
        encoding: WorkEncoding,
        number: int,
        *,
        client_acks: bool,
        spec: ConsumeSpec = PLAIN,
    ) -> None:
        self.destination = destination
        self.spec = spec
        self.number = number
        self.closed = False
        self._session = session
        self._encoding = encoding
        self._client_acks = client_acks
        self._consumer: Consumer | None = None
        # At most SessionLimits.held bytes, or half of the share in the node's budget, and one
        # message, and never more than the prefetch: with that message the consumer is paused.
        self._held: deque[Delivery] = deque()
        self._held_bytes = 0
        # Wire bytes to be written before the next delivery; one, the latest.
        self._notice = b""
        self._budget = session.services.deliveries
        self._counts = False  # among the budget's users
        self._flowing = False
        self._paused = False
        self._scheduled = False

    async def open(self, prefetch: int) -> None:
        """Start consuming; raises what the broker raises.

        The opening itself runs on its own, so that a client that leaves meanwhile leaves no
        consumer behind.
        """
        self._count(True)
        opened = self._session.services.runtime.promise()
        self._session.services.runtime.spawn(
            self._open(prefetch, opened), f"consume {self.destination}"
        )
        try:
            await opened
        except BaseException:
            # It may have opened in this very turn: then nobody else would end the consumer.
            self.closed = True
            self._session.services.runtime.spawn(self.close(), "close a consumer")
            raise

    async def _open(self, prefetch: int, opened: Promise) -> None:
        try:
            consumer = await self._session.services.consume(
                self.destination, self, prefetch=prefetch, spec=self.spec
            )
        except Exception as error:  # noqa: BLE001 - handed to the one who waits
            self._count(False)
            if not opened.done():
                opened.set_exception(error)
            return
        if self.closed:
            await consumer.close()
            return
        self._consumer = consumer
        self._bound()
        if not opened.done():
            opened.set_result(None)

    def flow(self) -> None:
        """Let deliveries through: the client has its answer."""
        self._flowing = True
        self._schedule()

    def resume(self) -> None:
        """The connection takes bytes again."""
        self._schedule()

    async def close(self) -> None:
        """End the consumer; what is unacked goes back."""
        self.closed = True
        self._count(False)
        self._forget()
        if self._consumer is not None:
            await self._consumer.close()

    # -- from the client ------------------------------------------------------------------

    def settle(self, tag: int, *, ack: bool, requeue: bool = True) -> bool:
        """Ack or nack one delivery; returns whether it was outstanding."""
        consumer = self._consumer
        if consumer is None or not self._client_acks:
            return False
        return consumer.ack(tag) if ack else consumer.nack(tag, requeue=requeue)

    # -- from the broker: delivery.DeliverySink -------------------------------------------

    def deliver(self, delivery: Delivery) -> bool:
        """Take one delivery, unless the node holds too much already and this one would wait."""
        size = len(delivery.message.body)
        waits = bool(self._held) or not self._takes
        if waits and self._consumer is not None and not self._budget.has_room(size):
            self._pause()
            return False
        # Held whatever its size: given back now, it would be marked redelivered.
        self._held.append(delivery)
        self._held_bytes += size
        self._budget.used += size
        self._bound()
        self._schedule()
        return True

    def reset(self) -> None:
        """The broker connection was lost: what is held will come again."""
        self._forget()

    def gap(self, reason: str) -> None:
        """Messages may be missing; only protocols that ask for queues of their own are told."""

    def notify(self, data: bytes) -> None:
        """Write something of our own before the next delivery."""
        self._notice = data
        self._schedule()

    def cancelled(self, error: QueuecastError) -> None:
        """The consumer is over."""
        self._count(False)
        self._forget()
        if not self.closed:
            self.closed = True
            self._session.work_cancelled(self, error)

    def ack_id(self, tag: int) -> str | None:
        """Return the id by which the client settles a delivery; called as it is written."""
        return f"{self.number}.{tag}" if self._client_acks else None

    # -- to the client --------------------------------------------------------------------

    @property
    def _takes(self) -> bool:
        session = self._session
        return self._flowing and not (session.paused or session.closed or self.closed)

    def _forget(self) -> None:
        self._held.clear()
        self._budget.used -= self._held_bytes
        self._held_bytes = 0

    def _count(self, counts: bool) -> None:
        if counts != self._counts:
            self._counts = counts
            self._budget.users += 1 if counts else -1

    def _bound(self) -> None:
        """Pause the consumer when enough is held.

        Also while the client reads: a whole prefetch can come within one turn of the loop, before
        the first write shows that it does not.
        """
        most = min(self._session.services.limits.held, self._budget.share // 2)
        if self._held_bytes > most:
            self._pause()

    def _pause(self) -> None:
        if not self._paused and self._consumer is not None:
            self._paused = True
            self._consumer.pause()

    def _schedule(self) -> None:
        if not self._scheduled and self._takes and (self._held or self._paused or self._notice):
            self._scheduled = True
            self._session.services.runtime.call_soon(self._send)

    def _send(self) -> None:
        """Write what is held: one write, bounded, then the acks."""
        self._scheduled = False
        consumer = self._consumer
        if not self._takes or consumer is None:
            return
        parts: list[bytes] = [self._notice] if self._notice else []
        self._notice = b""
        tags: list[int] = []
        size = 0
        while self._held and size < WRITE_BYTES:
            delivery = self._held.popleft()
            self._held_bytes -= len(delivery.message.body)
            self._budget.used -= len(delivery.message.body)
            data = self._encoding.encode_delivery(delivery.message, self.ack_id(delivery.tag))
            parts.append(data)
            tags.append(delivery.tag)
            size += len(data)
        if parts:
            self._session.write(b"".join(parts))
        if not self._client_acks:
            for tag in tags:
                consumer.ack(tag)
        if not self._held and self._paused and self._takes:
            self._paused = False
            consumer.resume()
        self._schedule()


def parse_ack(text: object) -> tuple[int, int]:
    """Read an ack id into (subscription number, tag); raises BadRequest."""
    number, dot, tag = text.partition(".") if isinstance(text, str) else ("", "", "")
    if not dot or not (number + tag).isascii() or not number.isdigit() or not tag.isdigit():
        raise BadRequest(f"{str(text)[:64]!r} is not an ack id", "give back a message's `ack`")
    return int(number[:10]), int(tag[:20])
