"""What is measured: how many subscribers, how long, how often."""

from __future__ import annotations

import resource
from dataclasses import dataclass

WIRE_NAMES = ("ws", "sse", "stomp", "sockjs")
# Descriptors of a process that are not its connections.
_OWN = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """Bounds of one benchmark.

    wires: the transports. subscribers, batches (messages per tick): the fan-out's matrix, with
    each server `rounds` times `seconds` long. size: bytes of a body. idle: connections of the
    memory measurement. rate (messages/s), paced (messages in a round), audience (subscribers): of
    the latency measurement. crowd: subscribers of the comparison with RabbitMQ's plugin, step:
    seconds at each of its rates, most: steps for each side, limit: the p99 latency in
    seconds above which a rate has not held.
    """

    wires: tuple[str, ...] = WIRE_NAMES
    subscribers: tuple[int, ...] = (100, 1000)
    batches: tuple[int, ...] = (1, 10, 100)
    size: int = 100
    seconds: float = 0.3
    rounds: int = 3
    idle: int = 10_000
    rate: float = 100.0
    paced: int = 100
    audience: int = 1000
    crowd: int = 1000
    step: float = 2.5
    most: int = 9
    limit: float = 1.0

    @property
    def idle_allowed(self) -> int:
        """The idle connections that the limit on open files allows."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return self.idle if hard == resource.RLIM_INFINITY else min(self.idle, hard - _OWN)


FULL = Plan()
# A smoke test: everything once, nothing long enough to mean much.
QUICK = Plan(
    subscribers=(20,),
    batches=(1, 10),
    seconds=0.05,
    rounds=1,
    idle=200,
    paced=10,
    audience=20,
    crowd=10,
    step=0.3,
    most=2,
    limit=60.0,
)
