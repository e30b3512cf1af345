"""SockJS's streams and WebSockets, straight from the door and inside aiohttp."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import cast

import pytest

from queuecast.sessions import sockjs_receivers
from tests.server.house import TIMEOUT, Client, request, running
from tests.server.sockjs_rig import (
    LOGIN,
    NO_CACHE,
    PAGE,
    REFERER,
    SCRIPT,
    ask,
    frame,
    head,
    open_websocket,
    patient,
    place,
    poll,
    send,
    stream,
    text_frame,
    waiting,
)

__all__ = ["patient"]  # the fixture
pytestmark = pytest.mark.both_loops


# -- streams ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_xhr_streaming(way: str) -> None:
    async with running() as house:
        where = place()
        client = await stream(house, way, "POST", where + "/xhr_streaming", PAGE)
        status, headers = await head(client)
        assert (status, headers["content-type"]) == (200, SCRIPT)
        assert headers["cache-control"] == NO_CACHE
        assert headers["access-control-allow-origin"] == PAGE.removeprefix("Origin: ")
        assert headers["access-control-allow-credentials"] == "true"
        assert await client.until(b"\n") == b"h" * 2048 + b"\n"
        assert await client.until(b"\n") == b"o\n"
        await send(house, where, LOGIN)
        assert (await client.until(b"\n")).startswith(b'a["CONNECTED')
        client.writer.transport.abort()
        await house.eventually(lambda: not waiting(house))
        again = await stream(house, way, "POST", where + "/xhr_streaming")
        rest = await again.rest()
        assert rest.endswith(b"h\n" + b'c[1002,"Connection interrupted"]\n')


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_eventsource(way: str) -> None:
    async with running() as house:
        where = place()
        client = await stream(house, way, "GET", where + "/eventsource")
        status, headers = await head(client)
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=UTF-8")
        assert headers["cache-control"] == NO_CACHE
        assert await client.until(b"\r\n") == b"\r\n"
        assert await client.until(b"\r\n\r\n") == b"data: o\r\n\r\n"
        await send(house, where, LOGIN)
        assert (await client.until(b"\r\n\r\n")).startswith(b'data: a["CONNECTED\\n')


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_htmlfile(way: str) -> None:
    async with running() as house:
        where = place()
        target = where + "/htmlfile"
        client = await stream(house, way, "GET", target + "?c=%63allback", REFERER)
        status, headers = await head(client)
        assert (status, headers["content-type"]) == (200, "text/html; charset=UTF-8")
        assert headers["cache-control"] == NO_CACHE
        opened = await client.until(b'<script>\np("o");\n</script>\r\n')
        assert len(opened) > 1024
        assert b"parent.callback;" in opened
        await send(house, where, LOGIN)
        assert (await client.until(b"</script>\r\n")).startswith(b'<script>\np("a[\\"CONNECTED')
        for query, text in (
            ("", b'"callback" parameter required'),
            ("?c=a(b", b'invalid "callback" parameter'),
        ):
            refused = await stream(house, way, "GET", place() + "/htmlfile" + query, REFERER)
            status, _, body = await refused.response()
            assert (status, body.strip()) == (500, text)


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_an_answer_ends_when_it_is_long_enough(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockjs_receivers, "RESPONSE", 4096)
    async with running() as house:
        where = place()
        client = await stream(house, way, "POST", where + "/xhr_streaming")
        await client.until(b"o\n")
        await send(house, where, LOGIN, "SUBSCRIBE\nid:1\ndestination:/topic/a\nreceipt:1\n\n\0")
        await client.until(b"RECEIPT")
        await client.until(b"\n")
        for n in range(8):
            await house.publish("/topic/a", b"%03d" % n + b"x" * 1000)
        got = await client.rest()
        assert got.endswith(b"]\n"), "it ended between two frames"
        assert 3 <= got.count(b"MESSAGE") <= 5
        again = await stream(house, way, "POST", where + "/xhr_streaming")
        while b"007x" not in got:
            got += await again.until(b"\n")
        assert [b"\\n\\n%03dx" % n in got for n in range(8)] == [True] * 8
        assert got.count(b"MESSAGE") == 8


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_a_client_that_reads_late_misses_nothing(way: str) -> None:
    """Its answer ends only when the socket has all of it, and the next one goes on."""
    async with running(log={"bytes": "16MB"}) as house:
        where = place()
        asked = request("POST", where + "/xhr_streaming", body=b"")
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", house.port))
        client = Client(*await asyncio.open_connection(sock=narrow, limit=1 << 24))
        if way == "aiohttp":
            await client.send(request("GET", "/stomp/info"))
            assert (await client.response())[0] == 200
        await client.send(asked)
        await client.until(b"o\n")
        await send(house, where, LOGIN, "SUBSCRIBE\nid:1\ndestination:/topic/a\nreceipt:1\n\n\0")
        await client.until(b"RECEIPT")
        await client.until(b"\n")
        (session,) = house.server._sockjs._sessions
        (connection,) = house.server.connections
        theirs = connection.transport.get_extra_info("socket")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        # asyncio's reader stops at twice its limit; the socket itself holds little.
        cast(asyncio.Transport, client.writer.transport).pause_reading()
        for n in range(200):
            await house.publish("/topic/a", b"%03d" % n + b"x" * 20_000)
        await house.eventually(lambda: session.full)
        cast(asyncio.Transport, client.writer.transport).resume_reading()
        got = await client.rest()
        client.writer.close()
        answers = 1
        while b"199x" not in got:
            again = await stream(house, way, "POST", where + "/xhr_streaming")
            await again.until(b"h\n")
            answers += 1
            while not again.reader.at_eof() and b"199x" not in got:
                part = await asyncio.wait_for(again.reader.read(1 << 20), TIMEOUT)
                got += part
        assert answers > 10
        assert re.findall(rb"\\n\\n(\d\d\d)x", got) == [b"%03d" % n for n in range(200)]
        assert got.count(b"MESSAGE") == 200


async def test_two_streams_at_once() -> None:
    async with running() as house:
        where = place()
        first = await stream(house, "door", "POST", where + "/xhr_streaming")
        await first.until(b"o\n")
        second = await stream(house, "door", "POST", where + "/xhr_streaming")
        assert (await second.rest()).endswith(b'h\nc[2010,"Another connection still open"]\n')
        await send(house, where, LOGIN)
        assert (await first.until(b"\n")).startswith(b'a["CONNECTED')


async def test_a_session_keeps_to_its_wire() -> None:
    async with running() as house:
        where = place()
        client = await stream(house, "door", "GET", where + "/eventsource")
        await client.until(b"o\r\n\r\n")
        status, _, body = await ask(house, "POST", where + "/xhr")
        assert status == 400
        assert b"eventsource" in body
        await send(house, where, LOGIN)
        assert (await client.until(b"\r\n\r\n")).startswith(b'data: a["CONNECTED')


@pytest.mark.parametrize("body", [b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"])
async def test_a_stream_asked_for_with_a_body(body: bytes) -> None:
    """Some clients announce one that is empty."""
    async with running() as house:
        asked = request("POST", place() + "/xhr_streaming", "Transfer-Encoding: chunked")
        client = await house.connect(asked + body)
        await client.until(b"h\no\n")


async def test_a_stream_of_http_1_0() -> None:
    async with running() as house:
        asked = request("POST", place() + "/xhr_streaming", body=b"")
        client = await house.connect(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers = await head(client)
        assert status == 200
        assert not {"transfer-encoding", "content-length"} & set(headers)
        await client.until(b"h\no\n")


# -- WebSocket ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_websocket(way: str) -> None:
    async with running() as house:
        where = place()
        client = await open_websocket(house, way, where + "/websocket", PAGE)
        assert await frame(client) == (0x81, b"o")
        await client.send(text_frame(b"") + text_frame(json.dumps([LOGIN]).encode()))
        first, payload = await frame(client)
        assert first == 0x81
        assert payload.startswith(b'a["CONNECTED\\n')
        # Its life is that of the WebSocket: the id may be in use twice.
        other = await open_websocket(house, way, where + "/websocket")
        assert await frame(other) == (0x81, b"o")
        assert await poll(house, where) == "o\n"
        await client.send(text_frame(b'["a'))
        assert await frame(client) == (0x81, b'c[1007,"Broken JSON encoding."]')
        assert (await frame(client))[0] == 0x88


async def test_a_websocket_that_is_none() -> None:
    async with running() as house:
        target = place() + "/websocket"
        status, _, body = await ask(house, "GET", target)
        assert (status, body.strip()) == (400, b'Can "Upgrade" only to "WebSocket".')
        lines = ("Upgrade: WebSocket", "Connection: close")
        status, _, body = await ask(house, "GET", target, *lines)
        assert status == 400
        assert b'"Connection" must be "Upgrade"' in body


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_the_raw_websocket_is_bare_stomp(way: str) -> None:
    async with running() as house:
        client = await open_websocket(house, way, "/stomp/websocket")
        await client.send(text_frame(LOGIN.encode()))
        assert (await frame(client))[1].startswith(b"CONNECTED\n")
