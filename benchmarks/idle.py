"""Idle connections: what each costs in resident memory, the kernel's own part not counted."""

from __future__ import annotations

from collections.abc import Iterator

from .bench import Bench
from .figures import Row
from .rig import SERVERS, Rig
from .wire import WIRES

# Opened and closed first, so that what the first clients cost once is not counted.
_WARM_UP = 100
# KB of a connection that may be; STOMP's has one subscription.
_GOALS = {"ws": 3.0, "sse": 3.0, "stomp": 6.0}


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every transport, each on a fresh server."""
    count = bench.plan.allowed(bench.plan.back)
    for wire in bench.plan.wires:
        bench.report(f"{count:,} idle connections, {WIRES[wire].title}")
        null, gateway = (per_connection(server, wire, count) / 1000 for server in SERVERS)
        yield Row(
            "idle",
            f"{count:,} idle connections",
            WIRES[wire].title,
            "KB/connection",
            "null server",
            null,
            gateway,
            cost=True,
            bound=_GOALS.get(wire),
        )


def per_connection(server: str, wire: str, count: int) -> float:
    """Return the bytes that each of `count` connections adds to a server."""
    with Rig(server) as rig:
        rig.open(wire, min(_WARM_UP, count))
        rig.close()
        before = rig.rss()
        rig.open(wire, count)
        return (rig.rss() - before) / count
