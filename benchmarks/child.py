"""A child process that does what JSON lines on its standard input say, one answer each.

`serve` is the child's end, `Child` the parent's. An answer is a JSON line; a command that fails
is answered with the text of the failure, and ends the benchmark.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from .owner import Owner

Answer = dict[str, Any]
Commands = dict[str, Callable[..., Awaitable[Answer]]]


class BenchmarkError(Exception):
    """A child failed, or its figures come from dropped work."""


async def serve(commands: Commands) -> None:
    """Answer commands until the input ends. `usage` is always there."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer = usage() if name == "usage" else await commands[name](**command)
        except Exception as error:  # noqa: BLE001 - the parent raises it
            answer = {"error": f"{name}: {type(error).__name__}: {error}"}
        tell(answer)


def tell(answer: Answer) -> None:
    """Write one answer to the parent."""
    print(json.dumps(answer), flush=True)


def usage() -> Answer:
    """Return this process's CPU time in seconds, user and system, and resident bytes."""
    # Not os.times(), which counts in hundredths of a second.
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": used.ru_utime + used.ru_stime, "rss": psutil.Process().memory_info().rss}


class Child(Owner):
    """A running child: `with Child("null_server") as server: server.do("usage")`."""

    def __init__(self, module: str, *arguments: str) -> None:
        super().__init__()
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._stack.callback(self._end)

    def send(self, name: str, **arguments: object) -> None:
        """Give a command; its answer is fetched with `answer`."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": name, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise BenchmarkError(f"{self._module} is gone") from None

    def answer(self) -> Answer:
        """Wait for an answer; raises BenchmarkError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self._module} ended unexpectedly")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._module}: {answer['error']}")
        return answer

    def do(self, name: str, **arguments: object) -> Answer:
        """Give a command and wait for its answer; raises BenchmarkError."""
        self.send(name, **arguments)
        return self.answer()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used, also while it is stopped."""
        used = psutil.Process(self.pid).cpu_times()
        return float(used.user + used.system)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self._process.kill()
        self._process.wait()

    def _end(self) -> None:
        """End its input, which ends a child; one that hangs is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
