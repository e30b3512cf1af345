"""The JSON envelope: position, destination, headers and body of a message together.

Header names are STOMP's; application headers stand beside them and never hide one of ours.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from ..destination import of_message
from ..errors import QueuecastError
from ..hub.log import Gap
from ..message import Message, Properties

_encoder = msgspec.json.Encoder(enc_hook=str)
encode_json = _encoder.encode

_MAX_SAFE = (1 << 53) - 1

_PLAIN_HEADERS = (
    ("content-type", "content_type"),
    ("content-encoding", "content_encoding"),
    ("priority", "priority"),
    ("correlation-id", "correlation_id"),
    ("reply-to", "reply_to"),
    ("expiration", "expiration"),
    ("message-id", "message_id"),
    ("timestamp", "timestamp"),
    ("type", "type"),
    ("user-id", "user_id"),
    ("app-id", "app_id"),
)


def headers_of(properties: Properties) -> dict[str, Any]:
    """Return the headers that a client sees: the properties under their STOMP names, and the
    application's own."""
    headers: dict[str, Any] = {
        name: jsonable(value) for name, value in properties.headers.items() if value is not None
    }
    for name, attribute in _PLAIN_HEADERS:
        value = getattr(properties, attribute)
        if value is not None:
            headers[name] = value if type(value) is str else jsonable(value)
    if properties.persistent:
        headers["persistent"] = True
    return headers


def jsonable(value: Any) -> Any:
    """Return an AMQP header value as JSON can carry it.

    Bytes become an object with the one key `base64`, so that no client takes base64 for text.
    Numbers that a browser's JSON would round become text (ECMA-262, Number.MAX_SAFE_INTEGER).
    """
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, int) and not -_MAX_SAFE <= value <= _MAX_SAFE:
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def message_envelope(
    message: Message,
    *,
    subscription: str,
    alias: bool,
    position: str | None = None,
    ack: str | None = None,
    binary: bool = False,
) -> dict[str, Any]:
    """Return a message's envelope as a mapping, ready for JSON.

    subscription: what the client named. alias: it named an alias, so broker names stay hidden.
    position: of a shared destination's message. ack: the id to settle a delivery with. binary:
    the body goes as `base64` even if it is UTF-8.
    """
    envelope: dict[str, Any] = {}
    if position is not None:
        envelope["position"] = position
    if ack is not None:
        envelope["ack"] = ack
    envelope["subscription"] = subscription
    envelope["destination"] = (
        subscription if alias else str(of_message(message.exchange, message.routing_key))
    )
    if message.redelivered:
        envelope["redelivered"] = True
    envelope["headers"] = headers_of(message.properties)
    if not binary:
        try:
            envelope["body"] = message.body.decode()
        except UnicodeDecodeError:
            binary = True
    if binary:
        envelope["base64"] = base64.b64encode(message.body).decode()
    return envelope


def gap_notice(gap: Gap) -> dict[str, Any]:
    """Return a gap as clients read it: `last` known position ("" if none) and `first` to come."""
    return {"reason": gap.reason, "last": gap.last, "first": gap.first}


def loss_notice(reason: str, subscription: str) -> dict[str, Any]:
    """Return the gap of a work queue, which has no positions."""
    return {"gap": gap_notice(Gap(reason, "", "")), "subscription": subscription}


def error_notice(error: QueuecastError) -> dict[str, Any]:
    """Return an error as clients read it."""
    return {
        "code": error.code,
        "text": error.text,
        "hint": error.hint,
        "retry": error.retry,
    }
