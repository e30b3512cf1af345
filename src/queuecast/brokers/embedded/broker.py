"""The embedded broker: AMQP's exchanges and queues within the process, in memory.

Everything happens on the event loop, and a publish is done when it returns: matching, feeds'
sinks, queues and history. Offsets are one sequence for the whole broker, so a feed's position
is the broker's last offset, whatever the feed itself has seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...destination import Destination, Kind
from ...errors import (
    NotFound,
    PublishFailed,
    Refused,
    Unavailable,
    Unroutable,
    Unsupported,
)
from ...message import NO_PROPERTIES, Message, Properties
from ...pattern import is_pattern
from ...position import Mark, new_epoch
from ..base import (
    DEFAULT_PREFETCH,
    PLAIN,
    TOPIC_EXCHANGE,
    Consumer,
    ConsumeSpec,
    DeliverySink,
    ExchangeSpec,
    FeedSink,
    Owner,
    QueueSpec,
)
from ..matching import Index, new_index
from ..owners import Owners
from . import death, history
from .arguments import read_expiration
from .clock import Clock, LoopClock
from .consumer import QueueConsumer
from .exchange import Exchange
from .feed import Feed
from .history import History
from .memory import Memory, weight
from .queue import Queue
from .stream import Stream, StreamConsumer
from .topology import AnyQueue, Target, Topology, hint_exchange, hint_queue
from .turn import Turn

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 512 << 20
# Clients declare a queue by naming it (/queue/N): ever new names must not grow memory.
DEFAULT_MAX_QUEUES = 65_536
# A caller that publishes in a loop never waits here: every so many publishes it lets the event
# loop turn, so that what it published is written before logs overflow.
_PUBLISHES_A_TURN = 64


class _Routed(NamedTuple):
    """What became of a message: targets that took it, and the name of a queue that refused."""

    taken: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What is in a queue now."""

    ready: int
    unacked: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in the broker now; bytes are estimates."""

    exchanges: int
    queues: dict[str, QueueCounts]
    feeds: int
    offset: int
    queue_bytes: int
    history_bytes: int


class EmbeddedBroker:
    """A broker in this process, gone when it ends; implements base.Broker.

    max_bytes: for the messages of all queues; a publish beyond it is PublishFailed.
    history_messages (per routing key), history_age (seconds), history_bytes (in all): what a
    feed finds when it opens late.
    """

    name = "embedded (memory)"

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_queues: int = DEFAULT_MAX_QUEUES,
        history_messages: int = history.DEFAULT_MESSAGES,
        history_age: float = history.DEFAULT_AGE,
        history_bytes: int = history.DEFAULT_BYTES,
    ) -> None:
        self.epoch = new_epoch()
        self._clock: Clock = LoopClock() if clock is None else clock
        self._turn = Turn(self._clock)
        self._memory = Memory(max_bytes)
        self._history = History(
            self._clock.now,
            messages=history_messages,
            age=history_age,
            max_bytes=history_bytes,
        )
        self._topology = Topology(self._make_queue, max_queues, self._on_exchange_gone)
        self._owners = Owners()
        self._feeds: dict[Feed, None] = {}
        self._offset = 0  # given to a message
        self._handed = 0  # … which then all feeds have
        self._publishes = 0
        self._status = "not started"

    # Life

    async def start(self) -> None:
        if self._status == "closed":
            raise Unavailable("the embedded broker is closed")
        self._status = "in memory"

    async def close(self) -> None:
        self._status = "closed"
        for feed in list(self._feeds):
            await feed.close()
        self._topology.close(Unavailable("the embedded broker is closed"))

    @property
    def ready(self) -> bool:
        return self._status == "in memory"

    @property
    def status(self) -> str:
        return self._status

    def counts(self) -> Counts:
        """Return what is in the broker now."""
        return Counts(
            exchanges=len(self._topology.exchanges),
            queues={
                name: QueueCounts(found.ready, found.unacked, found.consumers)
                for name, found in self._topology.queues.items()
            },
            feeds=len(self._feeds),
            offset=self._offset,
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
            self._topology.declare_queue(queue_spec)

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange: its feeds fail, its queues stay. Raises NotFound, Refused."""
        self._check_ready()
        self._topology.delete_exchange(name)

    async def delete_queue(self, name: str) -> None:
        """Delete a queue with all that is in it; its consumers are cancelled. Raises NotFound."""
        self._check_ready()
        self._drop_queue(name, "was deleted")

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        self._check_ready()
        self._declare_own(queue, owner)

    def _declare_own(self, queue: QueueSpec, owner: Owner | None) -> None:
        if owner is not None and owner.gone:
            raise Unavailable("the session is over")
        self._owners.check(queue.name, owner)
        self._topology.declare_queue(queue)
        if queue.exclusive:
            self._owners.take(queue.name, owner)

    async def delete_own(self, name: str, owner: Owner) -> None:
        self._check_ready()
        self._owners.check(name, owner)
        if name in self._topology.queues:
            self._drop_queue(name, "was deleted")

    async def release(self, owner: Owner) -> None:
        owner.gone = True
        for name in self._owners.held(owner):
            self._drop_queue(name, "was its owner's, who left")

    def _drop_queue(self, name: str, why: str) -> None:
        self._topology.drop_queue(name, NotFound(f"queue {name!r} {why}"))
        self._owners.drop(name)

    def _make_queue(self, spec: QueueSpec) -> AnyQueue:
        if spec.is_stream:
            return Stream(spec, turn=self._turn, memory=self._memory)
        return Queue(
            spec,
            clock=self._clock,
            turn=self._turn,
            memory=self._memory,
            on_death=self._on_death,
            on_unused=self._on_unused,
        )

    def _on_unused(self, unused: Queue) -> None:
        if self._topology.queues.get(unused.name) is unused:
            self._drop_queue(unused.name, "expired")

    def _on_exchange_gone(self, name: str) -> None:
        self._history.forget(name, self._offset)
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
        self._check_ready()
        read_expiration(properties.expiration)
        name, key = self._address(destination)
        target = self._topology.exchange(name)
        if destination.kind is Kind.QUEUE and key not in self._topology.queues:
            self._topology.declare_queue(QueueSpec(key))
        message = Message(body, name, key, properties)
        routed = self._turn.first(lambda: self._route(target, message))
        if mandatory is None:
            mandatory = destination.names_queue
        if mandatory and not routed.taken and routed.refused is None:
            hint = hint_queue(key) if destination.names_queue else ""
            raise Unroutable(f"no queue takes what is published to {destination}", hint)
        if routed.refused is not None:
            raise PublishFailed(f"queue {routed.refused!r} is full and refuses (x-overflow)")
        self._publishes += 1
        if self._publishes % _PUBLISHES_A_TURN == 0:
            await asyncio.sleep(0)

    def _address(self, destination: Destination) -> tuple[str, str]:
        """Return the exchange and routing key (or pattern) of a destination."""
        if destination.kind is Kind.TOPIC:
            return TOPIC_EXCHANGE, destination.name
        if destination.kind is Kind.EXCHANGE:
            return destination.name, destination.pattern
        if destination.kind is Kind.TEMP_QUEUE:
            raise Unsupported(f"{destination} is a name of one session, not of the broker")
        return "", destination.name

    def _route(
        self, target: Exchange[Target], message: Message, *, is_dead: bool = False
    ) -> _Routed:
        """Give a message to all that match; raises PublishFailed when memory is full."""
        targets, passed = self._match(target, message)
        if is_dead and targets:
            deaths = death.deaths_of(message)
            targets = [
                found
                for found in targets
                if isinstance(found, Feed) or not death.is_cycle(found.name, deaths)
            ]
        size = weight(message)
        queues = sum(1 for found in targets if not isinstance(found, Feed))
        if queues and not self._memory.has_room(queues * size):
            raise PublishFailed(
                f"the embedded broker's queues hold {self._memory.used} bytes of at most "
                f"{self._memory.limit}",
                "consume what is in the queues, or limit them with x-max-length or x-message-ttl",
            )
        self._offset += 1
        message.offset = self._offset
        for name in passed:
            self._history.add(name, message)
        refused: str | None = None
        for found in targets:
            if isinstance(found, Feed):
                found.append(message)
            elif not found.put(message, size):
                refused = found.name
        self._handed = self._offset
        return _Routed(len(targets), refused)

    def _match(
        self, target: Exchange[Target], message: Message
    ) -> tuple[Collection[Target], list[str]]:
        """Return the targets, and the exchanges passed on the way (alternate exchanges)."""
        if target.name == "":
            found = self._topology.queues.get(message.routing_key)
            return (() if found is None else (found,)), []
        passed: list[str] = []
        while True:
            passed.append(target.name)
            targets = target.match(message.routing_key, message.properties.headers)
            alternate = target.alternate
            if targets or alternate is None or alternate in passed:
                return targets, passed
            following = self._topology.exchanges.get(alternate)
            if following is None:
                return targets, passed
            if following.name == "":
                return self._match(following, message)[0], passed
            target = following

    def _on_death(self, dead: Queue, message: Message, reason: str) -> None:
        name = dead.arguments.dead_letter_exchange
        if name is None:
            return
        letter = death.bury(
            message,
            queue=dead.name,
            reason=reason,
            exchange=name,
            routing_key=dead.arguments.dead_letter_key,
            time=int(time.time()),
        )
        self._turn.do(lambda: self._route_dead(dead.name, letter))

    def _route_dead(self, from_queue: str, letter: Message) -> None:
        target = self._topology.exchanges.get(letter.exchange)
        if target is None:
            logger.warning(
                "dead letter of queue %r dropped: no exchange %r", from_queue, letter.exchange
            )
            return
        try:
            routed = self._route(target, letter, is_dead=True)
        except PublishFailed as error:
            logger.warning("dead letter of queue %r dropped: %s", from_queue, error)
            return
        if routed.refused is not None:
            logger.warning(
                "dead letter of queue %r refused by queue %r", from_queue, routed.refused
            )

    # Reading

    async def open_feed(self, destination: Destination, sink: FeedSink) -> Feed:
        self._check_ready()
        if not destination.is_shared:
            raise Unsupported(f"{destination} is a queue: each message goes to one consumer")
        name, key = self._address(destination)
        source = self._topology.exchange(name)
        if name == "":
            raise Refused("no feed on the default exchange")
        feed = Feed(name, key, sink, lambda: self._handed, self._on_feed_closed)

        def join() -> None:
            watermark, backlog = self._backlog(source, key)
            sink.begin((Mark(self.epoch, watermark),), backlog, history=True)
            source.index.add(key, feed)
            self._feeds[feed] = None

        # In one piece: what begin() causes (an ack, a dead letter) comes after it.
        self._turn.first(join)
        return feed

    def _backlog(self, source: Exchange[Target], key: str) -> tuple[int, list[Message]]:
        kind = source.spec.type
        literal = kind == "direct" or (kind == "topic" and not is_pattern(key))
        # The same index that routes, with this one binding in it, asks key by key.
        index: Index[bool] = new_index(kind)
        index.add(key, True)
        return self._history.read(
            source.name, key if literal else None, lambda name: bool(index.match(name))
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
            self._declare_own(spec.queue, spec.owner)
        else:
            if destination.is_shared:
                raise Unsupported(f"{destination} is no queue: open a feed")
            _, name = self._address(destination)
            if destination.kind is Kind.QUEUE and name not in self._topology.queues:
                self._topology.declare_queue(QueueSpec(name))
        self._owners.check(name, spec.owner)
        found = self._topology.queue(name)
        if isinstance(found, Stream):
            reader = StreamConsumer(found, sink, prefetch, spec.arguments)
            found.attach(reader)
            self._clock.call_later(0, reader.start)
            return reader
        priority = spec.arguments.get("x-priority", 0)
        consumer = QueueConsumer(found, sink, prefetch, priority)
        found.attach(consumer)
        self._clock.call_later(0, consumer.start)
        return consumer

    # Looking up

    def _check_ready(self) -> None:
        if not self.ready:
            raise Unavailable(f"the embedded broker is {self._status}")
