"""Whose pages may use SockJS, what it sets in their browsers, and where they find it."""

from __future__ import annotations

import json

import pytest

from tests.server.house import request, running, upgrade
from tests.server.sockjs_rig import (
    LOGIN,
    REFERER,
    ask,
    frame,
    head,
    open_websocket,
    patient,
    place,
    poll,
    stream,
    text_frame,
)

__all__ = ["patient"]  # the fixture
pytestmark = pytest.mark.both_loops


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
        for number, base in enumerate(("/app/sock", "/push/app/sock")):
            assert (await ask(house, "GET", base + "/info"))[0] == 200
            assert (await ask(house, "POST", f"{base}/0/s{number}/xhr"))[2] == b"o\n"
        assert (await ask(house, "GET", "/stomp/info"))[0] == 404


async def test_springs_habit() -> None:
    """Everything at /ws: bare STOMP, SockJS, and plain WebSockets where they were."""
    async with running(server={"sockjs_path": "/ws"}) as house:
        assert (await ask(house, "GET", "/ws"))[2] == b"Welcome to SockJS!\n"
        assert (await ask(house, "GET", "/ws/info"))[0] == 200
        assert (await ask(house, "POST", "/ws/000/abc/xhr"))[2] == b"o\n"
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
