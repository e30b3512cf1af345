"""A queue: FIFO with priorities, competing consumers, limits, expiry and dead letters.

An entry is ready (in its line), unacked (with a consumer), or gone: acked, dead-lettered or
dropped. Expired entries leave when they come to the head, as in RabbitMQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ...errors import QueuecastError
from ...message import Message
from ...runtime import Timer
from ..base import BindingSpec, QueueSpec
from . import death
from .arguments import QueueArguments, read_expiration
from .clock import Clock
from .entry import Entry, Line
from .memory import Memory
from .turn import Turn

if TYPE_CHECKING:
    from .consumer import QueueConsumer

# Deliveries of one queue before other work has its turn.
BURST = 100


class Queue:
    """A queue of the embedded broker.

    on_death: takes a message with the reason when it leaves unacked. on_unused: called when
    the queue is to be deleted because nobody uses it any more.
    """

    def __init__(
        self,
        spec: QueueSpec,
        *,
        clock: Clock,
        turn: Turn,
        memory: Memory,
        on_death: Callable[[Queue, Message, str], None],
        on_unused: Callable[[Queue], None],
    ) -> None:
        self.spec = spec
        self.arguments = QueueArguments.read(spec.name, spec.arguments)
        self.bindings: dict[tuple[str, str, object], BindingSpec] = {}
        self.ready = 0
        self.unacked = 0
        self._ready_bytes = 0
        self._clock = clock
        self._turn = turn
        self._memory = memory
        self._on_death = on_death
        self._on_unused = on_unused
        self._lines = [Line() for _ in range(self.arguments.max_priority + 1)]
        self._numbers = 0
        self._seen = 0  # entries up to this number have had their chance at a waiting consumer
        self._consumers: dict[QueueConsumer, None] = {}
        self._takers: dict[QueueConsumer, None] = {}  # those that may take now, next one first
        self._had_consumer = False
        self._ranked = False  # whether any consumer ever had a priority of its own
        self._gone = False
        self._queued = False
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._unused_timer: Timer | None = None
        self.touch()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def consumers(self) -> int:
        """The number of consumers, paused ones included."""
        return len(self._consumers)

    # Publishing

    def put(self, message: Message, size: int) -> bool:
        """Add a message; returns False when the queue is full and refuses (reject-publish).

        size: its weight. Raises BadRequest (expiration).
        """
        arguments = self.arguments
        if arguments.overflow != "drop-head" and self._is_full(message) and not self._takers:
            if arguments.overflow == "reject-publish-dlx":
                self._on_death(self, message, death.MAXLEN)
            return False
        ttl = read_expiration(message.properties.expiration)
        if arguments.ttl is not None:
            ttl = arguments.ttl if ttl is None else min(ttl, arguments.ttl)
        priority = min(message.properties.priority or 0, arguments.max_priority)
        self._numbers += 1
        expires = None if ttl is None else self._clock.now() + ttl
        entry = Entry(message, self._numbers, size, max(priority, 0), expires)
        self._memory.used += size
        self._lines[entry.priority].put(entry)
        self._count_ready(entry, 1)
        self.wake()
        return True

    def _is_full(self, message: Message) -> bool:
        length, size = self.arguments.max_length, self.arguments.max_bytes
        if length is not None and self.ready >= length:
            return True
        return size is not None and self._ready_bytes + len(message.body) > size

    # Consuming

    def attach(self, consumer: QueueConsumer) -> None:
        """Add a consumer; it takes from when it is `open_to`."""
        self._consumers[consumer] = None
        self._had_consumer = True
        self._ranked = self._ranked or consumer.priority != 0
        self.touch()

    def open_to(self, consumer: QueueConsumer) -> None:
        """Let a consumer take, last in the round; nothing when it may not or does already."""
        if consumer in self._takers or not consumer.may_take or consumer not in self._consumers:
            return
        self._takers[consumer] = None
        self.wake()

    def shut_to(self, consumer: QueueConsumer) -> None:
        """Let a consumer take no more."""
        self._takers.pop(consumer, None)

    def detach(self, consumer: QueueConsumer, unacked: Iterable[Entry]) -> None:
        """Remove a consumer and take back what it has not acked."""
        if consumer not in self._consumers:
            return
        del self._consumers[consumer]
        self._takers.pop(consumer, None)
        self.give_back(unacked)
        if self._consumers:
            return
        if self.spec.auto_delete and self._had_consumer:
            self._turn.do(self._unused)
        self.touch()

    def settle(self, entry: Entry) -> None:
        """Forget an entry that was acked."""
        self.unacked -= 1
        self._memory.used -= entry.weight

    def reject(self, entry: Entry) -> None:
        """Dead-letter an entry that was nacked without requeue."""
        self.settle(entry)
        self._on_death(self, entry.message, death.REJECTED)

    def give_back(self, entries: Iterable[Entry]) -> None:
        """Put delivered entries back at their old places, marked redelivered."""
        limit = self.arguments.delivery_limit
        for entry in entries:
            entry.redelivered = True
            entry.returns += 1
            if limit is not None and self.arguments.counts_deliveries and entry.returns > limit:
                self.settle(entry)
                self._on_death(self, entry.message, death.DELIVERY_LIMIT)
                continue
            self.unacked -= 1
            self._lines[entry.priority].give_back(entry)
            self._count_ready(entry, 1)
        self.wake()

    def take_back(self, entry: Entry) -> None:
        """Put an entry back that was not taken: it was never delivered."""
        self.unacked -= 1
        self._lines[entry.priority].give_back(entry)
        self._count_ready(entry, 1)

    # Life

    def touch(self) -> None:
        """Begin the time after which an unused queue is deleted anew (x-expires)."""
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None
        if self.arguments.expires is None or self._consumers or self._gone:
            return
        self._unused_timer = self._clock.call_later(
            self.arguments.expires, self._turn.do, self._unused
        )

    def delete(self, error: QueuecastError) -> None:
        """Drop everything and cancel the consumers with an error."""
        self._gone = True
        for timer in (self._timer, self._unused_timer):
            if timer is not None:
                timer.cancel()
        consumers = list(self._consumers)
        self._consumers.clear()
        self._takers.clear()
        for line in self._lines:
            while len(line):
                self._memory.used -= line.take().weight
        for consumer in consumers:
            for entry in consumer.end(error):
                self._memory.used -= entry.weight
        self.ready = self.unacked = self._ready_bytes = 0

    def _unused(self) -> None:
        if not self._consumers and not self._gone:
            self._on_unused(self)

    # Work

    def wake(self) -> None:
        """Do soon what can be done: deliver, expire, enforce the limits."""
        if self._queued or self._gone:
            return
        self._queued = True
        self._turn.do(self._work)

    def _work(self) -> None:
        self._queued = False
        if self._gone:
            return
        now = self._clock.now()
        if self._deliver(now):
            self.wake()
            return
        self._seen = self._numbers
        self._expire(now)
        self._enforce()
        self._arm()

    def _deliver(self, now: float) -> bool:
        """Hand entries to consumers in turn; returns whether it stopped before all was done."""
        for _ in range(BURST):
            if not self._takers:
                return False
            line = next((line for line in reversed(self._lines) if len(line)), None)
            if line is None:
                return False
            entry = line.take()
            self._count_ready(entry, -1)
            # A new one goes to a waiting consumer even with a TTL of 0.
            if entry.number <= self._seen and _is_over(entry, now):
                self._bury(entry, death.EXPIRED)
                continue
            consumer = next(iter(self._takers))
            if self._ranked:
                # The first in the round of those with the highest x-priority.
                consumer = max(self._takers, key=lambda taker: taker.priority)
            del self._takers[consumer]
            self.unacked += 1
            consumer.hand(entry)
            if consumer.may_take and consumer in self._consumers:
                self._takers[consumer] = None
        return True

    def _expire(self, now: float) -> None:
        for line in self._lines:
            while (head := line.head()) is not None and _is_over(head, now):
                line.take()
                self._count_ready(head, -1)
                self._bury(head, death.EXPIRED)

    def _enforce(self) -> None:
        length, size = self.arguments.max_length, self.arguments.max_bytes
        if self.arguments.overflow != "drop-head":
            # Only what came back from consumers can be too much there: it stays.
            return
        while self.ready and (
            (length is not None and self.ready > length)
            or (size is not None and self._ready_bytes > size)
        ):
            line = next(line for line in reversed(self._lines) if len(line))
            entry = line.take()
            self._count_ready(entry, -1)
            self._bury(entry, death.MAXLEN)

    def _bury(self, entry: Entry, reason: str) -> None:
        self._memory.used -= entry.weight
        self._on_death(self, entry.message, reason)

    def _arm(self) -> None:
        """Set the timer for the head that expires first."""
        due = min(
            (
                head.expires
                for line in self._lines
                if (head := line.head()) is not None and head.expires is not None
            ),
            default=None,
        )
        if self._timer is not None:
            if due == self._timer_at:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_at = due
            self._timer = self._clock.call_later(max(0.0, due - self._clock.now()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.wake()

    def _count_ready(self, entry: Entry, sign: int) -> None:
        self.ready += sign
        self._ready_bytes += sign * len(entry.message.body)


def _is_over(entry: Entry, now: float) -> bool:
    return entry.expires is not None and entry.expires <= now


def describe(spec: QueueSpec) -> str:
    """Return a queue's properties for people."""
    words = ["durable" if spec.durable else "transient"]
    if spec.exclusive:
        words.append("exclusive")
    if spec.auto_delete:
        words.append("auto-delete")
    words.extend(f"{name}={value!r}" for name, value in sorted(spec.arguments.items()))
    return ", ".join(words)
