"""Which nodes of the cluster answer: asked again and again, and told to all our clients.

A node whose process is stopped keeps its sockets. A request to it fails only after its whole
timeout, and so does the next one, while the cluster has long elected other leaders.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from aiokafka import errors as kafka

log = logging.getLogger(__name__)


class Nodes:
    """What is known of the nodes. look: has the watch look at the topics now.

    silent: ids of nodes that were asked and did not answer in time. addresses: of those that did.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look
        self.silent: set[int] = set()
        self.addresses: list[tuple[str, int]] = []
        self._clients: WeakSet[Any] = WeakSet()

    def add(self, client: Any) -> None:
        """Count a client among ours."""
        self._clients.add(client)

    def forget(self) -> None:
        """Know nothing: the cluster is away as a whole."""
        self.silent.clear()
        self.addresses.clear()

    @property
    def trouble(self) -> str:
        """What is the matter, "" if nothing is."""
        named = ", ".join(str(node) for node in sorted(self.silent))
        return f"no answer from node {named}" if named else ""

    async def check(self, client: Any) -> None:
        """Ask every node that a client knows of; returns when all have answered or are late."""
        brokers = list(client.cluster.brokers())
        answers = await asyncio.gather(*(self._answers(client, each.nodeId) for each in brokers))
        self.silent &= {each.nodeId for each in brokers}
        self.addresses = [
            (each.host, each.port)
            for each, answered in zip(brokers, answers, strict=True)
            if answered
        ]

    async def _answers(self, client: Any, node: int) -> bool:
        try:
            await client.probe(node)
        except TimeoutError:
            if node not in self.silent:
                log.warning("node %d of the Kafka cluster does not answer", node)
                self.silent.add(node)
            for each in list(self._clients):
                each.leave(node)
            return False
        except (kafka.KafkaError, OSError):
            # It refuses, or is not known: then every request fails at once without us.
            self.silent.discard(node)
            return False
        if node in self.silent:
            log.info("node %d of the Kafka cluster answers again", node)
            self.silent.discard(node)
        return True
