"""STOMP's WebSocket layer with real clients: compression, binary messages, HTTP logins."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import queuecast.testing
from queuecast.testing import RunningGateway
from tests.conftest import Node
from tests.e2e.clients import gateway, publish
from tests.e2e.test_compression import ANSWER, connected, extensions, receive
from tests.e2e.test_stomp import page
from tests.support.servers import unique

TICKER = json.dumps([{"symbol": "XAU", "bid": 2391.25 + n, "ask": 2391.5 + n} for n in range(20)])
CONNECT = "CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n\0"


@pytest_asyncio.fixture
async def packed() -> AsyncIterator[RunningGateway]:
    """A gateway with compression on."""
    async with gateway(
        server={"compression": True, "grace": "2s"}, limits={"message": "64KB", "frame": "128KB"}
    ) as running:
        yield running


async def frame(ws: ClientConnection) -> tuple[str, dict[str, str], str]:
    """Return the next frame's command, headers and body."""
    text = await receive(ws)
    if isinstance(text, bytes):
        text = text.decode()
    head, _, body = text.lstrip("\n").partition("\n\n")
    command, *lines = head.split("\n")
    headers = dict(line.split(":", 1) for line in lines)
    return command, headers, body.rstrip("\n").removesuffix("\0")


async def log_in(ws: ClientConnection, connect_frame: str = CONNECT) -> None:
    await ws.send(connect_frame)
    command, headers, body = await frame(ws)
    assert command == "CONNECTED", (headers, body)


# -- compression --------------------------------------------------------------------------


async def test_the_websockets_library_over_a_compressed_websocket(packed: RunningGateway) -> None:
    destination = f"/topic/{unique('t')}"
    async with (
        connect(f"{packed.ws_url}/ws", subprotocols=["v12.stomp"]) as one,  # type: ignore[list-item]
        connect(f"{packed.ws_url}/ws", compression=None) as two,
    ):
        assert (extensions(one), extensions(two)) == (ANSWER, None)
        assert one.subprotocol == "v12.stomp"
        for ws in (one, two):
            await log_in(ws)
            await ws.send(f"SUBSCRIBE\nid:0\nreceipt:r\ndestination:{destination}\n\n\0")
            assert (await frame(ws))[0] == "RECEIPT"
        for sender in (one, two):
            for body in (TICKER, "短", "磁盘告警：" * 1000):
                await sender.send(f"SEND\ndestination:{destination}\n\n{body}\0")
                for ws in (one, two):
                    command, headers, got = await frame(ws)
                    assert (command, got) == ("MESSAGE", body)
                    assert headers["subscription"] == "0"
        await one.send("DISCONNECT\nreceipt:bye\n\n\0")
        assert (await frame(one))[1]["receipt-id"] == "bye"


async def test_it_is_compressed_on_the_wire_and_off_by_default(
    packed: RunningGateway, gw: RunningGateway
) -> None:
    for running, first in ((packed, 0xC1), (gw, 0x81)):
        async with connected(running, "/ws", "permessage-deflate") as raw:
            assert ("permessage-deflate" in raw.head) is (running is packed)
            destination = f"/topic/{unique('t')}"
            raw.send(0x81, CONNECT.encode())
            assert (await raw.frame())[0] == 0x81
            raw.send(0x81, f"SUBSCRIBE\nid:0\nreceipt:r\ndestination:{destination}\n\n\0".encode())
            assert (await raw.frame())[1].startswith(b"RECEIPT\n")
            await publish(running, destination, TICKER)
            got, payload = await raw.frame()
            assert got == first
            assert (len(payload) < len(TICKER) / 2) is (running is packed)


async def test_a_bomb(packed: RunningGateway) -> None:
    for logged_in, limit in ((False, 64 << 10), (True, 128 << 10)):
        async with connect(f"{packed.ws_url}/ws") as ws:
            if logged_in:
                await log_in(ws)
            await ws.send(bytes(10 << 20))
            with pytest.raises(ConnectionClosed) as info:
                await receive(ws)
            assert info.value.rcvd is not None
            assert info.value.rcvd.code == 1009
            assert info.value.rcvd.reason == f"message over {limit} bytes"


