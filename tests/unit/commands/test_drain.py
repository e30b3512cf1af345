"""`queuecast drain`: a gateway that runs is told, one that does not is not taken for one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from queuecast.cli import main
from queuecast.commands.failure import Failure
from queuecast.commands.pidfile import PidFile, read
from tests.unit.commands.test_serve import first_line, outcome, started


def readyz(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)["status"]
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["status"]


async def test_it_drains_and_the_gateway_stays_until_it_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "queuecast.pid"
    flags = ("--port", "0", "--pid-file", str(file))
    async with started(tmp_path, "serve", *flags) as process:
        await first_line(process)
        for _ in range(200):  # the line comes just before the file is complete
            if len(file.read_text().split()) == 2:
                break
            await asyncio.sleep(0.05)
        pid, url = file.read_text().split()
        assert int(pid) == process.pid
        async with started(tmp_path, "serve", *flags) as second:
            code, err = await outcome(second)
            assert (code, "gateway that runs" in err) == (1, True)
        assert await asyncio.to_thread(readyz, url) == (200, "in memory")
        assert await asyncio.to_thread(main, ["drain", "--pid-file", str(file)]) == 0
        assert capsys.readouterr().out == "drained\n"
        assert await asyncio.to_thread(readyz, url) == (503, "drained")
        # Once more, by the number and by the settings' file.
        assert await asyncio.to_thread(main, ["drain", "--pid", pid]) == 0
        assert "told process" in capsys.readouterr().out
        (tmp_path / "queuecast.toml").write_text(f'[server]\npid_file = "{file}"\n')
        config = str(tmp_path / "queuecast.toml")
        assert await asyncio.to_thread(main, ["drain", "--config", config]) == 0
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        code, _ = await outcome(process)
        assert code == 0
    assert not file.exists()


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "--pid-file", str(tmp_path / "missing")]) == 1
    assert "no such file" in capsys.readouterr().err
    stale = tmp_path / "stale"
    stale.write_text(f"{os.getpid()}\nhttp://127.0.0.1:1\n")
    assert main(["drain", "--pid-file", str(stale)]) == 1
    assert "no gateway runs" in capsys.readouterr().err
    empty = tmp_path / "queuecast.toml"
    empty.write_text("")
    assert main(["drain", "--config", str(empty)]) == 2
    assert "--pid-file" in capsys.readouterr().err
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert main(["drain", "--pid", str(gone.pid)]) == 1
    assert "no process" in capsys.readouterr().err


def test_a_file_is_one_gateway_s(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    with pytest.raises(Failure):
        PidFile(str(tmp_path / "no" / "where")).take()
    Path(path).write_text("of a gateway that was killed, and longer than what comes\n")
    first, second = PidFile(path), PidFile(path)
    first.take()
    assert read(path) == (os.getpid(), "")
    with pytest.raises(Failure):
        second.take()
    second.leave()
    first.write("http://127.0.0.1:1/push")
    assert read(path) == (os.getpid(), "http://127.0.0.1:1/push")
    first.leave()
    first.leave()
    second.take()
    second.leave()
    assert not Path(path).exists()
