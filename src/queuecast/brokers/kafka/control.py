"""The connection that watches: whether Kafka is there, what is wrong, and what its topics are.

Every other client of the gateway (producer, readers, group members) reconnects by itself and says
little; this one asks for metadata all the time, and its answers decide whether the broker is
ready. It also notices topics that grew, went, or were recreated, and nodes that do not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from typing import Any

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.commit import OffsetFetchRequest

from ...errors import ConfigError, QueuecastError, Unavailable
from ..base import TopicSpec
from .address import Address
from .client import ANSWER as NODE_ANSWER
from .client import adopt
from .failures import invalid_name, missing, of_connecting, of_reading, reason, refused
from .following import follow_files
from .nodes import Nodes
from .requests import READ, UNKNOWN_OPERATIONS, WRITE, CreateRequest, TopicsRequest
from .window import Commit

log = logging.getLogger(__name__)

_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
# Between two questions: how soon a lost cluster, or new partitions, are noticed.
PING = 2.0
# How long one answer may take.
ANSWER = 10.0
# A topic that the cluster creates on demand is not there at once.
_CREATION = 4.0
# The most between two looks while a topic is gone: no reader asks for it, so none notices that it
# is back, and what is published to it waits.
_GONE_PAUSE = 0.5
# The least between two looks at the topics, however many readers ask for one.
_LEAST_PAUSE = 0.2
# Error and resource codes of Kafka's protocol.
_LEADER_NOT_AVAILABLE, _UNKNOWN_TOPIC, _INVALID_TOPIC, _EXISTS = 5, 3, 17, 36
_REFUSED, _CLUSTER_REFUSED = 29, 31
_BROKER = 4


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. epoch: of its positions; another one when it was recreated.

    id: Kafka's own for it, b"" where the broker gives none.
    """

    name: str
    epoch: str
    partitions: int
    id: bytes = b""
    internal: bool = False
    operations: int = UNKNOWN_OPERATIONS

    def allows(self, operation: int) -> bool:
        """Tell whether our login may do that, as far as the broker says."""
        return self.operations == UNKNOWN_OPERATIONS or bool(self.operations & operation)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group committed for a partition. offset: the next record's, None for nothing yet."""

    offset: int | None
    metadata: str = ""

    @property
    def commit(self) -> Commit | None:
        """What it means, None for nothing yet."""
        return None if self.offset is None else Commit.parse(self.offset, self.metadata)


Watch = Callable[[Topic | None], None]


