"""What a STOMP client may say once it is logged in (docs/protocols.md).

Each command is answered by a RECEIPT, if it asked for one, or by an ERROR.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..aliases import concealed
from ..codecs.stomp import Frame
from ..codecs.stomp_values import (
    AckMode,
    StompError,
    ack_mode,
    boolean,
    parse_message_id,
    stomp_destination,
    subscription_tag,
)
from ..destination import Destination, Kind
from ..errors import BadRequest, QueuecastError, Unroutable
from ..hub.subscription import Subscription
from ..position import Start
from .request import parse_prefetch
from .stomp_consumer import StompConsumer
from .stomp_encodings import StompEncoding
from .stomp_errors import parse_destination
from .stomp_headers import properties_of_send
from .stomp_transactions import Action, Done, Transactions

if TYPE_CHECKING:
    from .stomp import StompSession

# Of a queue that is declared on first use; on SEND these only matter for /queue.
_QUEUE_ARGUMENTS = frozenset(
    (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-expires",
        "x-max-age",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-queue-type",
        "x-stream-filter-size-bytes",
        "x-stream-max-segment-size-bytes",
    )
)
# What a subscription's queue is anyway, so that saying so asks for nothing else.
_DURABLE = {"durable": True, "persistent": True, "auto-delete": False, "exclusive": False}
_TRANSIENT = {"durable": False, "persistent": False, "auto-delete": True, "exclusive": True}


class _Known(NamedTuple):
    id: str | None
    destination: Destination
    subscription: Subscription | StompConsumer


class Commands:
    """The commands of one session."""

    __slots__ = ("_known", "_session", "_transactions")

    def __init__(self, session: StompSession) -> None:
        self._session = session
        # By tag; bounded by limits.subscriptions.
        self._known: dict[str, _Known] = {}
        self._transactions = Transactions()

    def handle(self, frame: Frame) -> None:
        """Handle one frame; raises StompError and QueuecastError."""
        match frame.command:
            case "SEND":
                self._send(frame)
            case "SUBSCRIBE":
                self._subscribe(frame)
            case "UNSUBSCRIBE":
                self._unsubscribe(frame)
                self._session.receipt(frame)
            case "ACK" | "NACK":
                self._settle(frame)
            case "BEGIN":
                self._transactions.begin(_transaction(frame))
                self._session.receipt(frame)
            case "COMMIT":
                self._commit(frame)
            case "ABORT":
                self._transactions.take(_transaction(frame))
                self._session.receipt(frame)
            case "DISCONNECT":
                self._session.disconnected(frame)
            case unknown:
                raise StompError("Bad command", f'Could not interpret command "{unknown}"\n')

    def clear(self) -> None:
        """The session is over."""
        self._known.clear()
        self._transactions.clear()

    def failed(self, subscription: object, error: QueuecastError) -> None:
        """Tell that one subscription is over."""
        for tag, known in list(self._known.items()):
            if known.subscription is subscription:
                del self._known[tag]
                self._forget(known)
                self._session.subscription_failed(known.id, concealed(error, (known.destination,)))

    # -- SEND and transactions ------------------------------------------------------------

    def _send(self, frame: Frame) -> None:
        headers = frame.headers
        destination = self._destination(headers)[0]
        if destination.kind is Kind.TEMP_QUEUE:
            raise StompError("Invalid destination", "Nothing is sent to a /temp-queue\n")
        reply_to = headers.get("reply-to", "")
        if reply_to.startswith(Kind.TEMP_QUEUE.value):
            raise _not_supported("reply-to a /temp-queue")
        if destination.kind is Kind.QUEUE:
            _check_queue_headers(headers, _QUEUE_ARGUMENTS)
        properties = properties_of_send(headers, self._session.identity.name)
        session = self._session

        def publish(done: Done) -> None:
            def answer(error: QueuecastError | None) -> None:
                # Without a receipt a message to a queue that is gone is dropped, as by RabbitMQ:
                # a late reply must not end the one who replies.
                if isinstance(error, Unroutable) and "receipt" not in headers:
                    error = None
                if error is None:
                    session.receipt(frame)
                else:
                    session.answer_error(error, frame)
                done(error)

            session.publish(destination, frame.body, properties, answer)

        name = headers.get("transaction")
        if name is None:
            publish(_nothing)
        else:
            session.check_publish(destination, frame.body)
            size = len(frame.body) + sum(map(len, headers)) + sum(map(len, headers.values()))
            self._transactions.add(name, publish, size)

    def _commit(self, frame: Frame) -> None:
        actions = self._transactions.take(_transaction(frame))
        session = self._session
        if not actions:
            session.receipt(frame)
            return
        waiting, failed = len(actions), 0

        def done(error: StompError | QueuecastError | None) -> None:
            nonlocal waiting, failed
            waiting -= 1
            failed += error is not None
            if waiting:
                return
            if not failed:
                session.receipt(frame)
            elif "receipt" in frame.headers:
                text = f"{failed} of {len(actions)} actions failed\n"
                session.answer_error(StompError("Transaction failed", text), frame)

        for action in actions:
            action(done)

    # -- ACK and NACK ---------------------------------------------------------------------

    def _settle(self, frame: Frame) -> None:
        name = frame.headers.get("transaction")
        if name is None:
            self._settle_now(frame)
        else:
            action: Action = partial(self._settle_later, frame)
            self._transactions.add(name, action, sum(map(len, frame.headers.values())))
        self._session.receipt(frame)

    def _settle_later(self, frame: Frame, done: Done) -> None:
        try:
            self._settle_now(frame)
        except StompError as error:
            # Its receipt was given when it was kept.
            self._session.answer_error(error, Frame(frame.command, {}, b""))
            done(error)
        else:
            done(None)

    def _settle_now(self, frame: Frame) -> None:
        header = "id" if self._session.version == "1.2" else "message-id"
        text = frame.headers.get(header)
        if text is None:
            raise StompError("Missing header", f"'{header}' is required on '{frame.command}'\n")
        message_id = parse_message_id(text)
        known = self._known.get(message_id.tag)
        if known is None or not isinstance(known.subscription, StompConsumer):
            raise StompError("Subscription not found", f"Message with id {text[:300]!r}\n")
        requeue = boolean(frame.headers, "requeue")
        if not known.subscription.settle_id(
            message_id.delivery_tag,
            ack=frame.command == "ACK",
            requeue=True if requeue is None else requeue,
        ):
            raise StompError("Message not found", f"{text[:300]!r} is not outstanding\n")

    # -- subscriptions --------------------------------------------------------------------

    def _subscribe(self, frame: Frame) -> None:
        headers = frame.headers
        destination, alias = self._destination(headers)
        id = headers.get("id")
        tag = subscription_tag(id, headers["destination"])
        if id is None and (boolean(headers, "durable") or boolean(headers, "persistent")):
            raise StompError("Missing Header", "'id' is required for a durable subscription\n")
        if tag in self._known:
            raise StompError(
                "Duplicated subscription identifier",
                f"A subscription identified by '{tag[:300]}' already exists.\n",
            )
        mode = ack_mode(headers.get("ack"))
        if destination.kind is Kind.TEMP_QUEUE:
            raise _not_supported("/temp-queue")
        if destination.is_shared and mode is not AckMode.AUTO:
            raise _not_supported(f"ack:{mode} on /topic and /exchange")
        if destination.is_shared or destination.kind is Kind.QUEUE:
            usual = _TRANSIENT if destination.is_shared else _DURABLE
            _check_queue_headers(headers, usual=usual)
        for name in headers:
            if name.startswith("x-"):
                raise _not_supported(f"the header {name[:100]!r} on SUBSCRIBE")
        start = Start.parse(headers.get("since"), headers.get("last"))
        if not destination.is_shared and (headers.get("since") or headers.get("last")):
            raise BadRequest(
                f"since and last are for /topic and /exchange, not {destination.shown}"
            )
        prefetch = _prefetch(headers.get("prefetch-count")) if mode is not AckMode.AUTO else None
        # What the client says after it waits until this is answered.
        self._session.busy = True
        self._session.spawn(
            partial(self._open, frame, tag, destination, alias, mode, start, prefetch), "subscribe"
        )

    async def _open(
        self,
        frame: Frame,
        tag: str,
        destination: Destination,
        alias: str | None,
        mode: AckMode,
        start: Start,
        prefetch: int | None,
    ) -> None:
        session = self._session
        id = frame.headers.get("id")
        subscription: Subscription | StompConsumer
        position: tuple[tuple[str, str], ...] = ()
        try:
            if destination.is_shared:
                encoding = StompEncoding(
                    id,
                    session.framing,
                    alias or stomp_destination(destination),
                    alias is not None,
                )
                subscription = await session.subscribe((destination,), encoding, start)
                position = (("position", str(subscription.position())),)
            else:
                consumer = StompConsumer(
                    session, destination, tag=tag, id=id, mode=mode, alias=alias
                )
                subscription = await session.open_work(consumer, prefetch)
        except QueuecastError as error:
            session.answer_error(error, frame)
        else:
            self._known[tag] = _Known(id, destination, subscription)
            session.receipt(frame, *position)
            subscription.flow()
            if subscription.closed:
                # It ended in the moment in which it began, when it was not known here yet.
                self.failed(subscription, QueuecastError("the subscription was cancelled"))
        finally:
            session.busy = False
            session.process()

    def _unsubscribe(self, frame: Frame) -> None:
        id, name = frame.headers.get("id"), frame.headers.get("destination")
        if id is None and name is None:
            raise StompError(
                "Missing destination or id", "UNSUBSCRIBE needs an 'id' or a 'destination'\n"
            )
        known = self._known.pop(subscription_tag(id, name or ""), None)
        if known is None:
            shown = f"id {id[:300]!r}" if id is not None else f"destination {str(name)[:300]!r}"
            raise StompError("No subscription found", f"There is none with {shown}\n")
        self._forget(known)

    def _forget(self, known: _Known) -> None:
        subscription = known.subscription
        if isinstance(subscription, Subscription):
            self._session.drop_subscription(subscription)
        else:
            self._session.drop_work(subscription)

    def _destination(self, headers: Mapping[str, str]) -> tuple[Destination, str | None]:
        """Return the destination of a frame, and the alias if it named one; raises StompError."""
        text = headers.get("destination")
        if text:
            found = self._session.services.alias(text)
            if found is not None:
                return found, text
        return parse_destination(text), None


def _transaction(frame: Frame) -> str:
    name = frame.headers.get("transaction")
    if name is None:
        raise StompError("Missing transaction", f"{frame.command} needs a 'transaction' header\n")
    return name


def _prefetch(text: str | None) -> int | None:
    # 0 is AMQP's "no limit", for which we have our own.
    return None if text is None or text.strip() == "0" else parse_prefetch(text.strip())


def _check_queue_headers(
    headers: Mapping[str, str],
    arguments: frozenset[str] = frozenset(),
    usual: Mapping[str, bool] | None = None,
) -> None:
    """Raise StompError for what asks for a queue of other properties than ours are."""
    for name, value in headers.items():
        if name in arguments:
            raise _not_supported(f"the header {name!r}")
        if usual is None and name == "persistent":
            continue  # a SEND's own: the message's
        wanted = boolean(headers, name)
        if name in _DURABLE and wanted is not None and wanted != (usual or _DURABLE)[name]:
            raise _not_supported(f"the header '{name}:{value}'")


def _not_supported(what: str) -> StompError:
    return StompError("Not supported", f"{what} is not supported yet\n")


def _nothing(error: StompError | QueuecastError | None) -> None:
    pass
