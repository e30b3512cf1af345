"""Publishing: an idempotent producer, acks from all replicas, order of calls kept.

Publishes wait in one lane per topic. A lane's first look-up may create the topic; then its
records go to the producer one after the other, so that a full batch cannot reorder them, and each
publish returns with the broker's answer. The producer repeats by itself what a lost connection
left open, and its sequence numbers keep that from doubling.

A batch that Kafka refuses, for one record in it or because it has lost what it knew of us, leaves
those numbers apart from the broker's, and every batch after it is refused for that alone. So the
producer is replaced then: what it still holds is answered first, and what was refused without
fault of its own goes through the new one, in its order. A producer that gets no answers at all is
thrown away with what it holds, and that is an unknown outcome.
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
from ...errors import (
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    QueuecastError,
    TooLarge,
    Unavailable,
)
from ...message import Properties
from ..background import Background
from .client import adopt
from .content import Headers, to_headers
from .control import Control
from .failures import POISON, REJECTIONS, of_publish, of_reading, reason, unroutable
from .names import target_of
from .requests import WRITE

log = logging.getLogger(__name__)

# Unanswered records and their bytes: what a cluster that stops answering may cost us.
MAX_PENDING = 10_000
MAX_PENDING_BYTES = 64 << 20
# Topics known to be there; clients choose names, so this must not grow for ever.
_MAX_KNOWN = 10_000
# Seconds for which what was found out of a topic holds: it may have been deleted, or changed.
_KNOWN_FOR = 30.0
# Records that the producer holds although their publishers have been told that nobody knows.
_MAX_GIVEN_UP = 1000
# How often a record goes through another producer without fault of its own.
_MAX_TRIES = 3
# Seconds for which a producer that is replaced may go on answering.
_RETIREMENT = 5.0
# Seconds without any answer to waiting publishes, after which the gateway is not ready. A partition
# that waits for its next leader is no reason while others answer.
_SILENT = 5.0
# The gateway has its own limit (limits.message), and topics theirs (max.message.bytes).
_REQUEST_BYTES = 128 << 20
_BATCH_BYTES = 64 << 10


class _Outgoing:
    """One publish under way. create: a missing topic may come into being."""

    __slots__ = ("alone", "body", "create", "done", "headers", "key", "timestamp", "tries")

    def __init__(
        self,
        key: bytes | None,
        body: bytes,
        headers: Headers,
        timestamp: int | None,
        create: bool,
        done: asyncio.Future[None],
    ) -> None:
        self.key = key
        self.body = body
        self.headers = headers
        self.timestamp = timestamp
        self.create = create
        self.done = done
        self.alone = False  # its batch was refused: once more, in one of its own
        self.tries = 0

    def fail(self, error: QueuecastError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Lane:
    """A topic's publishes: to be sent, to be sent again first, and how many await an answer."""

    __slots__ = ("again", "last", "queue", "running", "topic", "unanswered")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.queue: deque[_Outgoing] = deque()
        self.again: list[_Outgoing] = []
        self.last: asyncio.Future[Any] | None = None
        self.unanswered = 0
        self.running = False

    def fail(self, error: QueuecastError) -> None:
        items = [*self.again, *self.queue]
        self.again.clear()
        self.queue.clear()
        for item in items:
            item.fail(error)


