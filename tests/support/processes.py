"""Processes, ports and directories of a test run, and the rule for what a machine lacks."""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

# Below the range from which Linux takes the ports of outgoing connections (32768 and up): else a
# client's own socket could take a server's port while that server is down for a test.
_PORTS = range(20_000, 32_000)


def require(name: str, ok: bool, reason: str) -> None:
    """Skip the test by name when the machine lacks something; with CI=true that is a failure."""
    if ok:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name}: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on and no outgoing connection takes."""
    # Runs side by side keep to ports of their own: a server that a test has stopped finds its port
    # free when it comes back.
    runs = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    this = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.sample(_PORTS[this::runs], 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port among 200 tried")


def listens(port: int) -> bool:
    """Return whether a server accepts connections on a port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def wait_until(ready: Callable[[], bool], *, what: str, timeout: float = 60.0) -> None:
    """Poll until ready() holds.

    Raises TimeoutError, naming `what`, after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)


class _Guard:
    """The helper process that outlives the run by a moment and cleans up after it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def tell(self, verb: str, value: object) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("guard.py"))],
                stdin=subprocess.PIPE,
                text=True,
                # Its own session: Ctrl-C in the terminal must not end it before the run.
                start_new_session=True,
            )
            atexit.register(self._finish, self._process)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {value}\n")
        self._process.stdin.flush()

    @staticmethod
    def _finish(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


_guard = _Guard()


class Directory:
    """A temporary directory that is gone after the run, however the run ends."""

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"queuecast-{prefix}-"))
        _guard.tell("directory", self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        _guard.tell("removed", self.path)


class Process:
    """A server process in a process group of its own, writing to a log file.

    The group is killed when the run ends, however it ends.
    """

    def __init__(
        self, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _guard.tell("group", self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout: float = 60.0) -> None:
        """Poll until ready() holds.

        Raises RuntimeError with the end of the log when the process ends or time runs out.
        """
        try:
            wait_until(lambda: not self.running or ready(), what=what, timeout=timeout)
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self.log_tail()}") from None
        if not self.running:
            raise RuntimeError(f"{what}: the process ended first\n{self.log_tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Signal the process itself, not its group."""
        self._process.send_signal(number)

    def terminate(self, *, timeout: float = 30.0) -> None:
        """Ask the process to end, and kill its group if it has not within `timeout` seconds."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill the whole process group with SIGKILL and wait for the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        _guard.tell("ended", self.pid)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of what the process printed."""
        text = self.log.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])
