"""What a STOMP client may say once it is logged in (docs/protocols.md).

Each command is answered by a RECEIPT, if it asked for one, or by an ERROR.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..codecs.stomp import Frame
from ..codecs.stomp_values import StompError, boolean, parse_message_id
from ..destination import Destination, Kind
from ..errors import QueuecastError, Unroutable
from ..message import Properties
from ..queuespec import QueueSpec
from .stomp_consumer import StompConsumer
from .stomp_errors import parse_destination
from .stomp_headers import properties_of_send
from .stomp_queues import queue_of_send
from .stomp_subscriptions import Subscriptions, named_destination
from .stomp_transactions import Claims, Done, Member, Transactions

if TYPE_CHECKING:
    from .stomp import StompSession


class Commands:
    """The commands of one session."""

    __slots__ = ("_kept", "_session", "_subscriptions")

    def __init__(self, session: StompSession) -> None:
        self._session = session
        self._subscriptions = Subscriptions(session)
        self._kept: Transactions | None = None

    def handle(self, frame: Frame) -> None:
        """Handle one frame; raises StompError and QueuecastError."""
        match frame.command:
            case "SEND" | "ACK" | "NACK":
                try:
                    self._send(frame) if frame.command == "SEND" else self._settle(frame)
                except (StompError, QueuecastError) as error:
                    self._refused(frame, error)
                    raise
            case "SUBSCRIBE":
                self._subscriptions.subscribe(frame)
            case "UNSUBSCRIBE":
                self._subscriptions.unsubscribe(frame)
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
        self._subscriptions.clear()
        self._kept = None

    def failed(self, subscription: object, error: QueuecastError) -> None:
        """Tell that one subscription is over."""
        self._subscriptions.failed(subscription, error)

    @property
    def _transactions(self) -> Transactions:
        """Made when it is needed: there are many sessions and most have none."""
        if self._kept is None:
            self._kept = Transactions()
        return self._kept

    # -- SEND and transactions ------------------------------------------------------------

    def _send(self, frame: Frame) -> None:
        headers = frame.headers
        session = self._session
        destination = named_destination(session, headers)[0]
        if destination.kind is Kind.TEMP_QUEUE:
            raise StompError("Invalid destination", "Nothing is sent to a /temp-queue\n")
        properties = properties_of_send(headers, session.identity.name)
        own = self._subscriptions.own
        queue = None if own.knows(destination) else queue_of_send(destination, headers)
        reply: Destination | None = None
        if headers.get("reply-to", "").startswith(Kind.TEMP_QUEUE.value):
            reply = parse_destination(headers["reply-to"])
            # What the one who answers is told is the queue behind it.
            properties.reply_to = self._subscriptions.reply_queue(reply.name)
        if queue is None and (reply is None or properties.reply_to is not None):
            own.note(destination, None)
            self._publish(frame, destination, properties)
            return
        session.check_publish(destination, frame.body)
        if queue is not None:
            own.check(queue)
        # What the client says after it waits: it must not overtake this message.
        session.busy = True
        session.spawn(
            partial(self._prepare, frame, destination, properties, queue, reply), "declare a queue"
        )

    async def _prepare(
        self,
        frame: Frame,
        destination: Destination,
        properties: Properties,
        queue: QueueSpec | None,
        reply: Destination | None,
    ) -> None:
        """Declare what a SEND needs, then publish; within a transaction too it is done now."""
        session = self._session
        try:
            if queue is not None:
                await self._subscriptions.own.declare(destination, queue)
            if reply is not None and properties.reply_to is None:
                properties.reply_to = await self._subscriptions.open_reply_queue(reply)
            self._publish(frame, destination, properties)
        except (StompError, QueuecastError) as error:
            self._refused(frame, error)
            session.answer_error(error, frame)
        finally:
            session.busy = False
            session.process()

    def _refused(self, frame: Frame, error: StompError | QueuecastError) -> None:
        """A frame was refused; if it is in a transaction, that has failed."""
        if self._kept is not None and "transaction" in frame.headers:
            self._kept.fail(frame, error)

    def _publish(self, frame: Frame, destination: Destination, properties: Properties) -> None:
        headers = frame.headers
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

            def check(claims: Claims) -> None:
                session.check_publish(destination, frame.body)

            check(Claims())
            size = len(frame.body) + sum(map(len, headers)) + sum(map(len, headers.values()))
            self._transactions.add(name, Member(frame, check, publish), size)

    def _commit(self, frame: Frame) -> None:
        transaction = self._transactions.take(_transaction(frame))
        session = self._session
        members = transaction.members
        why_not = transaction.why_not()
        if why_not is not None:
            error = StompError("Transaction failed", f"{why_not}\nNothing of it was done.\n")
            for member in members:
                # An ACK has had its receipt when it came.
                if member.frame.command == "SEND" and "receipt" in member.frame.headers:
                    session.answer_error(error, member.frame)
            session.answer_error(error, frame)
            return
        if not members:
            session.receipt(frame)
            return
        waiting, failed = len(members), 0

        def done(error: StompError | QueuecastError | None) -> None:
            nonlocal waiting, failed
            waiting -= 1
            failed += error is not None
            if waiting:
                return
            if not failed:
                session.receipt(frame)
            elif "receipt" in frame.headers:
                text = f"The broker refused {failed} of {len(members)} actions.\n"
                session.answer_error(StompError("Transaction failed", text), frame)

        for member in members:
            member.act(done)

    # -- ACK and NACK ---------------------------------------------------------------------

    def _settle(self, frame: Frame) -> None:
        name = frame.headers.get("transaction")
        if name is None:
            self._settle_now(frame)
        else:
            member = Member(
                frame, partial(self._check_settle, frame), partial(self._settle_later, frame)
            )
            self._transactions.add(name, member, sum(map(len, frame.headers.values())))
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

    def _check_settle(self, frame: Frame, claims: Claims) -> None:
        """Raise StompError where `_settle_now` would."""
        consumer, number = self._delivery(frame)
        if not consumer.can_settle(number, claims):
            raise self._not_found(frame, consumer.why_not(number))

    def _settle_now(self, frame: Frame) -> None:
        consumer, number = self._delivery(frame)
        requeue = boolean(frame.headers, "requeue")
        if not consumer.settle_id(
            number, ack=frame.command == "ACK", requeue=True if requeue is None else requeue
        ):
            raise self._not_found(frame, consumer.why_not(number))

    @property
    def _ack_header(self) -> str:
        return "id" if self._session.version == "1.2" else "message-id"

    def _not_found(self, frame: Frame, why: str) -> StompError:
        text = frame.headers[self._ack_header]
        return StompError("Message not found", f"{text[:300]!r}: {why}\n")

    def _delivery(self, frame: Frame) -> tuple[StompConsumer, int]:
        """Return the consumer and the number that an ACK or NACK names; raises StompError."""
        header = self._ack_header
        text = frame.headers.get(header)
        if text is None:
            raise StompError("Missing header", f"'{header}' is required on '{frame.command}'\n")
        message_id = parse_message_id(text)
        consumer = self._subscriptions.consumer(message_id.tag)
        if consumer is None:
            raise StompError("Subscription not found", f"Message with id {text[:300]!r}\n")
        return consumer, message_id.delivery_tag


def _transaction(frame: Frame) -> str:
    name = frame.headers.get("transaction")
    if name is None:
        raise StompError("Missing transaction", f"{frame.command} needs a 'transaction' header\n")
    return name


def _nothing(error: StompError | QueuecastError | None) -> None:
    pass
