"""`python -m benchmarks.sleeper [--seconds 60]`: what clients that sleep cost.

Three clients sleep: on a destination that keeps everything, on one whose rule soon lets go of what
is old, on one without a rule. Prints two tables; exits with 1 when a client missed a message in
silence, or the gateway's memory grew more than its settings allow.
"""

from __future__ import annotations

import argparse
import sys

from .. import machine
from ..child import BenchmarkError
from .run import Figures, Plan, measure


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sleeper", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of sleep, and of each phase")
    parser.add_argument("--rate", type=float, default=10_000.0, help="messages a second")
    parser.add_argument("--size", type=int, default=200, help="bytes of a message")
    parser.add_argument("--others", type=int, default=30, help="clients that read all the time")
    asked = parser.parse_args()
    plan = Plan(asked.seconds, asked.rate, asked.size, asked.others)
    print(machine.describe())
    print(f"{plan.rate:,.0f} messages/s of {plan.size} bytes to {plan.others} clients", flush=True)
    try:
        figures = measure(plan, lambda what: print(f"  {what} …", file=sys.stderr))
    except (BenchmarkError, ValueError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(table(figures))
    if figures.cost > figures.allowed:
        print("failed: the sleepers cost more memory than the settings allow", file=sys.stderr)
        return 1
    return 0


def table(figures: Figures) -> str:
    """Return both tables."""
    lines = [
        "",
        "| | messages/s | p50 | p99 | max | gateway's memory, at most |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.name} | {each.rate:,.0f} | {each.p50 * 1000:.1f} ms | {each.p99 * 1000:.1f} ms "
        f"| {each.max * 1000:.1f} ms | {each.rss / 2**20:.1f} MB |"
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
