"""Fan-out: one destination, as many deliveries a second as the slowest subscriber takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from .bench import Bench
from .figures import Row
from .rig import SERVERS, Rig, Run
from .wire import WIRES

# Of the null server's deliveries/s, and of plain WebSocket's CPU for each byte.
_GOAL = 0.7
_GOAL_PER_BYTE = 1 / 1.5
# Over SockJS nothing is asked for.
_GOALS = frozenset(("ws", "sse", "stomp"))


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the matrix: batch messages of a size in each tick."""

    wire: str
    batch: int
    size: int


def measure(bench: Bench) -> Iterator[Row]:
    """Measure the matrix; raises BenchmarkError unless everything arrived in order."""
    plan = bench.plan
    # The cost of a byte is beside plain WebSocket's.
    wires = tuple(wire for wire in WIRES if wire in (*plan.wires, "ws"))
    with ExitStack() as stack:
        pairs = {wire: [stack.enter_context(Rig(server)) for server in SERVERS] for wire in wires}
        for wire, pair in pairs.items():
            for rig in pair:
                rig.open(wire, plan.subscribers)
        for batch, size in plan.batches:
            bench.report(f"fan-out, {plan.subscribers:,} subscribers, {batch} × {size} B per tick")
            rounds: dict[str, list[tuple[Run, Run]]] = {wire: [] for wire in pairs}
            # All in turns: what else the machine does befalls everyone.
            for _ in range(plan.rounds):
                for wire, pair in pairs.items():
                    null, gateway = (rig.fan_out(plan.seconds, batch, size) for rig in pair)
                    rounds[wire].append((null, gateway))
            for wire in pairs:
                yield from _rows(
                    Case(wire, batch, size), plan.subscribers, rounds[wire], rounds["ws"]
                )


def _rows(
    case: Case,
    subscribers: int,
    rounds: list[tuple[Run, Run]],
    plain: list[tuple[Run, Run]],
) -> Iterator[Row]:
    """Yield the medians of the rounds; a ratio is of rates, so a null round beside its own."""
    what = f"{subscribers:,} subscribers, {case.batch} × {case.size} B per tick"
    title = WIRES[case.wire].title
    # By the median of each round's ratio: a round in which the machine did something else is out.
    gateway = median(made.rate for _, made in rounds)
    ratio = median(made.rate / null.rate for null, made in rounds)
    yield Row(
        "fanout", what, title, "deliveries/s", "null server", gateway / ratio, gateway,
        goal=_GOAL if case.wire in _GOALS and case.batch > 1 else None,
    )  # fmt: skip
    yield Row(
        "fanout",
        what,
        title,
        "CPU µs/delivery",
        "null server",
        median(null.cpu for null, _ in rounds) * 1e6,
        median(made.cpu for _, made in rounds) * 1e6,
        cost=True,
    )
    # A run too short for the clock has no cost to compare.
    if case.wire != "ws" and all(made.cpu for _, made in plain):
        ours = [made.cpu / made.bytes for _, made in rounds]
        theirs = [made.cpu / made.bytes for _, made in plain]
        yield Row(
            "fanout", what, title, "CPU ns/delivered byte", "the same over WebSocket",
            median(theirs) * 1e9, median(ours) * 1e9, cost=True,
            goal=_GOAL_PER_BYTE if case.wire == "stomp" else None,
        )  # fmt: skip
