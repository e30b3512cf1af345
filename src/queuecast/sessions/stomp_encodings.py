"""MESSAGE frames: of a feed, encoded once per cohort, and of a work queue.

A feed's message-id is the position, so that sessions with the same subscription id share every
byte; the STOMP versions do as well. A gap is a MESSAGE with headers only: `gap` is its reason,
`last` the last position that was known ("" if none), message-id the one that follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..codecs.stomp_encode import encode_frame, header_lines, message_head
from ..codecs.stomp_values import message_destination
from ..hub.log import Gap
from ..message import Message
from .binary import Binaries
from .encodings import Framed, is_binary, is_utf8
from .stomp_framing import Framing
from .stomp_headers import message_headers


@dataclass(frozen=True, slots=True)
class StompEncoding(Framed):
    """A feed's messages.

    subscription: the client's id. destination: what it subscribed to; with `alias` it stands on
    every message, so that broker names stay hidden.
    """

    subscription: str | None
    framing: Framing
    destination: str
    alias: bool = False
    binary: Binaries = ()

    def add(
        self,
        parts: list[bytes],
        message: Message,
        index: int,
        position: str | None,
        ack: str | None = None,
        id: str | None = None,
    ) -> None:
        assert position is not None
        frame = message_frame(
            message, self.subscription, self.destination if self.alias else None, position
        )
        parts.append(self.framing.wrap_shared(frame, text=_is_text(self.binary, message)))

    def encode_gap(self, gap: Gap, position: str, index: int | None = None) -> bytes:
        headers = [("destination", self.destination), ("message-id", position)]
        if self.subscription is not None:
            headers.insert(0, ("subscription", self.subscription))
        headers += [("gap", gap.reason), ("last", gap.last)]
        return self.framing.wrap(encode_frame("MESSAGE", headers))


@dataclass(frozen=True, slots=True)
class StompWorkEncoding:
    """A work queue's messages. acks: the client is told what to ack (STOMP 1.2). alias: as above,
    None when the client named no alias."""

    subscription: str | None
    framing: Framing
    alias: str | None
    acks: bool
    binary: Binaries = ()

    def encode_delivery(self, message: Message, ack: str | None) -> bytes:
        """See work.WorkEncoding; `ack` is the message-id, whoever acks."""
        assert ack is not None
        frame = message_frame(
            message,
            self.subscription,
            self.alias,
            ack,
            redelivered=message.redelivered,
            ack=ack if self.acks else None,
        )
        return self.framing.wrap(frame, text=_is_text(self.binary, message))

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        """Return a MESSAGE with headers only, as a feed's gap is told; id: its message-id."""
        headers = [("destination", destination), ("message-id", id)]
        if self.subscription is not None:
            headers.insert(0, ("subscription", self.subscription))
        return self.framing.wrap(encode_frame("MESSAGE", [*headers, ("gap", reason)]))


def _is_text(binary: Binaries, message: Message) -> bool:
    return not is_binary(binary, message, 0) and is_utf8(message.body)


def message_frame(
    message: Message,
    subscription: str | None,
    alias: str | None,
    message_id: str,
    *,
    redelivered: bool = False,
    ack: str | None = None,
) -> bytes:
    """Return a message as a MESSAGE frame."""
    destination = alias or message_destination(message.exchange, message.routing_key)
    lines = header_lines(message_headers(message.properties))
    return message_head(subscription, destination).encode(
        message_id, message.body, lines, redelivered=redelivered, ack=ack
    )
