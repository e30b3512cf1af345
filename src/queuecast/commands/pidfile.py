"""The file that says where a gateway runs: its process number, then its URL.

The gateway holds a lock on it (flock) until it ends, however it ends. So a file that was left
behind is told from one that counts, and no signal goes to a stranger that has the number now.
"""

from __future__ import annotations

import contextlib
import os
from typing import IO, NamedTuple

from .failure import Failure

_LONGEST = 4096


class Running(NamedTuple):
    """A gateway that runs. url: "" while it starts."""

    pid: int
    url: str


class PidFile:
    """The file of this process."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Lock the file; raises Failure when another gateway has it, or it cannot be written."""
        try:
            # Not emptied by opening: it may be another's.
            file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - closed by `leave`
        except OSError as error:
            raise Failure(f"server.pid_file: {self._path}: {error.strerror or error}", 2) from None
        if not _lock(file):
            file.close()
            raise Failure(f"server.pid_file: {self._path} is that of a gateway that runs")
        self._file = file
        self.write("")

    def write(self, url: str) -> None:
        """Say where it listens."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{os.getpid()}\n{url}\n")
        self._file.flush()

    def leave(self) -> None:
        """Remove the file; harmless when it was never taken."""
        if self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._file.close()
        self._file = None


def read(path: str) -> Running:
    """Return whose file it is; raises Failure when no gateway runs with it."""
    try:
        with open(path, encoding="utf-8") as file:
            if _lock(file):
                raise Failure(f"{path}: no gateway runs with this file")
            pid, _, url = file.read(_LONGEST).partition("\n")
    except FileNotFoundError:
        raise Failure(f"{path}: there is no such file, so no gateway runs with it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: {error}") from None
    if not (pid.isascii() and pid.isdigit() and int(pid[:10]) > 1):
        raise Failure(f"{path}: this is not a gateway's file", 2)
    return Running(int(pid), url.strip())


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:
        raise Failure("server.pid_file: this system has no file locks (flock)", 2) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
