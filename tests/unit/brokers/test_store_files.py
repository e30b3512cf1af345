"""The data directory: what may be there, and what is refused and left as it is."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from queuecast.brokers.base import QueueSpec
from queuecast.brokers.embedded.store_file import FILE, SCHEMA
from queuecast.destination import Destination
from queuecast.errors import ConfigError
from queuecast.message import Properties
from tests.support.durable import image, on_disk

SOURCE = Path(__file__).parents[3] / "src"
Q = Destination.parse("/queue/q")
PERSISTENT = Properties(persistent=True)


async def filled(directory: Path, count: int = 200) -> None:
    """Make a store with messages, closed."""
    broker = on_disk(directory)
    await broker.start()
    await asyncio.gather(*(broker.publish(Q, b"x" * 500, PERSISTENT) for _ in range(count)))
    await broker.close()


async def killed(directory: Path, base: Path) -> None:
    """Make a directory as a kill leaves it: with a write-ahead log."""
    broker = on_disk(base)
    await broker.start()
    await broker.publish(Q, b"1" * 10_000, PERSISTENT)
    image(base, directory)
    await broker.close()
    assert (directory / f"{FILE}-wal").stat().st_size > 0


def contents(directory: Path) -> dict[str, bytes]:
    """Return the bytes of everything but the lock and SQLite's scratch memory."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.name != "lock" and not path.name.endswith("-shm")
    }


async def refused(directory: Path) -> str:
    """Start on a directory that is no good; returns the error after checking the files."""
    before = contents(directory)
    broker = on_disk(directory)
    with pytest.raises(ConfigError) as caught:
        await broker.start()
    assert contents(directory) == before
    assert not broker.ready
    await broker.close()
    assert caught.value.text.startswith("broker.data: ")
    assert str(directory) in caught.value.text
    assert caught.value.hint
    return str(caught.value)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 100_000, b"SQLite format 3\0"])
async def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert "not an SQLite database" in await refused(tmp_path)


async def test_another_programs_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("CREATE TABLE meta (name, value)")
    database.close()
    assert "another program" in await refused(tmp_path)


async def test_a_newer_version(tmp_path: Path) -> None:
    await filled(tmp_path)
    overwrite(tmp_path / FILE, 60, (SCHEMA + 1).to_bytes(4, "big"))
    error = await refused(tmp_path)
    assert f"its schema is {SCHEMA + 1}, this one knows {SCHEMA}" in error


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.99])
async def test_a_torn_file(tmp_path: Path, part: float) -> None:
    await filled(tmp_path)
    size = (tmp_path / FILE).stat().st_size
    os.truncate(tmp_path / FILE, int(size * part))
    assert "damaged" in await refused(tmp_path)


