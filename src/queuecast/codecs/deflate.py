"""permessage-deflate (RFC 7692), server side: the negotiation, and messages to bytes and back.

The law of this file: no context is carried from one message to the next, in either direction. So
what we compress for one client fits every client, and a connection between two messages costs
nothing. What a client sends is inflated as it arrives and never beyond the message limit.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from threading import Lock
from typing import Final

from .websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    INVALID_PAYLOAD,
    PROTOCOL_ERROR,
    RSV1,
    TEXT,
    TOO_BIG,
    Binary,
    Event,
    ProtocolFault,
    Text,
    WebSocketParser,
)

EXTENSION: Final = "permessage-deflate"

# Below this a body is sent as it is: 64 bytes of JSON become 60, 80 become 67, 128 become 90.
MIN_COMPRESSED: Final = 64

# What ends every compressed message and is left out on the wire (7.2.1): an empty stored block.
_TAIL: Final = b"\x00\x00\xff\xff"
# An empty last block; only a stream that stands between two blocks takes it for one.
_END: Final = b"\x03\x00"
_WINDOW: Final = 32 * 1024
# Deflate streams in one message (each ends with a block whose BFINAL is set, 7.2.3.5). A new one
# costs us microseconds and its sender two bytes; without a bound 1 MB would keep us for seconds.
_MAX_STREAMS: Final = 64

# RFC 6455 section 9.1. A quoted value is a token once it is unquoted, so it holds no blank.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = re.compile(rf'({_TOKEN})|"((?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])+)"')
_NAME = re.compile(_TOKEN)
_BLANK = re.compile(r"[ \t]*")
_BITS = re.compile(r"[89]|1[0-5]")

_Parameters = list[tuple[str, str | None]]


# -- negotiation --------------------------------------------------------------------------


def negotiate(headers: Mapping[str, str]) -> str | None:
    """Return the Sec-WebSocket-Extensions that accepts the first offer we can, None if there is
    none (RFC 7692, section 5.1 and 7.1).

    Header names are in lower case. What is malformed is declined, not refused: RFC 6455 section
    9.1 would have the connection fail, but one without compression serves the client better.
    """
    for name, parameters in parse_extensions(headers.get("sec-websocket-extensions", "")):
        if name == EXTENSION and (answer := _accept(parameters)) is not None:
            return answer
    return None


def _accept(parameters: _Parameters) -> str | None:
    """Return the answer to one offer, None to decline it."""
    given: dict[str, str | None] = {}
    for name, value in parameters:
        if name in given:
            return None
        given[name] = value
    answer = [EXTENSION, "server_no_context_takeover", "client_no_context_takeover"]
    for name, value in given.items():
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                if value is not None:
                    return None
            case "server_max_window_bits":
                # A smaller window than everybody else's would need a compression of its own.
                if value != "15":
                    return None
                # It is accepted by being repeated (7.1.2.1).
                answer.append("server_max_window_bits=15")
            case "client_max_window_bits":
                # A hint (7.1.2.2): whatever window the client uses, ours is as large.
                if value is not None and not _BITS.fullmatch(value):
                    return None
            case _:
                return None
    return "; ".join(answer)


def parse_extensions(text: str) -> list[tuple[str, _Parameters]]:
    """Read a Sec-WebSocket-Extensions: names and parameters; [] if it is malformed."""
    extensions: list[tuple[str, _Parameters]] = []
    position = 0
    while True:
        position = _after_blank(text, position)
        if position == len(text):
            return extensions
        # Empty elements of a list are passed over (RFC 9110, 5.6.1.2).
        if text[position] == ",":
            position += 1
            continue
        name = _NAME.match(text, position)
        if name is None:
            return []
        parameters: _Parameters = []
        position = _after_blank(text, name.end())
        while text[position : position + 1] == ";":
            key = _NAME.match(text, _after_blank(text, position + 1))
            if key is None:
                return []
            value: str | None = None
            position = _after_blank(text, key.end())
            if text[position : position + 1] == "=":
                found = _VALUE.match(text, _after_blank(text, position + 1))
                if found is None:
                    return []
                value = found[1] or re.sub(r"\\(.)", r"\1", found[2])
                if not _NAME.fullmatch(value):
                    return []
                position = _after_blank(text, found.end())
            parameters.append((key[0], value))
        extensions.append((name[0], parameters))
        if text[position : position + 1] not in ("", ","):
            return []


def _after_blank(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    assert blank is not None
    return blank.end()


# -- out ----------------------------------------------------------------------------------

# One for the process: setting one up costs ten times what a small message does. The lock is for
# several gateways in several threads, whose messages must not mix.
_compressor = zlib.compressobj(6, zlib.DEFLATED, -15, 8)
_lock = Lock()


def compress(payload: bytes) -> bytes:
    """Return a message's payload as any client with a 15-bit window can inflate it (7.2.1).

    The full flush ends it on a whole byte and lets nothing refer back to other messages.
    """
    if not payload:
        return b"\x00"  # 7.2.3.6; a second flush with nothing between would give nothing
    with _lock:
        data = _compressor.compress(payload) + _compressor.flush(zlib.Z_FULL_FLUSH)
    return data.removesuffix(_TAIL)


def pack(opcode: int, payload: bytes) -> tuple[int, bytes]:
    """Return opcode and payload of a data frame: compressed, with RSV1, where that is smaller."""
    if len(payload) < MIN_COMPRESSED:
        return opcode, payload
    compressed = compress(payload)
    if len(compressed) >= len(payload):
        return opcode, payload
    return opcode | RSV1, compressed


# -- in -----------------------------------------------------------------------------------


class Inflater:
    """One message on its way in. It holds zlib's window, some 40 KB, until the message ends."""

    __slots__ = ("_stream", "_streams")

    def __init__(self) -> None:
        self._stream: zlib._Decompress | None = None
        self._streams = 0

    def inflate(self, data: bytes, message: bytearray, limit: int) -> None:
        """Append what the data inflates to, up to `limit` bytes of message in all.

        Raises ProtocolFault: 1009 beyond the limit, 1007 if it is not deflate data.
        """
        while data:
            stream = self._stream or self._open(message)
            try:
                # One byte over the limit is asked for, and no more: a bomb costs us the limit.
                message += stream.decompress(data, limit - len(message) + 1)
            except zlib.error:
                raise _corrupt() from None
            if len(message) > limit:
                raise ProtocolFault(TOO_BIG, f"message over {limit} bytes")
            if not stream.eof:
                return
            data = stream.unused_data
            self._stream = None

    def finish(self, message: bytearray, limit: int) -> None:
        """End the message (7.2.2); raises as `inflate` does, 1007 also if it is cut off."""
        if self._stream is None:
            # Nothing came, or a final block was the very end: the empty block may be missing.
            return
        self.inflate(_TAIL, message, limit)
        stream = self._stream
        if stream is None:
            raise _corrupt()
        before = len(message)
        self.inflate(_END, message, limit)
        if not stream.eof or self._stream is not None or len(message) != before:
            raise _corrupt()

    def _open(self, message: bytearray) -> zlib._Decompress:
        if self._streams == _MAX_STREAMS:
            raise ProtocolFault(TOO_BIG, f"message of over {_MAX_STREAMS} deflate streams")
        self._streams += 1
        # A block after a final one may still refer to what came before it in the message.
        window = bytes(message[-_WINDOW:])
        if window:
            self._stream = zlib.decompressobj(-15, zdict=window)
        else:
            self._stream = zlib.decompressobj(-15)
        return self._stream


