"""`queuecast serve`: flags, the banner, signals, and the errors a shell user meets."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from queuecast.cli import _parser, main
from queuecast.commands.serve import banner, flags_of
from queuecast.config import Config
from queuecast.settings import ServerConfig

SOURCE = Path(__file__).parents[3] / "src"


@asynccontextmanager
async def started(directory: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("QUEUECAST_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "queuecast", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env=env | {"PYTHONPATH": str(SOURCE)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def first_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode()


async def outcome(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, err.decode()


def test_flags_are_the_options_that_were_given() -> None:
    arguments = _parser().parse_args(
        ["serve", "--port", "0", "--broker", "embedded:", "--allow-anyone", "--no-demo"]
    )
    assert flags_of(arguments) == {
        "server.port": "0",
        "server.allow_anyone": "true",
        "server.demo": "false",
        "broker.url": "embedded:",
    }
    assert flags_of(_parser().parse_args(["demo"])) == {"server.demo": "true"}
    assert flags_of(_parser().parse_args(["serve"])) == {}


def test_the_banner_has_urls_to_paste() -> None:
    text = banner(Config(server=ServerConfig(demo=True)), "http://h:1/push", "embedded", 2000)
    assert "curl -N http://h:1/push/sse/topic/hello" in text
    assert "ws://h:1/push/ws/topic/hello" in text
    assert "2,000 connections" in text
    assert "demo       http://h:1/push/" in text
    opened = Config(server=ServerConfig(host="0.0.0.0", allow_anyone=True))
    assert "everybody" in banner(opened, "http://0.0.0.0:1", "embedded", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_with_0(tmp_path: Path, number: signal.Signals) -> None:
    async with started(tmp_path, "serve", "--port", "0") as process:
        assert "listens on http://127.0.0.1:" in await first_line(process)
        process.send_signal(number)
        code, err = await outcome(process)
    assert code == 0
    assert "Traceback" not in err


async def test_a_taken_port_is_one_line_and_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        async with started(tmp_path, "serve", "--port", str(port)) as process:
            code, err = await outcome(process)
    assert code == 1
    assert f"queuecast: 127.0.0.1 port {port} is taken" in err
    assert "Traceback" not in err


async def test_a_broker_that_is_away_ends_the_start_if_so_configured(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    pytest.importorskip("pika")
    (tmp_path / "queuecast.toml").write_text('[broker]\nstart = "exit"\nstart_timeout = "100ms"')
    url = f"amqp://guest:secret@127.0.0.1:{unused_tcp_port}/"
    async with started(tmp_path, "serve", "--port", "0", "--broker", url) as process:
        code, err = await outcome(process)
    assert code == 1
    assert "queuecast: " in err
    assert "Traceback" not in err
    assert "secret" not in err


def test_wrong_settings_are_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queuecast.toml").write_text("[server]\nprot = 1")
    assert main(["serve"]) == 2
    err = capsys.readouterr().err
    assert err == "queuecast: unknown setting 'prot' in queuecast.toml: [server]: " + (
        "did you mean 'port'?\n"
    )
    (tmp_path / "queuecast.toml").unlink()
    assert main(["serve", "--port", "0", "--broker", "amqp://user:secret@[::1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "secret" not in err
    assert main(["serve", "--workers", "2"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("queuecast: server.workers: 2 processes cannot share the embedded broker")
    assert "amqp://" in err
    assert main(["serve", "--workers", "0"]) == 2
    assert "--workers: expected int >= 1" in capsys.readouterr().err
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--allow-anyone" in capsys.readouterr().err


def test_the_port_of_web_stomp_names_its_holder() -> None:
    import errno

    from queuecast.commands.serve import why_not

    taken = OSError(errno.EADDRINUSE, "Address already in use")
    assert "Web STOMP" in why_not(taken, Config())
    assert "Web STOMP" not in why_not(taken, Config(server=ServerConfig(port=80)))
    assert "privileges" in why_not(OSError(errno.EACCES, "Permission denied"), Config())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("queuecast ")


def test_the_process_collects_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def runner(**options: object) -> None:
        raise Reached

    monkeypatch.setattr(asyncio, "Runner", runner)
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        with pytest.raises(Reached):
            main(["serve"])
        young, middle, old = gc.get_threshold()
        assert young > 700
        # Still often enough that what closed sessions leave is some tens of MB.
        assert young * middle * old <= 1_000_000
    finally:
        gc.set_threshold(*before)
