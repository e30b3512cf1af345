"""Records to messages and back: which header is which property.

A header of ours is text wherever it can be, so that every other Kafka program reads it. What text
cannot say is told beside it: `queuecast-types` names the headers that were numbers, truth values,
bytes, lists or mappings. See docs/kafka.md.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...destination import TOPIC_EXCHANGE
from ...message import Message, Properties

TYPES = "queuecast-types"
KEY = "kafka-key"
TOMBSTONE = "kafka-tombstone"

# Header -> property; names as in STOMP and HTTP.
_PROPERTIES = {
    "content-type": "content_type",
    "content-encoding": "content_encoding",
    "correlation-id": "correlation_id",
    "reply-to": "reply_to",
    "expiration": "expiration",
    "message-id": "message_id",
    "type": "type",
    "user-id": "user_id",
    "app-id": "app_id",
}
# What a header may hold at most to count as a property: AMQP's short strings, which clients get.
_MOST = 255

Headers = list[tuple[str, bytes | None]]


def to_headers(properties: Properties) -> Headers:
    """Return a record's headers; the timestamp goes with the record itself."""
    made: Headers = []
    types: dict[str, str] = {}
    for header, name in _PROPERTIES.items():
        value = getattr(properties, name)
        if value is not None:
            made.append((header, value.encode()))
    if properties.priority is not None:
        made.append(("priority", b"%d" % properties.priority))
    for name, value in properties.headers.items():
        if name in (TYPES, KEY, TOMBSTONE):
            continue
        data, kind = _encoded(value)
        made.append((name, data))
        if kind:
            types[name] = kind
    if types:
        made.append((TYPES, json.dumps(types, ensure_ascii=False).encode()))
    return made


def _encoded(value: Any) -> tuple[bytes | None, str]:
    """Return a header value's bytes and what to call it, "" for text and null."""
    if isinstance(value, str):
        return value.encode(), ""
    if value is None:
        return None, ""
    if isinstance(value, bool):
        return (b"true" if value else b"false"), "bool"
    if isinstance(value, int):
        return str(value).encode(), "int"
    if isinstance(value, float):
        return repr(value).encode(), "float"
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), "bytes"
    return json.dumps(value, ensure_ascii=False, default=_plain).encode(), "json"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    return dict(value) if isinstance(value, Mapping) else str(value)


def to_message(record: Any, *, queue: bool = False) -> Message:
    """Return the message of an aiokafka ConsumerRecord.

    It is addressed as it would be published: /exchange/TOPIC/KEY with a key, else /topic/TOPIC,
    or /queue/TOPIC for a consumer. offset: Kafka's plus one, so that 0 is before the first.
    """
    headers: dict[str, Any] = {}
    properties = Properties(persistent=True, headers=headers)
    if record.timestamp is not None and record.timestamp >= 0:
        properties.timestamp = record.timestamp // 1000
    if record.headers:
        _read_headers(record.headers, properties, headers)
    topic: str = record.topic
    key = ""
    if record.key:
        try:
            key = record.key.decode()
        except UnicodeDecodeError:
            headers[KEY] = record.key
    body = record.value
    if body is None:
        headers[TOMBSTONE] = True
        body = b""
    if key:
        exchange, routing_key = topic, key
    else:
        exchange, routing_key = "" if queue else TOPIC_EXCHANGE, topic
    return Message(
        body,
        exchange,
        routing_key,
        properties,
        offset=record.offset + 1,
        lane=record.partition,
    )


def key_of(message: Message) -> str:
    """Return the record key of a message that `to_message` made, "" for none."""
    return "" if message.exchange in ("", TOPIC_EXCHANGE) else message.routing_key


def _read_headers(
    pairs: Iterable[tuple[str, bytes | None]], properties: Properties, headers: dict[str, Any]
) -> None:
    types: dict[str, str] = {}
    # Of equal names the last one counts, as with Kafka's own lastHeader.
    for name, data in pairs:
        if name == TYPES:
            types = _types(data)
            continue
        named = name in _PROPERTIES or name == "priority"
        if named and _is_property(name, data, properties):
            continue
        headers[name] = _text(data)
    for name, kind in types.items():
        if name in headers:
            headers[name] = _decoded(headers[name], kind)


def _is_property(name: str, data: bytes | None, properties: Properties) -> bool:
    """Take a header as a property if it can be one."""
    text = _text(data)
    if not isinstance(text, str) or len(text.encode()) > _MOST:
        return False
    if name == "priority":
        if not (text.isascii() and text.isdigit() and int(text) <= 255):
            return False
        properties.priority = int(text)
        return True
    setattr(properties, _PROPERTIES[name], text)
    return True


def _text(data: bytes | None) -> str | bytes | None:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _types(data: bytes | None) -> dict[str, str]:
    """Read the header of types; anybody may have written it."""
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _decoded(value: Any, kind: Any) -> Any:
    try:
        match kind:
            case "bool":
                return {"true": True, "false": False}.get(value, value)
            case "int" if isinstance(value, str) and len(value) < 40:
                return int(value)
            case "float" if isinstance(value, str):
                return float(value)
            case "bytes" if isinstance(value, str):
                return value.encode()
            case "json" if isinstance(value, str):
                return json.loads(value)
    except (ValueError, RecursionError):
        return value
    return value
