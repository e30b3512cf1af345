"""The encodings: values that decide a subscription's bytes on the wire.

Equal values, equal bytes: everything that shows in the bytes is a field here, from the framing
to the name the client used. An encoding that left a layer out would make cohorts of one.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ..codecs import deflate, sse
from ..codecs.websocket import BINARY, TEXT, frame_header
from ..destination import Destination
from ..hub.log import Entry, Gap
from ..message import Message
from ..position import Vector
from .binary import Binaries
from .envelope import encode_json, gap_notice, loss_notice, message_envelope


@dataclass(frozen=True, slots=True)
class Naming:
    """What the client called its destinations: one text per lane, and which are aliases."""

    names: tuple[str, ...]
    aliases: tuple[bool, ...]

    def envelope(
        self,
        message: Message,
        index: int,
        position: str | None,
        ack: str | None = None,
        *,
        binary: bool = False,
    ) -> bytes:
        """Return the JSON envelope of a message of the destination of that number.

        binary: the body goes as base64 whatever it is.
        """
        return encode_json(
            message_envelope(
                message,
                subscription=self.names[index],
                alias=self.aliases[index],
                position=position,
                ack=ack,
                binary=binary,
            )
        )

    def subscription(self, index: int | None, position: str) -> dict[str, str]:
        """Return what a notice says of the one destination that it is of, nothing of several."""
        if index is None and len(self.names) > 1:
            return {}
        return {"subscription": self.names[index or 0], "position": position}


def naming(*destinations: Destination) -> Naming:
    """Return how to name destinations to a client: aliases as it wrote them, others by their
    canonical text, so that spellings do not split cohorts."""
    return Naming(
        tuple(destination.shown for destination in destinations),
        tuple(destination.alias is not None for destination in destinations),
    )


# Subscriptions without an envelope do not show their name: all share one encoding.
UNNAMED = Naming(("",), (False,))


class Framed:
    """An encoding that frames message by message."""

    __slots__ = ()

    def encode(self, entries: Sequence[Entry], vector: Vector) -> bytes:
        """See hub.subscription.Encoding."""
        if vector.bounds:
            return self._encode_joint(entries, vector)
        parts: list[bytes] = []
        for entry in entries:
            message = entry.message
            if message is None:
                last = str(vector)
                vector.advance(entry.lane, entry.offset, entry.epoch)
                first = str(vector)
                parts.append(self.encode_gap(Gap(entry.reason, last, first), first))
                continue
            vector.advance(entry.lane, entry.offset)
            self.add(parts, message, 0, str(vector))
        return b"".join(parts)

    def _encode_joint(self, entries: Sequence[Entry], vector: Vector) -> bytes:
        # What a message or a gap says of its place is valid for its own destination alone, so
        # that a client may resume each as it likes; the connection's id is that of all.
        parts: list[bytes] = []
        for entry in entries:
            message = entry.message
            index = bisect_right(vector.bounds, entry.lane) - 1
            if message is None:
                last = str(vector.part(index))
                vector.advance(entry.lane, entry.offset, entry.epoch)
                gap = Gap(entry.reason, last, str(vector.part(index)))
                parts.append(self.encode_gap(gap, str(vector), index))
                continue
            vector.advance(entry.lane, entry.offset)
            self.add(parts, message, index, str(vector.part(index)), id=str(vector))
        return b"".join(parts)

    def encode_delivery(self, message: Message, ack: str | None) -> bytes:
        """Return the bytes of a work queue's message; it has no position."""
        parts: list[bytes] = []
        self.add(parts, message, 0, None, ack)
        return b"".join(parts)

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        """See work.WorkEncoding: as a gap, without a position, which a queue does not have."""
        raise NotImplementedError

    def add(
        self,
        parts: list[bytes],
        message: Message,
        index: int,
        position: str | None,
        ack: str | None = None,
        id: str | None = None,
    ) -> None:
        """Append one message's bytes.

        index: which of the destinations it is of, position: its place there. id: the place of
        all of them together, where they are several.
        """
        raise NotImplementedError

    def encode_gap(self, gap: Gap, position: str, index: int | None = None) -> bytes:
        """See hub.subscription.Encoding; index: which of several destinations it is of, if it is
        known."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SseEncoding(Framed):
    """Server-Sent Events: the bare body or an envelope as data, the position as id.

    A bare body that is bytes is base64 in an event named `binary`. binary: see binary.py.
    """

    naming: Naming = UNNAMED
    envelope: bool = False
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
        binary = is_binary(self.binary, message, index)
        if self.envelope:
            envelope = self.naming.envelope(message, index, position, ack, binary=binary)
            parts.append(sse.event(envelope, id=id or position))
            return
        body = message.body
        if not binary and is_utf8(body):
            parts.append(sse.event(body, id=id or position))
        else:
            parts.append(sse.event(base64.b64encode(body), id=id or position, event="binary"))

    def encode_gap(self, gap: Gap, position: str, index: int | None = None) -> bytes:
        notice: dict[str, object] = {**gap_notice(gap)}
        if self.envelope:
            notice |= self.naming.subscription(index, gap.first)
        return sse.event(encode_json(notice), event="gap", id=position)

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        return sse.event(encode_json(loss_notice(reason, destination)["gap"]), event="gap")


@dataclass(frozen=True, slots=True)
class WebSocketEncoding(Framed):
    """Plain WebSocket: one frame per message, the bare body or an envelope.

    A bare body that is bytes is a binary frame. A gap is an envelope either way.
    deflate: messages go out with permessage-deflate where it pays; it must be negotiated.
    binary: see binary.py.
    """

    naming: Naming = UNNAMED
    envelope: bool = False
    deflate: bool = False
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
        binary = is_binary(self.binary, message, index)
        if self.envelope:
            body = self.naming.envelope(message, index, position, ack, binary=binary)
            opcode = TEXT
        else:
            body = message.body
            opcode = TEXT if not binary and is_utf8(body) else BINARY
        if self.deflate:
            opcode, body = deflate.pack(opcode, body)
        parts.append(frame_header(opcode, len(body)))
        parts.append(body)

    def encode_gap(self, gap: Gap, position: str, index: int | None = None) -> bytes:
        notice: dict[str, object] = {"gap": gap_notice(gap), "position": position}
        if self.envelope:
            notice["subscription"] = self.naming.names[0]
        body = encode_json(notice)
        return frame_header(TEXT, len(body)) + body

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        body = encode_json(loss_notice(reason, destination))
        return frame_header(TEXT, len(body)) + body


@dataclass(frozen=True, slots=True)
class PollEncoding(Framed):
    """Long poll: JSON envelopes, each followed by a comma. binary: see binary.py."""

    naming: Naming
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
        binary = is_binary(self.binary, message, index)
        parts.append(self.naming.envelope(message, index, position, ack, binary=binary))
        parts.append(b",")

    def encode_gap(self, gap: Gap, position: str, index: int | None = None) -> bytes:
        place = self.naming.subscription(index, gap.first) or {"position": position}
        return encode_json({"gap": gap_notice(gap), **place}) + b","

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        return encode_json(loss_notice(reason, destination)) + b","


def is_binary(binaries: Binaries, message: Message, index: int) -> bool:
    """Return whether a message's body is bytes for the destination of that number, even if it is
    UTF-8."""
    return bool(binaries) and binaries[index].holds(message)


def is_utf8(body: bytes) -> bool:
    """Tell whether a body can be sent as text."""
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
