"""The suite's parts, in the order in which they run and stand in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import ceiling, connections, fanout, growth, idle, ingest, latency, topics, workers
from .bench import Bench
from .figures import Curve, Row


@dataclass(frozen=True, slots=True)
class Part:
    """One part. seconds: that it may take; it is over earlier on an idle machine.

    by_transport: whether it measures each transport, so that one can be chosen.
    """

    name: str
    what: str
    measure: Callable[[Bench], Iterator[Row | Curve]]
    seconds: float
    by_transport: bool = False


PARTS = (
    Part("fanout", "deliveries/s and their cost beside the null server", fanout.measure, 110, True),
    Part(
        "ceiling", "deliveries/s until latency passes a second, beside peers", ceiling.measure, 300
    ),
    Part("latency", "publish to receipt at fixed rates", latency.measure, 180, True),
    Part("topics", "many destinations", topics.measure, 120),
    Part("connections", "connects/s, and everybody back after a restart", connections.measure, 110),
    Part("idle", "memory of idle connections", idle.measure, 80, True),
    Part("ingest", "messages/s from brokers and clients", ingest.measure, 110),
    Part("workers", "several processes beside one", workers.measure, 90),
    Part(
        "growth", "curves over subscribers, destinations, bindings and sizes", growth.measure, 220
    ),
)
