"""A message's properties as STOMP headers, both ways, as RabbitMQ maps them.

Property names are AMQP's with hyphens, but for `amqp-message-id`: STOMP's own `message-id` is the
server's. Of the application's headers only texts and whole numbers reach a MESSAGE; none of them
ever takes the place of a header that is the server's to set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codecs.stomp_values import StompError, boolean
from ..destination import Destination, Kind
from ..errors import BadRequest
from ..message import NO_PROPERTIES, Properties
from .publishing import properties_of

_NUMBERS = frozenset(("priority", "timestamp", "expiration"))
# What a SEND says to the server itself. Its other own headers (receipt, transaction,
# content-length) travel with the message, as they do at RabbitMQ.
_NOT_THE_MESSAGES = frozenset(("destination", "persistent", "user-id"))
_RENAMED = {"amqp-message-id": "message-id"}

_PLAIN_HEADERS = (
    ("content-type", "content_type"),
    ("content-encoding", "content_encoding"),
    ("priority", "priority"),
    ("correlation-id", "correlation_id"),
    ("expiration", "expiration"),
    ("amqp-message-id", "message_id"),
    ("timestamp", "timestamp"),
    ("type", "type"),
    ("user-id", "user_id"),
    ("app-id", "app_id"),
)
# Whoever publishes must not be able to set these on a MESSAGE, present or not.
SERVER_HEADERS = frozenset(
    (
        "subscription",
        "destination",
        "message-id",
        "redelivered",
        "ack",
        "content-length",
    )
)
_PREFIXES = tuple(kind.value for kind in Kind)


def properties_of_send(headers: Mapping[str, str], login: str | None = None) -> Properties:
    """Return the properties that a SEND's headers describe; raises StompError.

    login: who sends; a `user-id` must equal it, because a broker closes the connection, which
    others share, over one that does not.
    """
    if "message-id" in headers:
        raise StompError("Invalid header", "'message-id' is not allowed on 'SEND'.\n")
    named: dict[str, Any] = {}
    for name, value in headers.items():
        if name not in _NOT_THE_MESSAGES:
            named[_RENAMED.get(name, name)] = value.strip(" ") if name in _NUMBERS else value
    try:
        properties = properties_of(named, persistent_default=False)
    except BadRequest as error:
        raise StompError("Processing error", f"{error}\n") from None
    properties.persistent = boolean(headers, "persistent") is True
    user = headers.get("user-id")
    if user is not None:
        if user != login:
            raise StompError("precondition_failed", f"user-id is {user[:64]!r}, not the login\n")
        properties.user_id = user
    return properties


def message_headers(properties: Properties) -> list[tuple[str, str]]:
    """Return the headers that a MESSAGE carries beside the server's own, none of them twice."""
    if properties is NO_PROPERTIES:
        return []
    headers: dict[str, str] = {}
    for name, attribute in _PLAIN_HEADERS:
        value = getattr(properties, attribute)
        if value is not None:
            headers[name] = str(value)
    if properties.reply_to is not None:
        headers["reply-to"] = _reply_destination(properties.reply_to)
    if properties.persistent:
        headers["persistent"] = "true"
    for name, value in properties.headers.items():
        text = _header_text(value)
        if text is not None and name not in headers and name not in SERVER_HEADERS:
            headers[name] = text
    return list(headers.items())


def _reply_destination(reply_to: str) -> str:
    """Return a reply-to as a destination that can be sent to; a bare name is a queue's."""
    if reply_to.startswith(_PREFIXES):
        return reply_to
    return str(Destination(Kind.REPLY_QUEUE, reply_to))


def _header_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None
