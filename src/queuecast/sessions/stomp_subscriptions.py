"""A STOMP session's subscriptions: to feeds, to queues, and to queues of their own.

/topic and /exchange share a feed unless the frame asks for something that only a queue can give
(stomp_queues.py). A reply queue is a subscription too, made by a SEND's reply-to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..aliases import concealed
from ..codecs.stomp import Frame
from ..codecs.stomp_values import (
    AckMode,
    StompError,
    ack_mode,
    boolean,
    stomp_destination,
    subscription_tag,
)
from ..destination import Destination, Kind
from ..errors import BadRequest, QueuecastError, Unsupported
from ..hub.subscription import Subscription
from ..position import Start
from ..queuespec import ConsumeSpec
from ..runtime import Promise
from .binary import PARAMETER, parse_binary
from .lease import parse_lease
from .request import parse_prefetch
from .stomp_consumer import StompConsumer
from .stomp_encodings import StompEncoding
from .stomp_errors import parse_destination
from .stomp_own import OwnQueues
from .stomp_queues import (
    check_stream,
    consumer_arguments,
    is_durable,
    needs_own_queue,
    queue_of_subscribe,
    temporary_queue,
)

if TYPE_CHECKING:
    from .stomp import StompSession

# The tag of a reply queue's subscription: no client's id can be the rest of it.
_REPLY = f"T_{Kind.TEMP_QUEUE}"

# What opens a subscription, and more headers for its RECEIPT.
_Opened = tuple[Subscription | StompConsumer, tuple[tuple[str, str], ...]]


class _Place(NamedTuple):
    """Where a subscription stands in its session. id: the client's own."""

    tag: str
    id: str | None
    destination: Destination


class _Known(NamedTuple):
    id: str | None
    destination: Destination
    subscription: Subscription | StompConsumer


