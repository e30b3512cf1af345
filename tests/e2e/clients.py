"""Clients for the end-to-end tests, written from the standards and not with the gateway's code."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import yarl

import queuecast.testing
from queuecast.testing import RunningGateway

# Seconds that any single thing may take before a test gives up; nothing is measured by it.
PATIENCE = 20.0


@asynccontextmanager
async def gateway(**tables: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway beside the test's loop, which goes on while it starts and stops."""
    made = queuecast.testing.gateway(**tables)
    running = await asyncio.to_thread(made.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(made.__exit__, None, None, None)


@dataclass(frozen=True)
class Event:
    """One event of an event stream; id is the last event id of the stream so far."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventStream:
    """Reads a response as the HTML standard says (9.2.6), keeping comments and retry lines too."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0
        self.retry: int | None = None
        self.last_event_id = ""
        self._chunks = response.content.iter_any()
        self._rest = b""

    async def _line(self) -> str:
        while b"\n" not in self._rest:
            self._rest += await asyncio.wait_for(anext(self._chunks), PATIENCE)
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    async def any(self) -> Event:
        """Return the next event of any type; raises StopAsyncIteration at the end."""
        kind = "message"
        data: list[str] = []
        while True:
            line = await self._line()
            if not line:
                if data:
                    return Event(kind, "\n".join(data), self.last_event_id)
                kind = "message"
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    self.comments += 1
                case "data":
                    data.append(value)
                case "event":
                    kind = value
                case "id":
                    self.last_event_id = value
                case "retry":
                    self.retry = int(value)
                case _:
                    raise AssertionError(f"unknown field in {line!r}")

    async def next(self, kind: str = "message") -> Event:
        """Return the next event of a type, skipping positions alone."""
        while True:
            event = await self.any()
            if event.type == kind:
                return event
            assert event.type == "position", event

    async def data(self, count: int) -> list[str]:
        """Return the data of the next messages."""
        return [(await self.next()).data for _ in range(count)]


@asynccontextmanager
async def sse(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[EventStream]:
    """Open an event stream that must be granted."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(url, headers=headers or {}) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield EventStream(response)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


async def request(method: str, url: str, **options: Any) -> Answer:
    """Send one request on a connection of its own."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.request(method, yarl.URL(url, encoded=True), **options) as response,
    ):
        return Answer(response.status, response.headers, await response.text())


async def get(url: str, **options: Any) -> Answer:
    return await request("GET", url, **options)


async def publish(gw: RunningGateway, destination: str, body: str | bytes) -> None:
    """Publish over HTTP from the test's loop."""
    await asyncio.to_thread(gw.publish, destination, body)


async def until(condition: Any, what: str) -> None:
    """Wait until condition() holds; raises TimeoutError naming `what`."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.01)
