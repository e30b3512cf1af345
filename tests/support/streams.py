"""Clients of a gateway that receive numbers, a back end that sends them, and who checks both.

The clients are aiohttp's and the `websockets` package's, not our own code; none reconnects by
itself, so a test sees every connection that the gateway ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp
import pika
import pika.exceptions
import websockets

from queuecast.testing import RunningGateway, gateway
from tests.support.rabbit import NOT_CONNECTED
from tests.support.sinks import eventually

GAP = "gap"


@contextlib.asynccontextmanager
async def running(**tables: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway while the test's own loop, and a proxy on it, go on."""
    made = gateway(**tables)
    opened = await asyncio.to_thread(made.__enter__)
    try:
        yield opened
    finally:
        await asyncio.to_thread(made.__exit__, None, None, None)


async def ready(running_gateway: RunningGateway, patience: float = 75.0) -> None:
    """Wait until the gateway's broker is connected again and its streams are read."""
    broker = running_gateway.gateway.broker
    try:
        await eventually(lambda: broker.ready, "ready", patience)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {broker.status}") from None


async def settled(ask: Callable[[], object], expected: object, patience: float = 60.0) -> None:
    """Ask the broker until it answers what is expected."""
    last: object = None
    try:
        async with asyncio.timeout(patience):
            while (last := await asyncio.to_thread(ask)) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"not within {patience:g} s: {expected!r}, but {last!r}") from None


def path_of(destination: str) -> str:
    """Return a destination, with or without a query, as it stands in a URL."""
    path, mark, query = destination.partition("?")
    return quote(path, safe="/") + mark + query


class Stream:
    """One open subscription and what came: bodies and gaps in their order."""

    def __init__(self, name: str, close: Callable[[], Awaitable[object]]) -> None:
        """close: ends the client's connection."""
        self.name = name
        self._close = close
        self.events: list[str] = []
        self.ended: str | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def bodies(self) -> list[str]:
        return [event for event in self.events if event != GAP]

    @property
    def numbers(self) -> list[int]:
        return [int(body) for body in self.bodies]

    async def until(self, body: str, patience: float = 60.0) -> None:
        """Wait for a message with this body."""

        def there() -> bool:
            assert self.ended is None, f"{self.name} ended: {self.ended}"
            return body in self.events[-200:]

        await eventually(there, f"{body!r} at {self.name}", patience)

    def follow(self, work: Callable[[], Awaitable[None]]) -> None:
        """Read in the background from now on."""

        async def reading() -> None:
            try:
                await work()
            except (aiohttp.ClientError, websockets.ConnectionClosed, OSError) as error:
                self.ended = f"{type(error).__name__}: {error}"
            else:
                self.ended = self.ended or "the end of the stream"

        self._task = asyncio.create_task(reading())

    async def close(self) -> None:
        """Close the connection, as a page that is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._close()


async def sse(session: aiohttp.ClientSession, url: str, destination: str) -> Stream:
    """Open an SSE stream and return once it is live."""
    response = await session.get(
        f"{url}/sse{path_of(destination)}",
        headers={"Accept": "text/event-stream"},
        timeout=aiohttp.ClientTimeout(None),
    )
    assert response.status == 200, (response.status, await response.text())

    async def close() -> None:
        response.close()

    stream = Stream(f"SSE {destination}", close)

    async def read() -> None:
        kind, data = "message", []
        async for raw in response.content:
            field, _, value = raw.decode().rstrip("\n").partition(": ")
            if field == "event":
                kind = value
            elif field in ("data", "data:"):
                data.append(value)
            elif not field:
                if kind == "disconnect":
                    stream.ended = "\n".join(data)
                elif kind == GAP:
                    stream.events.append(GAP)
                elif kind == "message" and data:
                    stream.events.append("\n".join(data))
                kind, data = "message", []

    stream.follow(read)
    return stream


async def aiohttp_socket(session: aiohttp.ClientSession, url: str, destination: str) -> Stream:
    """Open a bare WebSocket with aiohttp's client."""
    socket = await session.ws_connect(f"{url}/ws{path_of(destination)}", max_msg_size=0)
    stream = Stream(f"WebSocket (aiohttp) {destination}", socket.close)

    async def read() -> None:
        async for message in socket:
            stream.events.append(_bare(message.data))
        stream.ended = f"closed with {socket.close_code}"

    stream.follow(read)
    return stream


async def websockets_socket(session: aiohttp.ClientSession, url: str, destination: str) -> Stream:
    """Open a bare WebSocket with the `websockets` client; the session is not used."""
    address = f"ws{url.removeprefix('http')}/ws{path_of(destination)}"
    socket = await websockets.connect(
        address, compression=None, max_size=None, ping_interval=None, max_queue=(4096, 1024)
    )
    stream = Stream(f"WebSocket (websockets) {destination}", socket.close)

    async def read() -> None:
        async for message in socket:
            stream.events.append(_bare(message))

    stream.follow(read)
    return stream


KINDS = (sse, aiohttp_socket, sse, websockets_socket)


def _bare(data: str | bytes) -> str:
    text = data if isinstance(data, str) else data.decode()
    return GAP if text.startswith('{"gap":') else text


