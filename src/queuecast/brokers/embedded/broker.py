"""The embedded broker: AMQP's exchanges and queues within the process.

Everything happens on the event loop, and a publish is done when it returns: matching, feeds'
sinks, queues and history. Offsets are one sequence for the whole broker, so a feed's position
is the broker's last offset, whatever the feed itself has seen. With a store what has to last
goes through it first (keeper.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ...destination import Destination, Kind
from ...errors import (
    Conflict,
    NotFound,
    PublishFailed,
    Refused,
    Unavailable,
    Unroutable,
    Unsupported,
)
from ...message import NO_PROPERTIES, Message, Properties
from ...metrics import Family
from ...position import Mark, new_epoch
from ...retention import RetainRule, rule_for
from ..base import (
    DEFAULT_PREFETCH,
    PLAIN,
    Consumer,
    ConsumeSpec,
    DeliverySink,
    ExchangeSpec,
    FeedSink,
    Owner,
    QueueSpec,
)
from ..binding import check_binding
from ..owners import Owners
from .age import AgeClock
from .arguments import read_expiration
from .clock import Clock, LoopClock
from .consumer import QueueConsumer
from .counts import Counts, QueueCounts, embedded_families
from .feed import Feed
from .history import DEFAULT_LIMITS, History, HistoryLimits
from .memory import Memory
from .queue import Queue
from .retained import Filter, RetainedFeed, new_filter
from .routing import Routed, Router
from .stream import Stream, StreamConsumer
from .topology import AnyQueue, Topology, hint_exchange, hint_queue
from .turn import Turn

if TYPE_CHECKING:
    from .keeper import Keeper

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 512 << 20
# Clients declare a queue by naming it (/queue/N): ever new names must not grow memory.
DEFAULT_MAX_QUEUES = 65_536
# A caller that publishes in a loop never waits here: every so many publishes it lets the event
# loop turn, so that what it published is written before logs overflow.
_PUBLISHES_A_TURN = 64


class EmbeddedBroker:
    """A broker in this process; implements base.Broker. Without a keeper it is gone with it.

    retain: what is kept whether or not anyone is subscribed; the keeper's store has equal rules.
    ages: the clock that messages' ages are measured by, where there is no keeper, which has one.
    max_bytes: for the messages of all queues; a publish beyond it is PublishFailed.
    history: what a feed finds when it opens late.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        keeper: Keeper | None = None,
        ages: AgeClock | None = None,
        retain: Sequence[RetainRule] = (),
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_queues: int = DEFAULT_MAX_QUEUES,
        history: HistoryLimits = DEFAULT_LIMITS,
    ) -> None:
        self.name = f"embedded ({'memory' if keeper is None else keeper.directory})"
        self.epoch = new_epoch()
        self._clock: Clock = LoopClock() if clock is None else clock
        self._turn = Turn(self._clock)
        self._memory = Memory(max_bytes)
        self._history = History(self._clock.now, history)
        self._topology = Topology(self._make_queue, max_queues, self._on_exchange_gone)
        self._owners = Owners()
        self._retain = retain
        self._keeper = keeper
        if keeper is not None:
            ages = keeper.ages
        self._ages = AgeClock() if ages is None else ages
        self._router = Router(
            self._topology, self._turn, self._memory, self._history, retain, keeper, self._ages
        )
        self._feeds: dict[Feed, None] = {}
        self._publishes = 0
        self._status = "not started"
        self._is_open = False
        # Queues of the configuration, of which there are few: measured one by one.
        self._configured: set[str] = set()

    # Life

    async def start(self) -> None:
        if self._status == "closed":
            raise Unavailable("the embedded broker is closed")
        if self._keeper is None:
            self._status = "in memory"
        elif not self.ready:
            self._status = f"loading {self._keeper.directory}"
            try:
                await self._restore(self._keeper)
            except BaseException:
                self._status = "not started"
                raise
            self._status = f"on disk in {self._keeper.directory}"
        self._is_open = True
        self._history.begin()

    async def _restore(self, keeper: Keeper) -> None:
        found = await keeper.open(self._turn, self._memory)
        self.epoch = found.epoch
        self._router.begin_at(found.offset)
        try:
            # What it causes (a message that expired meanwhile) comes after it.
            with self._turn.held():
                await keeper.restore(found, self._topology)
        except BaseException:
            await keeper.abandon()
            raise

    async def close(self) -> None:
        was_open = self.ready
        self._status = "closed"
        self._is_open = False
        if was_open:
            with suppress(Unavailable):  # each publisher hears of its own
                await self._settled()
        for feed in list(self._feeds):
            await feed.close()
        if self._keeper is not None and was_open:
            await self._keeper.close(self._topology, self._router.offset)
        self._topology.close(Unavailable("the embedded broker is closed"))

    @property
    def ready(self) -> bool:
        return self._is_open

    @property
    def status(self) -> str:
        if self.ready and self._keeper is not None and self._keeper.error is not None:
            return str(self._keeper.error)
        return self._status

    def families(self) -> list[Family]:
        """See the broker interface."""
        found = embedded_families(self.counts(), self._configured)
        return found if self._keeper is None else [*found, *self._keeper.families()]

    def counts(self) -> Counts:
        """Return what is in the broker now."""
        return Counts(
            exchanges=len(self._topology.exchanges),
            queues={
                name: QueueCounts(found.ready, found.unacked, found.consumers)
                for name, found in self._topology.queues.items()
            },
            feeds=len(self._feeds),
            offset=self._router.offset,
            queue_bytes=self._memory.used,
            history_bytes=self._history.bytes,
        )

    # Topology

    async def declare(
        self, exchanges: Sequence[ExchangeSpec] = (), queues: Sequence[QueueSpec] = ()
    ) -> None:
        self._check_ready()
        for exchange_spec in exchanges:
            self._topology.declare_exchange(exchange_spec)
        for queue_spec in queues:
            self._check_bindings(queue_spec)
            self._topology.declare_queue(queue_spec)
            self._configured.add(queue_spec.name)
        await self._settled()

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange: its feeds fail, its queues stay. Raises NotFound, Refused."""
        self._check_ready()
        self._topology.delete_exchange(name)
        await self._settled()

    async def delete_queue(self, name: str) -> None:
        """Delete a queue with all that is in it; its consumers are cancelled. Raises NotFound."""
        self._check_ready()
        self._drop_queue(name, "was deleted")
        await self._settled()

    def _check_bindings(self, queue: QueueSpec) -> None:
        """Raise BadDestination for a binding that never matches; NotFound (an exchange).

        Not where the store is read: what is in it has to stay usable.
        """
        for binding in queue.bindings:
            source = self._topology.exchange(binding.exchange)
            check_binding(binding.exchange, source.spec.type, binding.key)

    async def _settled(self) -> None:
        if self._keeper is not None:
            await self._keeper.settled()

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        self._check_ready()
        await self._declare_own(queue, owner)

    async def _declare_own(self, queue: QueueSpec, owner: Owner | None) -> None:
        if owner is not None and owner.gone:
            raise Unavailable("the session is over")
        self._owners.check(queue.name, owner)
        self._check_bindings(queue)
        self._topology.declare_queue(queue)
        if queue.exclusive:
            self._owners.take(queue.name, owner)
        if queue.is_lasting:
            await self._settled()

    async def delete_own(self, name: str, owner: Owner) -> None:
        self._check_ready()
        self._owners.check(name, owner)
        if name in self._topology.queues:
            self._drop_queue(name, "was deleted")
            await self._settled()

    async def release(self, owner: Owner) -> None:
        owner.gone = True
        for name in self._owners.held(owner):
            self._drop_queue(name, "was its owner's, who left")

    def _drop_queue(self, name: str, why: str) -> None:
        self._topology.drop_queue(name, NotFound(f"queue {name!r} {why}"))
        self._owners.drop(name)

    def _make_queue(self, spec: QueueSpec) -> AnyQueue:
        if spec.is_stream:
            return Stream(
                spec,
                turn=self._turn,
                memory=self._memory,
                ages=self._ages,
                on_truncated=None if self._keeper is None else self._keeper.truncated,
            )
        return Queue(
            spec,
            clock=self._clock,
            turn=self._turn,
            memory=self._memory,
            on_death=self._router.on_death,
            on_unused=self._on_unused,
            clearance=None if self._keeper is None else self._keeper.clearance(),
        )

    def _on_unused(self, unused: Queue) -> None:
        if self._topology.queues.get(unused.name) is unused:
            self._drop_queue(unused.name, "expired")

    def _on_exchange_gone(self, name: str) -> None:
        self._history.forget(name, self._router.offset)
        for feed in [feed for feed in self._feeds if feed.exchange == name]:
            feed.fail(NotFound(f"exchange {name!r} was deleted", hint_exchange(name)))

    # Publishing

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> None:
        routed = self._route(destination, body, properties, mandatory)
        if routed.done is not None:
            await routed.done
        _check_taken(routed)
        self._publishes += 1
        if self._publishes % _PUBLISHES_A_TURN == 0:
            await asyncio.sleep(0)

    def publish_at_once(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        if self._keeper is not None:
            return False
        _check_taken(self._route(destination, body, properties, mandatory))
        return True

    def _route(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        mandatory: bool | None,
    ) -> Routed:
        self._check_ready()
        read_expiration(properties.expiration)
        name, key = self._address(destination)
        target = self._topology.exchange(name)
        if destination.kind is Kind.QUEUE and key not in self._topology.queues:
            self._topology.declare_queue(QueueSpec(key))
        message = Message(body, name, key, properties)
        routed = self._turn.first(lambda: self._router.route(target, message))
        if mandatory is None:
            mandatory = destination.names_queue
        if mandatory and not routed.taken and routed.refused is None:
            if routed.done is not None:
                routed.done.cancel()
            hint = hint_queue(key) if destination.names_queue else ""
            raise Unroutable(f"no queue takes what is published to {destination}", hint)
        return routed

    def _address(self, destination: Destination) -> tuple[str, str]:
        """Return the exchange and routing key (or pattern) of a destination."""
        if destination.kind is Kind.TEMP_QUEUE:
            raise Unsupported(f"{destination} is a name of one session, not of the broker")
        return destination.exchange, destination.pattern

    # Reading

    async def open_feed(self, destination: Destination, sink: FeedSink) -> Feed:
        self._check_ready()
        if not destination.is_shared:
            raise Unsupported(f"{destination} is a queue: each message goes to one consumer")
        name, key = self._address(destination)
        source = self._topology.exchange(name)
        if name == "":
            raise Refused("no feed on the default exchange")
        check_binding(name, source.spec.type, key)
        only = new_filter(source.spec.type, key)
        feed = self._make_feed(destination, only, sink)

        def join() -> None:
            watermark, backlog = self._history.read(name, *only)
            if isinstance(feed, RetainedFeed):
                # What was evicted between is there: history has no holes.
                backlog = [message for message in backlog if (message.offset or 0) > watermark]
            sink.begin(
                (Mark(self.epoch, watermark),),
                backlog,
                history=True,
                complete=self._history.complete(name, *only),
            )
            source.index.add(key, feed)
            self._feeds[feed] = None

        # In one piece: what begin() causes (an ack, a dead letter) comes after it.
        self._turn.first(join)
        return feed

    def _make_feed(self, destination: Destination, only: Filter, sink: FeedSink) -> Feed:
        name, key = destination.exchange, destination.pattern
        rule = rule_for(self._retain, destination)
        if rule is None:
            return Feed(name, key, sink, lambda: self._router.handed, self._on_feed_closed)
        return RetainedFeed(
            name,
            key,
            sink,
            lambda: self._router.handed,
            self._on_feed_closed,
            epoch=self.epoch,
            log=self._router.log(self._retain.index(rule)),
            only=only,
            ages=self._ages,
        )

    def _on_feed_closed(self, feed: Feed) -> None:
        self._feeds.pop(feed, None)
        self._topology.unbind(feed.exchange, feed.key, feed, None)

    async def consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int = DEFAULT_PREFETCH,
        spec: ConsumeSpec = PLAIN,
    ) -> Consumer:
        self._check_ready()
        if prefetch < 1:
            raise ValueError(f"prefetch is {prefetch}: at least 1")
        if spec.queue is not None:
            name = spec.queue.name
            await self._declare_own(spec.queue, spec.owner)
        else:
            if destination.is_shared:
                raise Unsupported(f"{destination} is no queue: open a feed")
            _, name = self._address(destination)
            if destination.kind is Kind.QUEUE and name not in self._topology.queues:
                self._topology.declare_queue(QueueSpec(name))
                await self._settled()
        # It may have been closed, and the queue deleted, while the disk was waited for.
        self._check_ready()
        self._owners.check(name, spec.owner)
        found = self._topology.queue(name)
        if isinstance(found, Stream):
            reader = StreamConsumer(found, sink, prefetch, spec.arguments)
            found.attach(reader)
            self._clock.call_later(0, reader.start)
            return reader
        for argument in spec.arguments:
            if argument.startswith("x-stream-"):
                raise Conflict(f"{argument} is for streams: queue {name!r} is none")
        priority = spec.arguments.get("x-priority", 0)
        consumer = QueueConsumer(found, sink, prefetch, priority)
        found.attach(consumer)
        self._clock.call_later(0, consumer.start)
        return consumer

    # Looking up

    def _check_ready(self) -> None:
        if not self.ready:
            raise Unavailable(f"the embedded broker is {self._status}")


def _check_taken(routed: Routed) -> None:
    if routed.refused is not None:
        raise PublishFailed(f"queue {routed.refused!r} is full and refuses (x-overflow)")
