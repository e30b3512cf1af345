"""A stream: a queue that is only appended to, and read by each consumer at its own offset.

As RabbitMQ's streams, within memory: an ack settles nothing but the consumer's prefetch, and what
is too old or too much goes from the front, whether anybody has read it or not. With a store each
message is on disk before it is here, at the offset that it was given there; some offsets may then
be nobody's, because a message could not be written.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from ...errors import BadRequest, QueuecastError
from ...message import NO_PROPERTIES, Message
from ...queuespec import STREAM_OFFSET, BindingSpec, QueueSpec, Timestamp, read_age
from ..base import Delivery, DeliverySink
from .age import AgeClock
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


_NOTHING = Message(b"", "", "", NO_PROPERTIES)


class _Kept(NamedTuple):
    offset: int
    time: float  # see AgeClock
    size: int
    message: Message


class Stream:
    """A stream of the embedded broker.

    ages: for x-max-age and timestamps. on_truncated: told of the offset before which
    messages went from the front.
    """

    def __init__(
        self,
        spec: QueueSpec,
        *,
        turn: Turn,
        memory: Memory,
        ages: AgeClock,
        on_truncated: Callable[[str, int], None] | None = None,
    ) -> None:
        self.spec = spec
        self.arguments = QueueArguments.read(spec.name, spec.arguments)
        self.bindings: dict[tuple[str, str, object], BindingSpec] = {}
        self._turn = turn
        self._memory = memory
        self._ages = ages
        self._on_truncated = on_truncated
        limit = self.arguments.max_bytes
        self._max_age = read_age(spec)
        self._max_bytes = DEFAULT_BYTES if limit is None else limit
        # Bounded by _max_bytes of weights, and by the broker's budget.
        self._kept: list[_Kept] = []
        self._cut = 0  # messages at the front that are gone; taken out when they are the half
        self._bytes = 0
        self._next = 0
        self._consumers: dict[StreamConsumer, None] = {}
        self._queued = False
        self.is_gone = False  # deleted

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ready(self) -> int:
        """The number of messages kept."""
        return len(self._kept) - self._cut

    @property
    def unacked(self) -> int:
        """A stream's messages are never anybody's own."""
        return 0

    @property
    def consumers(self) -> int:
        return len(self._consumers)

    def touch(self) -> None:
        """A stream does not go away by itself."""

    def refuses(self, message: Message) -> bool:
        """A stream refuses nothing: the oldest messages make room."""
        return False

    def put(
        self, message: Message, size: int, offset: int | None = None, at: float | None = None
    ) -> None:
        """Append a message of this weight; offset and time are those of the store."""
        offset = self._next if offset is None else offset
        self._kept.append(_Kept(offset, self._ages.now() if at is None else at, size, message))
        self._next = offset + 1
        self._bytes += size
        self._memory.used += size
        self._evict()
        self.wake()

    def begin_at(self, offset: int) -> None:
        """Give the next message this offset, after all that was put back."""
        self._next = offset

    def _evict(self) -> None:
        oldest = None if self._max_age is None else self._ages.now() - self._max_age
        before = self._cut
        while self.ready:
            head = self._kept[self._cut]
            if self._bytes <= self._max_bytes and (oldest is None or head.time >= oldest):
                break
            self._bytes -= head.size
            self._memory.used -= head.size
            # Its place stays for a while, but not what was in it.
            self._kept[self._cut] = head._replace(message=_NOTHING)
            self._cut += 1
        if self._cut == before:
            return
        if self._on_truncated is not None:
            self._on_truncated(self.name, self._kept[self._cut - 1].offset + 1)
        if self._cut > self.ready:
            del self._kept[: self._cut]
            self._cut = 0

    # Reading

    def start_of(self, wanted: object) -> int:
        """Return the offset that an x-stream-offset means; raises BadRequest."""
        self._evict()
        first = self._kept[self._cut].offset if self.ready else self._next
        match wanted:
            case None | "next":
                return self._next
            case "first":
                return first
            case "last":
                return self._kept[-1].offset if self.ready else self._next
            case bool():
                pass
            case int():
                return max(wanted, first)
            case Timestamp():
                left = islice(self._kept, self._cut, None)
                since = self._ages.of_wall(wanted.seconds)
                found = (kept.offset for kept in left if kept.time >= since)
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
        self.is_gone = True
        consumers = list(self._consumers)
        self._consumers.clear()
        self._kept.clear()
        self._cut = 0
        self._memory.used -= self._bytes
        self._bytes = 0
        for consumer in consumers:
            consumer.end(error)

    def wake(self) -> None:
        """Deliver soon what can be delivered."""
        if self._queued or self.is_gone:
            return
        self._queued = True
        self._turn.do(self._work)

    def _work(self) -> None:
        self._queued = False
        self._evict()
        left = BURST
        for consumer in list(self._consumers):
            if not consumer.may_take or consumer.at >= self._next:
                continue
            index = bisect_left(self._kept, consumer.at, lo=self._cut, key=lambda kept: kept.offset)
            while consumer.may_take and index < len(self._kept) and not self.is_gone:
                if not left:
                    self.wake()
                    return
                left -= 1
                kept = self._kept[index]
                index += 1
                consumer.at = kept.offset + 1
                consumer.hand(kept)
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
            if self._sink.deliver(Delivery(message, self._tag)) is False:
                # It is read again when the sink, which has paused us, takes more.
                self._unacked.discard(self._tag)
                self.at = kept.offset
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