class Publisher:
    """Publishes for the whole gateway. timeout: seconds until an answer is unknown."""

    def __init__(self, control: Control, *, timeout: float) -> None:
        self._control = control
        self._timeout = timeout
        self._producer: Any = None
        self._making: asyncio.Future[Any] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._lanes: dict[str, _Lane] = {}
        self._known: dict[str, float] = {}
        self._too_large: dict[str, tuple[int, float]] = {}
        self._background = Background(log)
        self._pending = 0
        self._pending_bytes = 0
        self._closing = False
        self._answered_at = self._waiting_since = 0.0
        self._idle = asyncio.Event()
        self._given_up = 0
        self.replaced = 0

    @property
    def pending(self) -> int:
        """Records that are not acknowledged yet."""
        return self._pending

    @property
    def trouble(self) -> str:
        """What is the matter with all publishes, "" if nothing is."""
        if not self._pending:
            return ""
        since = max(self._answered_at, self._waiting_since)
        silent = asyncio.get_running_loop().time() - since
        return f"no answer to publishes for {silent:.0f} s" if silent > _SILENT else ""

    async def publish(self, destination: Destination, body: bytes, properties: Properties) -> None:
        """Publish one message; see the broker interface."""
        target = target_of(destination)
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
        size, until = self._too_large.get(target.topic, (0, 0.0))
        if until > loop.time() and len(body) >= size:
            error = kafka.MessageSizeTooLargeError()
            raise of_publish(error, target.topic, len(body), self._control.user)
        item = _Outgoing(
            target.key.encode() if target.key else None,
            body,
            to_headers(properties),
            None if properties.timestamp is None else properties.timestamp * 1000,
            target.create,
            loop.create_future(),
        )
        if not self._pending:
            self._waiting_since = loop.time()
        self._pending += 1
        self._pending_bytes += len(body)
        try:
            lane = self._lanes.get(target.topic)
            if lane is None:
                lane = self._lanes[target.topic] = _Lane(target.topic)
            lane.queue.append(item)
            self._wake(lane)
            await self._answer(item)
        except NotFound:
            if destination.names_queue:
                raise unroutable(target.topic) from None
            raise
        except TooLarge:
            if len(self._too_large) >= _MAX_KNOWN:
                self._too_large.clear()
            self._too_large[target.topic] = (len(body), loop.time() + _KNOWN_FOR)
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
        if self._producer is not None and (silent or self._given_up > _MAX_GIVEN_UP):
            self._replace(self._producer, "it gets no answers", patience=0)

    # -- a topic's lane -------------------------------------------------------------------

    def _wake(self, lane: _Lane) -> None:
        if not lane.running:
            lane.running = True
            self._background.spawn(self._run(lane), f"publish to {lane.topic}")

    async def _run(self, lane: _Lane) -> None:
        """Hand a lane's records to the producer, in order, until there are none."""
        try:
            while lane.queue or lane.again:
                try:
                    if self._retiring is not None:
                        # Else what it still holds could be overtaken.
                        await asyncio.shield(self._retiring)
                        self._retiring = None
                    lane.queue.extendleft(reversed(lane.again))
                    lane.again.clear()
                    await self._look_up(lane.topic, lane.queue[0].create)
                    producer = await self._get()
                except QueuecastError as error:
                    lane.fail(error)
                    break
                while lane.queue and not lane.again and producer is self._producer:
                    item = lane.queue.popleft()
                    if not item.done.done():  # else it was given up while it waited
                        await self._send(producer, lane, item)
        except Exception as error:
            log.exception("publishing to %s failed", lane.topic)
            lane.fail(QueuecastError(f"publishing failed: {error}"))
        finally:
            lane.running = False
            self._forget(lane)

    def _forget(self, lane: _Lane) -> None:
        if lane.queue or lane.again:
            self._wake(lane)
        elif not lane.unanswered and not lane.running:
            self._lanes.pop(lane.topic, None)

    async def _look_up(self, topic: str, create: bool) -> None:
        now = asyncio.get_running_loop().time()
        if self._known.get(topic, 0.0) > now:
            return
        await self._control.topic(topic, create=create, operation=WRITE)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[topic] = now + _KNOWN_FOR

    async def _send(self, producer: Any, lane: _Lane, item: _Outgoing) -> None:
        if item.alone and lane.last is not None and not lane.last.done():
            await asyncio.wait((lane.last,))
            if lane.again:
                lane.again.append(item)
                return
        try:
            sent = await producer.send(
                lane.topic,
                item.body,
                key=item.key,
                timestamp_ms=item.timestamp,
                headers=item.headers,
            )
        except kafka.ProducerClosed:
            lane.again.append(item)  # it was replaced before it took this one
            return
        except (kafka.KafkaError, OSError, TimeoutError, AssertionError) as error:
            self._failed(producer, lane, item, error)
            return
        lane.last = sent
        lane.unanswered += 1
        sent.add_done_callback(lambda future: self._answered(producer, lane, item, future))
        if item.alone:
            await asyncio.wait((sent,))

    def _answered(self, producer: Any, lane: _Lane, item: _Outgoing, future: Any) -> None:
        lane.unanswered -= 1
        self._answered_at = asyncio.get_running_loop().time()
        error = kafka.ProducerClosed() if future.cancelled() else future.exception()
        if error is not None:
            self._failed(producer, lane, item, error)
        elif not item.done.done():
            item.done.set_result(None)
        self._forget(lane)

    def _failed(self, producer: Any, lane: _Lane, item: _Outgoing, error: BaseException) -> None:
        innocent = isinstance(error, POISON)
        if isinstance(error, REJECTIONS):
            innocent, item.alone = not item.alone, True
        if isinstance(error, (*POISON, *REJECTIONS)):
            self._replace(producer, reason(error))
        if isinstance(error, (kafka.UnknownTopicOrPartitionError, kafka.InvalidTopicError)):
            self._known.pop(lane.topic, None)
        if innocent and item.tries < _MAX_TRIES and not item.done.done():
            item.tries += 1
            lane.again.append(item)
            self._wake(lane)
            return
        item.fail(of_publish(error, lane.topic, len(item.body), self._control.user))

    # -- the producer ---------------------------------------------------------------------

    async def _get(self) -> Any:
        """Return the producer, made when there is none; raises Refused, Unavailable."""
        while self._producer is None:
            if self._making is None:
                self._making = asyncio.ensure_future(self._make())
            making = self._making
            try:
                self._producer = await asyncio.shield(making)
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                raise of_reading(error, "make a producer", self._control.user) from None
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
        adopt(producer.client, self._control.nodes).is_missing = self._control.is_missing
        self._control.follow_files(producer.client)
        try:
            # Starting asks for a producer id for ever while no broker gives one.
            await asyncio.wait_for(producer.start(), self._timeout)
        except BaseException:
            await _end(producer)
            raise
        return producer

    def _replace(self, producer: Any, why: str, patience: float = _RETIREMENT) -> None:
        """Have the next records go through a new producer; patience: seconds for the old one."""
        if producer is not self._producer:
            return
        self._producer = None
        self._given_up = 0
        self.replaced += 1
        log.info("the producer is replaced: %s", why)
        self._retiring = asyncio.create_task(self._retire(producer, patience))

    async def _retire(self, producer: Any, patience: float) -> None:
        with contextlib.suppress(TimeoutError, kafka.KafkaError):
            await asyncio.wait_for(producer.flush(), patience)
        await _end(producer)
        # What it failed to send is asked for again by callbacks that run after this.
        await asyncio.sleep(0)

    async def close(self, grace: float) -> None:
        """Wait for what is under way, at most `grace` seconds, and disconnect."""
        self._closing = True
        if self._pending:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        self._background.cancel()
        for lane in list(self._lanes.values()):
            lane.fail(OutcomeUnknown("the gateway is closing", "it may or may not have it"))
        if self._retiring is not None:
            await self._retiring
        producer, self._producer = self._producer, None
        if producer is not None:
            await _end(producer)


def fail_all(accumulator: Any) -> None:
    """Fail what a producer holds, with ProducerClosed.

    What waits for another attempt aiokafka neither counts as under way nor asks again how it
    ended; the event loop would complain of both, in the log, as of errors.
    """
    batches = [batch for waiting in accumulator._batches.values() for batch in waiting]
    batches += accumulator._pending_batches
    accumulator._pending_batches.update(batch for batch in batches if batch.retry_count)
    accumulator.fail_all(kafka.ProducerClosed())
    for batch in batches:
        if not batch._drain_waiter.cancelled():
            batch._drain_waiter.exception()


async def _end(producer: Any) -> None:
    """Close a producer without waiting for what it holds.

    aiokafka's own `stop` would first send everything, for ever if nobody answers: its connections
    are closed before, and what then cannot be sent fails with its sender.
    """
    sender = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    await producer.client.close()
    fail_all(producer._message_accumulator)
    with contextlib.suppress(asyncio.CancelledError, kafka.KafkaError, TimeoutError):
        await asyncio.wait_for(producer.stop(), 5)
