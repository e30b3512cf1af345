"""A stream: a queue that is only appended to, and read by each consumer at its own offset.

As RabbitMQ's streams, within memory: an ack settles nothing but the consumer's prefetch, and what
is too old or too much goes from the front, whether anybody has read it or not.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...errors import BadRequest, QueuecastError
from ...message import Message
from ...queuespec import STREAM_OFFSET, BindingSpec, QueueSpec, Timestamp, read_age
from ..base import Delivery, DeliverySink
from .arguments import QueueArguments
from .memory import Memory
from .turn import Turn

logger = logging.getLogger(__name__)

# Without x-max-length-bytes: a stream that nobody limits must not take all queues' memory.
DEFAULT_BYTES = 64 << 20
# Deliveries of one stream before other work has its turn.
BURST = 100

_FILTER = "x-stream-filter"
_FILTER_VALUE = "x-stream-filter-value"
_MATCH_UNFILTERED = "x-stream-match-unfiltered"


class _Kept(NamedTuple):
    offset: int
    time: float  # Unix
    size: int
    message: Message


class Stream:
    """A stream of the embedded broker. now: Unix time, for x-max-age and timestamps."""

    def __init__(
        self,
        spec: QueueSpec,
        *,
        turn: Turn,
        memory: Memory,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.spec = spec
        self.arguments = QueueArguments.read(spec.name, spec.arguments)
        self.bindings: dict[tuple[str, str, object], BindingSpec] = {}
        self._turn = turn
        self._memory = memory
        self._now = now
        limit = self.arguments.max_bytes
        self._max_age = read_age(spec)
        self._max_bytes = DEFAULT_BYTES if limit is None else limit
        # Bounded by _max_bytes of weights, and by the broker's budget.
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._next = 0
        self._consumers: dict[StreamConsumer, None] = {}
        self._queued = False
        self._gone = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ready(self) -> int:
        """The number of messages kept."""
        return len(self._kept)

    @property
    def unacked(self) -> int:
        """A stream's messages are never anybody's own."""
        return 0

    @property
    def consumers(self) -> int:
        return len(self._consumers)

    def touch(self) -> None:
        """A stream does not go away by itself."""

    def put(self, message: Message, size: int) -> bool:
        """Append a message of this weight; always True."""
        self._kept.append(_Kept(self._next, self._now(), size, message))
        self._next += 1
        self._bytes += size
        self._memory.used += size
        self._evict()
        self.wake()
        return True

    def _evict(self) -> None:
        oldest = None if self._max_age is None else self._now() - self._max_age
        kept = self._kept
        while kept and (
            self._bytes > self._max_bytes or (oldest is not None and kept[0].time < oldest)
        ):
            gone = kept.popleft()
            self._bytes -= gone.size
            self._memory.used -= gone.size

    # Reading

    def start_of(self, wanted: object) -> int:
        """Return the offset that an x-stream-offset means; raises BadRequest."""
        self._evict()
        first = self._next - len(self._kept)
        match wanted:
            case None | "next":
                return self._next
            case "first":
                return first
            case "last":
                return max(first, self._next - 1)
            case bool():
                pass
            case int():
                return max(wanted, first)
            case Timestamp():
                found = (kept.offset for kept in self._kept if kept.time >= wanted.seconds)
                return next(found, self._next)
        raise BadRequest(
            f"{STREAM_OFFSET} is {wanted!r}", "first, last, next, an offset or a timestamp"
        )

    def attach(self, consumer: StreamConsumer) -> None:
        """Add a consumer; it takes once it has started."""
        self._consumers[consumer] = None

    def detach(self, consumer: StreamConsumer) -> None:
        """Remove a consumer."""
        self._consumers.pop(consumer, None)

    def delete(self, error: QueuecastError) -> None:
        """Drop everything and cancel the consumers with an error."""
        self._gone = True
        consumers = list(self._consumers)
        self._consumers.clear()
        self._kept.clear()
        self._memory.used -= self._bytes
        self._bytes = 0
        for consumer in consumers:
            consumer.end(error)

    def wake(self) -> None:
        """Deliver soon what can be delivered."""
        if self._queued or self._gone:
            return
        self._queued = True
        self._turn.do(self._work)

    def _work(self) -> None:
        self._queued = False
        self._evict()
        left = BURST
        for consumer in list(self._consumers):
            while consumer.may_take and consumer.at < self._next and not self._gone:
                if not left:
                    self.wake()
                    return
                left -= 1
                first = self._next - len(self._kept)
                consumer.at = max(consumer.at, first)
                if consumer.at == self._next:
                    break
                consumer.at += 1
                consumer.hand(self._kept[consumer.at - 1 - first])
        if left < BURST and len(self._consumers) > 1:
            # Whoever came first had the first chance: the others begin the next round.
            served = next(iter(self._consumers))
            del self._consumers[served]
            self._consumers[served] = None


class StreamConsumer:
    """One reader of a stream; implements base.Consumer. at: the offset that comes next."""

    def __init__(
        self, stream: Stream, sink: DeliverySink, prefetch: int, arguments: Mapping[str, Any]
    ) -> None:
        self.at = stream.start_of(arguments.get(STREAM_OFFSET))
        self._stream = stream
        self._sink = sink
        self._prefetch = prefetch
        self._filter: Collection[str] | None = _texts(arguments.get(_FILTER))
        self._unfiltered = arguments.get(_MATCH_UNFILTERED) is True
        self._unacked: set[int] = set()  # tags; bounded by the prefetch
        self._tag = 0
        self._paused = False
        self._started = False
        self._over = False

    @property
    def may_take(self) -> bool:
        """Whether it wants a delivery and its prefetch allows one."""
        return (
            self._started
            and not self._paused
            and not self._over
            and len(self._unacked) < self._prefetch
        )

    def start(self) -> None:
        """Begin to take."""
        self._started = True
        self._stream.wake()

    def hand(self, kept: _Kept) -> None:
        """Deliver what the filter lets through; a sink that raises ends this consumer."""
        properties = kept.message.properties
        if self._filter is not None:
            value = properties.headers.get(_FILTER_VALUE)
            if not (self._unfiltered if value is None else value in self._filter):
                return
        headers = {**properties.headers, STREAM_OFFSET: kept.offset}
        message = Message(
            kept.message.body,
            kept.message.exchange,
            kept.message.routing_key,
            replace(properties, headers=headers),
            offset=kept.message.offset,
        )
        self._tag += 1
        self._unacked.add(self._tag)
        try:
            self._sink.deliver(Delivery(message, self._tag))
        except Exception:
            logger.exception("a consumer of stream %r failed: it is cancelled", self._stream.name)
            self._stream.detach(self)
            self.end(QueuecastError("the consumer failed"))

    def end(self, error: QueuecastError | None) -> None:
        """Take nothing more; the sink is told of an error."""
        if self._over:
            return
        self._over = True
        self._unacked.clear()
        if error is not None:
            try:
                self._sink.cancelled(error)
            except Exception:
                logger.exception("a consumer of stream %r: cancelled() failed", self._stream.name)

    def ack(self, tag: int) -> bool:
        if tag not in self._unacked:
            return False
        self._unacked.discard(tag)
        self._stream.wake()
        return True

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        """As ack: nothing is given back to a stream (as at RabbitMQ)."""
        return self.ack(tag)

    def pause(self) -> None:
        self._paused = True

    def suspend(self, tags: Sequence[int]) -> None:
        # Nothing goes back to a stream.
        self.pause()

    def resume(self) -> None:
        self._paused = False
        self._stream.wake()

    async def close(self) -> None:
        self._stream.detach(self)
        self.end(None)


def _texts(value: object) -> Collection[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset((value,))
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return frozenset(value)
    raise BadRequest(f"{_FILTER} is {value!r}", "texts")
