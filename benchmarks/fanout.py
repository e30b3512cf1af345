"""Fan-out: one destination, as many deliveries a second as the slowest subscriber takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from .plan import Plan
from .rig import SERVERS, Rig, Run


@dataclass(frozen=True, slots=True)
class FanOut:
    """One row: medians over the rounds.

    null, gateway: deliveries/s. ratio: the median of each round's gateway by null. null_cpu,
    gateway_cpu: seconds of the server's CPU per delivery. per_write: messages in a write of the
    gateway. receiver: share of a CPU that the null server's receiver took. bytes: of a delivery.
    per_byte: the gateway's CPU per delivered byte by that of plain WebSocket in the same round.
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
    bytes: float
    per_byte: float | None


def measure(plan: Plan, report: Callable[[str], None]) -> Iterator[FanOut]:
    """Measure the matrix; raises BenchmarkError unless everything arrived in order."""
    with ExitStack() as stack:
        pairs = {
            wire: tuple(stack.enter_context(Rig(server)) for server in SERVERS)
            for wire in plan.wires
        }
        for subscribers in plan.subscribers:
            for wire, pair in pairs.items():
                for rig in pair:
                    rig.open(wire, subscribers)
            for batch in plan.batches:
                report(f"fan-out, {subscribers} subscribers, {batch} per tick")
                rounds: dict[str, list[tuple[Run, Run]]] = {wire: [] for wire in pairs}
                # All in turns: what else the machine does befalls everyone.
                for _ in range(plan.rounds):
                    for wire, (null, gateway) in pairs.items():
                        made = [
                            rig.fan_out(plan.seconds, batch, plan.size) for rig in (null, gateway)
                        ]
                        rounds[wire].append((made[0], made[1]))
                plain = rounds.get("ws")
                for wire in pairs:
                    yield _row(wire, subscribers, batch, rounds[wire], plain)
            for pair in pairs.values():
                for rig in pair:
                    rig.close()


def _row(
    wire: str,
    subscribers: int,
    batch: int,
    rounds: list[tuple[Run, Run]],
    plain: list[tuple[Run, Run]] | None,
) -> FanOut:
    median = statistics.median
    per_byte = None
    # A run too short for the clock has no cost to compare.
    if plain is not None and all(gateway.cpu for _, gateway in plain):
        per_byte = median(
            (mine.cpu / mine.bytes) / (other.cpu / other.bytes)
            for (_, mine), (_, other) in zip(rounds, plain, strict=True)
        )
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
        bytes=median(gateway.bytes for _, gateway in rounds),
        per_byte=per_byte,
    )
