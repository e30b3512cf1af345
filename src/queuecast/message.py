"""A message as it comes from a broker, and its properties.

Property names are those of AMQP 0-9-1's basic class, which STOMP's header mapping shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Properties:
    """What stands beside a body.

    expiration: milliseconds, as a decimal string (AMQP). timestamp: Unix seconds.
    headers: application headers; values are str, int, float, bool, bytes, None, lists, mappings.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    persistent: bool = False
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


# Shared by all messages that carry none; never modified.
NO_PROPERTIES = Properties()


class Message:
    """Body, properties and address of one message.

    exchange, routing_key: where it was published ("" is the default exchange).
    offset: the broker's own place for it in the destination, or None where the broker has none
    (the feed then numbers by itself). lane: which of the destination's sequences the offset
    counts in (a Kafka partition; 0 elsewhere).
    """

    __slots__ = ("body", "exchange", "lane", "offset", "properties", "redelivered", "routing_key")

    def __init__(
        self,
        body: bytes,
        exchange: str = "",
        routing_key: str = "",
        properties: Properties = NO_PROPERTIES,
        redelivered: bool = False,
        offset: int | None = None,
        lane: int = 0,
    ) -> None:
        self.body = body
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.redelivered = redelivered
        self.offset = offset
        self.lane = lane

    def __repr__(self) -> str:
        return (
            f"Message({len(self.body)} bytes, exchange={self.exchange!r}, "
            f"routing_key={self.routing_key!r}, offset={self.offset})"
        )
