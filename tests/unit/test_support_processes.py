"""A test run leaves nothing behind, and CI never skips what it should have had."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import free_port, require, wait_until

ROOT = Path(__file__).parents[2]

# A run that starts a process in a directory, tells where, and hangs.
RUN = """
from pathlib import Path
from tests.support.processes import Directory, Process
directory = Directory("test")
# A shell with a child: the whole group has to go.
process = Process(["sh", "-c", "sleep 600 & wait"], log=directory.path / "log")
print(process.pid, directory.path, flush=True)
process._process.wait()
"""


def group_lives(group: int) -> bool:
    """Whether a process of the group runs; one that is dead and not yet reaped does not count."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It ended while we looked.
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_killed_leaves_nothing(number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout is not None
    group, directory = run.stdout.readline().split()
    assert group_lives(int(group))
    assert Path(directory).is_dir()
    os.kill(run.pid, number)
    run.wait()
    run.stdout.close()
    wait_until(lambda: not group_lives(int(group)), what="the end of the process group")
    wait_until(lambda: not Path(directory).exists(), what="the end of the directory")


def test_what_is_missing_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    require("RabbitMQ", True, "never said")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="RabbitMQ: not installed"):
        require("RabbitMQ", False, "not installed")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="RabbitMQ: not installed"):
        require("RabbitMQ", False, "not installed")


def test_a_free_port_is_out_of_reach_of_outgoing_connections() -> None:
    assert 20_000 <= free_port() < 32_768
