"""Latency: from publish to receipt at a modest fixed rate, the receiver's own turn included.

The last of a thousand subscribers waits for 999 others to be written and read. That is the same
for both servers; what the gateway adds is the difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import rig
from .plan import Plan


@dataclass(frozen=True, slots=True)
class LatencyPair:
    """One row. rate: messages/s."""

    wire: str
    subscribers: int
    rate: float
    null: rig.Latency
    gateway: rig.Latency


def measure(plan: Plan, report: Callable[[str], None]) -> Iterator[LatencyPair]:
    """Measure every transport; raises BenchmarkError unless everything arrived in order."""
    with rig.Rig(rig.SERVERS[0]) as null, rig.Rig(rig.SERVERS[1]) as gateway:
        for wire in plan.wires:
            report(f"{wire}, latency at {plan.rate:g} messages/s")
            null.open(wire, plan.audience)
            gateway.open(wire, plan.audience)
            # In turns, as the fan-out; the medians of the rounds.
            rounds = [
                (
                    null.latency(plan.rate, plan.paced, plan.size),
                    gateway.latency(plan.rate, plan.paced, plan.size),
                )
                for _ in range(plan.rounds)
            ]
            null.close()
            gateway.close()
            yield LatencyPair(
                wire,
                plan.audience,
                plan.rate,
                _median([each for each, _ in rounds]),
                _median([each for _, each in rounds]),
            )


def _median(runs: list[rig.Latency]) -> rig.Latency:
    return rig.Latency(
        statistics.median(run.p50 for run in runs),
        statistics.median(run.p99 for run in runs),
        statistics.median(run.max for run in runs),
    )
