"""Kills what a test run started, even when the run itself is killed.

Runs beside pytest with a pipe as standard input. The run names its process groups and temporary
directories on it; when the pipe closes, however the run ended, whatever is still named goes.
"""

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    directories: set[str] = set()
    for line in sys.stdin:
        verb, value = line.rstrip("\n").split(" ", 1)
        match verb:
            case "group":
                groups.add(int(value))
            case "ended":
                groups.discard(int(value))
            case "directory":
                directories.add(value)
            case "removed":
                directories.discard(value)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
