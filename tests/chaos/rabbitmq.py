"""The chaos test's RabbitMQ: a node of its own, or a cluster of three."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.members import MemberFaults
from tests.chaos.publishers import AmqpPublisher, Publisher
from tests.chaos.rabbitmq_operator import RabbitOperator
from tests.chaos.schedule import Fault
from tests.chaos.site import Site, tables
from tests.chaos.sources import HELD, OPEN, Source, make_sources
from tests.support.proxy import FailoverProxy, TcpProxy
from tests.support.rabbit import through
from tests.support.rabbit_cluster import RabbitCluster
from tests.support.servers import RabbitServer

_LINKED = ("cut broker", "fin broker", "stall broker")

_EXCHANGES = f"""
[[exchange]]
name = "{OPEN}"
type = "topic"
[[exchange]]
name = "{HELD}"
type = "topic"
[[retain]]
destination = "/exchange/{HELD}/#"
age = "2h"
bytes = "1GB"
"""


class RabbitSite(Site):
    """One node, and a proxy before it for gateways and publishers."""

    gateways = ("one", "two")
    unmarked = frozenset({"kill broker"})

    def __init__(self, server: RabbitServer) -> None:
        super().__init__()
        self.name = f"rabbitmq-{server.version}"
        self._server = server
        operator = RabbitOperator(lambda: server, self.diary, self.sources)
        acts = {"kill broker": self._kill, **operator.acts()}
        self.acts = {kind: self.turns.wrap(act) for kind, act in acts.items()}

    def make_sources(self) -> list[Source]:
        return make_sources(amqp=True)

    @property
    def possible(self) -> frozenset[str]:
        return super().possible.union(_LINKED)

    async def open(self, stack: AsyncExitStack) -> None:
        link = TcpProxy("127.0.0.1", urlsplit(self._server.url).port or 5672)
        self.links = [await stack.enter_async_context(link)]

    async def settled(self) -> None:
        await asyncio.to_thread(self._server.flush)

    def tables(self, number: int, directory: Path) -> str:
        return tables(through(self.links[0], self._server.url), more=_EXCHANGES)

    def publisher(self, source: Source, url: str, interval: float) -> Publisher:
        if source.via == "amqp":
            return AmqpPublisher(source, [through(self.links[0], self._server.url)], interval)
        return super().publisher(source, url, interval)

    async def _kill(self, fault: Fault, chance: random.Random) -> None:
        with self.diary.during(fault.kind):
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._server.start)


class _Nodes:
    """The cluster's nodes as members.MemberFaults handles them."""

    def __init__(self, cluster: RabbitCluster) -> None:
        self._cluster = cluster
        self.kill = cluster.kill
        self.stop = cluster.stop
        self.freeze = cluster.freeze

    def start(self, number: int) -> None:
        self._cluster.start_node(number)

    def thaw(self, number: int) -> None:
        """Let a node go on, and as an operator would, restart it if it stays by itself."""
        self._cluster.thaw(number)
        try:
            self._cluster.until_whole(timeout=10)
        except TimeoutError:
            self._cluster.kill(number)
            self._cluster.start_node(number)


class RabbitClusterSite(Site):
    """Three nodes. Each gateway has a balancer that passes to the node that it prefers, and to
    another while that one accepts nothing; publishers connect to the nodes themselves."""

    gateways = ("one", "two")
    majority = True

    def __init__(self, cluster: RabbitCluster, held: float) -> None:
        super().__init__()
        self.name = f"rabbitmq-cluster-{cluster.version}"
        self._cluster = cluster
        members = MemberFaults(_Nodes(cluster), self.diary, self.companions, held).acts()
        self.unmarked = frozenset(members)
        operator = RabbitOperator(lambda: cluster.nodes[cluster.alive[0]], self.diary, self.sources)
        acts = {**members, **operator.acts()}
        self.acts = {kind: self.turns.wrap(act) for kind, act in acts.items()}

    def make_sources(self) -> list[Source]:
        return make_sources(amqp=True)

    @property
    def possible(self) -> frozenset[str]:
        return super().possible.union(_LINKED)

    async def open(self, stack: AsyncExitStack) -> None:
        for number in range(len(self.gateways)):
            link = FailoverProxy(self._cluster.ports, preferred=number)
            self.links.append(await stack.enter_async_context(link))

    async def settled(self) -> None:
        for node in self._cluster.nodes:
            await asyncio.to_thread(node.flush)

    def tables(self, number: int, directory: Path) -> str:
        # One name for a cluster: RabbitMQ 3 does not let the gateway see that it is one.
        url = through(self.links[number], self._cluster.urls[0]) + "?feed_queues=quorum"
        return tables(url, more=_EXCHANGES)

    def publisher(self, source: Source, url: str, interval: float) -> Publisher:
        if source.via == "amqp":
            return AmqpPublisher(source, self._cluster.urls, interval)
        return super().publisher(source, url, interval)
