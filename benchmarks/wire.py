"""A transport's bytes: how a subscriber opens it, and what its stream must be.

The ready-made bytes come from the gateway's own encodings, so that the null server writes
exactly what the gateway would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from queuecast.codecs import sse
from queuecast.codecs.http1 import response
from queuecast.codecs.sockjs import OPEN
from queuecast.codecs.websocket import TEXT, frame_header, text_frame
from queuecast.codecs.websocket_handshake import handshake_response
from queuecast.hub.log import Entry
from queuecast.message import Message
from queuecast.position import Mark, Vector
from queuecast.sessions.encodings import Framed, SseEncoding, WebSocketEncoding
from queuecast.sessions.sockjs_link import SockJsWebSocketFraming
from queuecast.sessions.stomp_encodings import StompEncoding
from queuecast.sessions.stomp_framing import Framing, WebSocketFraming

from . import message

# RFC 6455 section 1.3: the sample key.
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
# As long as the gateway's epochs.
_EPOCH = "benchmrk"
_SSE_EVENT = re.compile(rb"id: [0-9A-Za-z]+-\d+\ndata: ([^\n]*)\n\n")
_STOMP_MESSAGE = re.compile(
    rb"MESSAGE\n(?:(?!gap:)[a-z-]+:[^\n]*\n)+\n(?P<body>[^\0]*)\0\n?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client says and what it hears. end: how the bytes of the answer end, whoever
    gives it; `answer` is the null server's."""

    ask: bytes
    answer: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class Wire:
    """One transport. After the last turn the subscription is live."""

    name: str
    turns: tuple[Turn, ...]
    encoding: Framed
    split: Callable[[bytes], list[bytes]]

    def ready_made(self, bodies: Sequence[bytes]) -> bytes:
        """Return the bytes of a batch, in one piece."""
        entries = [
            Entry(0, offset, _message(body), 0.0) for offset, body in enumerate(bodies, 1_000_000)
        ]
        return self.encoding.encode(entries, Vector([Mark(_EPOCH, 999_999)]))

    def bodies(self, stream: bytes) -> list[bytes]:
        """Return the bodies of a stream; ValueError when anything else is in it."""
        return self.split(stream)


def _message(body: bytes) -> Message:
    key = message.DESTINATION.rpartition("/")[2]
    return Message(body, exchange="amq.topic", routing_key=key)


def _events(stream: bytes) -> list[bytes]:
    bodies = []
    place = 0
    while place < len(stream):
        found = _SSE_EVENT.match(stream, place)
        if found is None:
            raise ValueError(f"not an event of the benchmark: {stream[place : place + 200]!r}")
        bodies.append(found[1])
        place = found.end()
    return bodies


def _frames(stream: bytes) -> list[bytes]:
    bodies = []
    place = 0
    while place < len(stream):
        length, head = int.from_bytes(stream[place + 1 : place + 2], "big"), 2
        if length == 126:
            length, head = int.from_bytes(stream[place + 2 : place + 4], "big"), 4
        end = place + head + length
        if stream[place] != 0x81 or length > 65535 or end > len(stream):
            raise ValueError(f"not a whole text frame: {stream[place : place + 200]!r}")
        bodies.append(stream[place + head : end])
        place = end
    return bodies


def _stomp_body(frame: bytes) -> bytes:
    found = _STOMP_MESSAGE.fullmatch(frame)
    if found is None:
        raise ValueError(f"not a MESSAGE of the benchmark: {frame[:200]!r}")
    return found["body"]


def _stomp_messages(stream: bytes) -> list[bytes]:
    return [_stomp_body(frame) for frame in _frames(stream)]


def _sockjs_messages(stream: bytes) -> list[bytes]:
    frames = []
    for data in _frames(stream):
        if not data.startswith(b"a["):
            raise ValueError(f"not a message of SockJS: {data[:200]!r}")
        frames += [text.encode() for text in json.loads(data[1:])]
    return [_stomp_body(frame) for frame in frames]


def check(wire: Wire, stream: bytes, messages: int, cycle: int) -> None:
    """Raise ValueError unless a stream is exactly `messages` messages in order.

    cycle: the number after which the numbers begin again (the null server's batch).
    """
    numbers = [message.number_of(body) for body in wire.bodies(stream)]
    if numbers != [number % cycle for number in range(messages)]:
        raise ValueError(f"{len(numbers)} messages, not {messages} in order")


def _request(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


def _upgrade(path: str, *lines: str) -> bytes:
    return _request(
        path,
        *lines,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {_KEY}",
    )


def _client_frame(payload: bytes) -> bytes:
    """Return a client's text frame; its mask is zero, which masks nothing (RFC 6455, 5.3)."""
    head = bytearray(frame_header(TEXT, len(payload)))
    head[1] |= 0x80
    return bytes(head) + bytes(4) + payload


_SSE_GREETING = (
    response(200, (("Content-Type", "text/event-stream"),), b"").split(b"\r\n\r\n")[0]
    + b"\r\n\r\n"
    + sse.retry(2000)
    + sse.event(b"", id=f"{_EPOCH}-0", event="position")
)

_CONNECT = "CONNECT\naccept-version:1.2\nheart-beat:0,0\nhost:/\nlogin:guest\npasscode:guest\n\n\0"
_CONNECTED = "CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\0\n"
_SUBSCRIBE = f"SUBSCRIBE\nid:sub-0\ndestination:{message.DESTINATION}\nreceipt:live\n\n\0"
_RECEIPT = "RECEIPT\nreceipt-id:live\n\n\0\n"


def _stomp(framing: Framing) -> StompEncoding:
    return StompEncoding("sub-0", framing, message.DESTINATION)


def _sockjs(frame: str) -> bytes:
    return json.dumps([frame]).encode()


WIRES = {
    "ws": Wire(
        "ws",
        (Turn(_upgrade(f"/ws{message.DESTINATION}"), handshake_response(_KEY), b"\r\n\r\n"),),
        WebSocketEncoding(),
        _frames,
    ),
    "sse": Wire(
        "sse",
        (
            Turn(
                _request(f"/sse{message.DESTINATION}", "Accept: text/event-stream"),
                _SSE_GREETING,
                b"\ndata: \n\n",
            ),
        ),
        SseEncoding(),
        _events,
    ),
    "stomp": Wire(
        "stomp",
        (
            Turn(
                # RabbitMQ's plugin wants a subprotocol.
                _upgrade("/ws", "Sec-WebSocket-Protocol: v12.stomp"),
                handshake_response(_KEY),
                b"\r\n\r\n",
            ),
            Turn(_client_frame(_CONNECT.encode()), text_frame(_CONNECTED.encode()), b"\n\n\0\n"),
            Turn(_client_frame(_SUBSCRIBE.encode()), text_frame(_RECEIPT.encode()), b"\n\n\0\n"),
        ),
        _stomp(WebSocketFraming()),
        _stomp_messages,
    ),
    "sockjs": Wire(
        "sockjs",
        (
            Turn(
                _upgrade("/stomp/000/benchmark/websocket"),
                handshake_response(_KEY) + text_frame(OPEN),
                text_frame(OPEN),
            ),
            Turn(
                _client_frame(_sockjs(_CONNECT)),
                text_frame(b"a" + _sockjs(_CONNECTED)),
                b'\\n\\n\\u0000\\n"]',
            ),
            Turn(
                _client_frame(_sockjs(_SUBSCRIBE)),
                text_frame(b"a" + _sockjs(_RECEIPT)),
                b'\\n\\n\\u0000\\n"]',
            ),
        ),
        _stomp(SockJsWebSocketFraming()),
        _sockjs_messages,
    ),
}
