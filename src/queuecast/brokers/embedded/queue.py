"""A queue: FIFO with priorities, competing consumers, limits, expiry and dead letters.

An entry is ready (in its line), unacked (with a consumer), or gone: acked, dead-lettered or
dropped. Expired entries leave when they come to the head, as in RabbitMQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    from .clearance import Clearance
    from .consumer import QueueConsumer

# Deliveries of one queue before other work has its turn.
BURST = 100


class Queue:
    """A queue of the embedded broker.

    on_death: takes a message with the reason when it leaves unacked, and its id in the store.
    on_unused: called when the queue is to be deleted because nobody uses it any more. clearance:
    where deliveries of kept messages are made known beforehand.
    """

    def __init__(
        self,
        spec: QueueSpec,
        *,
        clock: Clock,
        turn: Turn,
        memory: Memory,
        on_death: Callable[[Queue, Message, str, int], None],
        on_unused: Callable[[Queue], None],
        clearance: Clearance | None = None,
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
        self._clearance = clearance
        self.pending = 0  # messages on their way through the store, and their bytes
        self.pending_bytes = 0
        self._lines = [Line() for _ in range(self.arguments.max_priority + 1)]
        self._numbers = 0
        self._seen = 0  # entries up to this number have had their chance at a waiting consumer
        self._consumers: dict[QueueConsumer, None] = {}
        self._takers: dict[QueueConsumer, None] = {}  # those that may take now, next one first
        self._had_consumer = False
        self._ranked = False  # whether any consumer ever had a priority of its own
        self.is_gone = False  # deleted
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

    def refuses(self, message: Message) -> bool:
        """Tell whether the queue is full and refuses a message (reject-publish)."""
        arguments = self.arguments
        if arguments.overflow == "drop-head" or self._takers or not self._is_full(message):
            return False
        if arguments.overflow == "reject-publish-dlx":
            self._on_death(self, message, death.MAXLEN, 0)
        return True

    def ttl(self, message: Message) -> float | None:
        """Return after how many seconds a message expires here, None for never."""
        ttl = read_expiration(message.properties.expiration)
        if self.arguments.ttl is not None:
            ttl = self.arguments.ttl if ttl is None else min(ttl, self.arguments.ttl)
        return ttl

    def put(
        self,
        message: Message,
        size: int,
        kept: int = 0,
        cleared: bool = True,
        ttl: float | None = None,
    ) -> Entry:
        """Add a message that is not refused.

        size: its weight. kept, cleared: see Entry. ttl: what is left of it, None for the whole.
        Raises BadRequest (expiration).
        """
        if ttl is None:
            ttl = self.ttl(message)
        priority = min(message.properties.priority or 0, self.arguments.max_priority)
        self._numbers += 1
        expires = None if ttl is None else self._clock.now() + ttl
        entry = Entry(message, self._numbers, size, max(priority, 0), expires)
        entry.kept = kept
        entry.cleared = cleared
        self._memory.used += size
        self._lines[entry.priority].put(entry)
        self._count_ready(entry, 1)
        self.wake()
        return entry

    def restore(
        self, message: Message, size: int, kept: int, deliveries: int, ttl: float | None
    ) -> None:
        """Put a message back as the store has it: its deliveries came to their end without an ack.

        ttl: what is left of it.
        """
        limit = self._delivery_limit
        # A single delivery may be one that was noted beforehand and did not come.
        if limit is not None and deliveries > max(limit, 1):
            self._on_death(self, message, death.DELIVERY_LIMIT, kept)
            return
        entry = self.put(message, size, kept, deliveries > 0, ttl)
        entry.returns = deliveries
        entry.redelivered = deliveries > 0

    @property
    def _delivery_limit(self) -> int | None:
        """How often a message may come back from consumers; only quorum queues count that."""
        return self.arguments.delivery_limit if self.arguments.counts_deliveries else None

    def _is_full(self, message: Message) -> bool:
        length, size = self.arguments.max_length, self.arguments.max_bytes
        if length is not None and self.ready + self.pending >= length:
            return True
        used = self._ready_bytes + self.pending_bytes
        return size is not None and used + len(message.body) > size

    def expects_one(self) -> bool:
        """Tell whether one message more would be delivered at once."""
        more = self.ready + self.pending
        for taker in self._takers:
            more -= taker.room
            if more < 0:
                return True
        return False

    def kept_entries(self) -> Iterator[Entry]:
        """Yield the ready entries that are in the store."""
        return (entry for line in self._lines for entry in line if entry.kept)

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
        if self._clearance is not None:
            self._clearance.drop(entry)

    def reject(self, entry: Entry) -> None:
        """Dead-letter an entry that was nacked without requeue."""
        self.unacked -= 1
        self._bury(entry, death.REJECTED)

    def give_back(self, entries: Iterable[Entry]) -> None:
        """Put delivered entries back at their old places, marked redelivered."""
        limit = self._delivery_limit
        for entry in entries:
            entry.redelivered = True
            entry.returns += 1
            if limit is not None and entry.returns > limit:
                self.unacked -= 1
                self._bury(entry, death.DELIVERY_LIMIT)
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
        if self._clearance is not None:
            self._clearance.take_back(entry)

    # Life

    def touch(self) -> None:
        """Begin the time after which an unused queue is deleted anew (x-expires)."""
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None
        if self.arguments.expires is None or self._consumers or self.is_gone:
            return
        self._unused_timer = self._clock.call_later(
            self.arguments.expires, self._turn.do, self._unused
        )

    def close_consumers(self, error: QueuecastError) -> None:
        """Cancel the consumers with an error and take back what they have not acked."""
        consumers = list(self._consumers)
        self._consumers.clear()
        self._takers.clear()
        for consumer in consumers:
            self.give_back(consumer.end(error))

    def delete(self, error: QueuecastError) -> None:
        """Drop everything and cancel the consumers with an error."""
        self.is_gone = True
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
        if not self._consumers and not self.is_gone:
            self._on_unused(self)

    # Work

    def wake(self) -> None:
        """Do soon what can be done: deliver, expire, enforce the limits."""
        if self._queued or self.is_gone:
            return
        self._queued = True
        self._turn.do(self._work)

    def _work(self) -> None:
        self._queued = False
        if self.is_gone:
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
            head = line.head()
            if self._clearance is not None and head is not None and not head.cleared:
                self._clearance.ask(self, self._takers)
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
            if self._clearance is not None:
                self._clearance.hand(entry)
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
        self._on_death(self, entry.message, reason, entry.kept)

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

    def uncleared(self) -> Iterator[Entry]:
        """Yield the ready entries that may not be delivered yet, the next one first."""
        return (entry for line in reversed(self._lines) for entry in line if not entry.cleared)

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
