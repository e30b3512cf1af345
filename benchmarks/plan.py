"""What is measured: how many subscribers, how long, how often."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Literal

WIRE_NAMES = ("ws", "sse", "stomp", "sockjs")
# The ceiling's publisher: to RabbitMQ, to Kafka, or POSTs to the server itself.
Behind = Literal["amqp", "kafka", "http"]
# Descriptors of a process that are not its connections.
_OWN = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """Bounds of one benchmark; times in seconds, sizes in bytes.

    wires: the transports. subscribers: of fan-out, latency and ceiling. batches: messages of a
    tick, by the sizes that they are sent in. seconds, rounds: of each run of a server. rates,
    paced: messages/s of the latency, and how long. ceiling: what is behind, over which transport,
    with which size. step: of each rate of the ceiling, most: how many, limit: the p99 latency
    above which a rate has not held. destinations: of the many topics with one subscriber;
    bindings: of the growth; tens: topics with ten. crowded: connections of 100 subscriptions.
    connects: that are opened for connects/s. back: clients of the restart, and of idle memory.
    growth: numbers of subscribers, sizes: of messages. backlog: messages of the ingest,
    publishers: of the publishes/s. workers: how many, worker_wires: over which transports.
    """

    wires: tuple[str, ...] = WIRE_NAMES
    size: int = 100
    subscribers: int = 1000
    batches: tuple[tuple[int, int], ...] = ((1, 100), (10, 100), (100, 100), (10, 1000))
    seconds: float = 0.3
    rounds: int = 3
    rates: tuple[float, ...] = (10.0, 100.0, 1000.0)
    paced: float = 1.2
    step: float = 1.2
    most: int = 7
    limit: float = 1.0
    ceiling: tuple[tuple[Behind, str, int], ...] = (
        *(("amqp", wire, 100) for wire in WIRE_NAMES),
        *(("amqp", wire, 1000) for wire in ("ws", "stomp")),
        *(("kafka", wire, 100) for wire in ("ws", "sse")),
        ("kafka", "ws", 1000),
        *(("http", wire, 100) for wire in ("ws", "sse")),
    )
    destinations: tuple[int, ...] = (1, 10, 100, 1000, 10_000)
    many: int = 10_000
    tens: int = 1000
    crowded: int = 100
    bindings: tuple[int, ...] = (1, 100, 1000, 10_000)
    connects: int = 2000
    back: int = 10_000
    growth: tuple[int, ...] = (10, 100, 1000, 5000, 15_000)
    sizes: tuple[int, ...] = (16, 100, 1000, 10_000, 100_000, 1_000_000)
    backlog: int = 50_000
    publishers: int = 50
    workers: tuple[int, ...] = (1, 2)
    worker_wires: tuple[str, ...] = ("ws",)
    patience: float = 1.0

    def allowed(self, connections: int) -> int:
        """Return as many of the connections as the limit on open files allows."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return connections if hard == resource.RLIM_INFINITY else min(connections, hard - _OWN)


NORMAL = Plan()
# All sizes, in as long as that takes.
LONG = Plan(
    seconds=1.0,
    rounds=5,
    paced=3.0,
    step=4.0,
    most=10,
    ceiling=tuple(
        (behind, wire, size)
        for behind in ("amqp", "kafka", "http")
        for size in (100, 1000)
        for wire in WIRE_NAMES
    ),
    destinations=(1, 10, 100, 1000, 10_000, 100_000),
    bindings=(1, 10, 100, 1000, 10_000, 100_000),
    connects=10_000,
    growth=(10, 30, 100, 300, 1000, 3000, 10_000, 15_000),
    backlog=200_000,
    workers=(1, 2, 4),
    worker_wires=("ws", "sse", "stomp"),
    patience=8.0,
)
# A smoke test: everything once, nothing long enough to mean much.
QUICK = Plan(
    subscribers=20,
    batches=((1, 100), (10, 1000)),
    seconds=0.05,
    rounds=1,
    rates=(10.0, 100.0),
    paced=0.2,
    ceiling=(
        *(("amqp", wire, 100) for wire in WIRE_NAMES),
        ("amqp", "ws", 1000),
        ("kafka", "ws", 100),
        ("http", "ws", 100),
    ),
    step=0.3,
    most=2,
    limit=60.0,
    destinations=(1, 20),
    many=30,
    tens=5,
    crowded=2,
    bindings=(1, 100),
    connects=40,
    back=100,
    growth=(5, 20),
    sizes=(16, 100_000),
    backlog=2000,
    publishers=4,
)
