"""`python -m benchmarks`: one table of figures and one picture of how they grow.

Exits with 1 when a message was lost, repeated or out of order anywhere, or when a part did not
end in its time, and only then: speed is for the reader to judge.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from . import machine, picture
from .bench import Bench, OutOfTime
from .child import BenchmarkError
from .figures import Curve, Figures, Row
from .parts import PARTS, Part
from .plan import LONG, NORMAL, QUICK, WIRE_NAMES
from .table import table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PICTURE = PAGE.parent / "images" / "benchmarks.svg"
# The page's marks around the table.
BEGIN = "<!-- figures -->"
END = "<!-- end of figures -->"


def main() -> int:
    """Run the benchmark; returns the exit status."""
    arguments = _parser().parse_args()
    plan = QUICK if arguments.quick else LONG if arguments.long else NORMAL
    wires = tuple(name for name in WIRE_NAMES if name in arguments.only)
    chosen = [part for part in PARTS if part.name in arguments.only]
    # A transport alone is all of its measurements; a measurement alone is of all transports.
    plan = replace(plan, wires=wires or WIRE_NAMES)
    chosen = chosen or [part for part in PARTS if part.by_transport]
    figures = Figures(machine.describe())
    failures = []
    with Bench(plan) as bench:
        for part in chosen:
            try:
                _run(part, bench, figures, arguments.patience or plan.patience)
            except Exception as error:  # noqa: BLE001 - a server's fault ends its part alone
                ours = isinstance(error, BenchmarkError | OutOfTime)
                kind = "" if ours else f"{type(error).__name__}: "
                failures.append(f"{part.name}: {kind}{error}")
                bench.report(f"failed: {failures[-1]}")
        figures.missing = bench.missing
        figures.failed = failures
        figures.seconds = bench.seconds
    print(table(figures))
    if arguments.json is not None:
        arguments.json.write_text(figures.json() + "\n")
    svg = picture.draw(figures.curves) if figures.curves else ""
    if svg and arguments.picture is not None:
        arguments.picture.write_text(svg, "utf-8")
    for failure in failures:
        print(f"benchmark failed: {failure}", file=sys.stderr)
    if arguments.write:
        text = table(figures)
        if svg:
            PICTURE.write_text(svg, "utf-8")
            text += f"\n\n![How the figures grow](images/{PICTURE.name})"
        write(PAGE, text)
    return 1 if failures else 0


def _run(part: Part, bench: Bench, figures: Figures, patience: float) -> None:
    """Add what a part finds; what it found before it failed stays."""
    bench.report(f"{part.name}: {part.what}")
    with bench.within(part.seconds * patience, part.name):
        for found in part.measure(bench):
            match found:
                case Row():
                    figures.rows.append(found)
                case Curve():
                    figures.curves.append(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    how_long.add_argument(
        "--long", action="store_true", help="longer runs, more points, 100,000 destinations"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the picture there")
    parser.add_argument(
        "--write", action="store_true", help=f"put the table into {PAGE}, the picture beside it"
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="TIMES",
        help="multiply what each part may take, on a machine with other things to do",
    )
    known = [*(part.name for part in PARTS), *WIRE_NAMES]
    parts = "; ".join(f"{part.name}: {part.what}" for part in PARTS)
    parser.add_argument(
        "--only",
        type=_names,
        default=known,
        metavar="NAME,…",
        help=f"parts ({parts}) or transports ({', '.join(WIRE_NAMES)})",
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = (*(part.name for part in PARTS), *WIRE_NAMES)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def write(page: Path, text: str) -> None:
    """Put a table between the page's marks, in the last one's place."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page} has not the marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
