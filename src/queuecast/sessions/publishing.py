"""What a client may say beside a body when it publishes: header names as STOMP has them.

The same on HTTP batches and on enveloped WebSockets. A name that is no property of AMQP's basic
class becomes an application header.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import BadRequest
from ..message import Properties

# AMQP 0-9-1 short strings hold no more bytes; a longer one would break the shared connection.
_SHORT = 255
# Names and values together: the broker takes them in one frame (RabbitMQ: 128 KB), and one that
# does not fit would close the connection that all clients publish on.
_HEADERS_BYTES = 64 * 1024
_HEADERS_DEPTH = 8
_MAX_EXPIRATION = (1 << 32) - 1  # RabbitMQ's timers hold no more milliseconds
_MAX_LONG = (1 << 63) - 1

_TEXTS = {
    "content-type": "content_type",
    "content-encoding": "content_encoding",
    "correlation-id": "correlation_id",
    "reply-to": "reply_to",
    "message-id": "message_id",
    "type": "type",
    "app-id": "app_id",
}
NAMES = frozenset((*_TEXTS, "persistent", "expiration", "priority", "timestamp"))


def properties_of(headers: Mapping[str, Any], *, persistent_default: bool = True) -> Properties:
    """Return the properties that a mapping of headers describes.

    expiration: milliseconds, timestamp: Unix seconds, numbers or their decimal texts. Raises
    BadRequest naming the header.
    """
    properties = Properties(persistent=persistent_default)
    rest = {}
    for name, value in headers.items():
        if name in _TEXTS:
            setattr(properties, _TEXTS[name], short_text(name, value))
        elif name == "persistent":
            properties.persistent = flag(name, value)
        elif name == "expiration":
            properties.expiration = str(_number(name, value, _MAX_EXPIRATION))
        elif name == "priority":
            properties.priority = _number(name, value, 255)
        elif name == "timestamp":
            properties.timestamp = _number(name, value, _MAX_LONG)
        elif name == "user-id":
            raise BadRequest(
                "the header 'user-id' cannot be set", "it is the gateway's own login at the broker"
            )
        else:
            rest[name] = value
    if rest:
        properties.headers = application_headers(rest)
    return properties


def application_headers(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check application headers and return them; raises BadRequest naming the wrong one."""
    size = 0
    for name, value in headers.items():
        length = len(name.encode())
        if not 1 <= length <= 128:
            raise BadRequest(f"a header's name has 1 to 128 bytes, {name[:64]!r} has {length}")
        size += length + _size(name, value, _HEADERS_DEPTH)
    if size > _HEADERS_BYTES:
        raise BadRequest(f"the headers have {size} bytes, at most {_HEADERS_BYTES} are possible")
    return headers


def body_of(entry: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Return an entry's `body` or `base64` as bytes, and whether it was JSON rather than text.

    Raises BadRequest.
    """
    if "base64" in entry:
        if "body" in entry:
            raise BadRequest("a message has a body or a base64, not both")
        try:
            return base64.b64decode(entry["base64"], validate=True), False
        except (binascii.Error, TypeError, ValueError):
            raise BadRequest("base64 does not decode") from None
    body = entry.get("body", "")
    if isinstance(body, str):
        return body.encode(), False
    return msgspec.json.encode(body), True


def flag(name: str, value: Any) -> bool:
    """Read true or false, as JSON or as text; raises BadRequest."""
    if isinstance(value, bool):
        return value
    if value in ("true", "True"):
        return True
    if value in ("false", "False"):
        return False
    raise BadRequest(f"{name!r} is {_shown(value)}, allowed are true and false")


def short_text(name: str, value: Any) -> str:
    """Read a text of at most 255 bytes; raises BadRequest."""
    if not isinstance(value, str):
        raise BadRequest(f"{name!r} is {_shown(value)}, a text is expected")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # bytes of an HTTP header, as aiohttp hands them over
        raise BadRequest(f"{name!r} is not UTF-8") from None
    if size > _SHORT:
        raise BadRequest(f"{name!r} has more than {_SHORT} bytes")
    return value


def _number(name: str, value: Any, highest: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise BadRequest(f"{name!r} is {_shown(value)}, a number from 0 to {highest} is expected")
    return value


def _size(name: str, value: Any, depth: int) -> int:
    """Return about how many bytes a value takes on the wire."""
    if depth == 0:
        raise BadRequest(f"the header {name!r} is nested too deeply")
    match value:
        case str():
            return 5 + len(value.encode())
        case bool() | None | float():
            return 9
        case int():
            if not -_MAX_LONG - 1 <= value <= _MAX_LONG:
                raise BadRequest(f"the header {name!r} does not fit into 64 bits")
            return 9
        case bytes():
            return 5 + len(value)
        case list():
            return 5 + sum(_size(name, each, depth - 1) for each in value)
        case Mapping():
            size = 5
            for key, each in value.items():
                if not isinstance(key, str) or len(key.encode()) > _SHORT:
                    raise BadRequest(f"the header {name!r} has a name of over {_SHORT} bytes in it")
                size += 1 + len(key.encode()) + _size(name, each, depth - 1)
            return size
        case _:
            raise BadRequest(f"the header {name!r} is {_shown(value)}, which no broker can carry")


def _shown(value: Any) -> str:
    # A client's lists within lists can be deeper than repr() may recurse.
    return "not a single value" if isinstance(value, list | Mapping) else repr(value)[:64]
