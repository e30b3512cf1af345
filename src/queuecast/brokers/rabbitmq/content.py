"""Message properties to AMQP's basic class, and what tells messages apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pika.spec

from ...errors import BadRequest
from ...message import NO_PROPERTIES, Message, Properties
from .wire import PERSISTENT, Content

_MAX_EXPIRATION = 4_294_967_295  # ms; RabbitMQ closes the channel for more
# RabbitMQ routes by these headers, past the destination that the policy has allowed.
_ROUTING_HEADERS = ("CC", "BCC")


def to_amqp(properties: Properties) -> pika.spec.BasicProperties:
    """Return pika's properties.

    Raises BadRequest for what RabbitMQ would answer by closing the channel under everybody.
    """
    if properties is NO_PROPERTIES:
        return pika.spec.BasicProperties(delivery_mode=1)
    expiration = properties.expiration
    if expiration is not None and not (
        expiration.isascii() and expiration.isdigit() and int(expiration) <= _MAX_EXPIRATION
    ):
        raise BadRequest(f"expiration {expiration[:32]!r}", "it is milliseconds, as digits")
    priority = properties.priority
    if priority is not None and not 0 <= priority <= 255:
        raise BadRequest(f"priority {priority}", "it is 0 to 255")
    timestamp = properties.timestamp
    if timestamp is not None and not 0 <= timestamp < 2**64:
        raise BadRequest(f"timestamp {timestamp}", "it is seconds since 1970")
    for name in ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id"):
        _short(name, getattr(properties, name))
    for name in ("type", "user_id", "app_id"):
        _short(name, getattr(properties, name))
    return Content(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=_headers(properties.headers) if properties.headers else None,
        delivery_mode=PERSISTENT if properties.persistent else 1,
        priority=priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        expiration=expiration,
        message_id=properties.message_id,
        timestamp=timestamp,
        type=properties.type,
        user_id=properties.user_id,
        app_id=properties.app_id,
    )


def _short(name: str, value: str | None) -> None:
    if value is not None and len(value) > 63 and len(value.encode()) > 255:
        raise BadRequest(f"{name} is longer than 255 bytes")


def _headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    for name in _ROUTING_HEADERS:
        if name in headers:
            raise BadRequest(
                f"the header {name} is not allowed", "publish once to each destination"
            )
    return {_name(name): _to_field(value, name) for name, value in headers.items()}


def _name(name: str) -> str:
    if len(name.encode()) > 255:
        raise BadRequest(f"the header name {name[:32]!r}… is longer than 255 bytes")
    return name


def _to_field(value: Any, name: str) -> Any:
    if value is None or isinstance(value, str | bytes | bool | float):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise BadRequest(f"the header {name[:64]!r} is no 64-bit number")
        return value
    if isinstance(value, Mapping):
        return {_name(str(key)): _to_field(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_field(item, name) for item in value]
    raise BadRequest(f"the header {name[:64]!r} holds a {type(value).__name__}")


def fingerprint(message: Message) -> int:
    """Return a number that tells messages apart within this process, by address and content."""
    properties = message.properties
    return hash(
        (
            message.exchange,
            message.routing_key,
            message.body,
            properties.message_id,
            properties.correlation_id,
            properties.timestamp,
        )
    )