class Control:
    """The supervised connection. on_change: called when `ready` did."""

    def __init__(self, address: Address, *, ping: float = PING, answer: float = ANSWER) -> None:
        self._address = address
        self._ping = ping
        self._answer = answer
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None
        self._watches: dict[str, list[Watch]] = {}
        self._known: dict[str, Topic] = {}
        self._gone: set[str] = set()  # of the watched ones
        self._checking: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self.nodes = Nodes(self._look.set)
        self._groups: dict[str, int] = {}  # the coordinator's node, by group
        self._creates: bool | None = None
        self.ready = False
        self.reconnects = 0
        self._was_ready = False
        self.status = "not started"
        address.options()  # raises ConfigError for a bad file

    @property
    def options(self) -> dict[str, Any]:
        """What aiokafka's clients take, as the files have it now; raises ConfigError."""
        return self._address.options()

    def follow_files(self, client: Any) -> None:
        """Have a new client read the files again at each connect; see following.py."""
        follow_files(client, self._address)

    @property
    def user(self) -> str:
        return self._address.user

    # -- life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and go on watching; raises LoginRefused, Unavailable."""
        await self._connect()
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="kafka control")
            self._checking = asyncio.create_task(self._check(), name="kafka nodes")

    async def close(self) -> None:
        for task in (self._task, self._checking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._down("closed")
        await self._drop()

    async def _connect(self) -> None:
        await self._drop()
        client = AIOKafkaClient(
            client_id="queuecast",
            request_timeout_ms=int(self._answer * 1000),
            **self.options,
        )
        adopt(client, self.nodes)
        self.follow_files(client)
        try:
            await client.bootstrap()
        except (TimeoutError, kafka.KafkaError, OSError) as error:
            await client.close()
            found = await self._diagnose() or error
            self._down(reason(found))
            raise of_connecting(found, self._address) from None
        except BaseException:
            await client.close()
            raise
        self._client = client
        try:
            await self._topics([], create=False)
        except QueuecastError:
            await self._drop()
            raise
        self.ready = True
        self.reconnects += self._was_ready
        self._was_ready = True
        self.status = "connected"

    async def _diagnose(self) -> BaseException | None:
        """Find out why no server let us in: aiokafka only logs it."""
        options = dict(self.options)
        options.pop("bootstrap_servers")

        async def attempt(host: str, port: int) -> BaseException | None:
            try:
                connection = await create_conn(
                    host,
                    port,
                    client_id="queuecast",
                    request_timeout_ms=int(NODE_ANSWER * 1000),
                    **options,
                )
            except (TimeoutError, kafka.KafkaError, OSError) as error:
                return error
            connection.close()
            return None

        servers = [(host, port) for host, port, _ in collect_hosts(list(self._address.servers))]
        found: BaseException | None = None
        for error in await asyncio.gather(*(attempt(*server) for server in servers)):
            # What one server says of the login holds for all; being away does not.
            if found is None or isinstance(error, kafka.KafkaError):
                found = error or found
        return found

    async def _drop(self) -> None:
        client, self._client = self._client, None
        self._groups.clear()
        self._creates = None
        if client is not None:
            await client.close()

    def _down(self, why: str) -> None:
        self.ready = False
        self.status = why
        self.nodes.forget()

    async def _watch(self) -> None:
        delay = _FIRST_RETRY
        while True:
            if self.ready:
                await asyncio.sleep(min(_LEAST_PAUSE, self._ping / 2))
                with contextlib.suppress(TimeoutError):
                    # At random, so that the gateways of a cluster do not all ask at once.
                    pause = self._ping * random.uniform(0.8, 1.0)
                    if self._gone:
                        pause = min(pause, _GONE_PAUSE)
                    await asyncio.wait_for(self._look.wait(), pause)
                self._look.clear()
            else:
                await asyncio.sleep(delay)
            try:
                if self._client is None:
                    await self._connect()
                    log.info("connected to %s", self._address.masked)
                await self._refresh()
                delay = _FIRST_RETRY
            except QueuecastError as error:
                if self.ready:
                    log.warning("%s: %s", self._address.masked, error)
                self._down(f"connecting: {error}, next attempt within {delay:g} s")
                await self._drop()
                delay = min(delay * 2, _LAST_RETRY)
            except Exception:
                # A defect must not leave the gateway blind for ever without a word.
                log.exception("watching %s failed", self._address.masked)
                self._down("watching Kafka failed, see the log")
                await self._drop()
                delay = _LAST_RETRY

    async def _check(self) -> None:
        """Ask every node whether it answers, beside the watch, which one answer is enough for."""
        while True:
            try:
                client = self._client
                if client is not None and self.ready:
                    await self.nodes.check(client)
            except Exception:
                log.exception("asking the nodes of %s failed", self._address.masked)
            await asyncio.sleep(self._ping * random.uniform(0.8, 1.0))

    # -- topics ---------------------------------------------------------------------------

    def watch(self, topic: Topic, watch: Watch) -> Callable[[], None]:
        """Call `watch` when a topic grows, is recreated, is back, or is gone (None, each time).

        Returns what ends it.
        """
        self._watches.setdefault(topic.name, []).append(watch)
        self._known.setdefault(topic.name, topic)

        def forget() -> None:
            watches = self._watches.get(topic.name, [])
            if watch in watches:
                watches.remove(watch)
            if not watches:
                self._watches.pop(topic.name, None)
                self._known.pop(topic.name, None)
                self._gone.discard(topic.name)

        return forget

    async def refresh(self) -> None:
        """Look at the watched topics now; raises Unavailable."""
        self.require()
        await self._refresh()

    async def _refresh(self) -> None:
        names = list(self._watches)
        found = await self._topics(names, create=False)
        for name in names:
            topic, code = found.get(name, (None, _UNKNOWN_TOPIC))
            if code not in (0, _UNKNOWN_TOPIC) or name not in self._watches:
                continue  # nothing is known of it now
            known = self._known.get(name)
            if topic is None:
                if name not in self._gone:
                    log.warning("topic %s has been deleted", name)
                    self._gone.add(name)
            else:
                self._known[name] = topic
                if (
                    known is not None
                    and known.epoch == topic.epoch
                    and known.partitions == topic.partitions
                    and name not in self._gone
                ):
                    continue
                self._gone.discard(name)
            for watch in list(self._watches.get(name, ())):
                try:
                    watch(topic)
                except Exception:
                    log.exception("telling of topic %s failed", name)

    async def topic(self, name: str, *, create: bool, operation: int = READ) -> Topic:
        """Return a topic that our login may use.

        create: let the cluster create it if it does that. Raises NotFound, Refused,
        BadDestination, Unavailable.
        """
        self.require()
        what = f"{'write to' if operation == WRITE else 'read'} topic {name!r}"
        deadline = asyncio.get_running_loop().time() + _CREATION
        delay = 0.02
        while True:
            topic, code = (await self._topics([name], create=create)).get(
                name, (None, _UNKNOWN_TOPIC)
            )
            if code == _REFUSED:
                raise refused(what, self.user)
            if code == _INVALID_TOPIC or (topic is not None and topic.internal):
                raise invalid_name(name)
            if topic is not None and topic.partitions:
                break
            waits = code == _LEADER_NOT_AVAILABLE or (create and await self._creates_topics())
            if not waits or asyncio.get_running_loop().time() > deadline:
                raise missing(name)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.5)
        if not topic.allows(operation):
            raise refused(what, self.user)
        return topic

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        """Create topics; one that is there is left as it is.

        Raises ConfigError, Refused, Unavailable.
        """
        asked: list[Any] = [
            (each.name, each.partitions or -1, each.replication or -1, [], [*each.settings.items()])
            for each in topics
        ]
        answer = await self._ask(CreateRequest(asked, self._answer), "create topics")
        for name, code, text in answer.topic_errors:
            if code in (_REFUSED, _CLUSTER_REFUSED):
                raise refused(f"create topic {name!r}", self.user)
            if code not in (0, _EXISTS):
                said = text or reason(kafka.for_code(code)())
                raise ConfigError(f"topic {name!r} cannot be created: {said}", "see [[topic]]")

    async def _creates_topics(self) -> bool:
        """Ask whether the cluster creates topics by itself; yes if it does not tell."""
        if self._creates is None:
            self.require()
            node = self._client.get_random_node()  # each broker tells its own
            asked = DescribeConfigsRequest([(_BROKER, str(node), ["auto.create.topics.enable"])])
            answer = await self._ask(asked, "tell its settings", node)
            values = [entry[1] for each in answer.resources for entry in each[4]]
            self._creates = "false" not in values
        return self._creates

    async def _topics(
        self, names: list[str], *, create: bool
    ) -> dict[str, tuple[Topic | None, int]]:
        """Return topics and error codes by name; raises Unavailable."""
        answer = await self._ask(TopicsRequest(names, create=create), "list topics")
        found: dict[str, tuple[Topic | None, int]] = {}
        for code, name, *rest in answer.topics:
            if code:
                found[name] = (None, code)
                continue
            topic_id, operations = b"", UNKNOWN_OPERATIONS
            if len(rest) == 2:
                internal, partitions = rest
            else:
                topic_id, internal, partitions, operations, _ = rest
            # Without an id a topic that was recreated is not recognized: the name must do.
            text = topic_id or f"{answer.cluster_id} {name}".encode()
            epoch = blake2s(text, digest_size=5).hexdigest()
            found[name] = (Topic(name, epoch, len(partitions), topic_id, internal, operations), 0)
        return found

    async def is_missing(self, name: str) -> bool:
        """Return whether there is no such topic; False where nothing is known."""
        try:
            _, code = (await self._topics([name], create=False)).get(name, (None, _UNKNOWN_TOPIC))
        except QueuecastError:
            return False
        return code == _UNKNOWN_TOPIC

    @property
    def gone(self) -> str:
        """Say which watched topics are gone, "" if none is."""
        named = sorted(self._gone)
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        return f"deleted: topic {', '.join(named[:3])}{more}" if named else ""

    # -- groups ---------------------------------------------------------------------------

    async def committed(
        self, group: str, topic: str, partitions: list[int]
    ) -> dict[int, Committed]:
        """Return what a group committed for a topic's partitions; raises Refused, Unavailable."""
        deadline = asyncio.get_running_loop().time() + self._answer
        while True:
            try:
                return await self._committed(group, topic, partitions)
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                self._groups.pop(group, None)
                # A coordinator that moves, or that a first group makes Kafka create.
                passes = isinstance(error, kafka.KafkaError) and error.retriable
                if not passes or asyncio.get_running_loop().time() > deadline:
                    raise of_reading(error, f"use the group {group!r}", self.user) from None
            await asyncio.sleep(0.1)

    async def _committed(
        self, group: str, topic: str, partitions: list[int]
    ) -> dict[int, Committed]:
        self.require()
        client = self._client
        node = self._groups.get(group)
        if node is None:
            node = await client.coordinator_lookup(CoordinationType.GROUP, group)
            if len(self._groups) > 10_000:
                self._groups.clear()  # clients choose topics
            self._groups[group] = node
        request = OffsetFetchRequest(group, [(topic, partitions)])
        answer = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        if getattr(answer, "error_code", 0):
            raise kafka.for_code(answer.error_code)()
        found: dict[int, Committed] = {}
        for _, answers in answer.topics:
            for partition, offset, metadata, code in answers:
                if code:
                    raise kafka.for_code(code)()
                found[partition] = Committed(None if offset < 0 else offset, metadata or "")
        return found

    # -- asking ---------------------------------------------------------------------------

    def require(self) -> None:
        """Raise Unavailable unless Kafka is there."""
        if not self.ready:
            raise Unavailable(f"Kafka is away: {self.status}")

    async def _ask(self, request: Any, what: str, node: int | None = None) -> Any:
        """Return the answer of a broker, of any by default; raises Unavailable."""
        client = self._client
        if client is None:
            raise Unavailable(f"Kafka is away: {self.status}")
        error: BaseException = kafka.NodeNotReadyError("no broker answers")
        if node is not None:
            nodes = [node]
        else:
            nodes = [broker.nodeId for broker in client.cluster.brokers()]
            random.shuffle(nodes)
            nodes.sort(key=self.nodes.silent.__contains__)
        for each in nodes:
            # Where others can be asked as well, none of them is waited for long.
            patience = self._answer if each == nodes[-1] else min(self._answer, NODE_ANSWER)
            try:
                return await asyncio.wait_for(client.send(each, request), patience)
            except (TimeoutError, kafka.KafkaError, OSError) as caught:
                error = caught
        raise Unavailable(f"Kafka could not {what}: {reason(error)}")
