"""What one connect, resume or POST costs the gateway, in microseconds of its processor time.

    PYTHONPATH=src:. python scripts/cpu_cost.py [connect | resume | post] [--wire ws|sse|stomp]

A machine that has other things to do stretches seconds, but hardly processor time. Each server is
asked in turns, so that a change of the machine's speed meets all of them; what is printed is the
median. To compare two versions, run it in a worktree of each. With --profile py-spy (PyPI) writes
what the gateway did meanwhile: FILE.svg is a flame graph.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import message
from benchmarks.bench import Bench
from benchmarks.child import Child
from benchmarks.connections import RETAINED, SEEN, position
from benchmarks.crowd import Crowd
from benchmarks.plan import NORMAL
from benchmarks.rig import SERVERS, Rig

_NULL, _OURS, _AIOHTTP = "null server", "gateway", "bare aiohttp"
# Seconds of POSTs in each turn.
_SECONDS = 3.0

Cost = Callable[[], float]


@contextmanager
def _profiled(pid: int, file: str) -> Iterator[None]:
    if not file:
        yield
        return
    spy = subprocess.Popen(
        ["py-spy", "record", "-o", file, "-r", "500", "-d", "3600", "-p", str(pid)],
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(1)  # until it is attached
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait()


def _spent(server: Child) -> float:
    return float(server.do("usage")["cpu"])


def _connect(name: str, wire: str, count: int, profile: str) -> float:
    """Return the CPU µs of a connect; the server and its first connections are not counted."""
    with Rig(name) as rig:
        rig.open(wire, min(200, count))
        rig.close()
        with _profiled(rig.server.pid, profile):
            before = _spent(rig.server)
            rig.open(wire, count)
            return (_spent(rig.server) - before) / count * 1e6


def _resume(wire: str, count: int, profile: str) -> float:
    """Return the CPU µs of a client who is back after a restart, with what it missed."""
    with tempfile.TemporaryDirectory() as data:
        arguments = ("--data", str(Path(data) / "data"), "--retain", message.DESTINATION)
        with Rig(SERVERS[1], *arguments) as first:
            first.open(wire, 1)
            first.server.do("fill", messages=RETAINED, size=100)
            since = position(first.port)
            first.server.kill()
        with Rig(SERVERS[1], *arguments) as second:
            assert second.port
            with _profiled(second.server.pid, profile):
                before = _spent(second.server)
                second.open(wire, count, since=since)
                second.crowd.finish(RETAINED - SEEN, RETAINED - SEEN, first=SEEN)
                return (_spent(second.server) - before) / count * 1e6


def _post(name: str, broker: str, profile: str) -> float:
    """Return the CPU µs of a POST with its confirm and one delivery over WebSocket."""
    with Child(name, *([broker] if broker else [])) as server:
        port = int(server.answer()["port"])
        with Child("http_publisher", str(port)) as clients, Crowd(1) as crowd:
            clients.answer()
            if broker:
                crowd.open(port, "ws", 1)
                crowd.begin()
            with _profiled(server.pid, profile):
                before = _spent(server)
                made = clients.do("load", seconds=_SECONDS, clients=50, size=100)
                cost = (_spent(server) - before) / made["answered"] * 1e6
            if broker:
                crowd.finish(made["answered"], made["answered"], ordered=False)
    return float(cost)


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("connect", "resume", "post"))
    parser.add_argument("--wire", choices=("ws", "sse", "stomp"), default="ws")
    parser.add_argument("--count", type=int, default=3000, help="connections")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="", metavar="FILE.svg")
    asked = parser.parse_args()
    wire, count, profile = asked.wire, asked.count, asked.profile
    with Bench(NORMAL) as bench:
        costs: dict[str, Cost] = {}
        if asked.what == "post":
            rabbit = bench.rabbit()
            costs[_AIOHTTP] = lambda: _post("aiohttp_server", "", "")
            costs[_OURS] = lambda: _post("gateway_server", "embedded:", profile)
            if rabbit is not None:
                costs[f"{_OURS}, {rabbit.name}"] = lambda: _post("gateway_server", rabbit.url, "")
        else:
            costs[_NULL] = lambda: _connect(SERVERS[0], wire, count, "")
            if asked.what == "resume":
                costs[_OURS] = lambda: _resume(wire, count, profile)
            else:
                costs[_OURS] = lambda: _connect(SERVERS[1], wire, count, profile)
                if wire == "ws":
                    costs[_AIOHTTP] = lambda: _connect("aiohttp_server", wire, count, "")
        found: dict[str, list[float]] = {name: [] for name in costs}
        for _ in range(asked.rounds):
            for name, cost in costs.items():
                found[name].append(cost())
    for name, each in found.items():
        print(f"{asked.what}, {name}: {median(each):.0f} CPU µs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