class Subscriptions:
    """The subscriptions of one session."""

    __slots__ = ("_known", "_numbered", "_own", "_session")

    def __init__(self, session: StompSession) -> None:
        self._session = session
        # By tag; bounded by limits.subscriptions.
        self._known: dict[str, _Known] = {}
        # The highest number in a message-id of a consumer that is over.
        self._numbered = 0
        self._own: OwnQueues | None = None

    def clear(self) -> None:
        """The session is over."""
        self._known.clear()
        if self._own is not None:
            self._own.release()

    @property
    def own(self) -> OwnQueues:
        """The session's queues; made when they are needed, as most sessions have none."""
        if self._own is None:
            self._own = OwnQueues(self._session)
        return self._own

    def consumer(self, tag: str) -> StompConsumer | None:
        """Return the consumer that a tag means, if it is one."""
        known = self._known.get(tag)
        if known is None or not isinstance(known.subscription, StompConsumer):
            return None
        return known.subscription

    def failed(self, subscription: object, error: QueuecastError) -> None:
        """Tell that one subscription is over."""
        for tag, known in list(self._known.items()):
            if known.subscription is subscription:
                self._remove(tag)
                self._forget(known)
                self._session.subscription_failed(known.id, concealed(error, (known.destination,)))

    # -- SUBSCRIBE ------------------------------------------------------------------------

    def subscribe(self, frame: Frame) -> None:
        """Begin what a SUBSCRIBE asks for; raises StompError and QueuecastError."""
        headers = frame.headers
        destination, alias = named_destination(self._session, headers)
        id = headers.get("id")
        tag = subscription_tag(id, headers["destination"])
        if id is None and is_durable(headers):
            raise StompError("Missing Header", "'id' is required for a durable subscription\n")
        if tag in self._known:
            raise StompError(
                "Duplicated subscription identifier",
                f"A subscription identified by '{tag[:300]}' already exists.\n",
            )
        if destination.kind is Kind.TEMP_QUEUE:
            raise StompError(
                "Invalid destination", "A /temp-queue is for the 'reply-to' of a SEND\n"
            )
        _check_filters(headers)
        binary = parse_binary(headers.get(PARAMETER))
        mode = ack_mode(headers.get("ack"))
        arguments = consumer_arguments(headers)
        needs_queue = bool(arguments) or needs_own_queue(headers, mode)
        start = Start.parse(headers.get("since"), headers.get("last"))
        positions = bool(headers.get("since") or headers.get("last"))
        if destination.is_shared and not needs_queue:
            encoding = StompEncoding(
                id,
                self._session.framing,
                alias or stomp_destination(destination),
                alias is not None,
                self._session.services.binary.of(destination, always=binary),
            )
            place = _Place(tag, id, destination)
            if self._open_at_once(frame, place, encoding, start):
                return
            opening = partial(self._open_feed, destination, encoding, start)
        elif positions:
            raise BadRequest(
                f"since and last are for feeds, not for a queue of {destination.shown}",
                "subscribe to /topic or /exchange with ack:auto and without a queue's headers",
            )
        else:
            queue = self.own.first(destination, queue_of_subscribe(destination, headers, id))
            check_stream(queue, headers, mode)
            if queue is not None:
                named = destination.is_shared and "x-queue-name" in headers
                self.own.check(queue, named=named)
            spec = ConsumeSpec(queue, arguments, self.own.owner)
            consumer = StompConsumer(
                self._session,
                destination,
                tag=tag,
                id=id,
                mode=mode,
                alias=alias,
                spec=spec,
                lease=self._lease(headers, mode, spec),
                after=self._numbered,
                binary=binary,
            )
            prefetch = None
            if mode is not AckMode.AUTO:
                prefetch = _prefetch(headers.get("prefetch-count"))
            opening = partial(self._open_queue, consumer, prefetch)
        # What the client says after it waits until this is answered.
        self._session.busy = True
        self._session.spawn(
            partial(self._open, frame, _Place(tag, id, destination), opening), "subscribe"
        )

    def _lease(self, headers: Mapping[str, str], mode: AckMode, spec: ConsumeSpec) -> float:
        """Return the seconds that the client may take for a message, 0 for any time."""
        asked = parse_lease(headers.get("lease"))
        if spec.is_stream:
            if asked is not None:
                raise BadRequest("a lease is not for streams", "nothing goes back to a stream")
            return 0.0
        return self._session.lease(asked, ack=mode is not AckMode.AUTO)

    async def _open(
        self, frame: Frame, place: _Place, opening: Callable[[], Awaitable[_Opened]]
    ) -> None:
        session = self._session
        try:
            subscription, more = await opening()
        except QueuecastError as error:
            session.answer_error(error, frame)
        else:
            self._enter(place, subscription)
            session.receipt(frame, *more)
            self._flow(subscription)
        finally:
            session.busy = False
            session.process()

    def _enter(self, place: _Place, subscription: Subscription | StompConsumer) -> None:
        self._known[place.tag] = _Known(place.id, place.destination, subscription)

    def _remove(self, tag: str) -> None:
        subscription = self._known.pop(tag).subscription
        if isinstance(subscription, StompConsumer):
            self._numbered = max(self._numbered, subscription.last)

    def _flow(self, subscription: Subscription | StompConsumer) -> None:
        subscription.flow()
        if subscription.closed:
            # It ended in the moment in which it began, when it was not known here yet.
            self.failed(subscription, QueuecastError("the subscription was cancelled"))

    def _open_at_once(
        self, frame: Frame, place: _Place, encoding: StompEncoding, start: Start
    ) -> bool:
        """Join a feed without a task; returns whether nothing had to be waited for."""
        session = self._session
        subscription = session.subscribe_at_once((place.destination,), encoding, start)
        if subscription is None:
            return False
        self._enter(place, subscription)
        receipt = session.receipt_of(frame, *_place_of(subscription))
        session.write_open(receipt + subscription.begin())
        return True

    async def _open_feed(
        self, destination: Destination, encoding: StompEncoding, start: Start
    ) -> _Opened:
        subscription = await self._session.subscribe((destination,), encoding, start)
        return subscription, _place_of(subscription)

    async def _open_queue(self, consumer: StompConsumer, prefetch: int | None) -> _Opened:
        self.own.use(consumer.spec.queue)
        opened = await self._session.open_work(consumer, prefetch)
        self.own.note(consumer.destination, consumer.spec.queue)
        return opened, ()

    # -- reply queues ---------------------------------------------------------------------

    def reply_queue(self, name: str) -> str | None:
        """Return the queue behind `/temp-queue/name`, None when there is none yet."""
        consumer = self.consumer(_REPLY + name)
        queue = None if consumer is None else consumer.spec.queue
        return None if queue is None else queue.name

    async def open_reply_queue(self, destination: Destination) -> str:
        """Make the queue behind a /temp-queue and read it; returns the queue's name.

        Its subscription's id is the destination. Raises as `Session.open_work`.
        """
        queue = temporary_queue()
        id = str(destination)
        tag = _REPLY + destination.name
        consumer = StompConsumer(
            self._session,
            destination,
            tag=tag,
            id=id,
            mode=AckMode.AUTO,
            alias=None,
            spec=ConsumeSpec(queue, owner=self.own.owner),
            after=self._numbered,
        )
        await self._open_queue(consumer, None)
        self._enter(_Place(tag, id, destination), consumer)
        self._flow(consumer)
        return queue.name

    # -- UNSUBSCRIBE ----------------------------------------------------------------------

    def unsubscribe(self, frame: Frame) -> None:
        """End a subscription, and a durable one's queue if the frame says so.

        Raises StompError and QueuecastError.
        """
        headers = frame.headers
        id, name = headers.get("id"), headers.get("destination")
        if id is None and name is None:
            raise StompError(
                "Missing destination or id", "UNSUBSCRIBE needs an 'id' or a 'destination'\n"
            )
        durable = is_durable(headers)
        if durable and id is None:
            raise StompError("Missing Header", "'id' is required for a durable subscription\n")
        tag = subscription_tag(id, name or "")
        known = self._known.get(tag)
        if known is None:
            shown = f"id {id[:300]!r}" if id is not None else f"destination {str(name)[:300]!r}"
            raise StompError("No subscription found", f"There is none with {shown}\n")
        session = self._session
        consumer = self.consumer(tag)
        queue = None if consumer is None else consumer.spec.queue
        deletes = durable and queue is not None and known.destination.kind is Kind.TOPIC
        if deletes:
            session.services.allow(session.identity, "subscribe", known.destination)
        self._remove(tag)
        if consumer is None or queue is None:
            self._forget(known)
            session.receipt(frame)
            return
        # Whoever subscribes to the same queue next must not meet it as it goes.
        session.busy = True
        ended = session.drop_work(consumer)
        name = queue.name if deletes else None
        session.spawn(partial(self._leave, frame, known, ended, name), "unsubscribe")

    async def _leave(self, frame: Frame, known: _Known, ended: Promise, name: str | None) -> None:
        """Answer an UNSUBSCRIBE once the consumer has ended. name: the queue to delete."""
        session = self._session
        try:
            await ended
            if name is not None:
                await self.own.delete(name)
        except QueuecastError as error:
            session.answer_error(concealed(error, (known.destination,)), frame)
        else:
            session.receipt(frame)
        finally:
            session.busy = False
            session.process()

    def _forget(self, known: _Known) -> None:
        subscription = known.subscription
        if isinstance(subscription, Subscription):
            self._session.drop_subscription(subscription)
        else:
            self._session.drop_work(subscription)


