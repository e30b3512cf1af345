"""A broker's calls as sessions are given them: errors name what the client named.

An alias hides the broker's names, so that no error may show them; see aliases.concealed.
"""

from __future__ import annotations

from typing import Protocol

from .aliases import concealed
from .brokers.base import Broker, PromptBroker
from .delivery import Consumer, DeliverySink
from .destination import Destination
from .errors import QueuecastError
from .message import Properties
from .queuespec import PLAIN, ConsumeSpec
from .sessions.services import Consume, Publish, PublishAtOnce


class Publishes(Protocol):
    """The part of a broker that publishes."""

    @property
    def publish(self) -> Publish: ...


class Consumes(Protocol):
    """The part of a broker that consumes."""

    @property
    def consume(self) -> Consume: ...


def publish_of(broker: Publishes) -> Publish:
    """Return how sessions publish."""

    async def publish(
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> None:
        try:
            await broker.publish(destination, body, properties, mandatory=mandatory)
        except QueuecastError as error:
            raise concealed(error, (destination,)) from error

    return publish


def publish_at_once_of(broker: Broker) -> PublishAtOnce | None:
    """Return how they publish without waiting, None for a broker that cannot."""
    if not isinstance(broker, PromptBroker):
        return None
    publish = broker.publish_at_once

    def publish_at_once(
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        try:
            return publish(destination, body, properties, mandatory=mandatory)
        except QueuecastError as error:
            raise concealed(error, (destination,)) from error

    return publish_at_once


def consume_of(broker: Consumes) -> Consume:
    """Return how they consume."""

    async def consume(
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int,
        spec: ConsumeSpec = PLAIN,
    ) -> Consumer:
        try:
            return await broker.consume(destination, sink, prefetch=prefetch, spec=spec)
        except QueuecastError as error:
            raise concealed(error, (destination,)) from error

    return consume
