"""SockJS by hand: requests of one's own, streams both ways through the door, frames."""

import asyncio
import itertools
import json

import pytest

from queuecast.sessions import sockjs
from tests.server.house import TIMEOUT, Client, House, request, upgrade

_ids = itertools.count(1)
LOGIN = "CONNECT\naccept-version:1.2\n\n\0"
NO_CACHE = "no-store, no-cache, must-revalidate, max-age=0"
SCRIPT = "application/javascript; charset=UTF-8"
PAGE = "Origin: http://localhost:3000"
# Whoever needs jsonp or htmlfile says at least this.
REFERER = "Referer: http://localhost:3000/page.html"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep sessions between two requests, however busy the machine is."""
    monkeypatch.setattr(sockjs, "TIMEOUT", 60.0)


def place(server: str = "000") -> str:
    """Return a new session's path."""
    return f"/stomp/{server}/session{next(_ids)}"


async def ask(
    house: House, method: str, target: str, *lines: str, body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection of its own."""
    if method == "POST" and body is None:
        body = b""
    client = await house.connect(request(method, target, *lines, body=body))
    async with asyncio.timeout(TIMEOUT):
        answer = await client.response()
    client.writer.close()
    return answer


async def poll(house: House, where: str) -> str:
    status, headers, body = await ask(house, "POST", where + "/xhr")
    assert (status, headers["content-type"]) == (200, SCRIPT)
    return body.decode()


async def send(house: House, where: str, *texts: str) -> None:
    status, _, body = await ask(house, "POST", where + "/xhr_send", body=json.dumps(texts).encode())
    assert (status, body) == (204, b"")


async def stream(house: House, way: str, method: str, target: str, *lines: str) -> Client:
    """Begin a streaming request, straight from the door or on a connection that aiohttp has."""
    asked = request(method, target, *lines, body=b"" if method == "POST" else None)
    if way == "door":
        return await house.connect(asked)
    client = await house.connect(request("GET", "/stomp/info"))
    assert (await client.response())[0] == 200
    await client.send(asked)
    return client


async def head(client: Client) -> tuple[int, dict[str, str]]:
    lines = (await client.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines[1:])}
    return int(lines[0].split(" ")[1]), headers


def text_frame(payload: bytes) -> bytes:
    """Return a client's WebSocket text frame."""
    if len(payload) < 126:
        return bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload
    return bytes((0x81, 0xFE)) + len(payload).to_bytes(2, "big") + bytes(4) + payload


async def frame(client: Client) -> tuple[int, bytes]:
    """Read one WebSocket frame of less than 64 KB: its first byte and its payload."""
    async with asyncio.timeout(TIMEOUT):
        first, length = await client.reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await client.reader.readexactly(2), "big")
        return first, await client.reader.readexactly(length)


async def open_websocket(house: House, way: str, target: str, *lines: str) -> Client:
    client = await stream(house, way, "GET", "/stomp/info") if way != "door" else None
    if client is None:
        client = await house.connect(upgrade(target, *lines))
    else:
        assert (await client.response())[0] == 200
        await client.send(upgrade(target, *lines))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return client


def waiting(house: House) -> bool:
    """Tell whether some session has a receiver."""
    sessions = house.server._sockjs._sessions
    return any(each._receiver is not None for each in sessions._sessions.values())
