"""Where STOMP over WebSocket is found, both ways through the door."""

import asyncio

import pytest

from tests.server.house import TIMEOUT, Client, House, request, running, upgrade

pytestmark = pytest.mark.both_loops

CONNECT = b"CONNECT\naccept-version:1.2\n\n\0"


async def ask(house: House, path: str, way: str) -> Client:
    """Open a WebSocket at a path. way: straight from the door, or after a request."""
    if way == "door":
        return await house.connect(upgrade(path))
    client = await house.connect(request("GET", "/healthz"))
    assert (await client.response())[0] == 200
    await client.send(upgrade(path))
    return client


async def frame(client: Client) -> tuple[int, bytes]:
    """Read one WebSocket frame of less than 64 KB: its first byte and its payload."""
    async with asyncio.timeout(TIMEOUT):
        first, length = await client.reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await client.reader.readexactly(2), "big")
        return first, await client.reader.readexactly(length)


async def speaks_stomp(house: House, path: str, way: str) -> bool:
    """Tell whether a WebSocket at this path answers a CONNECT as STOMP does."""
    client = await ask(house, path, way)
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    await client.send(bytes((0x81, 0x80 | len(CONNECT))) + bytes(4) + CONNECT)
    payload = (await frame(client))[1]
    # Whatever else is there gives the frame back as a message, or closes with a reason.
    return payload.startswith(b"CONNECTED\n")


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_it_is_at_ws_beside_plain_websockets(way: str) -> None:
    async with running() as house:
        assert await speaks_stomp(house, "/ws", way)
        assert await speaks_stomp(house, "/ws/", way)
        assert await speaks_stomp(house, "/ws?x=1", way)
        assert not await speaks_stomp(house, "/ws/topic/a", way)
        assert not await speaks_stomp(house, "/ws?destination=/topic/a", way)


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_it_moves(way: str) -> None:
    async with running(server={"stomp_path": "/app/stomp", "prefix": "/push"}) as house:
        for path in ("/app/stomp", "/app/stomp/", "/push/app/stomp", "/app/stomp?destination=x"):
            assert await speaks_stomp(house, path, way)
        for path in ("/ws", "/ws/", "/ws/topic/a", "/ws?destination=/topic/a"):
            assert not await speaks_stomp(house, path, way)
        client = await ask(house, "/ws", way)
        await client.until(b"\r\n\r\n")
        first, reason = await frame(client)
        assert (first, int.from_bytes(reason[:2], "big")) == (0x88, 4400)
        assert reason[2:], "it says what is missing"


@pytest.mark.parametrize("path", ["/app", "/ws"])
async def test_a_request_that_is_no_handshake_is_told_so(path: str) -> None:
    async with running(server={"stomp_path": path}) as house:
        client = await house.connect(request("GET", path))
        status, problem = await client.problem()
        assert (status, problem["code"]) == (426, "upgrade_required")
        for unknown in ("/app/x", "/application"):
            client = await house.connect(request("GET", unknown))
            assert (await client.problem())[0] == 404


async def test_both_may_be_at_ws_and_plain_routes_stay() -> None:
    async with running(server={"stomp_path": "/ws", "sockjs_path": "/ws"}) as house:
        assert await speaks_stomp(house, "/ws", "door")
        assert not await speaks_stomp(house, "/ws/topic/x", "door")
        assert not await speaks_stomp(house, "/ws/exchange/amq.topic/x", "door")


async def test_origins_are_checked_there_too() -> None:
    async with running(server={"stomp_path": "/app"}) as house:
        client = await house.connect(upgrade("/app", "Origin: https://evil.example"))
        assert (await client.problem())[0] == 403
