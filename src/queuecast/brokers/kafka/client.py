"""aiokafka's client, with what it lacks among several nodes and under operators' hands.

* Bootstrap servers are tried side by side: one that accepts and says nothing delays none.
* A node that has stopped answering (nodes.py) is left out. What was asked of it fails at once and
  is asked again of the partition's next leader, instead of after a request's full timeout.
* Records are fetched by the topic's id where the broker can (fetching.py).
* No question creates a topic: a reader must not bring back what an operator has just deleted.

Every aiokafka client of the gateway is adopted before it connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason, collect_hosts, create_conn
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from .fetching import UNKNOWN_TOPIC, VERSION, FetchById, by_name
from .nodes import Nodes

# Seconds until the next bootstrap server is tried beside the one that has not answered yet.
_STAGGER = 0.3
# Seconds for a new connection, login included. A node that needs longer is of no use to us.
CONNECT = 5.0
# Seconds for one node's answer to a question that any other can answer as well.
ANSWER = 3.0
# Seconds between two questions for a topic that the broker does not know (any more).
_UNKNOWN_PAUSE = 0.1
_INVALID_TOPIC = 17

_FAILURES = (kafka.KafkaError, OSError, TimeoutError)


class Client(AIOKafkaClient):  # type: ignore[misc]
    """A client of the gateway; see `adopt`.

    ids: of the topics that are fetched by them. log_starts: by partition, the first offset that is
    still there, as of the last fetch. is_missing: asks whether a topic that a broker did not
    know when we published is really gone.
    """

    nodes: Nodes
    ids: dict[str, bytes]
    log_starts: dict[Any, int]
    is_missing: Callable[[str], Awaitable[bool]] | None
    locks: dict[Any, asyncio.Lock]
    _sync_task: asyncio.Task[None] | None

    # -- connecting -----------------------------------------------------------------------

    def _connect_options(self) -> dict[str, Any]:
        return {
            "client_id": self._client_id,
            "request_timeout_ms": self._request_timeout_ms,
            "ssl_context": self._ssl_context,
            "security_protocol": self._security_protocol,
            "max_idle_ms": self._connections_max_idle_ms,
            "sasl_mechanism": self._sasl_mechanism,
            "sasl_plain_username": self._sasl_plain_username,
            "sasl_plain_password": self._sasl_plain_password,
            "sasl_kerberos_service_name": self._sasl_kerberos_service_name,
            "sasl_kerberos_domain_name": self._sasl_kerberos_domain_name,
            "sasl_oauth_token_provider": self._sasl_oauth_token_provider,
        }

    async def bootstrap(self) -> None:
        """Learn the cluster's nodes; raises KafkaConnectionError."""
        self.cluster.update_metadata(await self._ask_servers(MetadataRequest([])))
        if self._sync_task is None:
            self._sync_task = asyncio.create_task(self._md_synchronizer())

    async def _ask_servers(self, request: Any) -> Any:
        """Return the first answer of a bootstrap server or of a node that is known to answer."""
        servers = [*self.nodes.addresses]
        servers += [(host, port) for host, port, _ in collect_hosts(self._bootstrap_servers)]
        attempts: set[asyncio.Task[Any]] = set()
        try:
            for host, port in dict.fromkeys(servers):
                attempts.add(asyncio.create_task(self._ask_server(host, port, request)))
                if (answer := await _first(attempts, _STAGGER)) is not None:
                    return answer
            while attempts:
                if (answer := await _first(attempts, None)) is not None:
                    return answer
        finally:
            for attempt in attempts:
                attempt.cancel()
        raise kafka.KafkaConnectionError(f"Unable to bootstrap from {self._bootstrap_servers}")

    async def _ask_server(self, host: str, port: int, request: Any) -> Any:
        async with asyncio.timeout(self._request_timeout_ms / 1000):
            connection = await create_conn(host, port, **self._connect_options())
            try:
                answer = await connection.send(request)
            finally:
                connection.close()
        if not answer.brokers:
            raise kafka.NodeNotReadyError
        return answer

    async def _get_conn(self, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """Return a connection to a node, None where there is none to be had now."""
        place = (node_id, group)
        known = self._conns.get(place)
        if known is not None and known.connected():
            return known
        if node_id in self.nodes.silent:
            self.force_metadata_update()
            return None
        async with self.locks.setdefault(place, asyncio.Lock()):
            known = self._conns.get(place)
            if known is not None and known.connected():
                return known
            broker = self.cluster.broker_metadata(node_id)
            try:
                if broker is None:
                    raise kafka.StaleMetadata(f"node {node_id} is not in the cluster")
                made = create_conn(
                    broker.host,
                    broker.port,
                    on_close=self._on_connection_closed,
                    **self._connect_options(),
                )
                self._conns[place] = await asyncio.wait_for(made, CONNECT)
            except _FAILURES:
                self._conns.pop(place, None)
                self.force_metadata_update()
                return None
            return self._conns[place]

    def leave(self, node_id: int) -> None:
        """Close what is connected to a node: what waits for its answer fails."""
        for (node, _), connection in list(self._conns.items()):
            if node == node_id:
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)

    async def probe(self, node_id: int) -> None:
        """Return when a node has answered; raises KafkaError, OSError, TimeoutError."""
        async with asyncio.timeout(ANSWER):
            known = self._conns.get((node_id, ConnectionGroup.DEFAULT))
            if known is not None and known.connected():
                await known.send(ApiVersionRequest())
                return
            broker = self.cluster.broker_metadata(node_id)
            if broker is None:
                raise kafka.StaleMetadata(f"node {node_id} is not in the cluster")
            connection = await create_conn(broker.host, broker.port, **self._connect_options())
            connection.close()

    def get_random_node(self) -> int | None:
        """Return a node that may be asked what any can answer."""
        found = [broker.nodeId for broker in self.cluster.brokers()]
        answering = [node for node in found if node not in self.nodes.silent]
        return random.choice(answering or found) if found else None

    # -- topics ---------------------------------------------------------------------------

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        request = MetadataRequest(None if topics is None else list(topics), False)
        found = [broker.nodeId for broker in self.cluster.brokers()]
        random.shuffle(found)
        for node_id in found:
            connection = None if node_id in self.nodes.silent else await self._get_conn(node_id)
            if connection is None:
                continue
            try:
                metadata = await asyncio.wait_for(connection.send(request), ANSWER)
            except _FAILURES:
                # It may just have a publish to confirm before this: the connection stays.
                continue
            if metadata.brokers:
                cluster_metadata.update_metadata(metadata)
                return True
        try:
            cluster_metadata.update_metadata(await self._ask_servers(request))
        except _FAILURES:
            cluster_metadata.failed_update(None)
            return False
        return True

    # -- asking ---------------------------------------------------------------------------

    async def send(
        self, node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT
    ) -> Any:
        """Return a node's answer; raises KafkaError."""
        if isinstance(request, FetchRequest):
            return await self._fetch(node_id, request, group)
        answer = await super().send(node_id, request, group=group)
        if isinstance(request, ProduceRequest) and self.is_missing is not None:
            await self._judge_produce(answer, self.is_missing)
        return answer

    async def _fetch(self, node_id: Any, request: FetchRequest, group: Any) -> Any:
        ids = {name: self.ids.get(name, b"") for name, _ in request.topics}
        if all(ids.values()) and await self._speaks(node_id, group):
            answer = await super().send(node_id, FetchById(request, ids), group=group)
            answer = by_name(answer, ids)
        else:
            answer = await super().send(node_id, request, group=group)
        unknown = False
        for name, partitions in answer.topics:
            for number, code, _, *rest in partitions:
                if code == UNKNOWN_TOPIC:
                    unknown = True
                elif not code and len(rest) > 3:  # Fetch 5 and later say where the log begins
                    self.log_starts[TopicPartition(name, number)] = rest[1]
        if unknown:
            self.nodes.look()
            await asyncio.sleep(_UNKNOWN_PAUSE)
        return answer

    async def _speaks(self, node_id: Any, group: Any) -> bool:
        connection = await self._get_conn(node_id, group=group)
        if connection is None:
            return False
        _, newest = connection._versions.get(FetchRequest.API_KEY, (0, 0))
        return bool(newest >= VERSION)

    async def _judge_produce(
        self, answer: Any, is_missing: Callable[[str], Awaitable[bool]]
    ) -> None:
        """Turn "unknown topic" into a lasting error where the topic is gone.

        Else aiokafka asks again without end, and the publishers would learn nothing.
        """
        gone: set[str] = set()
        for name, partitions in answer.topics:
            if any(code == UNKNOWN_TOPIC for _, code, *_ in partitions) and await is_missing(name):
                gone.add(name)
        if gone:
            answer.topics = [
                (
                    name,
                    [
                        (number, _INVALID_TOPIC if name in gone else code, *rest)
                        for number, code, *rest in partitions
                    ],
                )
                for name, partitions in answer.topics
            ]


async def _first(attempts: set[asyncio.Task[Any]], timeout: float | None) -> Any:
    """Return an attempt's answer; None if none came in time, or one failed."""
    done, _ = await asyncio.wait(attempts, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    attempts -= done
    for attempt in done:
        with contextlib.suppress(*_FAILURES):
            return attempt.result()
    return None


def adopt(client: Any, nodes: Nodes) -> Client:
    """Give one of aiokafka's clients, which is not connected yet, the abilities of this file."""
    client.__class__ = Client
    client.nodes = nodes
    client.ids = {}
    client.log_starts = {}
    client.is_missing = None
    client.locks = {}
    nodes.add(client)
    adopted: Client = client
    return adopted
