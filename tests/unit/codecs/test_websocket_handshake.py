"""The opening handshake: what passes, what is refused with which status."""

from __future__ import annotations

import pytest

from queuecast.codecs.websocket_handshake import (
    HandshakeError,
    accept_key,
    check_upgrade,
    handshake_response,
    offered_subprotocols,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    "host": "example.com",
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-key": KEY,
    "sec-websocket-version": "13",
}


def test_the_rfcs_own_key() -> None:
    assert accept_key(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"upgrade": "WebSocket"},
        {"upgrade": "h2c, WEBSOCKET"},
        {"connection": "keep-alive, Upgrade"},
        {"connection": "keep-alive,UPGRADE "},
        {"sec-websocket-key": f" {KEY} "},
    ],
)
def test_good_requests(changes: dict[str, str]) -> None:
    assert check_upgrade("GET", "1.1", {**GOOD, **changes}) == KEY


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"upgrade": ""}, 426),
        ({"upgrade": "h2c"}, 426),
        ({"upgrade": "websockets"}, 426),
        ({"connection": "keep-alive"}, 400),
        ({"connection": "upgraded"}, 400),
        ({"sec-websocket-version": "8"}, 426),
        ({"sec-websocket-version": ""}, 426),
        ({"sec-websocket-version": "13, 8"}, 426),
        ({"sec-websocket-key": ""}, 400),
        ({"sec-websocket-key": "c2hvcnQ="}, 400),
        ({"sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAAAA"}, 400),
        ({"sec-websocket-key": KEY[:-1]}, 400),
        ({"sec-websocket-key": "é" + KEY[1:]}, 400),
        ({"sec-websocket-key": KEY[:4] + "\x00" + KEY[4:]}, 400),
    ],
)
def test_bad_headers(changes: dict[str, str], status: int) -> None:
    with pytest.raises(HandshakeError) as caught:
        check_upgrade("GET", "1.1", {**GOOD, **changes})
    assert caught.value.status == status
    assert caught.value.text


@pytest.mark.parametrize("missing", sorted(set(GOOD) - {"host"}))
def test_missing_headers(missing: str) -> None:
    with pytest.raises(HandshakeError):
        check_upgrade("GET", "1.1", {k: v for k, v in GOOD.items() if k != missing})


def test_wrong_method_and_version() -> None:
    with pytest.raises(HandshakeError) as caught:
        check_upgrade("POST", "1.1", GOOD)
    assert (caught.value.status, caught.value.headers) == (405, (("Allow", "GET"),))
    with pytest.raises(HandshakeError) as caught:
        check_upgrade("GET", "1.0", GOOD)
    assert caught.value.status == 400


def test_a_wrong_version_is_told_the_right_one() -> None:
    with pytest.raises(HandshakeError) as caught:
        check_upgrade("GET", "1.1", {**GOOD, "sec-websocket-version": "8"})
    assert ("Sec-WebSocket-Version", "13") in caught.value.headers


def test_response() -> None:
    assert handshake_response(KEY, "v12.stomp", [("Set-Cookie", "a=b")]) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: v12.stomp\r\n"
        b"Set-Cookie: a=b\r\n"
        b"\r\n"
    )
    assert b"Protocol:" not in handshake_response(KEY)
    assert b"Extensions:" not in handshake_response(KEY)
    assert b"\r\nSec-WebSocket-Extensions: x; y\r\n" in handshake_response(KEY, extension="x; y")


@pytest.mark.parametrize("header", [("X", "a\r\nY: b"), ("X\r\nY", "a"), ("", "a"), ("X", "\n")])
def test_a_header_cannot_break_out_of_its_line(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="not a header"):
        handshake_response(KEY, None, [header])


def test_offered_subprotocols() -> None:
    assert offered_subprotocols({"sec-websocket-protocol": "v12.stomp, v11.stomp ,,"}) == [
        "v12.stomp",
        "v11.stomp",
    ]
    assert offered_subprotocols({}) == []
