"""Request heads, good and hostile, and the responses that refuse them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from queuecast.codecs.http1 import HeadError, HeadParser, RequestHead, error_body, response
from tests.unit.codecs.client_frames import chunks, cut_at

LIMIT = 8192
HOST = b"Host: example.com\r\n"
UPGRADE = (
    b"GET /ws/topic/prices?since=1 HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)


def parse(data: bytes, chunk: int = 0) -> RequestHead:
    parser = HeadParser(LIMIT, 20)
    received = b""
    for piece in chunks(data, chunk) if chunk else [data]:
        received += piece
        head = parser.receive_data(piece)
        if head is not None:
            assert head.raw == received
            return head
    raise AssertionError("head not complete")


def get(target: bytes = b"/", headers: bytes = HOST, version: bytes = b"1.1") -> bytes:
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + headers + b"\r\n"


def status_of(data: bytes, chunk: int = 0) -> int:
    with pytest.raises(HeadError) as caught:
        parse(data, chunk)
    assert caught.value.text
    return caught.value.status


def test_a_plain_get() -> None:
    data = get(b"/sse/topic/a%2Fb?since=1&x=%E4?", HOST + b"X-Empty:\r\nX-Pad: \t a b \t\r\n")
    assert parse(data) == RequestHead(
        method="GET",
        target="/sse/topic/a%2Fb?since=1&x=%E4?",
        path="/sse/topic/a%2Fb",
        query="since=1&x=%E4?",
        version="1.1",
        headers={"host": "example.com", "x-empty": "", "x-pad": "a b"},
        rest=b"",
        raw=data,
    )


@pytest.mark.parametrize(
    "rest",
    [b"", b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"],
)
def test_an_upgrade_and_the_bytes_behind_it(rest: bytes) -> None:
    head = parse(UPGRADE + rest)
    assert head.rest == rest
    assert head.raw == UPGRADE + rest
    assert head.path == "/ws/topic/prices"
    assert head.headers["upgrade"] == "websocket"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Length: 5\r\n", b"hello"),
        (b"Content-Length: 5\r\n", b"hel"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"", b"\n\n\x00 not http"),
    ],
)
def test_the_body_is_left_alone(headers: bytes, body: bytes) -> None:
    head = parse(b"POST /publish/topic/a HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body)
    assert (head.method, head.rest) == ("POST", body)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50])
def test_in_pieces(chunk: int) -> None:
    assert parse(UPGRADE, chunk) == parse(UPGRADE)


def test_empty_lines_before_the_request_line() -> None:
    assert parse(b"\r\n\r\n" + get(b"/a")).path == "/a"
    assert parse(b"\r\n\r\n" + get(b"/a"), 1).path == "/a"


def test_nothing_but_empty_lines_is_bounded() -> None:
    assert status_of(b"\r\n" * LIMIT, 1000) == 414


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        (b"http://other:8080/a?b", "/a", "b", "other:8080"),
        (b"HTTPS://other/a", "/a", "", "other"),
        (b"http://other", "/", "", "other"),
        (b"http://other?b=/c", "/", "b=/c", "other"),
        (b"http://[::1]:15674/a", "/a", "", "[::1]:15674"),
        (b"//a/b", "//a/b", "", "example.com"),
        (b"/a?u=http://x/y", "/a", "u=http://x/y", "example.com"),
    ],
)
def test_the_forms_of_a_target(target: bytes, path: str, query: str, host: str) -> None:
    head = parse(get(target))
    assert (head.path, head.query, head.headers["host"]) == (path, query, host)
    assert head.target == target.decode()


def test_options_and_connect() -> None:
    assert parse(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n").path == "*"
    connect = parse(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nrest")
    assert (connect.target, connect.path, connect.rest) == ("a:1", "", b"rest")


def test_http_1_0_needs_no_host() -> None:
    head = parse(get(headers=b"", version=b"1.0"))
    assert (head.version, head.headers) == ("1.0", {})


def test_repeated_headers() -> None:
    head = parse(
        get(headers=HOST + b"Accept: a\r\naccept: b\r\nCookie: a=1\r\nX: y\r\nCookie: b=2\r\n")
    )
    assert head.headers["accept"] == "a, b"
    assert head.headers["cookie"] == "a=1; b=2"


def test_values_are_latin_1() -> None:
    assert parse(get(headers=HOST + b"X: \xe4\xff\r\n")).headers["x"] == "äÿ"


BAD: dict[str, tuple[bytes, int]] = {
    "folded header": (get(headers=HOST + b"X: a\r\n b\r\n"), 400),
    "folded after empty value": (get(headers=HOST + b"X:\r\n b\r\n"), 400),
    "space before the first header": (get(headers=b" " + HOST), 400),
    "space before colon": (get(headers=HOST + b"X : a\r\n"), 400),
    "space before colon of length": (get(headers=HOST + b"Content-Length : 5\r\n"), 400),
    "no colon": (get(headers=HOST + b"X\r\n"), 400),
    "no name": (get(headers=HOST + b": a\r\n"), 400),
    "name not a token": (get(headers=HOST + b"X(y): a\r\n"), 400),
    "NUL in value": (get(headers=HOST + b"X: a\x00b\r\n"), 400),
    "CR in value": (get(headers=HOST + b"X: a\rb\r\n"), 400),
    "LF alone in headers": (get(headers=HOST + b"X: a\nY: b\r\n"), 400),
    "LF alone throughout": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "LF alone, then CR LF": (b"GET / HTTP/1.1\nHost: a\n\r\n", 400),
    "length and chunked": (
        get(headers=HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        400,
    ),
    "chunked and length": (
        get(headers=HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        400,
    ),
    "length twice": (get(headers=HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
    "length list": (get(headers=HOST + b"Content-Length: 5, 5\r\n"), 400),
    "length signed": (get(headers=HOST + b"Content-Length: +5\r\n"), 400),
    "length empty": (get(headers=HOST + b"Content-Length:\r\n"), 400),
    "encoding twice": (
        get(headers=HOST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        400,
    ),
    "chunked not last": (get(headers=HOST + b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    "unknown encoding": (get(headers=HOST + b"Transfer-Encoding: xchunked\r\n"), 400),
    "encoding in 1.0": (
        get(headers=HOST + b"Transfer-Encoding: chunked\r\n", version=b"1.0"),
        400,
    ),
    "host twice": (get(headers=HOST + HOST), 400),
    "host missing": (get(headers=b"X: a\r\n"), 400),
    "host with a path": (get(headers=b"Host: a/b\r\n"), 400),
    "two hosts in one": (get(headers=b"Host: a, b\r\n"), 400),
    "key twice": (get(headers=HOST + b"Sec-WebSocket-Key: a\r\nSec-WebSocket-Key: a\r\n"), 400),
    "user in target": (get(b"http://u:p@h/"), 400),
    "no authority": (get(b"http:///a"), 400),
    "fragment": (get(b"/topic/a.#"), 400),
    "relative target": (get(b"a"), 400),
    "no target": (b"GET HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space in target": (get(b"/a b"), 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space after version": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "byte over 127 in target": (get("/ä".encode()), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "another protocol": (b"SOURCE / ICE/1.0\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "CR of nothing": (b"\rGET / HTTP/1.1\r\n", 400),
    "unknown method": (b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "method in lower case": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "HTTP/2": (get(version=b"2.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (get(version=b"1.2"), 505),
    "21 headers": (get(headers=HOST + b"X: a\r\n" * 20), 431),
    "head too large": (get(headers=HOST + b"X: " + b"a" * LIMIT + b"\r\n"), 431),
    "head never ends": (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * LIMIT, 431),
    "target too long": (get(b"/" + b"a" * LIMIT), 414),
    "request line never ends": (b"GET /" + b"a" * LIMIT, 414),
}


@pytest.mark.parametrize("chunk", [0, 1, 2, 999])
@pytest.mark.parametrize("name", BAD)
def test_refused(name: str, chunk: int) -> None:
    data, status = BAD[name]
    assert status_of(data, chunk) == status


def test_twenty_headers_and_a_head_of_exactly_the_limit_pass() -> None:
    assert len(parse(get(headers=HOST + b"X: a\r\n" * 19)).headers) == 2
    pad = LIMIT - len(get(headers=HOST + b"X: \r\n"))
    exact = get(headers=HOST + b"X: " + b"a" * pad + b"\r\n")
    assert len(exact) == LIMIT
    assert parse(exact + b"body" * LIMIT).rest == b"body" * LIMIT
    assert status_of(get(headers=HOST + b"X: " + b"a" * (pad + 1) + b"\r\n")) == 431


def test_a_parser_reads_one_head() -> None:
    parser = HeadParser(LIMIT, 20)
    assert parser.receive_data(get()) is not None
    with pytest.raises(ValueError, match="has read its head"):
        parser.receive_data(b"x")


def outcome(pieces: list[bytes]) -> object:
    parser = HeadParser(120, 4)
    try:
        for number, piece in enumerate(pieces):
            head = parser.receive_data(piece)
            if head is not None:
                left = b"".join(pieces[number + 1 :])
                return (head.method, head.target, head.headers, head.rest + left)
    except HeadError as error:
        return error.status
    return None


WORDS = [b"GET ", b"/a", b" HTTP/1.1", b"\r\n", b"\r\n", b"\n", b"\r", b"Host: a", b"X: y", b":"]
noise = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join),
    st.binary(max_size=60).map(lambda b: get(headers=HOST + b)),
    st.binary(max_size=60).map(lambda b: get() + b),
)


@settings(max_examples=200, deadline=None)
@given(noise, st.lists(st.integers(0, 300), max_size=8))
@example(b"\r\n\r\n" * 40, [3])
def test_any_chunking_gives_the_same_head_or_status(data: bytes, cuts: list[int]) -> None:
    assert outcome(list(cut_at(data, cuts))) == outcome([data])
    assert outcome(list(chunks(data, 1))) == outcome([data])


def test_response() -> None:
    assert response(403, [("Vary", "Origin")], b"no") == (
        b"HTTP/1.1 403 Forbidden\r\nVary: Origin\r\nContent-Length: 2\r\n"
        b"Connection: close\r\n\r\nno"
    )
    assert response(204) == b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    assert b"\r\nConnection: close, Upgrade\r\n" in response(426, [("Upgrade", "websocket")])
    assert response(499).startswith(b"HTTP/1.1 499 Unknown\r\n")
    assert response(200, (), b"x", last=False) == (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
    upgrade = response(426, [("Upgrade", "websocket")], last=False)
    assert b"\r\nConnection: Upgrade\r\n" in upgrade


@pytest.mark.parametrize("header", [("X", "a\r\nY: b"), ("X: y", "a"), ("X", "\x00")])
def test_a_header_cannot_break_out_of_its_line(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="not a header"):
        response(200, [header])


def test_a_status_without_body() -> None:
    with pytest.raises(ValueError, match="has no body"):
        response(204, (), b"x")


def test_error_body() -> None:
    body = error_body(4404, "nichts für dich", hint="你好", retry=True)
    assert json.loads(body) == {
        "code": 4404,
        "text": "nichts für dich",
        "hint": "你好",
        "retry": True,
    }
    assert json.loads(error_body("gone", "x")) == {
        "code": "gone",
        "text": "x",
        "hint": None,
        "retry": False,
    }