@contextlib.asynccontextmanager
async def audience(url: str, destination: str, count: int) -> AsyncIterator[list[Stream]]:
    """Open `count` streams of all kinds on one destination."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
        opening = (KINDS[at % len(KINDS)](session, url, destination) for at in range(count))
        streams = await asyncio.gather(*opening)
        try:
            yield list(streams)
        finally:
            await asyncio.gather(*(stream.close() for stream in streams))


class Enveloped:
    """An enveloped WebSocket, with the `websockets` client."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self.deliveries: list[dict[str, Any]] = []
        self.notices: list[dict[str, Any]] = []
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, url: str, query: str) -> Enveloped:
        """Connect to `/ws` and this query, or a path with one."""
        address = f"ws{url.removeprefix('http')}/ws{query}"
        return cls(
            await websockets.connect(
                address, compression=None, ping_interval=None, max_queue=(4096, 1024)
            )
        )

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self._socket:
                notice = json.loads(text)
                if "body" in notice or "base64" in notice:
                    self.deliveries.append(notice)
                else:
                    self.notices.append(notice)

    @property
    def bodies(self) -> list[str]:
        return [each["body"] for each in self.deliveries]

    async def say(self, **command: Any) -> None:
        await self._socket.send(json.dumps(command))

    async def until(self, count: int, patience: float = 30.0) -> None:
        """Wait for so many deliveries."""
        await eventually(
            lambda: len(self.deliveries) >= count,
            f"{count} deliveries, there are {len(self.deliveries)}; {self.notices[-3:]}",
            patience,
        )

    async def notice(self, name: str, count: int = 1, patience: float = 30.0) -> dict[str, Any]:
        """Wait for the count-th notice with this member and return it."""

        def found() -> list[dict[str, Any]]:
            return [each for each in self.notices if name in each]

        await eventually(lambda: len(found()) >= count, f"{name} in {self.notices[-3:]}", patience)
        return found()[count - 1]

    async def close(self) -> None:
        await self._socket.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Numbers:
    """A back end with pika: publishes 0, 1, 2 … from a thread, each confirmed, until told to stop.

    A number whose confirm did not come is never sent again: nobody knows whether it is there.
    """

    def __init__(
        self,
        url: str,
        exchange: str,
        key: str,
        *,
        persistent: bool = False,
        pause: float = 0.002,
        mandatory: bool = False,
    ) -> None:
        """mandatory: what RabbitMQ could not route does not count as confirmed."""
        self._mandatory = mandatory
        self._url = url
        self._exchange = exchange
        self._key = key
        self._properties = pika.BasicProperties(delivery_mode=2 if persistent else 1)
        self._pause = pause
        self.sent = 0
        self.confirmed: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="numbers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection = pika.BlockingConnection(pika.URLParameters(self._url))
            except NOT_CONNECTED:
                self._stop.wait(0.1)
                continue
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                self._publish(connection)

    def _publish(self, connection: Any) -> None:
        with contextlib.closing(connection):
            channel = connection.channel()
            channel.confirm_delivery()
            while not self._stop.wait(self._pause):
                number = self.sent
                self.sent += 1
                channel.basic_publish(
                    self._exchange,
                    self._key,
                    b"%d" % number,
                    properties=self._properties,
                    mandatory=self._mandatory,
                )
                self.confirmed.append(number)

    async def more(self, count: int, patience: float = 60.0) -> None:
        """Wait for so many more confirms."""
        wanted = len(self.confirmed) + count
        await eventually(lambda: len(self.confirmed) >= wanted, f"{count} confirms", patience)

    async def stop(self) -> int:
        """Stop and return the last confirmed number."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, 30)
        assert not self._thread.is_alive()
        return self.confirmed[-1]


@contextlib.asynccontextmanager
async def numbers(url: str, exchange: str, key: str, **options: Any) -> AsyncIterator[Numbers]:
    """Publish numbers while the block runs."""
    publishing = Numbers(url, exchange, key, **options)
    try:
        yield publishing
    finally:
        await publishing.stop()


def check_honest(stream: Stream, confirmed: Sequence[int]) -> None:
    """Nothing twice, nothing out of order, and a gap wherever a confirmed number is missing."""
    known = set(confirmed)
    assert stream.ended is None, f"{stream.name} ended: {stream.ended}"
    last: int | None = None
    told = False
    for event in stream.events:
        if event == GAP:
            told = True
            continue
        number = int(event)
        if last is not None:
            assert number > last, f"{stream.name}: {number} after {last}"
        if not told:
            first = confirmed[0] if last is None else last + 1
            silent = known.intersection(range(first, number))
            assert not silent, f"{stream.name}: a silent hole of {sorted(silent)[:5]} at {number}"
        last, told = number, False


def check_complete(stream: Stream, expected: Iterable[int]) -> None:
    """Every number once, in order, and no gap."""
    assert stream.ended is None, f"{stream.name} ended: {stream.ended}"
    assert GAP not in stream.events, f"{stream.name} has a gap"
    assert stream.numbers == list(expected), stream.name
