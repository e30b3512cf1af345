"""Workers: `queuecast serve --workers N` behind RabbitMQ, beside one process of the same run.

Both are the command as a user starts it, so that the number is all that differs. Where broker,
publisher and subscribers need the same cores, another process has nobody to run on: what the rows
then show is its price, and what is won is seen where there are more cores than processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from statistics import median

import psutil

from tests.support.processes import Directory, Process

from .bench import Bench, Rabbit
from .child import BenchmarkError, Child
from .climb import Climb
from .crowd import Crowd
from .figures import Row
from .ingest import answered
from .owner import Owner
from .plan import Plan
from .wire import WIRES

# Messages/s of the first step of the ceiling, and of the latency.
_FIRST = 3000.0
_RATE = 100.0
_WARM_UP = 20
# Seconds; of several processes that start on a busy machine.
_START = 60.0
# No heartbeat in the middle of a run: it would be a byte that is no message.
_HEARTBEAT = "86400"
# Where no position stands in the bytes: each worker has its own. One process is heard the same way.
_ALIKE = ("ws",)


class Served(Owner):
    """The command with its workers. port: where it serves."""

    def __init__(self, broker: str, workers: int) -> None:
        super().__init__()
        directory = Directory("benchmark-workers")
        self._stack.callback(directory.remove)
        pid_file = directory.path / "pid"
        command = [
            *(sys.executable, "-m", "queuecast", "serve", "--log-level", "warning"),
            *("--port", "0", "--broker", broker, "--workers", str(workers)),
            *("--drain", "0", "--grace", "1", "--pid-file", str(pid_file)),
        ]
        environment = os.environ | {"QUEUECAST_SERVER__HEARTBEAT": _HEARTBEAT}
        self._process = Process(command, log=directory.path / "log", env=environment)
        self._stack.callback(self._process.terminate)

        def url() -> str:
            return (pid_file.read_text() if pid_file.exists() else "").partition("\n")[2].strip()

        try:
            self._process.wait_until(lambda: bool(url()), what=f"{workers} workers", timeout=_START)
        except RuntimeError as error:
            self._stack.close()
            raise BenchmarkError(str(error)) from None
        self.port = int(url().rpartition(":")[2])

    def cpu(self) -> float:
        """Return the seconds of CPU that all its processes have used."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(each.user + each.system for each in times))

    def rss(self) -> int:
        """Return the resident bytes of all its processes; what they share counts in each."""
        return int(sum(process.memory_info().rss for process in self._processes()))

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


class _Figures:
    """What one number of workers reached, and whether it is a cost, by what it is."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], tuple[float, bool]] = {}

    def add(self, what: str, wire: str, unit: str, figure: float, *, cost: bool = False) -> None:
        self.found[what, wire, unit] = (figure, cost)


def measure(bench: Bench) -> Iterator[Row]:
    """Measure each number of workers; raises BenchmarkError unless everything arrived."""
    rabbit = bench.rabbit()
    if rabbit is None:
        return
    alone, *others = bench.plan.workers
    with Child("amqp_publisher", rabbit.url) as publisher:
        publisher.answer()
        first = _measured(bench, rabbit, publisher, alone)
        for workers in others:
            made = _measured(bench, rabbit, publisher, workers)
            for (what, wire, unit), (ours, cost) in made.found.items():
                theirs = first.found[what, wire, unit][0]
                yield Row(
                    "workers", f"--workers {workers}, {rabbit.name}: {what}", wire, unit,
                    "one process", theirs, ours, cost=cost,
                )  # fmt: skip


def _measured(bench: Bench, rabbit: Rabbit, publisher: Child, workers: int) -> _Figures:
    plan = bench.plan
    figures = _Figures()
    with Served(rabbit.url, workers) as served:
        empty = served.rss()
        for wire in plan.worker_wires:
            if wire in plan.wires:
                bench.report(f"workers: {workers}, {WIRES[wire].title}")
                _connects(plan, served, wire, figures)
                _ceiling(bench, served, publisher, wire, figures)
                _latency(plan, served, publisher, wire, figures)
        bench.report(f"workers: {workers}, POST from {plan.publishers} clients")
        posts = [
            answered(bench, served.port, "http_publisher", "load", counted=True)
            for _ in range(plan.rounds)
        ]
        what = f"POST with confirm, {plan.publishers} keep-alive connections"
        figures.add(what, "HTTP", "publishes/s", median(posts))
        figures.add("memory before anybody came", "", "MB", empty / 1e6, cost=True)
    return figures


def _connects(plan: Plan, served: Served, wire: str, figures: _Figures) -> None:
    count = plan.allowed(plan.connects)
    rates = []
    with Crowd() as crowd:
        for number in (min(100, count), *[count] * plan.rounds):
            rates.append(number / crowd.open(served.port, wire, number))
            crowd.close()
    what = f"{count:,} connects, subscribed"
    figures.add(what, WIRES[wire].title, "connects/s", median(rates[1:]))


def _ceiling(bench: Bench, served: Served, publisher: Child, wire: str, figures: _Figures) -> None:
    plan = bench.plan
    alike = wire in _ALIKE
    best = Climb(bench, "gateway", served.port, wire, publisher, cpu=served.cpu, alike=alike).best(
        _FIRST
    )
    what = f"{plan.subscribers:,} subscribers, {plan.size} B: p99 ≤ {plan.limit:g} s"
    figures.add(what, WIRES[wire].title, "deliveries/s", best.rate)
    if best.cpu:
        figures.add(what, WIRES[wire].title, "CPU µs/delivery", best.cpu * 1e6, cost=True)


def _latency(plan: Plan, served: Served, publisher: Child, wire: str, figures: _Figures) -> None:
    messages = max(10, int(_RATE * plan.paced * plan.rounds))
    with Crowd() as crowd:
        crowd.open(served.port, wire, plan.subscribers, alike=wire in _ALIKE)
        for count in (min(_WARM_UP, messages), messages):
            crowd.begin(stamped=True)
            publisher.do("pace", rate=_RATE, messages=count, size=plan.size)
            found = crowd.finish(count, count).latency
    assert found is not None
    for name, seconds in (("p50", found.p50), ("p99", found.p99), ("p99.9", found.p999)):
        what = f"{plan.subscribers:,} subscribers, {_RATE:g} messages/s: {name}"
        figures.add(what, WIRES[wire].title, "ms", seconds * 1e3, cost=True)