def _corrupt() -> ProtocolFault:
    # RFC 7692 names no code; a payload that is not of its message's type is 1007 (RFC 6455, 7.4.1).
    return ProtocolFault(INVALID_PAYLOAD, "the message is not valid deflate data")


class DeflateParser(WebSocketParser):
    """The frames of a client with which permessage-deflate was negotiated.

    Both limits hold for what a message inflates to; a frame of a compressed message may be as much
    longer as deflate may have to make it. Compressed text is validated when it is complete.

    One read can hold hundreds of messages that inflate to the limit each. So that they are never
    held all at once, a call stops after the one with which the limit's worth was inflated, and
    the parser is `pending`.
    """

    __slots__ = ("_inflated", "_inflater")

    _reserved = WebSocketParser._reserved & ~RSV1

    def __init__(self, max_message: int, max_frame: int | None = None) -> None:
        super().__init__(max_message, max_frame)
        # There while the message being read is compressed.
        self._inflater: Inflater | None = None
        # Bytes of the messages that this call has inflated.
        self._inflated = 0

    @property
    def pending(self) -> bool:
        return self._is_enough() and bool(self._head)

    def set_limit(self, max_message: int) -> None:
        pending = self.pending
        super().set_limit(max_message)
        if pending:
            # What is left of a read still waits for a call of its own.
            self._inflated = max(self._inflated, max_message)

    def receive_data(self, data: bytes) -> list[Event]:
        self._inflated = 0
        return super().receive_data(data)

    def _is_enough(self) -> bool:
        return self._inflated >= self._max_message

    def _read_header(self, data: bytes, position: int) -> int:
        if len(data) - position < 2:
            return 0
        first = data[position]
        opcode = first & 0x0F
        if first & RSV1 and (opcode >= CLOSE or opcode == CONTINUATION):
            # Section 6.1: it stands on the first frame of a message alone.
            raise ProtocolFault(PROTOCOL_ERROR, "RSV1 on a frame that begins no message")
        size = super()._read_header(data, position)
        if size and opcode in (TEXT, BINARY):
            self._inflater = Inflater() if first & RSV1 else None
        return size

    def _check_length(self, first: int, length: int) -> None:
        inside = first & 0x0F == CONTINUATION and self._inflater is not None
        if not inside and not first & RSV1:
            super()._check_length(first, length)
            return
        # zlib's own bound for what a compressor may need. Memory is bounded by the inflater.
        most = self._max_frame + (self._max_frame >> 3) + 64
        if length > most:
            raise ProtocolFault(TOO_BIG, f"compressed frame over {most} bytes")

    def _whole_message(self, opcode: int, payload: bytes) -> Event:
        if self._inflater is None:
            return super()._whole_message(opcode, payload)
        self._append(opcode, payload)
        return self._finish_message()

    def _append(self, opcode: int, payload: bytes) -> None:
        if self._inflater is None:
            super()._append(opcode, payload)
            return
        if self._message is None:
            self._message = bytearray()
            self._text = opcode == TEXT
        self._inflater.inflate(payload, self._message, self._max_message)

    def _finish_message(self) -> Event:
        inflater = self._inflater
        if inflater is None:
            return super()._finish_message()
        message = self._message
        assert message is not None
        inflater.finish(message, self._max_message)
        self._inflater = self._message = None
        self._inflated += len(message)
        return Text(message.decode()) if self._text else Binary(bytes(message))

    def _stop(self) -> None:
        super()._stop()
        self._inflater = None
