"""STOMP in SockJS frames on WebSockets, and what SockJS cannot carry as it is."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs.sockjs import Wire
from queuecast.codecs.stomp_encode import encode_frame, header_lines, message_head
from queuecast.codecs.websocket import CLOSE, PING, PONG, TEXT
from queuecast.sessions.sockjs_link import (
    SockJsFraming,
    SockJsWebSocketFraming,
    SockJsWebSocketLink,
)
from tests.unit.sessions.stomp_rig import Client, Got, House, frames, masked, stomp
from tests.unit.sessions.test_stomp_link import messages

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
LOGIN = stomp("CONNECT", accept_version="1.2", login="guest", passcode="guest")


def opened(house: House) -> Client:
    client = house.open(SockJsWebSocketLink(house.services.limits.frame, KEY))
    head, _, rest = client.transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert messages(rest) == [(TEXT, b"o")]
    client.transport.written = b""
    return client


def took(client: Client) -> list[tuple[int, bytes]]:
    client.house.runtime.settle()
    data, client.transport.written = client.transport.written, b""
    return messages(data)


def say(client: Client, *texts: bytes) -> list[tuple[int, bytes]]:
    payload = json.dumps([text.decode() for text in texts]).encode()
    client.session.receive_data(long_masked(payload))
    return took(client)


def long_masked(payload: bytes) -> bytes:
    if len(payload) <= 125:
        return masked(TEXT, payload)
    return bytes((0x81, 0x80 | 126)) + len(payload).to_bytes(2, "big") + bytes(4) + payload


def stomp_of(found: list[tuple[int, bytes]]) -> list[Got]:
    data = b""
    for opcode, payload in found:
        assert opcode == TEXT
        assert payload.startswith(b"a[")
        data += "".join(json.loads(payload[1:])).encode()
    return frames(data)


def logged_in(house: House) -> Client:
    client = opened(house)
    (connected,) = stomp_of(say(client, LOGIN))
    assert connected.command == "CONNECTED"
    return client


def test_a_thousand_pages_share_one_encode_and_get_one_write() -> None:
    house = House()
    clients = []
    for _ in range(1000):
        client = logged_in(house)
        say(client, stomp("SUBSCRIBE", id="sub-0", destination="/topic/a"))
        clients.append(client)
    house.append("/topic/a", b"warm up")
    for client in clients:
        client.transport.writes.clear()
        client.transport.written = b""
    before = house.hub.stats.encodes
    house.append("/topic/a", *[b"%d" % n for n in range(50)])
    assert house.hub.stats.encodes - before == 1
    (first,) = clients[0].transport.writes
    for client in clients:
        (data,) = client.transport.writes
        assert data is first, "the very object"
    assert [each.body for each in stomp_of(messages(first))] == [b"%d" % n for n in range(50)]


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=6)
SENDS = b"".join(
    stomp("SEND", body, destination="/topic/a") for body in (b"one", "zwölf".encode(), b"")
)


def cut(data: Any, lengths: list[int]) -> list[Any]:
    """Cut into parts of these lengths, again and again."""
    parts: list[Any] = []
    for length in itertools.cycle(lengths):
        if not data:
            return parts
        parts.append(data[:length])
        data = data[length:]
    return parts


@st.composite
def cuttings(draw: st.DrawFn) -> list[bytes]:
    """Draw three SENDs, cut into texts, messages, WebSocket frames and reads in any way."""
    shape = draw(st.sampled_from((0, 1, 2)))
    ascii_only = draw(st.booleans())
    between = draw(st.sampled_from((b"", masked(TEXT, b""), masked(PING, b""))))
    wire = b""
    for part in cut(SENDS.decode(), draw(sizes)):
        payload = ([part], part, [part[:1], "", part[1:]])[shape]
        wire += long_masked(json.dumps(payload, ensure_ascii=ascii_only).encode()) + between
    return cut(wire, draw(sizes))


@settings(deadline=None)
@given(cuttings())
def test_any_cutting_of_bytes_and_messages_gives_the_same(reads: list[bytes]) -> None:
    house = House()
    client = logged_in(house)
    for read in reads:
        client.session.receive_data(read)
    house.runtime.settle()
    assert [each.body.decode() for each in house.published] == ["one", "zwölf", ""]
    assert all(opcode == PONG for opcode, _ in took(client))


def test_a_heartbeat_is_for_library_and_liveness() -> None:
    client = logged_in(House())
    client.session.heartbeat(0.0)
    assert took(client) == [(TEXT, b"h"), (PING, b"")]
    client.session.heartbeat(0.0)
    client.session.heartbeat(0.0)
    found = took(client)
    assert found[-1][0] == CLOSE, "a client that answers no ping is gone"


def test_an_error_is_told_before_the_end() -> None:
    client = logged_in(House())
    say(client, stomp("SUBSCRIBE", id="1", destination="/topic/a"))
    found = say(client, stomp("SUBSCRIBE", id="1", destination="/topic/b"))
    error, ending, close = found
    (told,) = stomp_of([error])
    assert told.command == "ERROR"
    assert json.loads(ending[1][1:]) == [1000, told.headers["message"]]
    assert ending[1].startswith(b"c[")
    assert close[0] == CLOSE
    assert close[1][:2] == (1000).to_bytes(2, "big")


@pytest.mark.parametrize("payload", [b'["a', b"{}", b"[1]", b'{"a":1}'])
def test_broken_json_ends_it(payload: bytes) -> None:
    client = logged_in(House())
    client.session.receive_data(masked(TEXT, payload) + masked(TEXT, b'["x"]'))
    (_, ending), (opcode, _) = took(client)
    assert json.loads(ending[1:]) == [1007, "Broken JSON encoding."]
    assert opcode == CLOSE


def test_a_client_closes() -> None:
    client = logged_in(House())
    client.session.receive_data(masked(CLOSE, (1000).to_bytes(2, "big")))
    assert took(client) == [(CLOSE, (1000).to_bytes(2, "big"))]
    assert client.transport.closed
    assert client.gone


# -- bodies that are no text --------------------------------------------------------------

FRAMINGS = [SockJsWebSocketFraming(), *(SockJsFraming(wire) for wire in (Wire.XHR,))]


def content(data: bytes) -> Got:
    start = data.index(b"a[")
    (frame,) = frames(json.loads(data[start + 1 :])[0].encode())
    return frame


@pytest.mark.parametrize("framing", FRAMINGS)
@settings(deadline=None)
@given(body=st.binary(min_size=1, max_size=100))
def test_bodies_that_are_not_utf8_are_base64_and_say_so(
    framing: SockJsFraming, body: bytes
) -> None:
    headers = header_lines([("content-type", "x"), ("content-length-of-mine", "7")])
    frame = message_head("1", "/topic/a").encode("5", body, headers)
    try:
        body.decode()
    except UnicodeDecodeError:
        got = content(framing.wrap(frame, text=False))
        assert got.headers.pop("content-transfer-encoding") == "base64"
        assert base64.b64decode(got.body, validate=True) == body
        assert int(got.headers.pop("content-length")) == len(got.body)
    else:
        got = content(framing.wrap(frame, text=True))
        assert got.body == body
        assert int(got.headers.pop("content-length")) == len(body)
    assert got.headers == {
        "subscription": "1",
        "destination": "/topic/a",
        "message-id": "5",
        "redelivered": "false",
        "content-type": "x",
        "content-length-of-mine": "7",
    }


def test_a_publisher_cannot_pretend() -> None:
    """The first of repeated headers counts."""
    frame = encode_frame("MESSAGE", [("content-transfer-encoding", "none")], b"\xff\n\n\0\n")
    data = SockJsFraming(Wire.XHR).wrap_any(frame)
    text = json.loads(data[1:])[0]
    assert text.split("\n")[1] == "content-transfer-encoding:base64"
    assert base64.b64decode(text.split("\n\n")[1].rstrip("\0\n")) == b"\xff\n\n\0\n"


def test_a_binary_message_reaches_a_page() -> None:
    house = House()
    client = logged_in(house)
    say(client, stomp("SUBSCRIBE", id="sub-0", destination="/topic/a"))
    house.append("/topic/a", b"\xff\x00\xfe", b"text")
    first, second = stomp_of(took(client))
    assert base64.b64decode(first.body) == b"\xff\x00\xfe"
    assert (second.body, second.headers.get("content-transfer-encoding")) == (b"text", None)
