"""`python -m benchmarks [--quick] [--json FILE]`: measure, check, print one table.

Exits with 1 when a message was lost, repeated or out of order anywhere, and only then: speed
is for the reader to judge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import fanout, idle, latency, machine
from .child import BenchmarkError
from .plan import FULL, QUICK
from .table import Figures


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    try:
        figures = Figures(
            machine.describe(),
            plan.size,
            list(fanout.measure(plan, _report)),
            list(latency.measure(plan, _report)),
            list(idle.measure(plan, _report)),
        )
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(figures.table())
    if arguments.json is not None:
        arguments.json.write_text(figures.json() + "\n")
    return 0


def _report(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
