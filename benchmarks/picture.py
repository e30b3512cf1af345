"""The picture: curves as small plots in one SVG, readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import cycle

from .figures import Curve, Point

_COLUMNS = 3
# Of a plot with its margins, and of what is inside them; pixels.
_WIDTH, _HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 62
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

# An SVG in an <img> follows the page's own scheme by the media query alone.
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #333 }
.title { font-size: 13px; font-weight: 600 }
.page { fill: #fff } .frame { fill: none; stroke: #bbb } .grid { stroke: #eee }
polyline { fill: none; stroke-width: 2 }
.s0 { stroke: #0b6bcb; fill: #0b6bcb } .s1 { stroke: #888; fill: #888 }
.s2 { stroke: #c4600a; fill: #c4600a } .s3 { stroke: #2a8540; fill: #2a8540 }
polyline.s0, polyline.s1, polyline.s2, polyline.s3 { fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #ddd } .page { fill: #0d1117 } .frame { stroke: #555 } .grid { stroke: #222 }
.s0 { stroke: #58a6ff; fill: #58a6ff } .s1 { stroke: #999; fill: #999 }
.s2 { stroke: #f0883e; fill: #f0883e } .s3 { stroke: #56d364; fill: #56d364 }
}"""
_OF_NULL, _OTHERS = "s1", ("s0", "s2", "s3")


def draw(curves: Sequence[Curve]) -> str:
    """Return the SVG of all curves; ValueError when there is none, or a point is not positive."""
    if not curves:
        raise ValueError("there is nothing to draw")
    columns = min(_COLUMNS, len(curves))
    width, height = columns * _WIDTH, -(-len(curves) // columns) * _HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<title>How the gateway's figures grow</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for place, curve in enumerate(curves):
        left, top = place % columns * _WIDTH, place // columns * _HEIGHT
        lines += [f'<g transform="translate({left} {top})">', *_plot(curve), "</g>"]
    return "\n".join((*lines, "</svg>", ""))


class Scale:
    """A logarithmic axis from a lowest to a highest value, both on it, `length` pixels long."""

    def __init__(self, values: Sequence[float], length: float) -> None:
        if not values or min(values) <= 0:
            raise ValueError(f"a logarithmic axis has positive values only: {values}")
        low, high = math.log10(min(values)), math.log10(max(values))
        # Never less than a decade: else noise would look like growth.
        missing = max(0.0, 1.0 - (high - low)) / 2
        self._low, self._high = low - missing, high + missing
        self._length = length

    def place(self, value: float) -> float:
        """Return the pixels from the low end."""
        return (math.log10(value) - self._low) / (self._high - self._low) * self._length

    def ticks(self) -> Iterator[float]:
        """Yield powers of ten within, at most about six; on a short axis 2 and 5 times them too."""
        first, last = math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9)
        if last - first < 2:
            values = [10.0**power * n for power in range(first - 1, last + 1) for n in (1, 2, 5)]
            yield from (each for each in values if self._low <= math.log10(each) <= self._high)
            return
        step = max(1, math.ceil((last - first) / 5))
        for power in range(first, last + 1, step):
            yield 10.0**power


def _plot(curve: Curve) -> Iterator[str]:
    points = [point for series in curve.series.values() for point in series]
    across = Scale([x for x, _ in points], _INNER_WIDTH)
    up = Scale([y for _, y in points], _INNER_HEIGHT)
    bottom = _TOP + _INNER_HEIGHT
    yield f'<text class="title" x="{_LEFT}" y="16">{escape(curve.title)}</text>'
    yield f'<text x="{_LEFT}" y="29">{escape(curve.y)}</text>'
    for tick in up.ticks():
        y = bottom - up.place(tick)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}h{_INNER_WIDTH}"/>'
        yield f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>'
    for tick in across.ticks():
        x = _LEFT + across.place(tick)
        yield f'<path class="grid" d="M{x:.1f} {_TOP}v{_INNER_HEIGHT}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{short(tick)}</text>'
    yield (
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" '
        f'width="{_INNER_WIDTH}" height="{_INNER_HEIGHT}"/>'
    )
    yield (
        f'<text x="{_LEFT + _INNER_WIDTH}" y="{bottom + 29}" text-anchor="end">'
        f"{escape(curve.x)}</text>"
    )
    legend = float(_LEFT)
    others = cycle(_OTHERS)
    for name, series in curve.series.items():
        # The null server has the same colour in every plot.
        colour = _OF_NULL if name.startswith("null server") else next(others)
        yield from _line(series, across, up, bottom, colour)
        yield f'<rect class="{colour}" x="{legend}" y="{bottom + 38}" width="10" height="10"/>'
        yield f'<text x="{legend + 14}" y="{bottom + 47}">{escape(name)}</text>'
        legend += 26 + 6.2 * len(name)


def _line(
    series: Sequence[Point], across: Scale, up: Scale, bottom: float, colour: str
) -> Iterator[str]:
    places = [(_LEFT + across.place(x), bottom - up.place(y)) for x, y in series]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="{colour}" points="{path}"/>'
    for x, y in places:
        yield f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def short(value: float) -> str:
    """Return a power of ten in few characters: 10k, 1M, 0.1."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"
