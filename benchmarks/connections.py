"""Connections: how many a second, and how long until everybody is back after a restart.

A client counts as connected when its subscription is live. Beside the null server, which answers
with ready-made bytes, and beside aiohttp's WebSocket, which has no subscription to make.
"""

from __future__ import annotations

import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from . import message
from .bench import Bench
from .child import BenchmarkError, Child
from .figures import Row
from .rig import SERVERS, Rig
from .wire import WIRES

# Of aiohttp's connects/s; of the null server's time to accept them all.
_GOAL_AIOHTTP = 3.0
_GOAL_BACK = 1 / 3
# Messages that are there before the restart, and how many of them clients have seen by then.
# scripts/cpu_cost.py resumes in the same way.
RETAINED = 20
SEEN = 10
_ID = re.compile(rb"^id: (\S+)$", re.M)


def measure(bench: Bench) -> Iterator[Row]:
    """Measure connects/s, then the restart."""
    with Rig("aiohttp_server") as bare, Rig(SERVERS[0]) as null, Rig(SERVERS[1]) as ours:
        servers = {"null server": null, "gateway": ours}
        for wire in bench.plan.wires:
            yield from _connects(
                bench, servers | {"aiohttp": bare} if wire == "ws" else servers, wire
            )
        if "ws" in bench.plan.wires:
            yield from _connects(bench, {"aiohttp": bare, "gateway": ours}, "ws", unlike=True)
    yield from _starts(bench)
    for wire in ("ws", "sse", "stomp"):
        if wire in bench.plan.wires:
            yield from _back(bench, wire)


def _connects(
    bench: Bench, servers: dict[str, Rig], wire: str, *, unlike: bool = False
) -> Iterator[Row]:
    plan = bench.plan
    count = plan.allowed(plan.connects)
    each = ", no two heads alike" if unlike else ""
    bench.report(f"connections: {count:,} connects, {WIRES[wire].title}{each}")
    for rig in servers.values():
        rig.open(wire, min(100, count))
        rig.close()
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(plan.rounds):
        for name, rig in servers.items():
            rates[name].append(count / rig.open(wire, count, unlike=unlike))
            rig.close()
    for name in servers:
        if name != "gateway":
            yield Row(
                "connections",
                f"{count:,} connects, subscribed{each}",
                WIRES[wire].title,
                "connects/s",
                name,
                median(rates[name]),
                median(rates["gateway"]),
                goal=_GOAL_AIOHTTP if name == "aiohttp" else None,
            )


def _starts(bench: Bench) -> Iterator[Row]:
    """Take the time from a server's start until it listens, which a restart has before all else."""
    bench.report("connections: from the start until it listens")
    took: dict[str, list[float]] = {name: [] for name in SERVERS}
    for _ in range(bench.plan.rounds):
        for name in SERVERS:
            begun = time.monotonic()
            with Child(name) as server:
                server.answer()
                took[name].append(time.monotonic() - begun)
    null, ours = (median(took[name]) for name in SERVERS)
    what = "from the start of the process until it listens"
    yield Row("connections", what, "", "s", "null server", null, ours, cost=True)


def _back(bench: Bench, wire: str) -> Iterator[Row]:
    """Kill a gateway and have everybody resume at the next one, from the same position.

    Both servers listen when the first client comes.
    """
    plan = bench.plan
    count = plan.allowed(plan.back)
    what = f"{count:,} clients back after a restart, resuming"
    bench.report(f"connections: {what}, {WIRES[wire].title}")
    with Rig(SERVERS[0]) as null:
        accepting = null.open(wire, count)
    with tempfile.TemporaryDirectory() as data:
        arguments = ("--data", str(Path(data) / "data"), "--retain", message.DESTINATION)
        with Rig(SERVERS[1], *arguments) as ours:
            ours.open(wire, count)
            ours.server.do("fill", messages=RETAINED, size=plan.size)
            since = position(ours.port)
            ours.server.kill()
        with Rig(SERVERS[1], *arguments) as ours:
            # They come with a position each; what they missed comes with the answer.
            assert ours.port
            started = time.monotonic()
            ours.open(wire, count, since=since)
            done = ours.crowd.finish(RETAINED - SEEN, RETAINED - SEEN, first=SEEN)
            back = done.last - started
    yield Row(
        "connections",
        f"{what}: {RETAINED - SEEN} missed messages each",
        WIRES[wire].title,
        "s",
        "null server accepts",
        accepting,
        back,
        cost=True,
        goal=_GOAL_BACK,
    )


def position(port: int) -> str:
    """Return the position of the last message that clients have seen, message SEEN - 1.

    port: of a gateway that retains the RETAINED messages. Raises BenchmarkError when its history
    has not that message.
    """
    url = f"http://127.0.0.1:{port}/sse{message.DESTINATION}?since=first"
    with urllib.request.urlopen(url, timeout=10) as stream:
        data = b""
        while data.count(message.MARKER) < RETAINED:
            data += stream.read1(65536)
    for event in data.split(b"\n\n"):
        if message.MARKER + b"%011d" % (SEEN - 1) in event:
            found = _ID.search(event)
            assert found is not None
            return found[1].decode()
    raise BenchmarkError(f"no message {SEEN - 1} in the history")
