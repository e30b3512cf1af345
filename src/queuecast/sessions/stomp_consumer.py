"""A STOMP subscription's consumer: what was handed to the client, and how it is settled.

With `ack:client` an ACK or NACK settles everything up to it within the subscription (STOMP 1.2,
"ACK"), with `client-individual` one message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..codecs.stomp_values import AckMode, MessageId, stomp_destination
from ..destination import Destination
from ..queuespec import ConsumeSpec
from .stomp_encodings import StompWorkEncoding
from .stomp_transactions import Claims
from .work import WorkSubscription

if TYPE_CHECKING:
    from .stomp import StompSession


class StompConsumer(WorkSubscription):
    """One consumer. tag: by which the session knows the subscription. id: the client's own.

    after: the highest number that a message-id of the session has had, of a subscription that
    is over; ours go on from there. A client that acks late, after it has subscribed anew with the
    same id, would else settle a message that it may not even have got.
    """

    __slots__ = ("_after", "_alias", "_mode", "_session_id", "_tag", "last")

    def __init__(
        self,
        session: StompSession,
        destination: Destination,
        *,
        tag: str,
        id: str | None,
        mode: AckMode,
        alias: str | None,
        spec: ConsumeSpec,
        lease: float = 0.0,
        after: int = 0,
        binary: bool = False,
    ) -> None:
        acks = mode is not AckMode.AUTO
        encoding = StompWorkEncoding(
            id,
            session.framing,
            alias,
            acks=acks and session.version == "1.2",
            binary=session.services.binary.of(destination, always=binary),
        )
        super().__init__(
            session,
            destination,
            encoding,
            session.new_number(),
            client_acks=acks,
            lease=lease,
            spec=spec,
        )
        self._alias = alias
        self._tag = tag
        self._mode = mode
        self._session_id = session.id
        self._after = after
        # The highest number that the client has seen.
        self.last = after

    def ack_id(self, tag: int) -> str | None:
        self.last = max(self.last, self._after + tag)
        return str(MessageId(self._tag, self._session_id, self._after + tag))

    def gap(self, reason: str) -> None:
        """Tell the client, before what comes next, that messages may be missing."""
        destination = self._alias or stomp_destination(self.destination)
        # Nothing can be acked with it: deliveries count from 1.
        id = str(MessageId(self._tag, self._session_id, 0))
        self.notify(self._encoding.encode_loss(reason, destination, id))

    def settle_id(self, number: int, *, ack: bool, requeue: bool) -> bool:
        """Settle what an ACK or NACK names; returns whether there was such a delivery.

        One that was lost with the broker's connection counts: it is delivered again anyway.
        """
        tag = number - self._after
        lease = self._lease
        if tag not in lease:
            return lease.is_void(tag)
        tags = [tag] if self._mode is AckMode.INDIVIDUAL else lease.up_to(tag)
        for each in tags:
            self.settle(each, ack=ack, requeue=requeue)
        return True

    def can_settle(self, number: int, claims: Claims) -> bool:
        """Return whether `settle_id` will find a delivery once `claims` are settled.

        The delivery is claimed then.
        """
        tag = number - self._after
        if tag not in self._lease:
            return self._lease.is_void(tag)
        if self._mode is AckMode.INDIVIDUAL:
            if (self.number, tag) in claims.single:
                return False
            claims.single.add((self.number, tag))
        elif tag <= claims.reached.get(self.number, 0):
            return False
        else:
            claims.reached[self.number] = tag
        return True

    def why_not(self, number: int) -> str:
        """Return why `settle_id` found nothing."""
        return self._lease.why_not(number - self._after).text
