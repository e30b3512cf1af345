"""One worker process, as its parent sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

import msgspec

from .words import Failed, Hello, Report, Said

# Bytes of a line that a worker says of itself.
_LINE = 1 << 16


class WorkerFailed(Exception):
    """A worker could not start; its text is for the person at the shell."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Worker:
    """A process. number: which of the workers it is; pid: as the system has it."""

    def __init__(self, hello: Hello, process: asyncio.subprocess.Process) -> None:
        self.number = hello.number
        self.pid = process.pid
        self._process = process
        self._reading = asyncio.create_task(self._read(), name=f"worker {self.number}")

    @classmethod
    async def start(cls, hello: Hello) -> Worker:
        """Start a process; raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "queuecast.workers.child"),
            env=_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE,
            pass_fds=(*hello.http, *hello.stomp),
            # A terminal's Ctrl-C is the parent's to pass on.
            start_new_session=True,
        )
        worker = cls(hello, process)
        worker.tell(msgspec.json.encode(hello))
        return worker

    def tell(self, words: bytes) -> None:
        """Say something; nothing to one who has ended."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            with contextlib.suppress(ConnectionError):
                stdin.write(words + b"\n")

    async def up(self) -> Report:
        """Wait until it serves; raises WorkerFailed."""
        said = await asyncio.shield(self._reading)
        if isinstance(said, Failed):
            raise WorkerFailed(said.text, said.exit_code)
        if said is None:
            code = await self._process.wait()
            raise WorkerFailed(f"worker {self.number} {how(code)} before it served", 1)
        return said

    async def why(self) -> str:
        """Return what it said before it ended, if it could not start."""
        said = await asyncio.shield(self._reading)
        return f": {said.text}" if isinstance(said, Failed) else ""

    async def ended(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        return await self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def kill(self) -> None:
        """End it at once."""
        if self.is_running:
            self._process.kill()

    async def _read(self) -> Said | None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            line = await stdout.readline()
            return msgspec.json.decode(line, type=Said) if line else None
        except (ValueError, msgspec.DecodeError):
            return None


def _environment() -> dict[str, str]:
    """Return ours, with the modules that we have from where we have them, and none from the folder
    that we are in by chance."""
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    return os.environ | {"PYTHONPATH": path}


def how(code: int) -> str:
    """Tell how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