@pytest.mark.node
@pytest.mark.parametrize("client", ["stompjs7", "webstomp"])
def test_the_browsers_libraries_over_a_compressed_websocket(node: Node, client: str) -> None:
    destination = f"/topic/{unique('t')}"
    with (
        queuecast.testing.gateway(server={"compression": True, "grace": "2s"}) as running,
        page(node, client, running.ws_url + "/ws", "1.2", destination, "/") as opened,
    ):
        assert opened.next("connected")["extensions"] == "permessage-deflate"
        opened.next("receipt")
        running.publish(destination, TICKER)
        assert opened.next("message")["body"] == TICKER
        opened.say("你好" * 500)
        assert opened.next("message")["body"] == "你好" * 500


# -- binary messages ----------------------------------------------------------------------


@pytest.fixture
def binary() -> Iterator[RunningGateway]:
    with queuecast.testing.gateway(server={"ws_frame": "binary", "grace": "2s"}) as running:
        yield running


@pytest.mark.node
@pytest.mark.parametrize("client", ["stompjs7", "webstomp"])
def test_the_browsers_libraries_with_binary_messages(
    binary: RunningGateway, node: Node, client: str
) -> None:
    destination = f"/topic/{unique('t')}"
    with page(node, client, binary.ws_url + "/ws", "1.2", destination, "/") as opened:
        opened.next("connected")
        opened.next("receipt")
        binary.publish(destination, "你好")
        assert opened.next("message")["body"] == "你好"


async def test_every_message_is_binary(binary: RunningGateway) -> None:
    destination = f"/topic/{unique('t')}"
    async with connect(f"{binary.ws_url}/ws") as ws:
        await ws.send(CONNECT)
        assert isinstance(await receive(ws), bytes)
        await ws.send(f"SUBSCRIBE\nid:0\nreceipt:r\ndestination:{destination}\n\n\0")
        assert isinstance(await receive(ws), bytes)
        await ws.send(f"SEND\ndestination:{destination}\n\nx\0")
        assert isinstance(await receive(ws), bytes)


# -- HTTP Basic ---------------------------------------------------------------------------


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "frames_login", "message"),
    [
        (basic("guest:guest"), "login:guest\npasscode:wrong\n", None),
        (basic("guest:guest"), "", None),
        (basic("guest:wrong"), "login:guest\npasscode:guest\n", "Access refused for user 'guest'"),
        # Without the header the default user, which is this machine's.
        ({}, "login:nobody\npasscode:wrong\n", None),
        ({"X-Forwarded-For": "192.0.2.7"}, "login:guest\npasscode:guest\n", "Missing login"),
        ({"Authorization": "Bearer abc"}, "", "The Authorization header is not HTTP Basic"),
        ({"Authorization": "Basic %%%"}, "", "The Authorization header is not HTTP Basic"),
    ],
)
async def test_the_requests_login_counts(
    headers: dict[str, str], frames_login: str, message: str | None
) -> None:
    tables: dict[str, Any] = {"server": {"stomp_http_auth": True, "grace": "2s"}}
    async with (
        gateway(**tables) as running,
        connect(f"{running.ws_url}/ws", additional_headers=headers) as ws,
    ):
        await ws.send(f"CONNECT\naccept-version:1.2\n{frames_login}\n\0")
        command, got, body = await frame(ws)
        if message is None:
            assert command == "CONNECTED"
        else:
            assert (command, got["message"]) == ("ERROR", "Bad CONNECT")
            assert body.startswith(message)


async def test_without_the_setting_the_frames_login_counts(gw: RunningGateway) -> None:
    async with connect(f"{gw.ws_url}/ws", additional_headers=basic("guest:guest")) as ws:
        await ws.send(CONNECT.replace("passcode:guest", "passcode:wrong"))
        assert (await frame(ws))[0] == "ERROR"
