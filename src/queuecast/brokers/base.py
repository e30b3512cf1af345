"""The one interface between the gateway and a broker.

The law, for every broker:

* `open_feed` returns once the reader is live: whatever is published after it returned reaches
  the sink. The sink's calls are synchronous, in the order of the messages, and made from the
  event loop; `begin` comes first, exactly once.
* Where a broker cannot know that nothing was lost (its queue vanished, a reconnect it cannot
  verify), it calls `gap` before the next `append`. It never repeats a message silently.
* `publish` returns only when the broker has taken responsibility, and raises otherwise.
* A consumer never gets more than its prefetch unacked; unacked messages go back to the queue
  when it closes or its connection is lost, and come again marked redelivered.
* An error concerns the call that caused it and nothing else. While the broker is away, calls
  raise Unavailable at once or after a bounded wait, open readers stay open, and the broker
  reconnects by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..delivery import Consumer, Delivery, DeliverySink
from ..destination import Destination
from ..errors import QueuecastError
from ..message import NO_PROPERTIES, Message, Properties
from ..metrics import Family
from ..position import Mark, Start
from ..queuespec import PLAIN, BindingSpec, ConsumeSpec, Owner, QueueSpec

__all__ = [
    "DEFAULT_PREFETCH",
    "EXCHANGE_TYPES",
    "PLAIN",
    "PREDECLARED",
    "BindingSpec",
    "Broker",
    "ConsumeSpec",
    "Consumer",
    "Delivery",
    "DeliverySink",
    "ExchangeSpec",
    "FeedReader",
    "FeedSink",
    "HistoryReader",
    "Owner",
    "Page",
    "PromptBroker",
    "QueueSpec",
    "SettlingReader",
    "TopicSpec",
    "WideningReader",
]

EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")

# Exchanges that every AMQP broker has from the start (AMQP 0-9-1 section 3.1.3).
PREDECLARED: dict[str, str] = {
    "": "direct",
    "amq.direct": "direct",
    "amq.topic": "topic",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
}
DEFAULT_PREFETCH = 1000


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """An exchange to declare. arguments: AMQP's, e.g. alternate-exchange."""

    name: str
    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A Kafka topic to create where it is missing.

    partitions, replication: 0 for the cluster's default. settings: Kafka's own, as text.
    """

    name: str
    partitions: int = 0
    replication: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)


class FeedSink(Protocol):
    """Where a feed's messages go: the hub's feed, or a test's list."""

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        """Say where the feed begins; called once, before everything else.

        start: one mark per lane after which backlog and what follows are complete, or None
        when the broker has no offsets (the feed numbers for itself). backlog: what the broker
        still has, oldest first, offsets set; those at or before `start` are extra, left over
        between evicted ones (for a `last=N`). history: the broker keeps history by itself, so
        a `last=N` that finds fewer than N has found all there is. complete: seconds; nothing
        that came within them is missing from the backlog, so that a `since=TIME` may rely on it.
        """

    def append(self, messages: Sequence[Message]) -> None:
        """Take the next messages, in order."""

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        """Tell of messages that are lost before the next one; `start` as in begin."""

    def widen(self, marks: Sequence[Mark]) -> None:
        """Tell that the destination has more lanes now, after those it had (Kafka partitions).

        marks: where each begins: nothing after it is missed. Their epoch is that of the other
        lanes, and no other destination's: by it an older position is known to lack them. From now
        on `position` of the reader has them too, and so have the pages of its history.
        """

    def fail(self, error: QueuecastError) -> None:
        """Tell that the feed cannot go on: its subscribers are disconnected with the error."""


class FeedReader(Protocol):
    """An open feed at the broker."""

    def position(self) -> Sequence[int] | None:
        """Return, per lane, the offset up to which everything was handed to the sink.

        None where the broker has no offsets. It may run ahead of the last message appended:
        other destinations' messages count too.
        """

    async def close(self) -> None:
        """Stop reading; the sink is not called any more. Never raises while the broker is away."""


@dataclass(frozen=True, slots=True)
class Page:
    """A run of a feed's history, oldest message first, each with its offset and lane.

    after: per lane, the place up to which the page is complete, also where other destinations'
    messages were skipped. gap: why what came right after the asked place is not there any more,
    "" where nothing is missing; `start` is then the place before the first message that is.
    end: there is nothing after it for now.
    """

    messages: Sequence[Message]
    after: Sequence[Mark]
    gap: str = ""
    start: Sequence[Mark] | None = None
    end: bool = False


