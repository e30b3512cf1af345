"""What a benchmark finds: rows for the table, curves for the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the gateway beside one of somebody else's, from the same run.

    unit: of both. cost: less of it is better. goal: the ratio asked for, bound: the gateway's own
    figure asked for; None where there is none. theirs: None when the figure stands alone.
    """

    part: str
    what: str
    transport: str
    unit: str
    beside: str
    theirs: float | None
    ours: float
    cost: bool = False
    goal: float | None = None
    bound: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as good the gateway is: of costs it is theirs by ours."""
        if not self.theirs or not self.ours:
            return None
        return self.theirs / self.ours if self.cost else self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        """Whether it reaches what is asked for, None where nothing is."""
        if self.bound is not None:
            return self.ours <= self.bound if self.cost else self.ours >= self.bound
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio >= self.goal


@dataclass(frozen=True, slots=True)
class Curve:
    """How a figure grows. x, y: what the axes are, with their units; both are logarithmic.

    series: points in order of x, by the name of whose they are.
    """

    part: str
    title: str
    x: str
    y: str
    series: dict[str, list[Point]]


@dataclass(slots=True)
class Figures:
    """Everything that one run found. missing: who was not there, and how to add it. failed: parts
    that ended before their end, and why. seconds: that it took.
    """

    machine: str
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def json(self) -> str:
        """Return them as JSON."""
        made: dict[str, Any] = asdict(self)
        for row, as_json in zip(self.rows, made["rows"], strict=True):
            as_json["ratio"], as_json["met"] = row.ratio, row.met
        return json.dumps(made, indent=2)

    def by_part(self, parts: Sequence[str]) -> list[Row]:
        """Return the rows in the order of the parts."""
        return sorted(self.rows, key=lambda row: parts.index(row.part))
