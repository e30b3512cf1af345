"""WebSocket frames, server side: the bytes a client sent to events, and our frames to bytes.

The law of this file (RFC 6455): a client's frames are masked, ours never are (5.1); control frames
are whole, at most 125 bytes, and may stand between the fragments of a message (5.4, 5.5); text is
UTF-8 and is refused at its first impossible byte (8.1); a length is written in the fewest bytes
(5.2). The first offence ends the conversation: it is the last event, a `Fault` that says which
close code to send, and whatever was complete before it has already been delivered.

The parser holds at most one unfinished message, of at most ``max_message`` bytes.
"""

from __future__ import annotations

import codecs
from struct import Struct
from typing import ClassVar, Final, TypeAlias

import msgspec

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

# Added to the opcode of a message's first frame it says "compressed" (deflate.py).
RSV1: Final = 0x40

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
INVALID_PAYLOAD: Final = 1007
TOO_BIG: Final = 1009

# A control frame carries at most 125 bytes (5.5), two of which are a close frame's code.
MAX_CONTROL: Final = 125
MAX_REASON: Final = MAX_CONTROL - 2

_NOT_UTF8: Final = "text is not UTF-8"
_BETWEEN_FRAMES: Final = -1
_FIN: Final = 0x80
_FIN_TEXT: Final = _FIN | TEXT
_FIN_BINARY: Final = _FIN | BINARY

_HEADER_16 = Struct("!BBH")
_HEADER_64 = Struct("!BBQ")
_SHORT_HEADERS: Final = {
    opcode: tuple(bytes((_FIN | opcode, length)) for length in range(126))
    for opcode in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, RSV1 | TEXT, RSV1 | BINARY)
}


class Text(msgspec.Struct, frozen=True, gc=False):
    """A whole text message."""

    data: str


class Binary(msgspec.Struct, frozen=True, gc=False):
    """A whole binary message."""

    data: bytes


class Ping(msgspec.Struct, frozen=True, gc=False):
    """A ping; it is answered with a pong of the same data (5.5.3)."""

    data: bytes


class Pong(msgspec.Struct, frozen=True, gc=False):
    """A pong, asked for or not."""

    data: bytes


class Close(msgspec.Struct, frozen=True, gc=False):
    """The client's close frame; the code is 1005 if it named none (7.1.5)."""

    code: int
    reason: str


class Fault(msgspec.Struct, frozen=True, gc=False):
    """The client broke the protocol: close with this code and reason. Nothing follows it."""

    code: int
    reason: str


Event: TypeAlias = Text | Binary | Ping | Pong | Close | Fault