@runtime_checkable
class HistoryReader(FeedReader, Protocol):
    """An open feed whose broker keeps what was published: the optional ability of a reader.

    It serves those who are behind the feed's log. Many may ask at a time; the broker bounds what
    that costs (a shared pass, not a reader each).
    """

    async def locate(self, start: Start) -> Sequence[Mark]:
        """Return the place before the `first` message, the `last` N, or those from a `time` on.

        For a place that is not known exactly an earlier one, never a later. Raises Unavailable.
        """

    async def history(self, after: Sequence[Mark], max_bytes: int) -> Page:
        """Return what follows a place, at least one message unless there is none.

        max_bytes: of the bodies, about, with 400 more for each message. A place of another
        numbering, or in the future, gives a page with a gap that begins at the first message
        there is. Raises Unavailable.
        """


@runtime_checkable
class SettlingReader(FeedReader, Protocol):
    """An open feed without offsets whose broker may hold messages for it: an optional ability."""

    async def settle(self) -> None:
        """Return once everything was handed to the sink that the broker held when this was called.

        Raises Unavailable when that takes too long, because the broker is away.
        """


@runtime_checkable
class WideningReader(FeedReader, Protocol):
    """An open feed that may get more lanes (FeedSink.widen): an optional ability."""

    widens: bool


class Broker(Protocol):
    """A message broker, as the gateway uses it."""

    name: str
    """For people: the URL with its password masked."""

    async def start(self) -> None:
        """Connect. Raises Refused (login), ConfigError, or Unavailable when it is away; the
        caller decides whether to try again with `start` or to exit."""

    async def close(self) -> None:
        """Finish confirms in flight, close everything, give unacked deliveries back."""

    @property
    def ready(self) -> bool:
        """Whether calls can succeed now."""

    @property
    def status(self) -> str:
        """What is the matter, for people: "connected", "connecting: refused, next in 2 s" …"""

    def families(self) -> Iterable[Family]:
        """Return what is measured of it; made for each scrape, from counters that are there."""

    async def declare(
        self, exchanges: Sequence[ExchangeSpec] = (), queues: Sequence[QueueSpec] = ()
    ) -> None:
        """Create what is configured; remembered and repeated after every reconnect.

        Raises Conflict when one exists with other properties (naming both), Refused.
        """

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> None:
        """Publish and return once the broker has taken responsibility.

        mandatory: fail with Unroutable when no queue got it; None means where a queue was
        named (/queue, /amq/queue, /reply-queue). `/queue/N` is declared (durable) on first use.
        Calls made one after the other without awaiting keep their order.
        Raises NotFound (no such exchange; the hint names `[[exchange]]`), Unroutable,
        PublishFailed (broker nack), Refused, Unavailable, OutcomeUnknown.
        """

    async def open_feed(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """Start reading a shared destination; see the law above.

        Raises NotFound, Refused, Unsupported, Unavailable.
        """

    async def consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int = DEFAULT_PREFETCH,
        spec: ConsumeSpec = PLAIN,
    ) -> Consumer:
        """Start consuming a queue destination (`/queue/N` is declared when missing).

        With a `spec.queue` that queue is declared, bound and consumed, whatever the destination.
        After a lost connection the consumer is opened again by itself: sink.reset() is called,
        then deliveries come again; where such a queue had to be made anew, sink.gap() comes
        first. A stream goes on behind what was acked. The first delivery never comes before
        `consume` returned, but may before its awaiter runs again. Raises NotFound, Refused,
        Conflict (Locked when another owner or connection holds the queue), Unavailable.
        """

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        """Declare a queue for one session; an exclusive one is that owner's alone.

        Raises Conflict, Locked, Refused, NotFound (an exchange to bind to), Unavailable.
        """

    async def delete_own(self, name: str, owner: Owner) -> None:
        """Delete a queue with all that is in it; nothing when it is gone already.

        Raises Locked, Refused, Unavailable.
        """

    async def release(self, owner: Owner) -> None:
        """Delete the exclusive queues of a session that is over; its consumers are closed.

        Never raises while the broker is away: they went with the connection.
        """


@runtime_checkable
class PromptBroker(Protocol):
    """A broker whose publishes may be done without waiting: an optional ability."""

    def publish_at_once(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        """Publish, if it is done when this returns; raises what `publish` does.

        False: it would have to wait; nothing has happened, it is for `publish`. The two keep the
        order of calls. Whoever calls it in a loop lets the event loop turn now and then.
        """
