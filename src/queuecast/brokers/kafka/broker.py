"""Kafka as the gateway's broker: brokers.base.Broker, put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiokafka import errors as kafka

from ...delivery import Consumer, DeliverySink
from ...destination import Destination
from ...errors import Conflict, NotFound, QueuecastError, Unavailable, Unsupported
from ...message import NO_PROPERTIES, Properties
from ...metrics import Family, counter, gauge
from ..base import (
    DEFAULT_PREFETCH,
    PLAIN,
    ConsumeSpec,
    ExchangeSpec,
    FeedReader,
    FeedSink,
    Owner,
    QueueSpec,
    TopicSpec,
)
from ..files import NO_FILES, Files
from .address import Address
from .control import PING, Control
from .live import Live
from .names import feed_target
from .publisher import Publisher
from .queues import Queues
from .reader import KafkaReader
from .records import Records
from .topic import Member, TopicFeed

log = logging.getLogger(__name__)

NO_QUEUES = (
    "Kafka has no queues, only topics and their consumer groups",
    "subscribe to /topic/T with ack:auto, or to /queue/T, without queue properties",
)

# What aiokafka logs of lost connections, at every attempt, is said once by control.py.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class KafkaBroker:
    """A Kafka cluster.

    group: prefix of consumer groups: /queue/T is a member of `group.T`. topics: to be created.
    timeout: seconds after which a publish without an answer is an unknown outcome. grace: seconds
    that `close` waits for answers. ping: seconds between looks at the cluster.
    """

    def __init__(
        self,
        url: str,
        *,
        files: Files = NO_FILES,
        group: str = "queuecast",
        topics: Sequence[TopicSpec] = (),
        timeout: float = 15.0,
        grace: float = 5.0,
        ping: float = PING,
    ) -> None:
        self._address = Address.parse(url, files=files)
        self.name = self._address.masked
        self._topics = tuple(topics)
        self._grace = grace
        self._control = Control(self._address, ping=ping)
        self._records = Records(self._control)
        self._live = Live(self._control, self._records)
        self._queues = Queues(self._control, group)
        self._publisher = Publisher(self._control, timeout=timeout)
        self._closed = False

    async def start(self) -> None:
        """Connect, and create the configured topics; see the broker interface."""
        if self._closed:
            raise Unavailable("the broker was closed")
        await self._control.start()
        if self._topics:
            await self._create(self._topics)

    @property
    def ready(self) -> bool:
        """Whether the cluster answers, publishes included."""
        return self._control.ready and not self._publisher.trouble

    @property
    def status(self) -> str:
        """What is the matter, for people."""
        control = self._control
        said = (
            self._publisher.trouble,
            self._live.trouble,
            self._queues.trouble,
            self._live.damage,
            control.nodes.trouble,
            control.gone,
        )
        trouble = "; ".join(each for each in said if each)
        if control.ready and trouble:
            return f"connected; {trouble}"
        return self._control.status

    def families(self) -> list[Family]:
        """See the broker interface."""
        return [
            counter(
                "queuecast_broker_reconnects_total",
                "How often the cluster did not answer and came back.",
                self._control.reconnects,
            ),
            gauge(
                "queuecast_broker_unconfirmed",
                "Records that Kafka has not acknowledged yet.",
                self._publisher.pending,
            ),
        ]

    async def declare(
        self, exchanges: Sequence[ExchangeSpec] = (), queues: Sequence[QueueSpec] = ()
    ) -> None:
        """Refuse both by name: Kafka has topics. Raises Unsupported."""
        for exchange in exchanges:
            raise Unsupported(
                f"Kafka has no exchanges: {exchange.name!r}",
                "/exchange/TOPIC/PATTERN reads a topic's records by key; [[topic]] creates one",
            )
        for queue in queues:
            raise Unsupported(
                f"Kafka has no queues: {queue.name!r}",
                "/queue/TOPIC is a consumer group on a topic; [[topic]] creates one",
            )

    async def _create(self, topics: Sequence[TopicSpec]) -> None:
        """Create the topics that are missing; raises Conflict, ConfigError, Refused."""
        missing: list[TopicSpec] = []
        for spec in topics:
            try:
                found = await self._control.topic(spec.name, create=False)
            except NotFound:
                missing.append(spec)
                continue
            if spec.partitions and found.partitions != spec.partitions:
                raise Conflict(
                    f"topic {spec.name!r} has {found.partitions} partitions, "
                    f"[[topic]] says {spec.partitions}",
                    "change the setting, or the topic with kafka-topics --alter",
                )
        if not missing:
            return
        await self._control.create(missing)

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> None:
        """Publish and return once all in-sync replicas have it; see the broker interface.

        mandatory makes no difference: a topic that takes a record keeps it.
        """
        await self._publisher.publish(destination, body, properties)

    async def open_feed(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """Start reading; raises NotFound, Refused, Unsupported, BadDestination, Unavailable."""
        if self._closed:
            raise Unavailable("the broker was closed")
        target = feed_target(destination)
        member = Member(sink, target.key)

        def begin(feed: TopicFeed) -> None:
            sink.begin(feed.marks(target.key), history=True)

        feed = await self._live.open(target, member, begin)
        return KafkaReader(self._live, self._records, target, feed, member)

    async def consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int = DEFAULT_PREFETCH,
        spec: ConsumeSpec = PLAIN,
    ) -> Consumer:
        """Join the topic's consumer group; raises NotFound, Refused, Unsupported, Unavailable."""
        if self._closed:
            raise Unavailable("the broker was closed")
        if spec.queue is not None or spec.arguments:
            raise Unsupported(*NO_QUEUES)
        return await self._queues.open(destination, sink, prefetch)

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        """Kafka has no queues that sessions could declare; raises Unsupported."""
        raise Unsupported(*NO_QUEUES)

    async def delete_own(self, name: str, owner: Owner) -> None:
        """See declare_own."""
        raise Unsupported(*NO_QUEUES)

    async def release(self, owner: Owner) -> None:
        """There is nothing that could be an owner's."""

    async def close(self) -> None:
        """Wait for publishes, commit, leave the groups, disconnect."""
        if self._closed:
            return
        self._closed = True
        await self._publisher.close(self._grace)
        for part in (self._queues, self._live, self._records, self._control):
            try:
                await part.close()
            except (TimeoutError, QueuecastError, kafka.KafkaError, OSError) as error:
                log.info("closing: %s", error)
            except Exception:
                log.exception("closing a part of the Kafka client failed")
