"""Fan-out: one destination, as many deliveries a second as the slowest subscriber takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .plan import WIRE_NAMES, Plan
from .rig import SERVERS, Rig, Run


@dataclass(frozen=True, slots=True)
class FanOut:
    """One row: medians over the rounds.

    null, gateway: deliveries/s. ratio: the median of each round's gateway by null. null_cpu,
    gateway_cpu: seconds of the server's CPU per delivery. per_write: messages in a write of the
    gateway. receiver: share of a CPU that the null server's receiver took.
    """

    wire: str
    subscribers: int
    batch: int
    null: float
    gateway: float
    ratio: float
    null_cpu: float
    gateway_cpu: float
    per_write: float
    receiver: float


def measure(plan: Plan, report: Callable[[str], None]) -> Iterator[FanOut]:
    """Measure the matrix; raises BenchmarkError unless everything arrived in order."""
    for wire in WIRE_NAMES:
        with Rig(SERVERS[0]) as null, Rig(SERVERS[1]) as gateway:
            for subscribers in plan.subscribers:
                for rig in (null, gateway):
                    rig.open(wire, subscribers)
                for batch in plan.batches:
                    report(f"{wire}, {subscribers} subscribers, {batch} per tick")
                    # In turns: what else the machine does befalls both.
                    rounds = [
                        (
                            null.fan_out(plan.seconds, batch, plan.size),
                            gateway.fan_out(plan.seconds, batch, plan.size),
                        )
                        for _ in range(plan.rounds)
                    ]
                    yield _row(wire, subscribers, batch, rounds)
                for rig in (null, gateway):
                    rig.close()


def _row(wire: str, subscribers: int, batch: int, rounds: list[tuple[Run, Run]]) -> FanOut:
    median = statistics.median
    return FanOut(
        wire,
        subscribers,
        batch,
        null=median(null.rate for null, _ in rounds),
        gateway=median(gateway.rate for _, gateway in rounds),
        ratio=median(gateway.rate / null.rate for null, gateway in rounds),
        null_cpu=median(null.cpu for null, _ in rounds),
        gateway_cpu=median(gateway.cpu for _, gateway in rounds),
        per_write=median(gateway.per_write for _, gateway in rounds),
        receiver=median(null.receiver for null, _ in rounds),
    )
