"""`python -m benchmarks [--quick] [--only NAME,…] [--json FILE] [--write]`: one table of figures.

Exits with 1 when a message was lost, repeated or out of order anywhere, and only then: speed
is for the reader to judge.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from . import fanout, idle, latency, machine, webstomp
from .child import BenchmarkError
from .plan import FULL, QUICK, WIRE_NAMES
from .table import Figures

MEASUREMENTS = ("fanout", "latency", "idle", "webstomp")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
# The page's marks around the table.
BEGIN = "<!-- figures -->"
END = "<!-- end of figures -->"


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument(
        "--only",
        type=_names,
        default=(*MEASUREMENTS, *WIRE_NAMES),
        metavar="NAME,…",
        help=f"measurements ({', '.join(MEASUREMENTS)}) or transports ({', '.join(WIRE_NAMES)})",
    )
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    wires = tuple(name for name in WIRE_NAMES if name in arguments.only)
    chosen = [name for name in MEASUREMENTS if name in arguments.only]
    # A transport alone is all of its measurements; a measurement alone is of all transports.
    if not chosen:
        chosen = ["fanout", "latency", "idle"]
    if not wires:
        wires = WIRE_NAMES
    # The cost per byte is beside plain WebSocket's.
    fanned = tuple(name for name in WIRE_NAMES if name in (*wires, "ws"))
    plan = replace(plan, wires=wires)
    try:
        figures = Figures(
            machine.describe(),
            plan.size,
            list(fanout.measure(replace(plan, wires=fanned), _report))
            if "fanout" in chosen
            else (),
            list(latency.measure(plan, _report)) if "latency" in chosen else (),
            list(idle.measure(plan, _report)) if "idle" in chosen else (),
            list(webstomp.measure(plan, _report)) if "webstomp" in chosen else (),
        )
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(figures.table())
    if arguments.json is not None:
        arguments.json.write_text(figures.json() + "\n")
    if arguments.write:
        write(PAGE, figures.table())
    return 0


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = (*MEASUREMENTS, *WIRE_NAMES)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def write(page: Path, table: str) -> None:
    """Put a table between the page's marks, in the last one's place."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page} has not the marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", "utf-8")


def _report(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
