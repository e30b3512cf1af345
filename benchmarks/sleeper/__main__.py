"""`python -m benchmarks.sleeper [--seconds 60]`: what clients that sleep cost.

Clients sleep on a destination without a rule and on one whose rule soon lets go of what is old,
both in memory; then on one that keeps everything, on disk. Prints two tables for each; exits with
1 when a client missed a message in silence, or the gateway's memory grew more than its settings
allow.
"""

from __future__ import annotations

import argparse
import sys

from .. import machine
from ..child import BenchmarkError
from .run import Figures, Plan, measure, websockets

# What sleeps together: writing everything to a disk is a load of its own.
RUNS = (
    (("unretained", websockets), ("outgrown", websockets)),
    (("retained", websockets),),
)


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sleeper", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of sleep, and of each phase")
    parser.add_argument("--rate", type=float, default=10_000.0, help="messages a second")
    parser.add_argument("--size", type=int, default=200, help="bytes of a message")
    parser.add_argument("--others", type=int, default=30, help="clients that read all the time")
    asked = parser.parse_args()
    print(machine.describe())
    print(f"{asked.rate:,.0f} messages/s of {asked.size} bytes to {asked.others} clients")
    return max(
        run(Plan(asked.seconds, asked.rate, asked.size, asked.others, each)) for each in RUNS
    )


def run(plan: Plan) -> int:
    """Carry out one plan and print its tables; returns the exit status."""
    print(f"\n{' and '.join(name for name, _ in plan.sleepers)}:", flush=True)
    try:
        figures = measure(plan, lambda what: print(f"  {what} …", file=sys.stderr))
    except (BenchmarkError, ValueError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(table(figures), flush=True)
    if figures.cost > figures.allowed:
        print("failed: the sleepers cost more memory than the settings allow", file=sys.stderr)
        return 1
    return 0


def table(figures: Figures) -> str:
    """Return both tables."""
    lines = [
        "",
        "| | messages/s | p50 | p99 | max | gateway's CPU for a message | its memory, at most |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.name} | {each.rate:,.0f} | {each.p50 * 1000:.1f} ms | {each.p99 * 1000:.1f} ms "
        f"| {each.max * 1000:.1f} ms | {each.cpu * 1e6:.0f} µs | {each.rss / 2**20:.1f} MB |"
        for each in figures.phases
    ]
    lines += [
        "",
        f"The sleepers cost {figures.cost / 2**20:.1f} MB at most, of "
        f"{figures.allowed / 2**20:.0f} MB that the settings allow; "
        f"they slept through {figures.backlog / 2**20:.0f} MB each.",
        "",
        "| slept on | behind when woken | had all after | gaps | messages that they told of |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.feed} | {each.behind:,} | {each.awake:.1f} s | {', '.join(each.gaps) or 'none'} "
        f"| {each.told:,} |"
        for each in figures.slept
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
