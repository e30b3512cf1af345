"""`queuecast serve --workers N` as a process of its own, and what it shows of itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.clients import PATIENCE, get

SOURCE = Path(__file__).parents[2] / "src"


@dataclass
class WorkersHouse:
    """A running parent. admin: its admin URL; stomp: the port of STOMP over TCP."""

    process: subprocess.Popen[str]
    url: str
    admin: str
    stomp: int
    directory: Path

    @property
    def workers(self) -> list[psutil.Process]:
        """The worker processes."""
        return psutil.Process(self.process.pid).children()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    async def metrics(self) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
        """Scrape: values by labels, by name."""
        answer = await get(f"{self.admin}/metrics")
        assert answer.status == 200
        found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                values = found.setdefault(sample.name, {})
                labels = frozenset(sample.labels.items())
                assert labels not in values
                values[labels] = sample.value
        return found

    async def by_worker(self, name: str, **labels: str) -> dict[str, float]:
        """Return one value of each worker that has it."""
        found = {}
        for each, value in (await self.metrics()).get(name, {}).items():
            given = dict(each)
            worker = given.pop("worker")
            if given == labels:
                found[worker] = value
        return found

    async def eventually(self, name: str, expected: dict[str, float], **labels: str) -> None:
        """Wait until a value is what it should be on every worker."""
        found: dict[str, float] = {}
        for _ in range(int(10 * PATIENCE)):
            found = await self.by_worker(name, **labels)
            if found == expected:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"{name} is {found}\n{self.log}")

    def stop(self) -> int:
        """End it as a service manager does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def workers(
    directory: Path, broker: str, *flags: str, count: int = 2, toml: str = ""
) -> Iterator[WorkersHouse]:
    """Run a parent with workers, in a directory of its own."""
    directory.mkdir(exist_ok=True)
    (directory / "queuecast.toml").write_text(toml)
    env = {name: value for name, value in os.environ.items() if not name.startswith("QUEUECAST_")}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "queuecast", "serve", "--port", "0", "--admin", "0"),
                *("--stomp-tcp", "127.0.0.1:0", "--drain", "500ms", "--grace", "2s"),
                *("--broker", broker, "--workers", str(count), *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=directory,
            env=env | {"PYTHONPATH": str(SOURCE)},
        )
    try:
        yield _read(process, directory)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                # Its workers end with it.
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _read(process: subprocess.Popen[str], directory: Path) -> WorkersHouse:
    assert process.stdout is not None
    lines: list[list[str]] = []
    for line in process.stdout:
        lines.append(line.split())
        if lines[-1][0] == "workers":
            break
    else:
        raise AssertionError((directory / "log").read_text())
    said = {words[0]: words for words in lines[1:]}
    return WorkersHouse(
        process,
        lines[0][-1],
        said["admin"][1].removesuffix("/admin"),
        int(said["STOMP"][-1].rpartition(":")[2]),
        directory,
    )
