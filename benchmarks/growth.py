"""Growth: what a delivery costs as there are more of everything, as curves.

The messages for each connection in a tick stay the same, so a flat curve is a cost that does not
depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from . import topics
from .bench import Bench
from .crowd import Crowd
from .figures import Curve, Point, Row
from .idle import per_connection
from .rig import SERVERS, Rig, Run

_NAMES = ("gateway", "null server")
_BATCH = 10
# Messages/s of the latency.
_RATE = 100.0
# Connections that more destinations than those are spread over, by their subscriptions.
_SUBSCRIPTIONS = 100
# Connections from which memory is measured.
_MEASURABLE = 1000
# Of the curve of sizes.
_SIZED = 100
# Bytes of a tick, so that every size is as long under way.
_TICK = 10_000
# A cost may grow by so much between the ends of its range.
_FLAT = 1 / 1.3


def measure(bench: Bench) -> Iterator[Row | Curve]:
    """Measure each curve; raises BenchmarkError unless everything arrived in order."""
    yield from _subscribers(bench)
    yield from _destinations(bench)
    yield _bindings(bench)
    yield from _sizes(bench)


def _subscribers(bench: Bench) -> Iterator[Row | Curve]:
    plan = bench.plan
    rates: dict[str, list[Point]] = {name: [] for name in _NAMES}
    costs: dict[str, list[Point]] = {name: [] for name in _NAMES}
    p50: dict[str, list[Point]] = {name: [] for name in _NAMES}
    p99: dict[str, list[Point]] = {name: [] for name in _NAMES}
    memory: list[Point] = []
    counts = sorted({plan.allowed(count) for count in plan.growth})
    with Rig(SERVERS[1]) as ours, Rig(SERVERS[0]) as null:
        for count in counts:
            bench.report(f"growth: {count:,} subscribers")
            pair = dict(zip(_NAMES, (ours, null), strict=True))
            for rig in pair.values():
                rig.open("ws", count)
            runs: dict[str, list[Run]] = {name: [] for name in _NAMES}
            for _ in range(plan.rounds):
                for name, rig in pair.items():
                    runs[name].append(rig.fan_out(plan.seconds, _BATCH, plan.size))
            for name, rig in pair.items():
                rates[name].append((count, median(run.rate for run in runs[name])))
                costs[name].append((count, max(1e-3, _microseconds(runs[name]))))
                found = rig.latency(_RATE, max(10, int(_RATE * plan.paced)), plan.size)
                p50[name].append((count, found.p50 * 1e3))
                p99[name].append((count, found.p99 * 1e3))
                rig.close()
    # Fewer fit into what a server has anyway, and would be noise.
    for count in [each for each in counts if each >= _MEASURABLE] or counts[-1:]:
        bytes_each = per_connection(SERVERS[1], "ws", count)
        memory.append((count, max(1.0, bytes_each) / 1e3))
    x = "WebSocket subscribers"
    yield Curve("growth", "Fan-out by subscribers", x, "deliveries/s", rates)
    yield Curve("growth", "Cost by subscribers", x, "CPU µs/delivery", costs)
    latency = {
        "gateway p50": p50["gateway"],
        "gateway p99": p99["gateway"],
        "null server p99": p99["null server"],
    }
    yield Curve("growth", f"Latency at {_RATE:g} messages/s", x, "ms", latency)
    yield Curve("growth", "Memory by connections", x, "KB/connection", {"gateway": memory})
    for name, points in costs.items():
        yield from _flat(
            "subscribers", "WebSocket", [each for each in points if each[0] >= 100], name
        )


def _microseconds(runs: list[Run]) -> float:
    return median(run.cpu for run in runs) * 1e6


def _destinations(bench: Bench) -> Iterator[Row | Curve]:
    """A subscriber for each destination, so each delivery is a publish too."""
    plan = bench.plan
    costs: dict[str, list[Point]] = {name: [] for name in _NAMES}
    for count in plan.destinations:
        bench.report(f"growth: {count:,} destinations")
        if count <= plan.many and count <= plan.allowed(count):
            rounds = topics.runs(bench, "ws", count, count)
        else:
            connections = count // _SUBSCRIPTIONS
            rounds = topics.runs(bench, "stomp", connections, count, _SUBSCRIPTIONS)
        costs["null server"].append((count, max(1e-3, _microseconds([null for null, _ in rounds]))))
        costs["gateway"].append((count, max(1e-3, _microseconds([ours for _, ours in rounds]))))
    yield Curve(
        "growth",
        "Cost by destinations, one subscriber each",
        "destinations",
        "CPU µs/publish + delivery",
        costs,
    )
    yield from _flat("destinations", "WebSocket", [p for p in costs["gateway"] if p[0] <= 10_000])


def _flat(what: str, transport: str, points: list[Point], name: str = _NAMES[0]) -> Iterator[Row]:
    """Yield how much the cost grew from the first to the last point, of the null server too:
    what grows there is the kernel's part."""
    if len(points) < 2:
        return
    (first, before), (last, after) = points[0], points[-1]
    yield Row(
        "growth",
        f"cost at {last:,.0f} {what} beside that at {first:,.0f}"
        + (", the null server's own" if name != _NAMES[0] else ""),
        transport,
        "CPU µs/delivery",
        f"the {name} at {first:,.0f}",
        before,
        after,
        cost=True,
        goal=_FLAT if name == _NAMES[0] else None,
    )