class ProtocolFault(Exception):
    """Leaves a parser's loop; becomes the last event."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class WebSocketParser:
    """What one client sends, frame by frame.

    ``max_message`` and ``max_frame`` are in payload bytes; a frame is refused with 1009 from its
    header, before its body is read. Without ``max_frame`` a frame may be as long as a message.
    """

    # One instance per connection: parse state only, shared constants while idle.
    __slots__ = (
        "_control",
        "_fin",
        "_head",
        "_idle",
        "_left",
        "_mask",
        "_max_frame",
        "_max_message",
        "_message",
        "_opcode",
        "_text",
        "_valid",
        "closed",
    )

    # The bits of a frame's first byte that must be 0: an extension that owns one takes it out.
    _reserved: ClassVar[int] = 0x70

    def __init__(self, max_message: int, max_frame: int | None = None) -> None:
        self._max_message = max_message
        self._max_frame = max_message if max_frame is None else min(max_frame, max_message)
        # True once a Close or Fault was returned; later bytes are ignored (5.5.1, 7.1.7).
        self.closed = False
        self._idle = True
        # The first bytes of a header that has not arrived whole: at most 13. While `pending` it is
        # what was left of a read.
        self._head = b""
        # The frame being read; its opcode is _BETWEEN_FRAMES when there is none.
        self._opcode = _BETWEEN_FRAMES
        self._fin = False
        self._left = 0
        self._mask = b""
        # An unfinished control frame: at most MAX_CONTROL bytes.
        self._control = b""
        # An unfinished message, and how much of it is known to be UTF-8: at most max_message bytes,
        # checked before a byte of a frame is kept, so that no client chooses our memory. Empty
        # fragments add nothing, however many there are.
        self._message: bytearray | None = None
        self._text = False
        self._valid = 0

    def set_limit(self, max_message: int) -> None:
        """Allow messages, and frames, of another size from now on: the client is known now."""
        self._max_message = self._max_frame = max_message

    @property
    def pending(self) -> bool:
        """Whether there is more in what has come: handle the events, then `receive_data(b"")`.

        Only with an extension under which few bytes can be large messages.
        """
        return False

    def receive_data(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete, in order; a `Fault` is always the last."""
        # Nearly every read is one whole small frame between messages.
        if self._idle and len(data) > 5:
            first = data[0]
            length = data[1] - 0x80
            if (
                first in (_FIN_TEXT, _FIN_BINARY)
                and 0 <= length <= MAX_CONTROL
                and len(data) == length + 6
                and length <= self._max_frame
            ):
                payload = unmask(data[6:], data[2:6])
                if first == _FIN_BINARY:
                    return [Binary(payload)]
                try:
                    return [Text(payload.decode())]
                except UnicodeDecodeError:
                    self._stop()
                    return [Fault(INVALID_PAYLOAD, _NOT_UTF8)]
        if self.closed:
            return []
        events: list[Event] = []
        try:
            self._parse(data, events)
        except ProtocolFault as fault:
            self._stop()
            events.append(Fault(fault.code, fault.reason))
        except UnicodeDecodeError:
            self._stop()
            events.append(Fault(INVALID_PAYLOAD, _NOT_UTF8))
        self._idle = not (
            self.closed
            or self._head
            or self._message is not None
            or self._opcode != _BETWEEN_FRAMES
        )
        return events

    def _parse(self, data: bytes, events: list[Event]) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        position = 0
        end = len(data)
        while True:
            if self._opcode == _BETWEEN_FRAMES:
                header = self._read_header(data, position)
                if not header:
                    self._head = data[position:]
                    return
                position += header
            left = self._left
            take = min(left, end - position)
            payload = unmask(data[position : position + take], self._mask)
            position += take
            if take < left:
                self._left = left - take
                self._keep(payload)
                # The next byte of this frame goes on in the middle of the mask (5.3).
                turn = take & 3
                self._mask = self._mask[turn:] + self._mask[:turn]
                return
            opcode = self._opcode
            self._opcode = _BETWEEN_FRAMES
            if opcode >= CLOSE:
                event = self._control_event(opcode, self._control + payload)
                self._control = b""
                events.append(event)
                if opcode == CLOSE:
                    self._stop()
                    return
            elif self._message is None and self._fin:
                events.append(self._whole_message(opcode, payload))
            else:
                self._append(opcode, payload)
                if self._fin:
                    events.append(self._finish_message())
            if self._is_enough():
                self._head = data[position:]
                return

    def _read_header(self, data: bytes, position: int) -> int:
        """Read a frame header (5.2); return its length in bytes, 0 if it is not all there.

        Each check is made as soon as the bytes that decide it are there, in the order in which they
        arrive, so that any chunking of the same bytes gives the same verdict.
        """
        available = len(data) - position
        if available < 2:
            return 0
        first = data[position]
        second = data[position + 1]
        opcode = first & 0x0F
        fin = first >= _FIN
        length = second & 0x7F
        if first & self._reserved:
            raise ProtocolFault(PROTOCOL_ERROR, "reserved bits are set")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise ProtocolFault(PROTOCOL_ERROR, f"unknown opcode {opcode}")
            if not fin:
                raise ProtocolFault(PROTOCOL_ERROR, "fragmented control frame")
            if length > MAX_CONTROL:
                raise ProtocolFault(PROTOCOL_ERROR, "control frame over 125 bytes")
        elif opcode > BINARY:
            raise ProtocolFault(PROTOCOL_ERROR, f"unknown opcode {opcode}")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise ProtocolFault(PROTOCOL_ERROR, "continuation of no message")
        elif self._message is not None:
            raise ProtocolFault(PROTOCOL_ERROR, "new message inside a fragmented one")
        if not second & 0x80:
            raise ProtocolFault(PROTOCOL_ERROR, "frame is not masked")
        size = 6
        if length == 126:
            if available < 4:
                return 0
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            if length < 126:
                raise ProtocolFault(PROTOCOL_ERROR, "length is not written in the fewest bytes")
            size = 8
        elif length == 127:
            if available < 10:
                return 0
            length = int.from_bytes(data[position + 2 : position + 10], "big")
            if length >> 63:
                raise ProtocolFault(PROTOCOL_ERROR, "length over 63 bits")
            if length < 0x10000:
                raise ProtocolFault(PROTOCOL_ERROR, "length is not written in the fewest bytes")
            size = 14
        if opcode < CLOSE:
            self._check_length(first, length)
        if available < size:
            return 0
        self._opcode = opcode
        self._fin = fin
        self._left = length
        self._mask = data[position + size - 4 : position + size]
        return size

    def _check_length(self, first: int, length: int) -> None:
        """Refuse a data frame that is too long, given its first byte and its length."""
        if length > self._max_frame:
            raise ProtocolFault(TOO_BIG, f"frame over {self._max_frame} bytes")
        if self._message is not None and length + len(self._message) > self._max_message:
            raise ProtocolFault(TOO_BIG, f"message over {self._max_message} bytes")

    def _keep(self, payload: bytes) -> None:
        """Keep the part of a frame that has arrived."""
        if self._opcode >= CLOSE:
            self._control += payload
            return
        self._append(self._opcode, payload)
        # The rest of this frame goes on with the message that has now begun.
        self._opcode = CONTINUATION

    def _append(self, opcode: int, payload: bytes) -> None:
        if self._message is None:
            self._message = bytearray()
            self._text = opcode == TEXT
            self._valid = 0
        message = self._message
        message += payload
        if self._text:
            # At most three bytes are looked at twice: those of a character cut by the chunk.
            self._valid += codecs.utf_8_decode(message[self._valid :], "strict", False)[1]
            # The decoder waits for the third byte of a surrogate; the second already condemns it.
            tail = message[self._valid :]
            if len(tail) == 2 and tail[0] == 0xED and tail[1] >= 0xA0:
                raise ProtocolFault(INVALID_PAYLOAD, _NOT_UTF8)

    def _is_enough(self) -> bool:
        """Whether the rest of a read shall wait until the events so far are handled."""
        return False

    def _whole_message(self, opcode: int, payload: bytes) -> Event:
        return Text(payload.decode()) if opcode == TEXT else Binary(payload)

    def _finish_message(self) -> Event:
        message = self._message
        assert message is not None
        self._message = None
        if not self._text:
            return Binary(bytes(message))
        if self._valid != len(message):
            raise ProtocolFault(INVALID_PAYLOAD, _NOT_UTF8)
        return Text(message.decode())

    def _control_event(self, opcode: int, payload: bytes) -> Event:
        if opcode == PING:
            return Ping(payload)
        if opcode == PONG:
            return Pong(payload)
        if not payload:
            return Close(NO_CODE, "")
        if len(payload) == 1:
            raise ProtocolFault(PROTOCOL_ERROR, "close frame of one byte")
        code = int.from_bytes(payload[:2], "big")
        if not is_close_code(code):
            raise ProtocolFault(PROTOCOL_ERROR, f"close code {code} may not be sent")
        try:
            return Close(code, payload[2:].decode())
        except UnicodeDecodeError:
            raise ProtocolFault(INVALID_PAYLOAD, "close reason is not UTF-8") from None

    def _stop(self) -> None:
        """Let go of everything: the conversation is over."""
        self.closed = True
        self._idle = False
        self._head = self._control = self._mask = b""
        self._message = None


