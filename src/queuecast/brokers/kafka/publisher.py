"""Publishing: an idempotent producer, acks from all replicas, order of calls kept.

Publishes wait in one lane per topic. A lane's first look-up may create the topic; then its
records go to the producer one after the other, so that a full batch cannot reorder them, and each
publish returns with the broker's answer. The producer repeats by itself what a lost connection
left open, and its sequence numbers keep that from doubling. When it gives no answer at all, or
when its numbers and the broker's have parted, it is thrown away with what it holds, and what is
unanswered is an unknown outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from ...destination import Destination
from ...errors import LimitExceeded, NotFound, OutcomeUnknown, QueuecastError, Unavailable
from ...message import Properties
from .content import Headers, to_headers
from .control import Control
from .failures import POISON, of_publish, reason, unroutable
from .names import publish_target
from .requests import WRITE

log = logging.getLogger(__name__)

# Unanswered records and their bytes: what a cluster that stops answering may cost us.
MAX_PENDING = 10_000
MAX_PENDING_BYTES = 64 << 20
# Topics known to be there; clients choose names, so this must not grow for ever.
_MAX_KNOWN = 10_000
# Seconds for which a topic that was found is not looked up again: it may have been deleted.
_KNOWN_FOR = 30.0
# Records that the producer holds although their publishers have been told that nobody knows.
_MAX_GIVEN_UP = 1000
# A record alone may be larger than a batch. Topics say how large (max.message.bytes); the gateway
# has its own limit (limits.message), so this only has to be larger than any of them.
_REQUEST_BYTES = 128 << 20
_BATCH_BYTES = 64 << 10


class _Outgoing:
    """One publish under way."""

    __slots__ = ("alone", "body", "done", "headers", "key", "timestamp")

    def __init__(
        self, key: bytes | None, body: bytes, headers: Headers, timestamp: int | None, done: Any
    ) -> None:
        self.key = key
        self.body = body
        self.headers = headers
        self.timestamp = timestamp
        self.done: asyncio.Future[None] = done
        self.alone = False  # its batch was refused: once more, in one of its own


class Publisher:
    """Publishes for the whole gateway. timeout: seconds until an answer is unknown."""

    def __init__(self, control: Control, *, timeout: float = 15.0) -> None:
        self._control = control
        self._timeout = timeout
        self._producer: Any = None
        self._making: asyncio.Future[Any] | None = None
        self._lanes: dict[tuple[str, bool], deque[_Outgoing]] = {}
        self._known: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._pending_bytes = 0
        self._closing = False
        self._answered_at = 0.0
        self._idle = asyncio.Event()
        self._given_up = 0
        self.rebuilt = 0

    async def publish(self, destination: Destination, body: bytes, properties: Properties) -> None:
        """Publish one message; see the broker interface."""
        target = publish_target(destination)
        if self._closing:
            raise Unavailable("the gateway is closing its connection to Kafka")
        self._control.require()
        if self._pending >= MAX_PENDING or (
            self._pending and self._pending_bytes + len(body) > MAX_PENDING_BYTES
        ):
            raise LimitExceeded(
                f"{self._pending:,} publishes await Kafka's answer", "publish more slowly"
            )
        loop = asyncio.get_running_loop()
        timestamp = None if properties.timestamp is None else properties.timestamp * 1000
        item = _Outgoing(
            target.key.encode() if target.key else None,
            body,
            to_headers(properties),
            timestamp,
            loop.create_future(),
        )
        self._pending += 1
        self._pending_bytes += len(body)
        try:
            self._queue(target.topic, target.create, item)
            await self._answer(item)
        except NotFound:
            if destination.names_queue:
                raise unroutable(target.topic) from None
            raise
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()
            self._pending_bytes -= len(body)

    async def _answer(self, item: _Outgoing) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await item.done
        except TimeoutError:
            self._give_up()
            raise OutcomeUnknown(
                f"Kafka gave no answer within {self._timeout:g} s", "it may or may not have it"
            ) from None

    def _give_up(self) -> None:
        # While others are answered it is this topic's partition alone that has no leader.
        self._given_up += 1
        silent = asyncio.get_running_loop().time() - self._answered_at > self._timeout
        if silent or self._given_up > _MAX_GIVEN_UP:
            self._spawn(self._discard("no answer"))

    def _queue(self, topic: str, create: bool, item: _Outgoing) -> None:
        lane = self._lanes.get((topic, create))
        if lane is not None:
            lane.append(item)
            return
        lane = self._lanes[topic, create] = deque((item,))
        task = asyncio.create_task(self._run(topic, create, lane), name=f"publish to {topic}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, topic: str, create: bool, lane: deque[_Outgoing]) -> None:
        """Hand a lane's records to the producer, in order, until there are none."""
        try:
            while lane:
                try:
                    await self._look_up(topic, create)
                    producer = await self._get()
                except QueuecastError as error:
                    _fail(lane, error)
                    break
                while lane and producer is self._producer:
                    # It may have been given up while it waited.
                    item = lane.popleft()
                    if not item.done.done():
                        await self._send(producer, topic, create, item)
        except Exception as error:
            log.exception("publishing to %s failed", topic)
            _fail(lane, QueuecastError(f"publishing failed: {error}"))
        finally:
            del self._lanes[topic, create]

    async def _look_up(self, topic: str, create: bool) -> None:
        now = asyncio.get_running_loop().time()
        if self._known.get(topic, 0.0) > now:
            return
        await self._control.topic(topic, create=create, operation=WRITE)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[topic] = now + _KNOWN_FOR

    async def _send(self, producer: Any, topic: str, create: bool, item: _Outgoing) -> None:
        if item.alone:
            await producer.flush()
        try:
            sent = await producer.send(
                topic,
                item.body,
                key=item.key,
                timestamp_ms=item.timestamp,
                headers=item.headers,
            )
        except (kafka.KafkaError, OSError, TimeoutError, AssertionError) as error:
            self._failed(producer, topic, item, error)
            return

        def answered(future: Any) -> None:
            error = kafka.ProducerClosed() if future.cancelled() else future.exception()
            self._answered_at = asyncio.get_running_loop().time()
            if isinstance(error, kafka.InvalidTimestampError) and not item.alone:
                # Kafka refuses a batch for one record in it; the others are innocent.
                item.alone = True
                self._queue(topic, create, item)
            elif error is not None:
                self._failed(producer, topic, item, error)
            elif not item.done.done():
                item.done.set_result(None)

        sent.add_done_callback(answered)
        if item.alone:
            await asyncio.wait((sent,))

    def _failed(self, producer: Any, topic: str, item: _Outgoing, error: BaseException) -> None:
        if isinstance(error, POISON) and producer is self._producer:
            self._spawn(self._discard(reason(error)))
        if isinstance(error, kafka.UnknownTopicOrPartitionError):
            self._known.pop(topic, None)
        if not item.done.done():
            size = len(item.body)
            item.done.set_exception(of_publish(error, topic, size, self._control.user))

    # -- the producer ---------------------------------------------------------------------

    async def _get(self) -> Any:
        """Return the producer, made when there is none; raises Unavailable."""
        while self._producer is None:
            if self._making is None:
                self._making = asyncio.ensure_future(self._make())
            making = self._making
            try:
                self._producer = await asyncio.shield(making)
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                raise Unavailable(f"Kafka is away: {reason(error)}") from None
            finally:
                if making.done():
                    self._making = None
        return self._producer

    async def _make(self) -> Any:
        producer = AIOKafkaProducer(
            client_id="queuecast-producer",
            acks="all",
            enable_idempotence=True,
            max_request_size=_REQUEST_BYTES,
            max_batch_size=_BATCH_BYTES,
            request_timeout_ms=int(self._timeout * 1000),
            **self._control.options,
        )
        try:
            # Starting asks for a producer id for ever while no broker gives one.
            await asyncio.wait_for(producer.start(), self._timeout)
        except BaseException:
            await _end(producer)
            raise
        return producer

    async def _discard(self, why: str) -> None:
        """Throw the producer away, with what it holds."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        self.rebuilt += 1
        self._given_up = 0
        log.warning("a new producer is made: %s", why)
        await _end(producer)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, grace: float) -> None:
        """Wait for what is under way, at most `grace` seconds, and disconnect."""
        self._closing = True
        if self._pending:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        for task in list(self._tasks):
            task.cancel()
        for lane in self._lanes.values():
            _fail(lane, OutcomeUnknown("the gateway is closing", "it may or may not have it"))
        producer, self._producer = self._producer, None
        if producer is not None:
            await _end(producer)


def _fail(lane: deque[_Outgoing], error: QueuecastError) -> None:
    while lane:
        item = lane.popleft()
        if not item.done.done():
            item.done.set_exception(error)


async def _end(producer: Any) -> None:
    """Close a producer without waiting for what it holds.

    aiokafka's own `stop` would first send everything, for ever if nobody answers: its connections
    are closed before, and what then cannot be sent fails with its sender.
    """
    sender = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    await producer.client.close()
    producer._message_accumulator.fail_all(kafka.ProducerClosed())
    with contextlib.suppress(asyncio.CancelledError, kafka.KafkaError, TimeoutError):
        await asyncio.wait_for(producer.stop(), 5)