def _place_of(subscription: Subscription) -> tuple[tuple[str, str], ...]:
    """Return the RECEIPT's header that says where a subscription begins."""
    return (("position", str(subscription.position())),) if subscription.told else ()


def named_destination(
    session: StompSession, headers: Mapping[str, str]
) -> tuple[Destination, str | None]:
    """Return the destination of a frame, and the alias if it named one; raises StompError."""
    text = headers.get("destination")
    if text:
        found = session.services.alias(text)
        if found is not None:
            return found, text
    return parse_destination(text), None


def _check_filters(headers: Mapping[str, str]) -> None:
    """Raise Unsupported for headers by which other brokers' clients leave out messages.

    RabbitMQ ignores them: its clients get what they asked not to get. An empty selector leaves out
    nothing, as JMS has it.
    """
    if headers.get("selector", "").strip():
        raise Unsupported(
            "a SUBSCRIBE with a selector: messages are not chosen by their headers here",
            "subscribe to a narrower /topic pattern, or to a headers exchange's queue",
        )
    for name in ("no-local", "activemq.noLocal"):
        if boolean(headers, name):
            raise Unsupported(
                f"a SUBSCRIBE with {name}:true: a subscriber gets what it sends itself, too",
                "put a sender's name into a header of your own and compare it",
            )


def _prefetch(text: str | None) -> int | None:
    # 0 is AMQP's "no limit", for which we have our own.
    return None if text is None or text.strip() == "0" else parse_prefetch(text.strip())
