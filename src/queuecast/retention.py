"""Rules about destinations: which keep their messages, and what a slow client of which gets.

A rule holds for a destination when the rule's pattern contains all of it: `/topic/job.#` holds
for `/topic/job.7` and `/topic/job.*`, and not for `/topic/#`, most of which it says nothing
about. The first rule that holds decides. `/topic/K` and `/exchange/amq.topic/K` are one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from .destination import Destination
from .pattern import contains

SlowPolicy = Literal["catch-up", "conflate", "disconnect"]


class _Rule(Protocol):
    @property
    def destination(self) -> Destination: ...


R = TypeVar("R", bound=_Rule)


@dataclass(frozen=True, slots=True)
class RetainRule:
    """Keep what is published to a destination, whether or not anyone is subscribed.

    age: seconds; bytes: of all its messages together; messages: their count. 0 is no bound, but
    one of age and bytes is always set. replicas: of RabbitMQ's stream, when it is created; 0 is
    RabbitMQ's own choice.
    """

    destination: Destination
    age: float = 0.0
    bytes: int = 0
    messages: int = 0
    replicas: int = 0

    @property
    def exchange(self) -> str:
        """The exchange whose messages it keeps."""
        return self.destination.exchange

    @property
    def pattern(self) -> str:
        """The binding pattern of what it keeps there."""
        return self.destination.pattern


@dataclass(frozen=True, slots=True)
class SlowRule:
    """What a client gets that does not keep up.

    catch-up: all messages, later; a gap once the log has passed it. conflate: the newest message
    of each routing key. disconnect: it is closed with a named reason and may come again.
    """

    destination: Destination
    policy: SlowPolicy


def rule_for(rules: Sequence[R], destination: Destination) -> R | None:
    """Return the first rule that holds for a destination, None where there is none."""
    if not destination.is_shared:
        return None
    for rule in rules:
        wide = rule.destination
        if wide.exchange == destination.exchange and contains(wide.pattern, destination.pattern):
            return rule
    return None
