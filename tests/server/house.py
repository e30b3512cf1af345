"""A server over the embedded broker, and a raw socket client that hides nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from queuecast.config import from_tables
from queuecast.gateway import Gateway

TIMEOUT = 10.0  # what only a broken test waits for


class Client:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        """Read up to and with `end`."""
        return await asyncio.wait_for(self.reader.readuntil(end), TIMEOUT)

    async def rest(self) -> bytes:
        """Read until the server closes; a reset ends it as well."""
        data = b""
        try:
            while part := await asyncio.wait_for(self.reader.read(65536), TIMEOUT):
                data += part
        except ConnectionResetError:
            pass  # an abort: what was read before is the answer
        return data

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Read one response with a length, the connection stays open."""
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in lines[1:])
        }
        length = int(headers.get("content-length", "0"))
        body = await asyncio.wait_for(self.reader.readexactly(length), TIMEOUT)
        return int(lines[0].split(" ")[1]), headers, body

    async def response_json(self) -> tuple[int, Any]:
        """Read one response: status and JSON."""
        status, _, body = await self.response()
        return status, json.loads(body)

    async def problem(self) -> tuple[int, dict[str, Any]]:
        """Read one refusal: status and JSON."""
        status, headers, body = await self.response()
        assert headers["content-type"] == "application/json"
        problem = json.loads(body)
        assert {"code", "text", "hint", "retry"} <= set(problem)
        return status, problem

    async def opened(self) -> str:
        """Read an SSE answer's head and its first position event."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1")
        assert head.startswith("HTTP/1.1 200 ")
        await self.until(b"event: position\n")
        await self.until(b"\n\n")
        return head


class House:
    """A gateway on a free port."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.server = gateway.server
        self.port = int(gateway.url.rpartition(":")[2].partition("/")[0])
        self.url = gateway.url
        self._clients: list[Client] = []

    async def connect(self, data: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        client = Client(reader, writer)
        self._clients.append(client)
        if data:
            await client.send(data)
        return client

    async def publish(self, destination: str, body: bytes) -> None:
        """Publish over a connection of its own."""
        client = await self.connect(request("POST", f"/publish{destination}", body=body))
        assert (await client.response())[0] == 200
        client.writer.close()

    async def eventually(self, condition: Any) -> None:
        """Let the loop turn until the condition holds."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():  # noqa: ASYNC110 - the condition is nobody's event
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        for client in self._clients:
            client.writer.close()
        await self.gateway.stop(grace=1.0)


@asynccontextmanager
async def running(**tables: Any) -> AsyncIterator[House]:
    """Run a gateway; tables as in queuecast.toml."""
    server = {"port": 0, **tables.pop("server", {})}
    gateway = Gateway(from_tables({"server": server, **tables}))
    await gateway.start()
    house = House(gateway)
    try:
        yield house
    finally:
        await house.close()


def request(method: str, target: str, *lines: str, body: bytes | None = None) -> bytes:
    """Return the bytes of a request; its Host is a loopback name unless it is among `lines`."""
    head = [f"{method} {target} HTTP/1.1"]
    if not any(line.lower().startswith("host:") for line in lines):
        head.append("Host: localhost")
    head += lines
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + (body or b"")


def upgrade(target: str, *lines: str) -> bytes:
    """Return the bytes of a WebSocket's opening handshake."""
    return request(
        "GET",
        target,
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
    )
