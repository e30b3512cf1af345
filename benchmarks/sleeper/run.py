"""The run: without a sleeper, with sleepers that are stopped, and with them awake again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from ..child import BenchmarkError, Child
from ..latencies import merged
from . import feeds
from .story import Story, gaps, last, missing

ROOT = Path(__file__).parents[2]
# Seconds for whoever woke to have everything, and for a process to start.
_CATCH_UP = 240.0
_START = 60.0

Report = Callable[[str], None]
# Given the gateway's URL and a destination: a command, and the folder to run it in.
Client = Callable[[str, str], tuple[list[str], Path]]


def websockets(url: str, destination: str) -> tuple[list[str], Path]:
    """The client of this package."""
    return [sys.executable, "-m", "benchmarks.sleeper.client", url, destination], ROOT


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. seconds: of each phase; rate: messages/s; size: bytes of a body; others: clients
    that read all the time; sleepers: by their feed's name."""

    seconds: float
    rate: float
    size: int
    others: int
    sleepers: Sequence[tuple[str, Client]] = tuple((name, websockets) for name in feeds.FEEDS)


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase. Seconds for the latencies, and of the gateway's processor for each message;
    bytes, at most, for its memory."""

    name: str
    rate: float
    p50: float
    p99: float
    max: float
    cpu: float
    rss: int


@dataclass(frozen=True, slots=True)
class Slept:
    """A sleeper at the end. told: messages that gaps stood for; awake: seconds to have the rest."""

    feed: str
    connections: int
    gaps: list[str]
    told: int
    awake: float
    seen_before: int
    behind: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything. allowed: what the settings let sleepers cost; cost: what they did, in bytes."""

    phases: list[Phase]
    slept: list[Slept]
    allowed: int
    backlog: int

    @property
    def cost(self) -> int:
        return max(each.rss for each in self.phases[1:]) - self.phases[0].rss


class _Gauge:
    """The gateway's resident memory, watched from a thread; `peak` since `begin`."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self.peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def cpu(self) -> float:
        """Return the seconds of processor time so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def begin(self) -> None:
        self.peak = self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            try:
                self.peak = max(self.peak, self._process.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    def close(self) -> None:
        self._done.set()
        self._thread.join()


@dataclass
class _Sleeper:
    """A running client, its story read by a thread."""

    feed: str
    process: subprocess.Popen[str]
    story: Story = ()
    connections: int = 0
    seen_before: int = -1
    awake: float = 0.0
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            self.story, self.connections = said["story"], said["connections"]

    def until(self, number: int, timeout: float = _CATCH_UP) -> None:
        """Wait for a message; raises BenchmarkError, with what it saw instead."""
        deadline = time.monotonic() + timeout
        while last(self.story) < number:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise BenchmarkError(f"{self.feed}: {number} did not come: {self.story}")
            time.sleep(0.01)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def _gateway(names: Collection[str]) -> Iterator[tuple[int, int]]:
    """Run a gateway with these feeds; yields its port and its process number."""
    from tests.support.processes import Directory, Process, free_port

    directory = Directory("sleeper")
    port = free_port()
    config = directory.path / "queuecast.toml"
    config.write_text(feeds.configuration(port, str(directory.path / "data"), names))
    command = [sys.executable, "-m", "queuecast", "serve", "--config", str(config)]
    process = Process(
        command,
        log=directory.path / "log",
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        process.wait_until(ready, what="the gateway's start", timeout=_START)
        yield port, process.pid
    finally:
        process.kill()
        directory.remove()


class _Run:
    """One run's processes; see `measure`."""

    def __init__(self, plan: Plan, stack: ExitStack, report: Report) -> None:
        self._plan = plan
        self._stack = stack
        self._report = report
        names = list(dict.fromkeys(name for name, _ in plan.sleepers))
        port, pid = stack.enter_context(_gateway(names))
        self._url = f"http://127.0.0.1:{port}"
        self._gauge = _Gauge(pid)
        stack.callback(self._gauge.close)
        self._publisher = stack.enter_context(Child("sleeper.publisher"))
        self._others = stack.enter_context(Child("sleeper.others"))
        self._publisher.do("open", port=port)
        destinations = [feeds.FEEDS[name] for name in names]
        self._others.do("open", port=port, destinations=destinations, count=plan.others)

    def _publish(self, seconds: float) -> None:
        self._publisher.send("publish", rate=self._plan.rate, seconds=seconds, size=self._plan.size)

    def _published(self) -> int:
        """Wait until all is published and all others have it; returns the last number."""
        made = self._publisher.answer()
        self._others.do("reach", last=made["last"])
        return int(made["last"])

    def _phase(self, name: str, during: Callable[[], None] = lambda: None) -> tuple[Phase, int]:
        self._report(name)
        self._gauge.begin()
        before = self._gauge.cpu()
        self._publish(self._plan.seconds)
        during()
        made = self._publisher.answer()
        took = merged([self._others.do("reach", last=made["last"])])
        cpu = (self._gauge.cpu() - before) / (self._plan.rate * self._plan.seconds)
        rss = self._gauge.peak
        phase = Phase(name, made["rate"], took.p50, took.p99, took.max, cpu, rss)
        return phase, int(made["last"])

    def _start_sleepers(self) -> list[_Sleeper]:
        sleepers = []
        for name, client in self._plan.sleepers:
            command, folder = client(self._url, feeds.FEEDS[name])
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
                stdout=subprocess.PIPE,
                text=True,
            )
            sleeper = _Sleeper(name, process)
            self._stack.callback(sleeper.close)
            sleepers.append(sleeper)
        # Each is there when it has seen what was published after it came.
        while True:
            self._publish(0.1)
            newest = self._published()
            time.sleep(0.2)
            if all(last(each.story) == newest for each in sleepers):
                return sleepers

    def carry_out(self) -> Figures:
        plan = self._plan
        # Everything that is made once is made, and the logs are full.
        self._publish(0.5 + feeds.filling(plan.size) / plan.rate)
        self._published()
        without, _ = self._phase("without a sleeper")
        sleepers = self._start_sleepers()
        for each in sleepers:
            each.seen_before = last(each.story)
            each.process.send_signal(signal.SIGSTOP)
        asleep, end = self._phase("with sleepers")
        before = [last(each.story) for each in sleepers]
        woke = 0.0

        def wake() -> None:
            nonlocal woke
            woke = time.monotonic()
            for each in sleepers:
                each.process.send_signal(signal.SIGCONT)

        awake, newest = self._phase("awake again", wake)
        for each in sleepers:
            each.until(newest)
            each.awake = time.monotonic() - woke
        awake = replace(awake, rss=self._gauge.peak)
        # They are live again: what is published now comes as well.
        self._publish(0.2)
        newest = self._published()
        for each in sleepers:
            each.until(newest)
        slept = [
            Slept(
                each.feed,
                each.connections,
                gaps(each.story),
                missing(each.story),
                each.awake,
                each.seen_before,
                end - seen,
            )
            for each, seen in zip(sleepers, before, strict=True)
        ]
        return Figures(
            [without, asleep, awake],
            slept,
            feeds.allowance(len(sleepers), plan.size),
            round(plan.rate * plan.seconds) * plan.size,
        )


def measure(plan: Plan, report: Report) -> Figures:
    """Carry out a plan.

    Raises BenchmarkError when a client that read all the time missed a message, or a sleeper did
    not come to the end; ValueError for a hole in a sleeper's story that no gap told of.
    """
    with ExitStack() as stack:
        return _Run(plan, stack, report).carry_out()
