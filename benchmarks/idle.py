"""Idle connections: what each costs in resident memory, the kernel's own part not counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .plan import Plan
from .rig import SERVERS, Rig

# Opened and closed first, so that what the first clients cost once is not counted.
_WARM_UP = 100


@dataclass(frozen=True, slots=True)
class Idle:
    """One row: bytes per connection."""

    wire: str
    connections: int
    null: float
    gateway: float


def measure(plan: Plan, report: Callable[[str], None]) -> Iterator[Idle]:
    """Measure every transport, each on a fresh server."""
    count = plan.idle_allowed
    for wire in plan.wires:
        report(f"{wire}, {count} idle connections")
        yield Idle(wire, count, *(_bytes(server, wire, count) for server in SERVERS))


def _bytes(server: str, wire: str, count: int) -> float:
    with Rig(server) as rig:
        rig.open(wire, _WARM_UP)
        rig.close()
        before = rig.rss()
        rig.open(wire, count)
        return (rig.rss() - before) / count
