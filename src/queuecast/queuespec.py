"""What a queue and a consumer on it are asked to be.

Brokers declare them and sessions describe them, so they stand on the lowest floor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadRequest

# RabbitMQ's names of what decides more than a property of the queue.
QUEUE_TYPE = "x-queue-type"
STREAM_OFFSET = "x-stream-offset"
STREAM_STARTS = ("first", "last", "next")
MAX_AGE = "x-max-age"

_AGE = re.compile(r"([0-9]{1,9})([YMDhms])")
_AGE_UNITS = {"Y": 31_536_000, "M": 2_592_000, "D": 86_400, "h": 3600, "m": 60, "s": 1}


class Owner:
    """Whose exclusive queues are: one session. Broker connections are shared, so that the broker
    itself cannot tell its sessions apart.

    gone: the session is over, and what is declared for it from now on is nobody's.
    """

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


@dataclass(frozen=True, slots=True)
class BindingSpec:
    """A binding of a queue to an exchange. arguments: what a headers exchange matches."""

    exchange: str
    key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue to declare.

    arguments: RabbitMQ's names and units: x-max-length (messages), x-max-length-bytes,
    x-message-ttl (ms), x-expires (ms), x-dead-letter-exchange, x-dead-letter-routing-key,
    x-overflow (drop-head | reject-publish | reject-publish-dlx), x-max-priority, x-queue-type
    (classic | quorum | stream); of a stream x-max-age ("7D", units Y M D h m s),
    x-stream-max-segment-size-bytes, x-stream-filter-size-bytes.
    """

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: tuple[BindingSpec, ...] = ()

    @property
    def is_lasting(self) -> bool:
        """Whether it is there again after a restart of its broker."""
        return self.durable and not self.exclusive

    @property
    def is_stream(self) -> bool:
        """Whether it keeps its messages for everybody, at offsets."""
        return self.arguments.get(QUEUE_TYPE) == "stream"


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A moment as AMQP has it. seconds: Unix time."""

    seconds: int


@dataclass(frozen=True, slots=True)
class ConsumeSpec:
    """What a consumer asks for beside its destination.

    queue: declared and bound before it is consumed, and again after a lost connection; its name
    takes the place of the destination's. None: what the destination names.
    arguments: the consumer's own: x-priority (higher is served first), x-stream-offset ("first",
    "last", "next", an offset or a Timestamp), x-stream-filter (list of texts),
    x-stream-match-unfiltered.
    owner: who may use the exclusive queues that this owner declared.
    """

    queue: QueueSpec | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    owner: Owner | None = None

    @property
    def is_stream(self) -> bool:
        """Whether it is known to read a stream, to which nothing goes back."""
        return STREAM_OFFSET in self.arguments or (self.queue is not None and self.queue.is_stream)


PLAIN = ConsumeSpec()


def read_age(queue: QueueSpec) -> float | None:
    """Return a queue's x-max-age in seconds, None without one; raises BadRequest.

    RabbitMQ 3.10 and 4.0 close the whole connection, which sessions share, over another text.
    """
    value = queue.arguments.get(MAX_AGE)
    if value is None:
        return None
    found = _AGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise BadRequest(
            f"queue {queue.name!r}: {MAX_AGE} is {str(value)[:32]!r}",
            "a number and one of Y, M, D, h, m, s",
        )
    return float(found[1]) * _AGE_UNITS[found[2]]
