"""What a destination means at Kafka, and what Kafka has nothing for.

/topic/T                    topic T          /queue/T, /amq/queue/T   a group's share of T
/exchange/T[/PATTERN]       T's records whose key matches; published with that key
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ...destination import Destination, Kind
from ...errors import BadDestination, Unsupported
from ...pattern import is_pattern

# Kafka's own rule (org.apache.kafka.common.internals.Topic).
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")

_ALLOWED = "with Kafka it is /topic/TOPIC, /exchange/TOPIC[/KEY] or /queue/TOPIC"


class Target(NamedTuple):
    """A topic, and the key or pattern of keys; None is any record, or one without a key.

    create: a topic that is missing may come into being, if the cluster creates topics.
    """

    topic: str
    key: str | None = None
    create: bool = True


def feed_target(destination: Destination) -> Target:
    """Return what a shared destination reads; raises Unsupported, BadDestination."""
    if not destination.is_shared:
        raise Unsupported(
            f"{destination} is a queue: its messages go to one subscriber each",
            "everybody reads /topic/TOPIC or /exchange/TOPIC[/PATTERN]",
        )
    return target_of(destination)


def queue_target(destination: Destination) -> Target:
    """Return what a queue destination consumes; raises Unsupported, BadDestination."""
    if destination.is_shared:
        raise Unsupported(
            f"{destination} is no queue: everybody gets every message",
            "a consumer group shares the records of /queue/TOPIC",
        )
    return target_of(destination)


def target_of(destination: Destination) -> Target:
    """Return what a destination names, to publish to; raises Unsupported, BadDestination."""
    kind, name = destination.kind, destination.name
    if kind in (Kind.TEMP_QUEUE, Kind.REPLY_QUEUE):
        raise Unsupported(
            f"Kafka has no {kind.value.strip('/')}: {destination}",
            f"{_ALLOWED}, with a topic's name",
        )
    if kind is Kind.TOPIC and is_pattern(name):
        raise Unsupported(
            f"Kafka has no topic patterns: {destination}",
            "name one topic; /exchange/TOPIC/PATTERN matches the keys of its records",
        )
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise BadDestination(
            f"{name[:64]!r} cannot be the name of a Kafka topic",
            "it has letters, digits, '.', '_' and '-', at most 249",
        )
    key = destination.key if kind is Kind.EXCHANGE else None
    return Target(name, key, kind is not Kind.AMQ_QUEUE)
