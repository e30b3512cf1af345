"""AMQP's content header with all field types, where pika loses some.

pika 1.4 cuts floating-point header values to integers when it reads them and refuses to write
them. Here are field tables (AMQP 0-9-1 section 4.2.5.5, with RabbitMQ's errata on the type
letters), used for messages only; methods stay pika's. What is read becomes `Properties` at once.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pika.exceptions
import pika.spec

from ...message import NO_PROPERTIES, Properties

PERSISTENT = 2  # AMQP's delivery-mode
_NUMBERS: dict[int, struct.Struct] = {
    ord("b"): struct.Struct(">b"),
    ord("B"): struct.Struct(">B"),
    ord("s"): struct.Struct(">h"),
    ord("U"): struct.Struct(">h"),
    ord("u"): struct.Struct(">H"),
    ord("I"): struct.Struct(">i"),
    ord("i"): struct.Struct(">I"),
    ord("l"): struct.Struct(">q"),
    ord("L"): struct.Struct(">q"),
    ord("f"): struct.Struct(">f"),
    ord("d"): struct.Struct(">d"),
}
_LENGTH = struct.Struct(">I")
_DECIMAL = struct.Struct(">Bi")
_TIME = struct.Struct(">Q")
# Tables and arrays within each other. What lies deeper would be an attack on the stack; it is
# read as None, because an error ends the connection and the message would come again at once.
_MAX_DEPTH = 32


class Content(pika.spec.BasicProperties):  # type: ignore[misc]
    """Properties to send, whose headers may hold what pika cannot write."""

    headers: dict[str, Any] | None

    def encode(self) -> list[bytes]:
        headers = self.headers
        if not headers:
            plain: list[bytes] = super().encode()
            return plain
        self.headers = {}
        try:
            pieces: list[bytes] = super().encode()
        finally:
            self.headers = headers
        # The flags, then two pieces for each short string that stands before the table.
        at = 1 + 2 * (self.content_type is not None) + 2 * (self.content_encoding is not None)
        pieces[at] = encode_table(headers)
        return pieces


def encode_table(table: Mapping[str, Any]) -> bytes:
    """Return a field table with its length before it."""
    pieces = bytearray()
    for name, value in table.items():
        raw = name.encode()
        pieces.append(len(raw))
        pieces += raw
        pieces += _encode(value)
    return _LENGTH.pack(len(pieces)) + bytes(pieces)


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return b"S" + _LENGTH.pack(len(raw)) + raw
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return struct.pack(">ci", b"I", value)
        return struct.pack(">cq", b"l", value)
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, bytes):
        return b"x" + _LENGTH.pack(len(value)) + value
    if isinstance(value, Mapping):
        return b"F" + encode_table(value)
    if isinstance(value, list | tuple):
        items = b"".join(_encode(item) for item in value)
        return b"A" + _LENGTH.pack(len(items)) + items
    raise pika.exceptions.UnsupportedAMQPFieldException(value)


def decode_properties(data: bytes) -> Properties:
    """Read the basic class's properties (flags first); raises pika's InvalidFrameError.

    What is equal may be one object: nobody may modify it, but for `headers`.
    """
    found = _plain.get(data)
    if found is not None:
        return found
    found = Properties()
    try:
        flags = data[0] << 8 | data[1]
        at = 2
        for flag, name in _PROPERTIES:
            if not flags & flag:
                continue
            if name == "headers":
                found.headers, at = decode_table(data, at)
            elif name == "delivery_mode":
                found.persistent, at = data[at] == PERSISTENT, at + 1
            elif name == "priority":
                found.priority, at = data[at], at + 1
            elif name == "timestamp":
                found.timestamp, at = _TIME.unpack_from(data, at)[0], at + 8
            else:
                end = at + 1 + data[at]
                setattr(found, name, data[at + 1 : end].decode("utf-8", "replace"))
                at = end
    except (struct.error, IndexError) as error:
        raise pika.exceptions.InvalidFrameError(f"malformed content header: {error}") from None
    if not flags & _VARIED and len(data) <= _MAX_PLAIN:
        if len(_plain) >= _MAX_PLAINS:
            _plain.clear()
        _plain[data] = found
    return found


_PROPERTIES = tuple(
    (1 << (15 - at), name)
    for at, name in enumerate(
        (
            "content_type",
            "content_encoding",
            "headers",
            "delivery_mode",
            "priority",
            "correlation_id",
            "reply_to",
            "expiration",
            "message_id",
            "timestamp",
            "type",
            "user_id",
            "app_id",
        )
    )
)
# Properties that many messages share, by their bytes: those without headers and without what is
# another for each message. Bounded, because publishers choose them.
_plain: dict[bytes, Properties] = {b"\x00\x00": NO_PROPERTIES}
_VARIED = sum(
    flag
    for flag, name in _PROPERTIES
    if name in ("headers", "correlation_id", "message_id", "timestamp")
)
_MAX_PLAIN = 128  # bytes
_MAX_PLAINS = 256


def decode_table(data: bytes, at: int, depth: int = 0) -> tuple[dict[str, Any], int]:
    """Read a field table and where it ends."""
    end = at + 4 + _LENGTH.unpack_from(data, at)[0]
    at += 4
    table: dict[str, Any] = {}
    while at < end:
        start = at + 1
        at = start + data[at]
        name = data[start:at].decode("utf-8", "replace")
        table[name], at = _decode(data, at, depth)
    return table, at


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if kind in (0x53, 0x78):  # S, x
        end = at + 4 + _LENGTH.unpack_from(data, at)[0]
        raw = data[at + 4 : end]
        return (_text_or_bytes(raw) if kind == 0x53 else raw), end
    number = _NUMBERS.get(kind)
    if number is not None:
        return number.unpack_from(data, at)[0], at + number.size
    if depth >= _MAX_DEPTH and kind in (0x41, 0x46):  # A, F
        return None, at + 4 + _LENGTH.unpack_from(data, at)[0]
    match chr(kind):
        case "t":
            return data[at] != 0, at + 1
        case "V":
            return None, at
        case "F":
            return decode_table(data, at, depth + 1)
        case "A":
            end = at + 4 + _LENGTH.unpack_from(data, at)[0]
            at += 4
            items = []
            while at < end:
                item, at = _decode(data, at, depth + 1)
                items.append(item)
            return items, at
        case "T":
            # Unix seconds, as `timestamp` is (x-death's time).
            return _TIME.unpack_from(data, at)[0], at + 8
        case "D":
            decimals, raw_number = _DECIMAL.unpack_from(data, at)
            return raw_number / 10**decimals, at + _DECIMAL.size
    raise pika.exceptions.InvalidFieldTypeException(kind)


def _text_or_bytes(raw: bytes) -> str | bytes:
    # AMQP's long string is bytes; whoever wrote text wrote UTF-8.
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