def _bindings(bench: Bench) -> Curve:
    """One subscriber to what is published, and more and more patterns that do not match."""
    plan = bench.plan
    points: list[Point] = []
    with Rig(SERVERS[1]) as ours, Crowd(1) as others:
        held = 0
        ours.open("ws", 1)
        for count in plan.bindings:
            bench.report(f"growth: {count:,} bindings")
            connections = -(-(count - 1 - held) // _SUBSCRIPTIONS)
            if connections > 0:
                patterns = [_pattern(held + place) for place in range(connections * _SUBSCRIPTIONS)]
                others.open(
                    ours.port,
                    "stomp",
                    connections,
                    topics=len(patterns),
                    subscriptions=_SUBSCRIPTIONS,
                    destinations=patterns,
                )
                held += len(patterns)
            made = [ours.fan_out(plan.seconds, _BATCH, plan.size) for _ in range(plan.rounds)]
            points.append((held + 1, max(1e-3, _microseconds(made))))
    return Curve(
        "growth",
        "Cost by bindings, one of which matches",
        "bindings",
        "CPU µs/publish + delivery",
        {"gateway": points},
    )


def _pattern(number: int) -> str:
    """Return a pattern that has to be looked at and does not match."""
    return f"/topic/#.b{number}" if number % 2 else f"/topic/*.b{number}"


def _sizes(bench: Bench) -> Iterator[Curve]:
    plan = bench.plan
    count = min(_SIZED, plan.subscribers)
    rates: dict[str, list[Point]] = {name: [] for name in _NAMES}
    volumes: dict[str, list[Point]] = {name: [] for name in _NAMES}
    with Rig(SERVERS[1]) as ours, Rig(SERVERS[0]) as null:
        pair = dict(zip(_NAMES, (ours, null), strict=True))
        for rig in pair.values():
            rig.open("ws", count)
        for size in plan.sizes:
            bench.report(f"growth: messages of {size:,} B")
            runs: dict[str, list[Run]] = {name: [] for name in _NAMES}
            batch = max(1, min(100, _TICK // size))
            for _ in range(plan.rounds):
                for name, rig in pair.items():
                    runs[name].append(rig.fan_out(plan.seconds, batch, size))
            for name in _NAMES:
                rate = median(run.rate for run in runs[name])
                rates[name].append((size, rate))
                volumes[name].append((size, rate * size / 1e6))
    x = "bytes of a message"
    yield Curve("growth", f"Fan-out by size, {count} subscribers", x, "deliveries/s", rates)
    yield Curve("growth", f"Volume by size, {count} subscribers", x, "MB/s", volumes)
