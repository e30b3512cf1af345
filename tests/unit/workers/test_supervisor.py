"""The parent of workers that die: who is started again, when, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

import pytest

from queuecast.config import from_tables
from queuecast.workers import supervisor
from queuecast.workers.supervisor import Supervisor
from queuecast.workers.view import WorkersView
from queuecast.workers.words import DRAIN, STOP, Hello, Report
from queuecast.workers.worker import WorkerFailed

CONFIG = {"server": {"port": 0, "workers": 2}, "broker": {"url": "amqp://localhost"}}


class FakeWorker:
    """A process that does as it is told; wrong: why it cannot start."""

    made: list[FakeWorker]
    wrong: dict[int, str]

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.number = hello.number
        self.pid = 1000 + len(self.made)
        self.told: list[bytes] = []
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.made.append(self)
        self.failure = self.wrong.get(self.number, "")
        if self.failure:
            self.code.set_result(1)

    @classmethod
    async def start(cls, hello: Hello) -> FakeWorker:
        return cls(hello)

    @property
    def is_running(self) -> bool:
        return not self.code.done()

    def tell(self, words: bytes) -> None:
        self.told.append(words)
        if words == STOP and not self.code.done():
            self.code.set_result(0)

    async def up(self) -> Report:
        if self.failure:
            raise WorkerFailed(self.failure, 1)
        return Report(f"http://127.0.0.1:{self.hello.config.server.port}", "", "amqp", 10)

    async def ended(self) -> int:
        return await asyncio.shield(self.code)

    async def why(self) -> str:
        return f": {self.failure}" if self.failure else ""

    def kill(self) -> None:
        if not self.code.done():
            self.code.set_result(-signal.SIGKILL)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorker]:
    """The workers that were started, in order; delays are short."""
    monkeypatch.setattr(supervisor, "Worker", FakeWorker)
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(supervisor, "LAST_DELAY", 0.04)
    FakeWorker.made, FakeWorker.wrong = [], {}
    return FakeWorker.made


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is nobody's event
            await asyncio.sleep(0.005)


async def test_who_dies_is_started_again_as_what_it_was(
    made: list[FakeWorker], caplog: pytest.LogCaptureFixture
) -> None:
    parent = Supervisor(from_tables(CONFIG))
    report = await parent.start()
    assert not report.url.endswith(":0")
    assert [each.number for each in made] == [0, 1]
    assert made[0].hello.node == made[1].hello.node
    made[1].kill()
    await until(lambda: len(made) == 3)
    assert made[2].hello == made[1].hello
    [said] = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert said == ("worker 1 (process 1001) was killed by SIGKILL; it is started again in 0.0 s")
    parent.drain()
    assert made[0].told == made[2].told == [DRAIN]
    made[0].kill()
    await until(lambda: len(made) == 4)
    # One that begins now has no clients to keep.
    assert made[3].hello.draining
    assert await parent.stop()
    assert [each.told[-1] for each in made[2:]] == [STOP, STOP]
    assert len(made) == 4


async def test_who_cannot_start_is_tried_again_more_and_more_seldom(
    made: list[FakeWorker], caplog: pytest.LogCaptureFixture
) -> None:
    parent = Supervisor(from_tables(CONFIG))
    await parent.start()
    FakeWorker.wrong[0] = "RabbitMQ refused the login"
    made[0].kill()
    await until(lambda: len(made) >= 6)
    assert await parent.stop()
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert "was killed by SIGKILL; " in lines[0]
    assert "ended with exit code 1: RabbitMQ refused the login; " in lines[1]
    assert made[1].is_running is False
    # Nobody is started after the end.
    count = len(made)
    await asyncio.sleep(0.1)
    assert len(made) == count


async def test_what_is_wrong_at_the_start_ends_all(made: list[FakeWorker]) -> None:
    parent = Supervisor(from_tables(CONFIG))
    FakeWorker.wrong[1] = "out of luck"
    with pytest.raises(WorkerFailed, match="out of luck"):
        await parent.start()
    await parent.stop()
    assert not any(each.is_running for each in made)


async def test_a_worker_that_hangs_is_killed_in_the_end(
    made: list[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_PATIENCE", 0.05)
    server = {"port": 0, "workers": 2, "drain": 0, "grace": 0}
    parent = Supervisor(from_tables({**CONFIG, "server": server}))
    await parent.start()
    monkeypatch.setattr(made[1], "tell", lambda words: None)
    assert not await parent.stop()
    assert made[1].code.result() == -signal.SIGKILL


async def test_who_hangs_is_killed_and_started_again(
    made: list[FakeWorker], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    # Worker 1 is late again and again, but never for long enough; then it says nothing more.
    late = iter(([False] * (supervisor.MOST_MISSED - 1) + [True]) * 3)

    async def answers(_view: object, number: int) -> bool:
        asked.append(number)
        return number == 0 or len(made) > 2 or next(late, False)

    monkeypatch.setattr(WorkersView, "answers", answers)
    parent = Supervisor(from_tables(CONFIG), ask=0.001)
    await parent.start()
    await until(lambda: len(made) == 3)
    assert made[2].number == 1
    assert asked.count(1) >= 4 * supervisor.MOST_MISSED
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert said[0].startswith("worker 1 (process 1001) has not answered")
    assert "worker 1 (process 1001) was killed by SIGKILL" in said[1]
    so_far = asked.count(1)
    await until(lambda: asked.count(1) > so_far + supervisor.MOST_MISSED)
    assert len(made) == 3
    assert await parent.stop()