async def test_a_torn_file_with_a_write_ahead_log(tmp_path: Path) -> None:
    base, directory = tmp_path / "base", tmp_path / "torn"
    await filled(base, 500)
    await killed(directory, base)
    os.truncate(directory / FILE, (directory / FILE).stat().st_size // 2)
    assert "damaged" in await refused(directory)


async def test_a_file_with_a_hole(tmp_path: Path) -> None:
    await filled(tmp_path)
    overwrite(tmp_path / FILE, 4096 * 3, b"\x77" * 4096 * 5)
    assert "damaged" in await refused(tmp_path)


async def test_a_write_ahead_log_alone(tmp_path: Path) -> None:
    directory = tmp_path / "alone"
    await killed(directory, tmp_path / "base")
    (directory / FILE).unlink()
    assert f"is there without {FILE}" in await refused(directory)


async def test_a_write_ahead_log_with_a_torn_end_is_recovered(tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    await killed(directory, tmp_path / "base")
    with (directory / f"{FILE}-wal").open("ab") as wal:
        wal.write(b"half a frame" * 100)
    broker = on_disk(directory)
    await broker.start()
    assert broker.counts().queues["q"].ready == 1
    await broker.close()


async def test_values_that_make_no_sense(tmp_path: Path) -> None:
    await filled(tmp_path)
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("PRAGMA journal_mode = DELETE").fetchall()
    database.execute("UPDATE entries SET properties = '{\"nonsense\": 1}'")
    database.commit()
    database.close()
    assert "no message properties" in await refused(tmp_path)


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = on_disk(tmp_path)
    await first.start()
    second = on_disk(tmp_path)
    with pytest.raises(ConfigError, match="in use by another"):
        await second.start()
    await first.publish(Q, b"1", PERSISTENT)
    await first.close()
    third = on_disk(tmp_path)
    await third.start()
    assert third.counts().queues["q"].ready == 1
    await third.close()


async def test_a_database_that_somebody_else_holds(tmp_path: Path) -> None:
    await filled(tmp_path)
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match=r"broker\.data: .*locked"):
        await on_disk(tmp_path).start()
    other.close()


async def test_what_an_interrupted_first_start_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.new").write_bytes(b"half a database")
    await filled(tmp_path, 1)
    assert not (tmp_path / f"{FILE}.new").exists()


def a_file(base: Path) -> Path:
    (base / "file").write_text("")
    return base / "file"


def under_a_file(base: Path) -> Path:
    return a_file(base) / "data"


def not_writable(base: Path) -> Path:
    (base / "locked").mkdir(mode=0o500)
    return base / "locked"


@pytest.mark.parametrize("make", [a_file, under_a_file, not_writable])
async def test_a_directory_that_is_none(make: Callable[[Path], Path], tmp_path: Path) -> None:
    directory = make(tmp_path)
    if make is not_writable and os.access(directory, os.W_OK):
        directory = Path("/proc")  # who may write everywhere may not write there
    with pytest.raises(ConfigError, match=r"broker\.data: cannot use") as caught:
        await on_disk(directory).start()
    assert str(directory) in caught.value.text
    assert "may write" in caught.value.hint


def serve(directory: Path, *, preexec: Callable[[], None] | None = None) -> tuple[int, str]:
    """Run `queuecast serve --data` that is to fail; returns exit code and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "queuecast", "serve", "--port", "0", "--data", str(directory)],
        env={name: value for name, value in os.environ.items() if not name.startswith("QUEUECAST_")}
        | {"PYTHONPATH": str(SOURCE)},
        cwd=directory.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=preexec,
    )
    return done.returncode, done.stderr


def full_disk() -> None:
    """Let no file of this process grow."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


async def test_serve_exits_with_2_and_one_line(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / FILE).write_bytes(b"something else")
    code, error = await asyncio.to_thread(serve, foreign)
    assert code == 2, error
    assert error.strip().splitlines()[-1].startswith("queuecast: broker.data: ")


async def test_serve_on_a_full_disk_exits_with_2(tmp_path: Path) -> None:
    code, error = await asyncio.to_thread(serve, tmp_path / "new", preexec=full_disk)
    assert code == 2, error
    assert "broker.data: cannot use" in error
    there = tmp_path / "there"
    await filled(there)
    before = contents(there)
    code, error = await asyncio.to_thread(serve, there, preexec=full_disk)
    assert code == 2, error
    assert "broker.data: cannot use" in error
    # Not the whole file: the first start after it may have begun a log, with nothing in it.
    assert contents(there)[FILE] == before[FILE]


async def test_a_copy_taken_while_it_runs_is_a_backup(tmp_path: Path) -> None:
    broker = on_disk(tmp_path / "live")
    await broker.start()
    await broker.declare(queues=[QueueSpec("empty")])
    await broker.publish(Q, b"1", PERSISTENT)
    source = sqlite3.connect(tmp_path / "live" / FILE)
    (tmp_path / "backup").mkdir()
    target = sqlite3.connect(tmp_path / "backup" / FILE)
    source.backup(target)
    target.close()
    source.close()
    await broker.publish(Q, b"2", PERSISTENT)
    await broker.close()
    shutil.rmtree(tmp_path / "live")
    restored = on_disk(tmp_path / "backup")
    await restored.start()
    queues = restored.counts().queues
    assert (queues["q"].ready, queues["empty"].ready) == (1, 0)
    await restored.close()


def test_a_gateway_in_memory_needs_no_sqlite() -> None:
    check = (
        "import sys, queuecast.config as c, queuecast.gateway as g\n"
        "g.Gateway(c.from_tables({'retain': [{'destination': '/topic/a', 'age': '1h'}]}))\n"
        "print('sqlite3' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