def is_close_code(code: int) -> bool:
    """Whether a close frame may carry this code (7.4, and IANA's registry for 1012 to 1014)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def unmask(payload: bytes, mask: bytes) -> bytes:
    """XOR a payload with the four bytes of its mask (5.3); the same masks and unmasks."""
    length = len(payload)
    key = int.from_bytes((mask * ((length >> 2) + 1))[:length], "little")
    return (int.from_bytes(payload, "little") ^ key).to_bytes(length, "little")


def frame_header(opcode: int, length: int) -> bytes:
    """Return the header of a whole unmasked frame with a payload of ``length`` bytes.

    RSV1 may be added to the opcode of a data frame.
    """
    if length < 126:
        return _SHORT_HEADERS[opcode][length]
    if length < 0x10000:
        return _HEADER_16.pack(_FIN | opcode, 126, length)
    return _HEADER_64.pack(_FIN | opcode, 127, length)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole unmasked frame. A control frame over 125 bytes is a ValueError."""
    if opcode >= CLOSE and len(payload) > MAX_CONTROL:
        raise ValueError("a control frame carries at most 125 bytes")
    return frame_header(opcode, len(payload)) + payload


def text_frame(payload: bytes) -> bytes:
    """Return a text frame; the payload must be UTF-8, which is not checked again here."""
    return frame_header(TEXT, len(payload)) + payload


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a ping. Over 125 bytes is a ValueError."""
    return frame(PING, payload)


def pong_frame(payload: bytes = b"") -> bytes:
    """Return a pong; it repeats its ping's data. Over 125 bytes is a ValueError."""
    return frame(PONG, payload)


def close_frame(code: int = NO_CODE, reason: str = "") -> bytes:
    """Return a close frame, its reason cut to 123 bytes between characters.

    1005 means "no code" and gives an empty frame, the answer to a client that named none. Any other
    code that may not be sent is a ValueError.
    """
    if code == NO_CODE:
        return frame_header(CLOSE, 0)
    if not is_close_code(code):
        raise ValueError(f"close code {code} may not be sent")
    text = reason.encode("utf-8", "replace")
    if len(text) > MAX_REASON:
        text = text[:MAX_REASON].decode("utf-8", "ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + text)
