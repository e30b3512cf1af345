"""The chaos test's Kafka, a node of its own or a cluster of three, and the destinations there.

A topic keeps its records whoever listens, so nothing here is ever allowed to be missing: no fault
of a gateway, of the network or of Kafka itself makes a gap due. What operators delete is.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

from tests.chaos.kafka_operator import KafkaOperator
from tests.chaos.kafka_publisher import KafkaPublisher
from tests.chaos.members import MemberFaults
from tests.chaos.publishers import Publisher
from tests.chaos.schedule import Fault
from tests.chaos.site import Site
from tests.chaos.sources import KEPT, LIVE, WORK, Source
from tests.support.kafka import Kafka, KafkaServer
from tests.support.kafka_cluster import KafkaCluster
from tests.support.proxy import TcpProxy

# Read as a whole, and by key: three partitions, each with an order of its own.
KEYED = "kept.keyed"
_KEYS = ("red", "green", "blue", "white")

# Kafka knows what was committed: what was acked a moment before one of these comes again as new.
UNMARKED = frozenset({"kill node", "kill broker", "cut broker", "fin broker", "stall broker"})

_PARTITIONS = {KEYED: 3, "chaos-spread": 3}


def make_sources() -> list[Source]:
    """Return the sources of a run on Kafka."""
    made: list[Source] = []
    for kind in (KEPT, LIVE):
        made += [Source("a", kind, "http", 40), Source("b", kind, "kafka", 40)]
        # Large, so that a client that does not read fills every buffer on its way.
        made.append(Source("large", kind, "kafka", 16_000))
    wide = (f"/topic/{KEYED}", f"/exchange/{KEYED}/#")
    for number, key in enumerate(_KEYS):
        via = ("http", "kafka")[number % 2]
        address = f"/exchange/{KEYED}/{key}"
        made.append(Source(key, KEPT, via, 40, address=address, wide=wide))
    return [*made, Source("single", WORK, "http", 40), Source("spread", WORK, "kafka", 40)]


def topic_of(source: Source) -> tuple[str, str | None]:
    """Return the topic and the record key of a source."""
    if source.kind == WORK:
        return source.queue, None
    _, verb, topic, *key = source.destination.split("/")
    return topic, key[0] if verb == "exchange" else None


class _KafkaSite(Site):
    """What a node and a cluster have in common."""

    gateways = ("one", "two")
    keeps_all = True
    unmarked = UNMARKED

    def __init__(self, kafka: Kafka) -> None:
        super().__init__()
        self._kafka = kafka
        topics = {topic_of(source)[0]: 1 for source in self.sources} | _PARTITIONS
        by_topic = {
            topic: [source for source in self.sources if topic_of(source)[0] == topic]
            for topic in topics
        }
        self._topics = topics
        self._operator = KafkaOperator(kafka, self.diary, by_topic, topics)

    def make_sources(self) -> list[Source]:
        return make_sources()

    @property
    def bootstrap(self) -> str:
        """Where gateways and publishers find Kafka."""
        return self._kafka.bootstrap

    def tables(self, number: int, directory: Path) -> str:
        text = f'[broker]\nurl = "kafka://{self.bootstrap}"\n'
        for topic, partitions in self._topics.items():
            text += f'[[topic]]\nname = "{topic}"\npartitions = {partitions}\n'
        return text

    def destinations(self, kind: str) -> tuple[list[str], list[str]]:
        simple = [f"/topic/{kind}.{name}" for name in ("a", "b", "large")]
        if kind != KEPT:
            return [*simple[:2], *simple], simple[:2]
        keyed = [f"/exchange/{KEYED}/{key}" for key in _KEYS]
        choices = [*simple, keyed[0], keyed[1], f"/topic/{KEYED}", f"/exchange/{KEYED}/#"]
        return choices, [simple[0], keyed[2]]

    def publisher(self, source: Source, url: str, interval: float) -> Publisher:
        if source.via == "kafka":
            return KafkaPublisher(source, self.bootstrap, *topic_of(source), interval)
        return super().publisher(source, url, interval)


class KafkaSite(_KafkaSite):
    """One node, and a proxy before it for gateways and publishers."""

    name = "kafka"

    def __init__(self, server: KafkaServer) -> None:
        super().__init__(server)
        self._server = server
        acts = {"kill broker": self._kill, **self._operator.acts()}
        self.acts = {kind: self.turns.wrap(act) for kind, act in acts.items()}

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._server.advertised}"

    @property
    def possible(self) -> frozenset[str]:
        return super().possible | {"cut broker", "fin broker", "stall broker"}

    async def open(self, stack: AsyncExitStack) -> None:
        link = TcpProxy("127.0.0.1", self._server.port)
        link.port = self._server.advertised  # where Kafka tells its clients to go
        self.links = [await stack.enter_async_context(link)]

    async def _kill(self, fault: Fault, chance: random.Random) -> None:
        with self.diary.during(fault.kind):
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._server.start)


class _Nodes:
    """The cluster's nodes as members.MemberFaults handles them: Kafka counts from 1."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster

    def kill(self, number: int) -> None:
        self._cluster.kill(number + 1)

    def stop(self, number: int) -> None:
        self._cluster.stop(number + 1)

    def freeze(self, number: int) -> None:
        self._cluster.freeze(number + 1)

    def start(self, number: int) -> None:
        self._cluster.start(number + 1)
        self._cluster.heal()

    def thaw(self, number: int) -> None:
        self._cluster.thaw(number + 1)
        self._cluster.heal()


class KafkaClusterSite(_KafkaSite):
    """Three nodes. Clients of Kafka find another node by themselves, so nothing is before them."""

    name = "kafka-cluster"
    majority = True

    def __init__(self, cluster: KafkaCluster, held: float) -> None:
        super().__init__(cluster)
        members = MemberFaults(_Nodes(cluster), self.diary, self.companions, held).acts()
        self.unmarked = UNMARKED | members.keys()
        acts = {**members, **self._operator.acts()}
        self.acts = {kind: self.turns.wrap(act) for kind, act in acts.items()}
