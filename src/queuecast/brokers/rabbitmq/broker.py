"""RabbitMQ as a broker: one connection for consuming, one for publishing, one for streams.

A publisher that RabbitMQ blocks or slows down must not stop deliveries, and what a stream does not
support ends its whole connection. Very many consumers get more (pool.py). Each is kept up by a
supervisor; feeds, consumers, streams and the publisher live on whatever link there is. Without
[[retain]] rules there are no streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Sequence

import pika.exceptions

from ...delivery import DeliveryBudget
from ...destination import Destination
from ...errors import QueuecastError, Unavailable, Unroutable
from ...message import NO_PROPERTIES, Properties
from ...metrics import Family, by_label, gauge
from ...retention import RetainRule, rule_for
from ..background import Background
from ..base import (
    DEFAULT_PREFETCH,
    PLAIN,
    Consumer,
    ConsumeSpec,
    DeliverySink,
    ExchangeSpec,
    FeedReader,
    FeedSink,
    Owner,
    QueueSpec,
)
from ..files import NO_FILES, Files
from .address import Address
from .away import AwayQueues
from .connection import Link
from .consumers import Consumers
from .exchange_watch import ExchangeWatch
from .failures import of_channel, reason
from .feeds import EXPIRES, REBIND, Feeds
from .hosts import Hosts
from .ownqueue import OwnQueues
from .pool import ConsumerPool, OnDown, OnUp
from .publisher import MAX_UNCONFIRMED, MAX_UNCONFIRMED_BYTES, Publisher
from .retained import Retained
from .supervisor import LAST_DELAY, Supervisor
from .topology import Topology

log = logging.getLogger(__name__)

_UNSAFE = re.compile(r"[^\w\-]", re.ASCII)
_CHECK = 1.0  # seconds between looks at overdue confirms
_QUEUES_AGAIN = 15.0  # seconds between attempts to declare a configured queue whose node is down


class RabbitBroker:
    """A RabbitMQ broker, 3.10 to 4.x.

    url: as in the configuration, or what was read from it. hosts: the order in which the address's
    hosts are tried, shared with another broker. files: see Address.parse. node: this process's
    name in the names of its queues; random when None.
    patience: seconds that a call waits for a broker that is away. confirm_timeout: seconds until
    a missing confirm is an unknown outcome. expires: milliseconds that a feed's queue outlives
    our connection, linger: seconds that it is kept without bindings, for the next reader.
    zombie_patience: seconds for RabbitMQ to let go of a connection that was lost. rebind: seconds
    between looks at exchanges and bindings. grace: seconds that `close` waits for confirms.
    reconnect: seconds between attempts to connect, at most.
    deliveries: what consumers may hold, shared with the node's others. retain: rules for
    destinations whose messages are kept in streams. covered: such rules of another login, which
    has the streams; what is published here has to reach them too.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        hosts: Hosts | None = None,
        files: Files = NO_FILES,
        node: str | None = None,
        patience: float = 5.0,
        confirm_timeout: float = 30.0,
        expires: int = EXPIRES,
        rebind: float = REBIND,
        zombie_patience: float = 10.0,
        linger: float = 30.0,
        grace: float = 5.0,
        reconnect: float = LAST_DELAY,
        max_unconfirmed: int = MAX_UNCONFIRMED,
        max_unconfirmed_bytes: int = MAX_UNCONFIRMED_BYTES,
        deliveries: DeliveryBudget | None = None,
        retain: Sequence[RetainRule] = (),
        covered: Sequence[RetainRule] = (),
    ) -> None:
        """Raises ConfigError for the URL, and for a rule that a stream cannot keep to."""
        address = url if isinstance(url, Address) else Address.parse(url, files=files)
        self.address = address
        self.hosts = Hosts(address) if hosts is None else hosts
        self.name = address.masked
        node = _UNSAFE.sub("_", node)[:64] if node else secrets.token_hex(4)
        self._grace = grace
        self._topology = Topology(lambda: Link.open(address, f"queuecast {node} declaring"))

        def connection(purpose: str, on_up: OnUp, on_down: OnDown) -> Supervisor:
            name = f"queuecast {node} {purpose}"
            return Supervisor(
                address,
                name,
                hosts=self.hosts,
                on_up=on_up,
                on_down=on_down,
                last_delay=reconnect,
            )

        self._consuming = connection("consuming", self._on_consuming_up, self._on_consuming_down)
        self._publishing = connection("publishing", self._on_publishing_up, lambda _why: None)
        self._streaming = connection(
            "streams", self._on_streaming_up, lambda why: self._retained.on_down(why)
        )
        self._watch = ExchangeWatch(self._consuming)
        self._retained = Retained(
            retain,
            self._streaming,
            self._publishing,
            self._topology,
            watch=self._watch,
            patience=patience,
            rebind=rebind,
        )
        self._covered = tuple(covered)
        self._supervisors = [self._consuming, self._publishing]
        if retain:
            self._supervisors.append(self._streaming)
        self._feeds = Feeds(
            self._consuming,
            self._publishing,
            self._topology,
            self._watch,
            f"queuecast.{node}",
            patience=patience,
            expires=expires,
            rebind=rebind,
            zombie_patience=zombie_patience,
            linger=linger,
        )
        self._own = OwnQueues(self._consuming, self._topology, patience=patience)
        self._away = AwayQueues(self._consuming)
        self._pool = ConsumerPool(self._consuming, connection, patience=patience)
        self._consumers = Consumers(
            self._pool,
            self._topology,
            self._own.owners,
            deliveries if deliveries is not None else DeliveryBudget(),
            self._away,
            self._watch,
        )
        self._publisher = Publisher(
            self._publishing,
            self._topology,
            self._away,
            patience=patience,
            confirm_timeout=confirm_timeout,
            max_unconfirmed=max_unconfirmed,
            max_unconfirmed_bytes=max_unconfirmed_bytes,
        )
        self._patience = patience
        self._checking: asyncio.Task[None] | None = None
        self._background = Background(log)
        self._closed = False

    async def start(self) -> None:
        """Connect; raises Refused, NotFound (virtual host), ConfigError or Unavailable.

        After it raised, it may be called again; after it succeeded, the connections come back by
        themselves for ever.
        """
        if self._closed:
            raise Unavailable("the broker was closed")
        for supervisor in self._supervisors:
            await supervisor.start()
        if self._checking is None:
            self._checking = asyncio.create_task(self._check(), name="rabbitmq confirms")

    async def check_login(self) -> None:
        """Log in once more, to see whether the broker still lets us; raises as `start`."""
        link = await self.hosts.open(self.address, "queuecast login")
        await link.close()

    def know(self, exchanges: Sequence[ExchangeSpec], queues: Sequence[QueueSpec]) -> None:
        """Take over how exchanges and queues are declared by another login."""
        self._topology.know(exchanges, queues)

    async def _on_consuming_up(self, link: Link) -> None:
        try:
            await self._topology.repeat(link)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        self._watch.on_up(link)
        self._feeds.on_up(link)
        await self._pool.lines[0].on_up(link)
        # In the background: a queue whose node is down must not keep the feeds waiting.
        self._background.spawn(self._repeat_queues(link), "declaring queues")

    async def _repeat_queues(self, link: Link) -> None:
        while link.is_open and not self._closed:
            try:
                if await self._topology.repeat_queues(link):
                    return
            except pika.exceptions.AMQPError as error:
                log.debug("declaring queues: %s", reason(error))
            await asyncio.sleep(_QUEUES_AGAIN)

    def _on_consuming_down(self, why: str) -> None:
        self._watch.on_down()
        self._feeds.on_down(why)
        self._own.on_down()
        self._pool.lines[0].on_down(why)

    async def _on_publishing_up(self, link: Link) -> None:
        try:
            await self._publisher.on_up(link)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None

    async def _on_streaming_up(self, link: Link) -> None:
        self._retained.on_up(link)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(_CHECK)
            try:
                self._publisher.check_confirms()
            except Exception:
                log.exception("checking for overdue confirms failed")

    @property
    def ready(self) -> bool:
        """Whether all connections are up, and the feeds and streams are read."""
        return all(each.ready for each in self._supervisors) and not self._problem

    @property
    def _problem(self) -> str:
        return self._retained.problem or self._feeds.problem

    @property
    def refused(self) -> QueuecastError | None:
        """Why RabbitMQ does not let this login come back, if it does not."""
        return self._consuming.refused

    @property
    def status(self) -> str:
        """What is the matter, for people."""
        for supervisor in self._supervisors:
            if not supervisor.ready:
                return supervisor.status
        if self._problem:
            return self._problem
        connected = " and ".join(dict.fromkeys(each.status for each in self._supervisors))
        blocked = self._publishing.link.blocked if self._publishing.link else None
        return f"{connected}, but takes no publishes: {blocked}" if blocked else connected

    def families(self) -> list[Family]:
        """See the broker interface."""
        further = [line.supervisor for line in self._pool.lines[1:]]
        link = self._publishing.link
        return [
            by_label(
                "queuecast_broker_connection_up",
                "gauge",
                "1 while a connection to RabbitMQ is open, by what it is for.",
                "connection",
                {each.purpose: int(each.ready) for each in self._supervisors},
            ),
            by_label(
                "queuecast_broker_reconnects_total",
                "counter",
                "How often a connection was lost and came back.",
                "connection",
                {each.purpose: each.reconnects for each in self._supervisors},
            ),
            gauge(
                "queuecast_broker_consumer_connections",
                "Further connections, for very many consumers.",
                len(further),
            ),
            gauge(
                "queuecast_broker_blocked",
                "1 while RabbitMQ takes no publishes.",
                int(link is not None and bool(link.blocked)),
            ),
            gauge(
                "queuecast_broker_unconfirmed",
                "Publishes that RabbitMQ has not confirmed yet.",
                self._publisher.unconfirmed,
            ),
        ]

    async def declare(
        self, exchanges: Sequence[ExchangeSpec] = (), queues: Sequence[QueueSpec] = ()
    ) -> None:
        """Create what is configured and remember it, and the streams of the rules.

        Raises Conflict, Refused, ConfigError, NotFound (the exchange of a rule), Unavailable.
        """
        link = await self._consuming.wait(self._patience)
        await self._topology.declare(link, exchanges, queues)
        await self._retained.start()

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> None:
        """Publish and return once RabbitMQ has confirmed; see the broker interface.

        Order is kept per exchange and, for /queue, per queue. What a rule keeps has to reach its
        stream.
        """
        retained = await self._retained.publishable(destination)
        if not retained and rule_for(self._covered, destination) is None:
            await self._publisher.publish(destination, body, properties, mandatory)
            return
        try:
            await self._publisher.publish(destination, body, properties, True)
        except Unroutable:
            self._retained.look(destination)
            raise Unavailable(
                f"the stream that retains {destination} takes no messages at the moment"
            ) from None

    async def open_feed(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """Start reading; raises NotFound, Refused, Unsupported, Unavailable."""
        try:
            if self._retained.holds(destination):
                return await self._retained.open(destination, sink)
            return await self._feeds.open(destination, sink)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None

    async def check_feed(self, destination: Destination) -> None:
        """Return if this login may read a feed; raises as `open_feed`, and creates nothing."""
        await self._feeds.check(destination)

    async def consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int = DEFAULT_PREFETCH,
        spec: ConsumeSpec = PLAIN,
    ) -> Consumer:
        """Start consuming a queue; raises NotFound, Refused, Conflict, Unavailable."""
        return await self._consumers.open(destination, sink, prefetch, spec)

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        """Declare a session's queue; see the broker interface."""
        await self._own.declare(queue, owner)

    async def delete_own(self, name: str, owner: Owner) -> None:
        """Delete a queue; see the broker interface."""
        await self._own.delete(name, owner)

    async def release(self, owner: Owner) -> None:
        """Delete what is left of a session that is over."""
        await self._own.release(owner)

    async def close(self) -> None:
        """Wait for confirms, give unacked deliveries back, delete our queues, disconnect."""
        if self._closed:
            return
        self._closed = True
        await self._publisher.close(self._grace)
        self._background.cancel()
        await self._away.close()
        for part in (self._consumers, self._feeds, self._retained, self._watch):
            try:
                await part.close()
            except (QueuecastError, pika.exceptions.AMQPError) as error:
                log.info("closing: %s", error)
            except Exception:
                log.exception("closing the feeds and consumers failed")
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking
        await asyncio.gather(*(supervisor.close() for supervisor in self._supervisors))
