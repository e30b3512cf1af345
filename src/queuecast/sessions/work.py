"""A work-queue subscription: one consumer's deliveries on their way to one client.

Deliveries of a turn of the loop go out in one write. Without client acks a delivery is acked
when it was written. While the connection takes no bytes deliveries are held, unacked, up to a
number of bytes; beyond that the consumer is paused and further ones stay in the queue, so
that a client that does not read costs bounded memory and its messages stay in the broker. All
subscriptions of the node together have a budget.

With client acks a message whose lease ends goes back, and nothing more is delivered until the
client shows that it is alive: one that sleeps must not take every message in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..delivery import Consumer, Delivery
from ..destination import Destination
from ..errors import QueuecastError
from ..message import Message
from ..queuespec import PLAIN, ConsumeSpec
from ..runtime import Promise
from .lease import Handed, Lease

if TYPE_CHECKING:
    from .base import Session

# A write is at most this, or one message (as the hub's chunks).
WRITE_BYTES = 64 * 1024


class WorkEncoding(Protocol):
    """Turns a delivery into wire bytes."""

    def encode_delivery(self, message: Message, ack: str | None) -> bytes: ...

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        """Return the notice that messages may be missing; id: the notice's, where it has one."""


class WorkSubscription:
    """The sink of one consumer.

    number: unique within the session, part of its ack ids. spec: what it asks the broker for.
    lease: seconds that the client may take to settle a message, 0 for any time.
    """

    __slots__ = (
        "_asleep",
        "_budget",
        "_client_acks",
        "_consumer",
        "_counts",
        "_encoding",
        "_flowing",
        "_held",
        "_held_bytes",
        "_lease",
        "_notice",
        "_paused",
        "_queue",
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
        lease: float = 0.0,
        spec: ConsumeSpec = PLAIN,
    ) -> None:
        self.destination = destination
        self.spec = spec
        self.number = number
        self.closed = False
        self._session = session
        self._encoding = encoding
        self._client_acks = client_acks
        self._queue = destination.name if spec.queue is None else spec.queue.name
        self._lease = Lease(session.services.runtime, lease, self._lease_ended)
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
        # A lease has ended, and the client has given no sign of life since.
        self._asleep = False

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

    @property
    def held(self) -> tuple[int, int]:
        """Messages that wait to be written, and the bytes of their bodies."""
        return len(self._held), self._held_bytes

    @property
    def unacked(self) -> int:
        """Messages that the client has and has not settled."""
        return len(self._lease)

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
        self._came_back(self._lease.void())
        if self._consumer is not None:
            await self._consumer.close()

    # -- from the client ------------------------------------------------------------------

    def settle(self, tag: int, *, ack: bool, requeue: bool = True) -> bool:
        """Ack or nack one delivery; returns whether the client held it."""
        consumer = self._consumer
        if consumer is None or tag not in self._lease:
            return False
        self._session.services.counts.settled(ack=ack, requeue=requeue)
        if ack or not requeue:
            handed = self._lease.take(tag)
            if handed is not None and handed.key is not None:
                self._session.services.returns.forget(handed.key)
            return consumer.ack(tag) if ack else consumer.nack(tag, requeue=False)
        handed = self._lease.give_back(tag)
        if handed is not None:
            self._came_back((handed,))
        return consumer.nack(tag)

    def settle_one(self, tag: int, *, ack: bool, requeue: bool = True) -> None:
        """As `settle`; raises NotFound, Returned or Settled when the client does not hold it."""
        if not self.settle(tag, ack=ack, requeue=requeue):
            raise self._lease.why_not(tag)

    def alive(self) -> None:
        """The client gave a sign of life."""
        if self._asleep:
            self._asleep = False
            self._schedule()

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
        self._came_back(self._lease.void())

    def gap(self, reason: str) -> None:
        """Tell the client, before what comes next, that messages may be missing."""
        self.notify(self._encoding.encode_loss(reason, self.destination.shown, ""))

    def notify(self, data: bytes) -> None:
        """Write something of our own before the next delivery."""
        self._notice = data
        self._schedule()

    def cancelled(self, error: QueuecastError) -> None:
        """The consumer is over."""
        self._count(False)
        self._forget()
        self._came_back(self._lease.void())
        if not self.closed:
            self.closed = True
            self._session.work_cancelled(self, error)

    def ack_id(self, tag: int) -> str | None:
        """Return the id by which the client settles a delivery; called as it is written."""
        return f"{self._session.ack_name}.{self.number}.{tag}" if self._client_acks else None

    # -- to the client --------------------------------------------------------------------

    @property
    def _takes(self) -> bool:
        session = self._session
        return (
            self._flowing
            and not self._asleep
            # Its client is about to be sent away: what it gets now it could not ack any more.
            and not session.services.drain.begun
            and not (session.paused or session.closed or self.closed)
        )

    def _forget(self) -> None:
        self._held.clear()
        self._budget.used -= self._held_bytes
        self._held_bytes = 0

    def _count(self, counts: bool) -> None:
        if counts != self._counts:
            self._counts = counts
            self._budget.users += 1 if counts else -1

    def _came_back(self, handed: Sequence[Handed]) -> None:
        returns = self._session.services.returns
        for each in handed:
            if each.key is not None:
                returns.came_back(each.key)

    def _lease_ended(self, late: Sequence[tuple[int, Handed]]) -> None:
        """Give back what the client had for too long, and what waits for it."""
        consumer = self._consumer
        if consumer is None or self.closed:
            return
        self._session.services.counts.leases_ended += len(late)
        self._asleep = self._paused = True
        self._came_back([handed for _, handed in late])
        waiting = [delivery.tag for delivery in self._held]
        self._forget()
        consumer.suspend([*(tag for tag, _ in late), *waiting])

    def _hand(self, delivery: Delivery, consumer: Consumer, limit: int) -> bool:
        """Note that the client gets a delivery; False if it has come back too often for that.

        limit: of redeliveries.
        """
        if not limit:
            self._lease.hand(delivery.tag)
            return True
        returns = self._session.services.returns
        key = returns.key(self._queue, delivery.message)
        count = returns.count(key, delivery.message)
        if count > limit:
            returns.forget(key)
            returns.report(self._queue, delivery.message, count)
            consumer.nack(delivery.tag, requeue=False)
            return False
        self._lease.hand(delivery.tag, key)
        return True

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
        acks = self._client_acks
        limit = self._session.services.returns.limit(self._queue) if acks else 0
        while self._held and size < WRITE_BYTES:
            delivery = self._held.popleft()
            self._held_bytes -= len(delivery.message.body)
            self._budget.used -= len(delivery.message.body)
            if acks and not self._hand(delivery, consumer, limit):
                continue
            data = self._encoding.encode_delivery(delivery.message, self.ack_id(delivery.tag))
            parts.append(data)
            tags.append(delivery.tag)
            size += len(data)
        if parts:
            data = b"".join(parts)
            counts = self._session.services.counts
            counts.queue_messages += len(tags)
            counts.queue_bytes += len(data)
            self._session.write(data)
        if not acks:
            for tag in tags:
                consumer.ack(tag)
        if not self._held and self._paused and self._takes:
            self._paused = False
            consumer.resume()
        self._schedule()
