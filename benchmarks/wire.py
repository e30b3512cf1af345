"""A transport's bytes: what a subscriber asks, how the answer ends, and what a stream must be.

The ready-made bytes come from the gateway's own encodings, so that the null server writes
exactly what the gateway would.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from queuecast.codecs import sse
from queuecast.codecs.http1 import response
from queuecast.codecs.websocket_handshake import handshake_response
from queuecast.hub.log import Entry
from queuecast.message import Message
from queuecast.position import Mark, Vector
from queuecast.sessions.encodings import SseEncoding, WebSocketEncoding

from . import message

# RFC 6455 section 1.3: the sample key.
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
# As long as the gateway's epochs.
_EPOCH = "benchmrk"
_SSE_EVENT = re.compile(rb"id: [0-9A-Za-z]+-\d+\ndata: ([^\n]*)\n\n")


@dataclass(frozen=True, slots=True)
class Wire:
    """One transport. greeting_end: how the bytes end after which a subscription is live."""

    name: str
    request: bytes
    greeting: bytes
    greeting_end: bytes
    encoding: SseEncoding | WebSocketEncoding

    def ready_made(self, bodies: Sequence[bytes]) -> bytes:
        """Return the bytes of a batch, in one piece."""
        entries = [
            Entry(0, offset, Message(body), 0.0) for offset, body in enumerate(bodies, 1_000_000)
        ]
        return self.encoding.encode(entries, Vector([Mark(_EPOCH, 999_999)]))

    def bodies(self, stream: bytes) -> list[bytes]:
        """Return the bodies of a stream; ValueError when anything else is in it."""
        return _events(stream) if self.name == "sse" else _frames(stream)


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
        length, head = stream[place + 1], 2
        if length == 126:
            length, head = int.from_bytes(stream[place + 2 : place + 4], "big"), 4
        end = place + head + length
        if stream[place] != 0x81 or length > 65535 or end > len(stream):
            raise ValueError(f"not a whole text frame: {stream[place : place + 200]!r}")
        bodies.append(stream[place + head : end])
        place = end
    return bodies


def check(wire: Wire, stream: bytes, messages: int, cycle: int) -> None:
    """Raise ValueError unless a stream is exactly `messages` messages in order.

    cycle: the number after which the numbers begin again (the null server's batch).
    """
    numbers = [message.number_of(body) for body in wire.bodies(stream)]
    if numbers != [number % cycle for number in range(messages)]:
        raise ValueError(f"{len(numbers)} messages, not {messages} in order")


def _request(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


_SSE_GREETING = (
    response(200, (("Content-Type", "text/event-stream"),), b"").split(b"\r\n\r\n")[0]
    + b"\r\n\r\n"
    + sse.retry(2000)
    + sse.event(b"", id=f"{_EPOCH}-0", event="position")
)

WIRES = {
    "ws": Wire(
        "ws",
        _request(
            f"/ws{message.DESTINATION}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {_KEY}",
        ),
        handshake_response(_KEY),
        b"\r\n\r\n",
        WebSocketEncoding(),
    ),
    "sse": Wire(
        "sse",
        _request(f"/sse{message.DESTINATION}", "Accept: text/event-stream"),
        _SSE_GREETING,
        b"\ndata: \n\n",
        SseEncoding(),
    ),
}
