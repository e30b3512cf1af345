"""The consumers of this node: which connection of the pool each is on, and which are there."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

from ...delivery import DeliveryBudget
from ...destination import Destination, Kind
from ...errors import BadRequest, NotFound, QueuecastError, Unsupported
from ..background import Background
from ..base import ConsumeSpec, DeliverySink
from ..owners import Owners
from .away import AwayQueues
from .consumer import QueueConsumer
from .exchange_watch import ExchangeWatch, Following
from .failures import Away
from .pool import ConsumerPool, Line
from .topology import Topology

log = logging.getLogger(__name__)

MAX_PREFETCH = 65_535  # AMQP's field has 16 bits

_QUEUES = (Kind.QUEUE, Kind.AMQ_QUEUE, Kind.REPLY_QUEUE)


class Consumers:
    """All consumers of this node."""

    def __init__(
        self,
        pool: ConsumerPool,
        topology: Topology,
        owners: Owners,
        budget: DeliveryBudget,
        away: AwayQueues,
        watch: ExchangeWatch,
    ) -> None:
        self._pool = pool
        self.away = away
        self.budget = budget
        self.owners = owners
        self._topology = topology
        self._all: dict[QueueConsumer, Line] = {}
        self._watch = watch
        # By exchange: those that own queues are bound to, or shall be.
        self._followed: dict[str, Following] = {}
        self._opening: Counter[str] = Counter()
        self._background = Background(log)

    async def open(
        self, destination: Destination, sink: DeliverySink, prefetch: int, spec: ConsumeSpec
    ) -> QueueConsumer:
        """Start a consumer; see the broker interface."""
        if spec.queue is None and destination.kind not in _QUEUES:
            raise Unsupported(f"{destination} names no queue")
        if not 1 <= prefetch <= MAX_PREFETCH:
            raise BadRequest(f"prefetch {prefetch}", f"it is 1 to {MAX_PREFETCH}")
        exchanges = () if spec.queue is None else {each.exchange for each in spec.queue.bindings}
        self._opening.update(exchanges)
        try:
            for exchange in exchanges:
                # Before the queue is bound, so that no loss goes unnoticed.
                await self._follow(exchange)
            return await self._open(destination, sink, prefetch, spec)
        finally:
            self._opening.subtract(exchanges)
            self._unfollow(exchanges)

    async def _open(
        self, destination: Destination, sink: DeliverySink, prefetch: int, spec: ConsumeSpec
    ) -> QueueConsumer:
        # An exclusive queue is its connection's (AMQP 0-9-1 section 3.1.4), and sessions declare
        # theirs on the first.
        line, link = await self._pool.take(first=self._is_exclusive(destination, spec))
        consumer = QueueConsumer(self, self._topology, destination, sink, prefetch, spec)
        try:
            try:
                await consumer.open(link)
            except NotFound:
                if spec.queue is None:
                    raise
                # It went with its last consumer between the declaration and this one.
                await consumer.open(link)
        except BaseException as error:
            self._pool.opened(line, None)
            if isinstance(error, Away):
                self.away.note(consumer.queue, error)
            raise
        self._pool.opened(line, consumer)
        self._all[consumer] = line
        current = line.supervisor.link
        if current is not link:
            # The link went while this one was opened on it.
            consumer.on_down()
            if current is not None:
                consumer.on_up(current)
        return consumer

    def _is_exclusive(self, destination: Destination, spec: ConsumeSpec) -> bool:
        if spec.queue is not None:
            return spec.queue.exclusive
        return self.owners.knows(destination.name)

    def forget(self, consumer: QueueConsumer) -> None:
        line = self._all.pop(consumer, None)
        if line is not None:
            self._pool.release(line, consumer)
            self._unfollow(consumer.exchanges)

    # The exchanges of own queues

    async def _follow(self, exchange: str) -> None:
        if exchange in self._followed:
            return

        def on_lost(why: str) -> None:
            self._background.spawn(self._bind_again(exchange, why), f"binding to {exchange!r}")

        following = await self._watch.follow(exchange, on_lost)
        if exchange in self._followed:
            await following.close()  # another opening was as fast
        else:
            self._followed[exchange] = following

    def _unfollow(self, exchanges: Iterable[str]) -> None:
        """Let go of exchanges that no queue is bound to any more."""
        for exchange in exchanges:
            if self._opening[exchange] > 0 or exchange in self.exchanges:
                continue
            del self._opening[exchange]
            following = self._followed.pop(exchange, None)
            if following is not None:
                self._background.spawn(following.close(), f"letting go of {exchange!r}")

    async def _bind_again(self, exchange: str, why: str) -> None:
        try:
            await self.rebind(exchange, why)
        except NotFound:
            # The watch calls again when it is back.
            log.info("queues wait for the exchange %r", exchange)

    @property
    def exchanges(self) -> frozenset[str]:
        """The exchanges that consumers' own queues are bound to."""
        return frozenset().union(*(consumer.exchanges for consumer in self._all))

    async def rebind(self, exchange: str, why: str) -> None:
        """Bind all own queues again that are bound to an exchange, and tell them the gap.

        why: the gap's reason. Raises NotFound while the exchange is missing.
        """
        for consumer in [each for each in self._all if exchange in each.exchanges]:
            try:
                await consumer.rebind(why)
            except NotFound:
                raise
            except QueuecastError as error:
                log.warning("queue %r cannot be bound again: %s", consumer.queue, error)

    async def close(self) -> None:
        """Close all; their unacked deliveries go back."""
        self._background.cancel()
        await asyncio.gather(*(consumer.close() for consumer in list(self._all)))
        await self._pool.close()
