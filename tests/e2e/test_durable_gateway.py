"""`queuecast serve --data`: a gateway that is killed and comes back, as its clients see it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.clients import Event, EventStream, get, request, sse, until
from tests.support.processes import Process, free_port

SOURCE = Path(__file__).parents[2] / "src"
CONFIGURATION = """
[[queue]]
name = "orders"

[[retain]]
destination = "/topic/job.#"
age = "1h"
"""


class Serve:
    """A gateway process on one port and one directory, started again and again."""

    def __init__(self, base: Path) -> None:
        self.url = ""
        self._base = base
        self._port = free_port()
        self._process: Process | None = None
        (base / "queuecast.toml").write_text(CONFIGURATION)

    async def start(self) -> None:
        env = {name: text for name, text in os.environ.items() if not name.startswith("QUEUECAST_")}
        self._process = Process(
            (
                *(sys.executable, "-m", "queuecast", "serve", "--port", str(self._port)),
                *("--config", self._base / "queuecast.toml", "--data", self._base / "data"),
            ),
            log=self._base / "log",
            env=env | {"PYTHONPATH": str(SOURCE)},
        )
        self.url = f"http://127.0.0.1:{self._port}"
        process = self._process
        await asyncio.to_thread(process.wait_until, self._answers, what="the gateway")

    def _answers(self) -> bool:
        return f"listens on {self.url}" in (self._process.log_tail() if self._process else "")

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        process = self._process
        assert process is not None
        process.signal(number)
        await until(lambda: not process.running, "the end of the gateway")
        process.log.write_text("")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def publish(self, where: str, *bodies: str) -> None:
        for body in bodies:
            answer = await request("POST", f"{self.url}/publish{where}", data=body)
            assert answer.status == 200, answer.text

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[EventStream]:
        async with sse(f"{self.url}/sse{path}") as events:
            yield events


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    made = Serve(tmp_path)
    await made.start()
    yield made
    await asyncio.to_thread(made.close)


async def next_of(events: EventStream, want: Callable[[Event], bool]) -> Event:
    """Return the next event of a kind, whatever comes before it."""
    while not want(event := await events.any()):
        pass
    return event


def raw_post(destination: str, body: str) -> bytes:
    head = f"POST /publish{destination} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def epoch(position: str) -> str:
    return position.split("-")[0]


async def test_a_killed_gateway_still_has_what_it_answered(serve: Serve) -> None:
    await serve.publish("/queue/orders", "1", "2", "3")
    await serve.publish("/topic/job.1", "begun", "done")
    async with serve.stream("/topic/job.1?last=1") as events:
        before = await events.next()
        assert before.data == "done"
    await serve.end(signal.SIGKILL)
    await serve.start()
    async with serve.stream("/queue/orders") as events:
        assert await events.data(3) == ["1", "2", "3"]
    async with serve.stream(f"/topic/job.1?since={before.id}") as events:
        await serve.publish("/topic/job.1", "more")
        after = await next_of(events, lambda event: event.data == "more")
        # The numbering goes on: the same epoch, and a place behind the old one.
        assert epoch(after.id) == epoch(before.id)
        assert int(after.id.split("-")[1]) > int(before.id.split("-")[1])
    # What was read and written to a client was acked.
    await serve.publish("/queue/orders", "4")
    async with serve.stream("/queue/orders") as events:
        assert await events.data(1) == ["4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_what_a_crowd_got_answers_to_is_there_once(
    serve: Serve, number: signal.Signals
) -> None:
    port = int(serve.url.rpartition(":")[2])
    taken: list[str] = []
    sent: list[str] = []
    enough = asyncio.Event()

    async def publish(client: int) -> None:
        """Publish five at a time until the gateway ends the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = -1
        try:
            while True:
                bodies = [f"{client}.{said + each}" for each in range(1, 6)]
                said += 5
                sent.extend(bodies)
                writer.writelines(raw_post("/topic/job.crowd", body) for body in bodies)
                for body in bodies:
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200 ")
                    await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
                    taken.append(body)
                if len(taken) > 500:
                    enough.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    clients = [asyncio.create_task(publish(client)) for client in range(20)]
    await asyncio.wait_for(enough.wait(), 60)
    await serve.end(number)
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    await serve.start()
    await serve.publish("/topic/job.crowd", "end")
    kept: list[str] = []
    async with serve.stream("/topic/job.crowd?since=first") as events:
        while (event := await events.next()).data != "end":
            kept.append(event.data)
    assert len(kept) == len(set(kept))
    assert set(taken) <= set(kept) <= set(sent)
    for client in range(20):
        own = [int(each.partition(".")[2]) for each in kept if each.startswith(f"{client}.")]
        assert own == list(range(len(own)))


async def test_an_unretained_feed_tells_of_the_gap(serve: Serve) -> None:
    await serve.publish("/topic/prices", "1")
    async with serve.stream("/topic/prices?last=1") as events:
        before = await events.next()
    await serve.end(signal.SIGKILL)
    await serve.start()
    async with serve.stream(f"/topic/prices?since={before.id}") as events:
        gap = await next_of(events, lambda event: event.type == "gap")
        assert json.loads(gap.data)["last"] == before.id


async def test_a_polite_stop_loses_nothing_for_who_had_everything(serve: Serve) -> None:
    await serve.publish("/topic/prices", "1")
    async with serve.stream("/topic/prices?last=1") as events:
        before = await events.next()
    await serve.end(signal.SIGTERM)
    await serve.start()
    async with serve.stream(f"/topic/prices?since={before.id}") as events:
        await serve.publish("/topic/prices", "2")
        event = await next_of(events, lambda event: event.type != "position")
        assert (event.type, event.data) == ("message", "2")


async def test_a_second_gateway_on_the_directory_is_refused(serve: Serve, tmp_path: Path) -> None:
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "queuecast", "serve", "--port", "0"),
        *("--data", str(tmp_path / "data")),
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    _, error = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 2
    assert b"in use by another queuecast" in error
    assert (await get(f"{serve.url}/readyz")).status == 200
