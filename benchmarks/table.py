"""The table: rows as markdown, under a line about the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .figures import Curve, Figures, Row

_HEAD = (
    "measurement",
    "transport",
    "unit",
    "beside",
    "its figure",
    "gateway",
    "ratio",
    "goal",
    "met",
)
# The columns of text; those of numbers stand to the right.
_TEXT = 4


def table(figures: Figures) -> str:
    """Return all rows, the last point of each curve, and who was missing."""
    rows = [_cells(row) for row in figures.rows]
    rows += [cells for curve in figures.curves for cells in _curve(curve)]
    lines = [figures.machine, ""]
    if figures.seconds:
        lines[0] += f"; the run took {figures.seconds / 60:.1f} minutes"
    lines += [*_goals(figures.rows), *_lines([_HEAD, *rows])]
    if figures.failed:
        lines += ["", "**Failed**, so that what follows there is missing:", ""]
        lines += [f"- {' '.join(text.split())}" for text in figures.failed]
    if figures.missing:
        lines += ["", "Not on this machine, hence not in the table:", ""]
        lines += [f"- {text}" for text in figures.missing]
    return "\n".join(lines)


def _goals(rows: Sequence[Row]) -> Iterable[str]:
    """Yield how many goals were reached, in front of the figures themselves."""
    asked = [row for row in rows if row.met is not None]
    if asked:
        reached = sum(1 for row in asked if row.met)
        yield f"{reached} of {len(asked)} goals were met; the last column says which."
        yield ""


def _cells(row: Row) -> Sequence[str]:
    return (
        f"**{row.part}** {row.what}",
        row.transport,
        row.unit,
        row.beside,
        "" if row.theirs is None else number(row.theirs),
        number(row.ours),
        "" if row.ratio is None else times(row.ratio),
        _goal(row),
        {None: "", True: "yes", False: "**no**"}[row.met],
    )


def _goal(row: Row) -> str:
    if row.bound is not None:
        return f"{'≤' if row.cost else '≥'} {number(row.bound)}"
    return "" if row.goal is None else f"≥ {times(row.goal)}"


def _curve(curve: Curve) -> Iterable[Sequence[str]]:
    """Yield a row for each end of each of the gateway's lines, so that growth is in the table."""
    for name, points in curve.series.items():
        which = name.removeprefix("gateway")
        if which == name:
            continue
        beside = f"null server{which}"
        for end in (0, -1) if len(points) > 1 else (0,):
            x, ours = points[end]
            theirs = curve.series[beside][end][1] if beside in curve.series else None
            yield (
                f"**{curve.part}** {curve.title}, {curve.x} {number(x)}{which and ':'}{which}",
                "",
                curve.y,
                "" if theirs is None else "null server",
                "" if theirs is None else number(theirs),
                number(ours),
                *("", "", ""),
            )


def number(value: float) -> str:
    """Return a number with about three digits."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def times(ratio: float) -> str:
    """Return a ratio: in per cent up to two, as a factor above."""
    return f"{ratio:.0%}" if ratio < 2 else f"{number(ratio)} ×"


def _lines(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for place, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column < _TEXT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if place == 0:
            rules = [
                "-" * width if column < _TEXT else "-" * (width - 1) + ":"
                for column, width in enumerate(widths)
            ]
            yield f"| {' | '.join(rules)} |"
