"""SockJS's addresses as its protocol 0.3.3 has them: static ones, sessions, polling."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.house import request, running, upgrade
from tests.server.sockjs_rig import (
    LOGIN,
    NO_CACHE,
    PAGE,
    REFERER,
    SCRIPT,
    ask,
    patient,
    place,
    poll,
    send,
    stream,
    waiting,
)

__all__ = ["patient"]  # the fixture
pytestmark = pytest.mark.both_loops


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
