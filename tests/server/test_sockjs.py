"""SockJS's addresses as its protocol 0.3.3 has them, both ways through the door."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
from typing import Any

import pytest

from queuecast.sessions import sockjs, sockjs_receivers
from tests.server.house import TIMEOUT, Client, House, request, running, upgrade

pytestmark = pytest.mark.both_loops

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


# -- greeting, info, iframe ---------------------------------------------------------------


async def test_the_greeting() -> None:
    async with running() as house:
        for target in ("/stomp", "/stomp/"):
            status, headers, body = await ask(house, "GET", target)
            assert (status, body) == (200, b"Welcome to SockJS!\n")
            assert headers["content-type"] == "text/plain; charset=UTF-8"
            assert "set-cookie" not in headers
        for target in ("/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/", "/a/b/c"):
            assert (await ask(house, "GET", "/stomp" + target))[0] == 404
        status, headers, body = await ask(house, "POST", "/stomp")
        assert (status, headers["allow"], body) == (405, "OPTIONS, GET", b"")
        assert (await ask(house, "GET", "/stompx"))[0] == 404


async def test_info() -> None:
    async with running() as house:
        seen = set()
        for _ in range(3):
            status, headers, body = await ask(house, "GET", "/stomp/info", PAGE)
            assert status == 200
            assert headers["content-type"] == "application/json; charset=UTF-8"
            assert headers["cache-control"] == NO_CACHE
            assert headers["access-control-allow-origin"] == PAGE.removeprefix("Origin: ")
            assert headers["access-control-allow-credentials"] == "true"
            assert "Origin" in headers["vary"]
            info = json.loads(body)
            assert 0 <= info["entropy"] < 1 << 32
            seen.add(info.pop("entropy"))
            assert info == {"websocket": True, "origins": ["*:*"], "cookie_needed": False}
        assert len(seen) == 3


async def test_info_of_other_settings() -> None:
    settings = {"sockjs_websocket": False, "sockjs_cookie": True}
    async with running(server=settings) as house:
        _, headers, body = await ask(house, "GET", "/stomp/info")
        info = json.loads(body)
        assert (info["websocket"], info["cookie_needed"]) == (False, True)
        assert "set-cookie" not in headers
        client = await house.connect(upgrade(place() + "/websocket"))
        assert (await client.response())[0] == 404


@pytest.mark.parametrize(
    ("target", "methods"),
    [
        ("/stomp/info", "OPTIONS, GET"),
        ("/stomp/abc/abc/xhr", "OPTIONS, POST"),
        ("/stomp/abc/abc/xhr_send", "OPTIONS, POST"),
        ("/stomp/abc/abc/xhr_streaming", "OPTIONS, POST"),
    ],
)
async def test_preflights(target: str, methods: str) -> None:
    async with running() as house:
        asked = "Access-Control-Request-Headers: a, b, c"
        status, headers, body = await ask(house, "OPTIONS", target, PAGE, asked)
        assert (status, body) == (204, b"")
        assert headers["access-control-allow-methods"] == methods
        assert headers["access-control-allow-origin"] == PAGE.removeprefix("Origin: ")
        assert headers["access-control-allow-credentials"] == "true"
        assert headers["access-control-allow-headers"] == "a, b, c"
        assert int(headers["access-control-max-age"]) > 1_000_000
        assert "public" in headers["cache-control"]
        assert headers["expires"]
        status, _, _ = await ask(house, "OPTIONS", target, "Origin: http://evil.example")
        assert status == 403


async def test_the_iframe() -> None:
    url = "https://cdn.example/sockjs.min.js"
    tables: dict[str, Any] = {
        "sockjs_client_url": url,
        "origins": ["https://app.example"],
        "allow_anyone": True,
    }
    async with running(server=tables) as house:
        tags = set()
        for suffix in ("", "-a", "-", "-0.1.2", "-0.1.2abc-dirty.2144"):
            target = f"/stomp/iframe{suffix}.html"
            # A page of another site frames it: browsers say so, and send no Origin.
            status, headers, body = await ask(
                house, "GET", target + "?t=1", "Sec-Fetch-Site: cross-site"
            )
            assert status == 200
            assert headers["content-type"] == "text/html; charset=UTF-8"
            assert "public" in headers["cache-control"]
            assert "max-age=31536000" in headers["cache-control"]
            assert headers["expires"]
            assert "last-modified" not in headers
            assert "set-cookie" not in headers
            assert f'<script src="{url}">'.encode() in body
            assert b"SockJS.bootstrap_iframe()" in body
            policy = headers["content-security-policy"]
            assert policy.startswith("frame-ancestors 'self' https://app.example ")
            assert "http://localhost:*" in policy
            assert "evil" not in policy
            tags.add(headers["etag"])
        (tag,) = tags
        status, headers, body = await ask(
            house, "GET", "/stomp/iframe.html", f"If-None-Match: {tag}"
        )
        assert (status, body) == (304, b"")
        assert "content-type" not in headers
        for suffix in ("iframe.htm", "iframe", "IFRAME.HTML", "iframe.xml", "iframe-/.html"):
            assert (await ask(house, "GET", f"/stomp/{suffix}"))[0] == 404


async def test_there_is_no_iframe_unless_configured() -> None:
    async with running() as house:
        status, _, body = await ask(house, "GET", "/stomp/iframe.html")
        assert status == 404
        assert b"sockjs_client_url" in body


# -- sessions -----------------------------------------------------------------------------


async def test_addresses_of_sessions() -> None:
    async with running() as house:
        for target in ("/a/a", "/_/_", "/1/1", "/abcdefgh_i-j%20/abcdefg_i-j%20"):
            assert await poll(house, f"/stomp{target}") == "o\n"
        for target in ("//", "/a./a", "/a/a.", "/./.", "/", "///"):
            for method in ("GET", "POST"):
                assert (await ask(house, method, f"/stomp{target}/xhr"))[0] == 404
        long = "x" * 129
        assert (await ask(house, "POST", f"/stomp/000/{long}/xhr"))[0] == 404
        assert (await ask(house, "POST", f"/stomp/000/{long}/xhr_streaming"))[0] == 404


async def test_the_server_in_the_address_means_nothing() -> None:
    async with running() as house:
        where = place("000")
        assert await poll(house, where) == "o\n"
        await send(house, where.replace("/000/", "/777/"), LOGIN)
        assert (await poll(house, where.replace("/000/", "/999/"))).startswith('a["CONNECTED\\n')


async def test_polling() -> None:
    async with running() as house:
        where = place()
        status, headers, body = await ask(house, "POST", where + "/xhr", PAGE)
        assert (status, body) == (200, b"o\n")
        assert headers["content-type"] == SCRIPT
        assert headers["cache-control"] == NO_CACHE
        assert headers["access-control-allow-origin"] == PAGE.removeprefix("Origin: ")
        assert "access-control-allow-headers" not in headers
        assert headers["server"] == "queuecast"
        body = json.dumps([LOGIN]).encode()
        status, headers, _ = await ask(house, "POST", where + "/xhr_send", PAGE, body=body)
        assert status == 204
        assert headers["content-type"] == "text/plain; charset=UTF-8"
        assert headers["cache-control"] == NO_CACHE
        assert headers["access-control-allow-credentials"] == "true"
        assert (await poll(house, where)).startswith('a["CONNECTED\\nversion:1.2\\n')
        # One frame, whatever there was to say.
        await send(house, where, "A\nreceipt:1\n\n\0", "B\nreceipt:2\n\n\0")
        answer = await poll(house, where)
        assert answer.count("\n") == 1
        assert len(json.loads(answer[1:])) == 2


async def test_polls_keep_their_connection() -> None:
    async with running() as house:
        where = place()
        client = await house.connect()
        for expected in (b"o\n", b'a["CONNECTED'):
            await client.send(request("POST", where + "/xhr", body=b""))
            assert (await client.response())[2].startswith(expected)
            await client.send(
                request("POST", where + "/xhr_send", body=json.dumps([LOGIN]).encode())
            )
            assert (await client.response())[0] == 204


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "T", "application/json", "application/xml", "", "text/xml; charset=utf-8"],
)
async def test_what_a_client_calls_its_messages_means_nothing(kind: str) -> None:
    async with running() as house:
        where = place()
        assert await poll(house, where) == "o\n"
        body = json.dumps([LOGIN]).encode()
        target = where + "/xhr_send"
        assert (await ask(house, "POST", target, f"Content-Type: {kind}", body=body))[0] == 204
        assert (await poll(house, where)).startswith('a["CONNECTED')


async def test_messages_that_are_none() -> None:
    async with running() as house:
        where = place()
        assert (await ask(house, "POST", where + "/xhr_send", body=b'["x"]'))[0] == 404
        assert await poll(house, where) == "o\n"
        for body, text in ((b'["x', b"Broken JSON encoding."), (b"", b"Payload expected.")):
            status, headers, answer = await ask(house, "POST", where + "/xhr_send", body=body)
            assert (status, answer.strip()) == (500, text)
            assert headers["content-type"] == "text/plain; charset=UTF-8"
        await send(house, where, LOGIN)
        assert (await poll(house, where)).startswith('a["CONNECTED')
        huge = b'["' + b"x" * (2 << 20) + b'"]'
        client = await house.connect(request("POST", where + "/xhr_send", body=huge))
        status, problem = await client.problem()
        assert (status, problem["hint"]) == (413, "limits.frame raises it")


async def test_methods() -> None:
    async with running() as house:
        for transport in ("xhr", "xhr_send", "xhr_streaming", "jsonp_send"):
            status, headers, _ = await ask(house, "GET", f"{place()}/{transport}", REFERER)
            assert (status, headers["allow"]) == (405, "OPTIONS, POST")
        for transport in ("eventsource", "htmlfile", "jsonp", "websocket"):
            status, headers, _ = await ask(house, "POST", f"{place()}/{transport}", REFERER)
            assert (status, headers["allow"]) == (405, "OPTIONS, GET")


async def test_two_polls_at_once() -> None:
    async with running() as house:
        where = place()
        assert await poll(house, where) == "o\n"
        first = await house.connect(request("POST", where + "/xhr", body=b""))
        await house.eventually(lambda: waiting(house))
        assert await poll(house, where) == 'c[2010,"Another connection still open"]\n'
        await send(house, where, LOGIN)
        assert (await first.response())[2].startswith(b'a["CONNECTED')


def waiting(house: House) -> bool:
    """Tell whether some session has a receiver."""
    sessions = house.server._sockjs._sessions
    return any(each._receiver is not None for each in sessions._sessions.values())


async def test_a_poll_whose_client_goes() -> None:
    async with running() as house:
        where = place()
        assert await poll(house, where) == "o\n"
        first = await house.connect(request("POST", where + "/xhr", body=b""))
        await house.eventually(lambda: waiting(house))
        first.writer.transport.abort()
        await house.eventually(lambda: not waiting(house))
        for _ in range(2):
            assert await poll(house, where) == 'c[1002,"Connection interrupted"]\n'
        assert (await ask(house, "POST", where + "/xhr_send", body=b'["x"]'))[0] == 404


async def test_a_session_that_ends_goes_on_saying_so() -> None:
    async with running() as house:
        where = place()
        assert await poll(house, where) == "o\n"
        await send(house, where, LOGIN, "DISCONNECT\nreceipt:1\n\n\0")
        answer = json.loads((await poll(house, where))[1:])
        assert answer[0].startswith("CONNECTED\n")
        assert answer[1].startswith("RECEIPT\n")
        for _ in range(2):
            assert await poll(house, where) == 'c[1000,"bye"]\n'


async def test_the_gateway_stops() -> None:
    async with running() as house:
        where = place()
        assert await poll(house, where) == "o\n"
        await send(house, where, LOGIN)
        assert (await poll(house, where)).startswith('a["CONNECTED')
        client = await house.connect(request("POST", where + "/xhr", body=b""))
        streaming = await stream(house, "door", "POST", place() + "/xhr_streaming")
        await streaming.until(b"o\n")
        await house.eventually(lambda: waiting(house))
        await house.gateway.stop(grace=5.0)
        assert b"message:shutdown" in (await client.response())[2]
        assert (await streaming.rest()).startswith(b"c[1012,")


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
        client.writer.transport.pause_reading()
        for n in range(200):
            await house.publish("/topic/a", b"%03d" % n + b"x" * 20_000)
        await house.eventually(lambda: session.full)
        client.writer.transport.resume_reading()
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


# -- jsonp --------------------------------------------------------------------------------


async def test_jsonp() -> None:
    async with running() as house:
        where = place()
        target = where + "/jsonp?c=%63allback"
        status, headers, body = await ask(house, "GET", target, REFERER)
        assert (status, body) == (200, b'/**/callback("o");\r\n')
        assert headers["content-type"] == SCRIPT
        assert headers["cache-control"] == NO_CACHE
        assert headers["x-content-type-options"] == "nosniff"
        form = "Content-Type: application/x-www-form-urlencoded"
        to = where + "/jsonp_send"
        body = b"d=%5B%22CONNECT%5Cnaccept-version%3A1.2%5Cn%5Cn%5Cu0000%22%5D"
        status, headers, answer = await ask(house, "POST", to, form, REFERER, body=body)
        assert (status, answer) == (200, b"ok")
        assert headers["content-type"] == "text/plain; charset=UTF-8"
        plain = json.dumps(["X\nreceipt:%61\n\n\0"]).encode()
        status, _, answer = await ask(
            house, "POST", to, "Content-Type: text/plain", REFERER, body=plain
        )
        assert (status, answer) == (200, b"ok")
        status, _, answer = await ask(house, "GET", where + "/jsonp?callback=x", REFERER)
        assert answer.startswith(b'/**/x("a[\\"CONNECTED')
        assert b"receipt-id:%61" in answer
        for body, text in (
            (b"d=%5B%22x", b"Broken JSON encoding."),
            (b"", b"Payload expected."),
            (b"d=", b"Payload expected."),
            (b"p=p", b"Payload expected."),
            (b"\xff", b"Broken JSON encoding."),
        ):
            status, _, answer = await ask(house, "POST", to, form, REFERER, body=body)
            assert (status, answer.strip()) == (500, text)
        for query, text in (
            ("", b'"callback" parameter required'),
            ("?c=a;b", b'invalid "callback" parameter'),
        ):
            status, _, answer = await ask(house, "GET", place() + "/jsonp" + query, REFERER)
            assert (status, answer.strip()) == (500, text)


# -- WebSocket ----------------------------------------------------------------------------


async def open_websocket(house: House, way: str, target: str, *lines: str) -> Client:
    client = await stream(house, way, "GET", "/stomp/info") if way != "door" else None
    if client is None:
        client = await house.connect(upgrade(target, *lines))
    else:
        assert (await client.response())[0] == 200
        await client.send(upgrade(target, *lines))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return client


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


# -- cookies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "transport"),
    [
        ("POST", "xhr"),
        ("POST", "xhr_streaming"),
        ("GET", "eventsource"),
        ("GET", "htmlfile?c=x"),
        ("GET", "jsonp?c=x"),
    ],
)
async def test_the_cookie_of_load_balancers(method: str, transport: str) -> None:
    async with running(server={"sockjs_cookie": True}) as house:
        for cookie, expected in (
            ("x=1", "dummy"),
            ("a=b; JSESSIONID=abcdef; c=d", "abcdef"),
            ("JSESSIONID=a\tb", "dummy"),
        ):
            lines = (f"Cookie: {cookie}", REFERER)
            body = b"" if method == "POST" else None
            client = await house.connect(
                request(method, f"{place()}/{transport}", *lines, body=body)
            )
            _, headers = await head(client)
            assert headers["set-cookie"] == f"JSESSIONID={expected}; Path=/"
    async with running() as house:
        client = await house.connect(request(method, f"{place()}/{transport}", REFERER, body=body))
        assert "set-cookie" not in (await head(client))[1]


# -- origins ------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"])
@pytest.mark.parametrize(
    ("method", "transport"),
    [
        ("POST", "xhr"),
        ("POST", "xhr_send"),
        ("POST", "xhr_streaming"),
        ("GET", "eventsource"),
        ("GET", "htmlfile?c=x"),
        ("GET", "jsonp?c=x"),
        ("POST", "jsonp_send"),
    ],
)
async def test_pages_of_others_are_refused(method: str, transport: str, line: str) -> None:
    async with running() as house:
        status, headers, _ = await ask(house, method, f"{place()}/{transport}", line, REFERER)
        assert status == 403
        assert "access-control-allow-origin" not in headers


async def test_websockets_of_others_are_refused() -> None:
    async with running() as house:
        for target in ("/stomp/000/abc/websocket", "/stomp/websocket"):
            client = await house.connect(upgrade(target, "Origin: http://evil.example"))
            assert (await client.response())[0] == 403


@pytest.mark.parametrize("line", ["", "Referer: http://evil.example/page", "Referer: nonsense"])
@pytest.mark.parametrize("transport", ["htmlfile?c=x", "jsonp?c=x"])
async def test_scripts_and_frames_of_unknown_pages_are_refused(transport: str, line: str) -> None:
    """Browsers that say no Origin there and know no Sec-Fetch-Site would give them to anybody."""
    async with running() as house:
        lines = [line] if line else []
        assert (await ask(house, "GET", f"{place()}/{transport}", *lines))[0] == 403


async def test_a_session_is_its_origins() -> None:
    origins = ["https://a.example", "https://b.example"]
    async with running(server={"origins": origins, "allow_anyone": True}) as house:
        where = place()
        a, b = "Origin: https://a.example", "Origin: https://b.example"
        assert (await ask(house, "POST", where + "/xhr", a))[2] == b"o\n"
        body = json.dumps([LOGIN]).encode()
        assert (await ask(house, "POST", where + "/xhr_send", b, body=body))[0] == 404
        status, headers, _ = await ask(house, "POST", where + "/xhr", b)
        assert status == 404
        assert headers["access-control-allow-origin"] == "https://b.example"
        forwarded = "X-Forwarded-For: 192.0.2.1"
        status, _, _ = await ask(house, "POST", where + "/xhr_send", a, forwarded, body=body)
        assert status == 404, "opened on this machine, asked for from elsewhere"
        assert (await ask(house, "POST", where + "/xhr_send", a, body=body))[0] == 204


async def test_too_many_sessions() -> None:
    async with running(limits={"sockjs_sessions": 2}) as house:
        assert await poll(house, place()) == "o\n"
        assert await poll(house, place()) == "o\n"
        status, _, body = await ask(house, "POST", place() + "/xhr")
        assert status == 429
        assert b"limits.sockjs_sessions" in body
        client = await stream(house, "door", "POST", place() + "/xhr_streaming")
        assert (await client.response())[0] == 429


# -- its path -----------------------------------------------------------------------------


async def test_another_path_under_a_prefix() -> None:
    async with running(server={"sockjs_path": "/app/sock", "prefix": "/push"}) as house:
        for base in ("/app/sock", "/push/app/sock"):
            assert (await ask(house, "GET", base + "/info"))[0] == 200
            assert (await ask(house, "POST", f"{base}/0/{next(_ids)}x/xhr"))[2] == b"o\n"
        assert (await ask(house, "GET", "/stomp/info"))[0] == 404


async def test_springs_habit() -> None:
    """Everything at /ws: bare STOMP, SockJS, and plain WebSockets where they were."""
    async with running(server={"sockjs_path": "/ws"}) as house:
        assert (await ask(house, "GET", "/ws"))[2] == b"Welcome to SockJS!\n"
        assert (await ask(house, "GET", "/ws/info"))[0] == 200
        assert (await ask(house, "POST", f"/ws/000/{next(_ids)}y/xhr"))[2] == b"o\n"
        bare = await open_websocket(house, "door", "/ws")
        await bare.send(text_frame(LOGIN.encode()))
        assert (await frame(bare))[1].startswith(b"CONNECTED\n")
        raw = await open_websocket(house, "door", "/ws/websocket")
        await raw.send(text_frame(LOGIN.encode()))
        assert (await frame(raw))[1].startswith(b"CONNECTED\n")
        numbered = await open_websocket(house, "door", "/ws/123/abc/websocket")
        assert await frame(numbered) == (0x81, b"o")
        # A destination may look much like it, but for the three digits.
        for destination in ("/topic/a", "/exchange/amq.topic/xhr", "/queue/websocket"):
            plain = await open_websocket(house, "door", "/ws" + destination)
            await plain.send(text_frame(b"echo"))
            assert await frame(plain) == (0x81, b"echo")
