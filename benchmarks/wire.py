"""A transport's bytes: how a subscriber opens it, and what its stream must be.

The ready-made bytes come from the gateway's own encodings, so that the null server writes
exactly what the gateway would.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

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

from . import message, streams
from .posts import CHANNEL, MERCURE, TOPIC

# RFC 6455 section 1.3: the sample key.
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_KEY_LINE = b"\r\nSec-WebSocket-Key: "
# As long as the gateway's epochs.
_EPOCH = "benchmrk"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client says and what it hears. end: how the bytes of the answer end, whoever
    gives it; `answer` is the null server's. has: what stands in it, else it is a refusal."""

    ask: bytes
    answer: bytes
    end: bytes
    has: bytes = b""


# Given the destinations of one connection and the position to resume from, or "".
MakeTurns = Callable[[Sequence[str], str], tuple[Turn, ...]]


@dataclass(frozen=True, slots=True)
class Wire:
    """One transport. After the last turn the subscription is live.

    encoding: None for a transport that the gateway has not. even: whether equal messages are
    equally long for everybody. alike: whether they are equal.
    """

    name: str
    title: str
    turns: MakeTurns
    encoding: Framed | None
    split: streams.Split
    even: bool = True
    alike: bool = True

    @property
    def usual(self) -> tuple[Turn, ...]:
        """The turns of a subscriber to the one destination."""
        return self.turns((message.DESTINATION,), "")

    def ready_made(self, bodies: Sequence[bytes]) -> bytes:
        """Return the bytes of a batch, in one piece."""
        assert self.encoding is not None
        entries = [
            Entry(0, offset, _message(body), 0.0) for offset, body in enumerate(bodies, 1_000_000)
        ]
        return self.encoding.encode(entries, Vector([Mark(_EPOCH, 999_999)]))


def _message(body: bytes) -> Message:
    key = message.DESTINATION.rpartition("/")[2]
    return Message(body, exchange="amq.topic", routing_key=key)


def _request(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


def upgrade(path: str, *lines: str) -> bytes:
    """Return the request for a WebSocket (RFC 6455, 4.1)."""
    return _request(
        path,
        *lines,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {_KEY}",
    )


def personal(ask: bytes, *, unlike: bool = False) -> bytes:
    """Return what one client says: the key of its handshake is its own.

    unlike: so is another line, a proxy's, so that no two heads are alike.
    """
    head, line, _ = ask.partition(_KEY_LINE)
    if not line:
        return ask
    key = base64.b64encode(random.randbytes(16))
    more = b"X-Forwarded-For: 10.%d.%d.%d\r\n" % tuple(random.randbytes(3)) if unlike else b""
    return b"%b%b%b\r\n%b\r\n" % (head, line, key, more)


def impersonal(said: bytes) -> bytes:
    """Return what clients say alike: a handshake up to its key."""
    return said.partition(_KEY_LINE)[0]


def client_frame(payload: bytes) -> bytes:
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

CONNECT = "CONNECT\naccept-version:1.2\nheart-beat:0,0\nhost:/\nlogin:guest\npasscode:guest\n\n\0"
_CONNECTED = "CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\0\n"
_RECEIPT = "RECEIPT\nreceipt-id:live\n\n\0\n"


def _subscribe(destinations: Sequence[str], since: str) -> list[str]:
    """Return the frames; the last one asks for a receipt."""
    more = f"since:{since}\n" if since else ""
    frames = [
        f"SUBSCRIBE\nid:sub-{number}\ndestination:{destination}\n{more}"
        for number, destination in enumerate(destinations)
    ]
    frames[-1] += "receipt:live\n"
    return [f"{frame}\n\0" for frame in frames]


def _stomp(framing: Framing) -> StompEncoding:
    return StompEncoding("sub-0", framing, message.DESTINATION)


def _sockjs(frame: str) -> bytes:
    return json.dumps([frame]).encode()


def _query(since: str) -> str:
    return f"?since={since}" if since else ""


def _ws_turns(destinations: Sequence[str], since: str) -> tuple[Turn, ...]:
    (destination,) = destinations
    ask = upgrade(f"/ws{destination}{_query(since)}")
    return (Turn(ask, handshake_response(_KEY), b"\r\n\r\n"),)


def _sse_turns(destinations: Sequence[str], since: str) -> tuple[Turn, ...]:
    (destination,) = destinations
    ask = _request(f"/sse{destination}{_query(since)}", "Accept: text/event-stream")
    return (Turn(ask, _SSE_GREETING, b"\ndata: \n\n"),)


# RabbitMQ's plugin wants a subprotocol.
STOMP_UPGRADE = Turn(
    upgrade("/ws", "Sec-WebSocket-Protocol: v12.stomp"), handshake_response(_KEY), b"\r\n\r\n"
)
STOMP_CONNECT = Turn(client_frame(CONNECT.encode()), text_frame(_CONNECTED.encode()), b"\n\n\0\n")


def _stomp_turns(destinations: Sequence[str], since: str) -> tuple[Turn, ...]:
    frames = _subscribe(destinations, since)
    ask = b"".join(client_frame(frame.encode()) for frame in frames)
    last = Turn(ask, text_frame(_RECEIPT.encode()), b"\n\n\0\n")
    return (STOMP_UPGRADE, STOMP_CONNECT, last)


def _sockjs_turns(destinations: Sequence[str], since: str) -> tuple[Turn, ...]:
    frames = _subscribe(destinations, since)
    return (
        Turn(
            upgrade("/stomp/000/benchmark/websocket"),
            handshake_response(_KEY) + text_frame(OPEN),
            text_frame(OPEN),
        ),
        Turn(
            client_frame(_sockjs(CONNECT)),
            text_frame(b"a" + _sockjs(_CONNECTED)),
            b'\\n\\n\\u0000\\n"]',
        ),
        Turn(
            b"".join(client_frame(_sockjs(frame)) for frame in frames),
            text_frame(b"a" + _sockjs(_RECEIPT)),
            b'\\n\\n\\u0000\\n"]',
        ),
    )


def _sse_until(end: bytes, path: str = "", has: bytes = b"") -> MakeTurns:
    """Return turns for somebody else's stream. end: what it begins with. has: see Turn."""

    def turns(destinations: Sequence[str], since: str) -> tuple[Turn, ...]:
        (destination,) = destinations
        ask = _request(path or f"/sse{destination}", "Accept: text/event-stream")
        return (Turn(ask, b"HTTP", end, has),)

    return turns


# Centrifugo's client protocol: commands are lines of JSON, and so are the replies of a frame.
_CENTRIFUGO_WS = (
    Turn(upgrade("/connection/websocket"), b"HTTP", b"\r\n\r\n"),
    Turn(
        client_frame(
            b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"%s"}}' % CHANNEL.encode()
        ),
        b"",
        b'"subscribe":{}}',
    ),
)
_CENTRIFUGO_SSE = f"/connection/uni_sse?cf_connect={quote(json.dumps({'subs': {CHANNEL: {}}}))}"


WIRES = {
    "ws": Wire("ws", "WebSocket", _ws_turns, WebSocketEncoding(), streams.frames),
    "sse": Wire("sse", "SSE", _sse_turns, SseEncoding(), streams.events),
    "stomp": Wire(
        "stomp", "STOMP/WebSocket", _stomp_turns, _stomp(WebSocketFraming()), streams.stomp_messages
    ),
    "sockjs": Wire(
        "sockjs",
        "STOMP/SockJS websocket",
        _sockjs_turns,
        _stomp(SockJsWebSocketFraming()),
        streams.sockjs_messages,
    ),
}
# Peers' own.
PEERS = {
    # A message-id has its session's name in it.
    "stomp-plugin": Wire(
        "stomp-plugin",
        "STOMP/WebSocket",
        _stomp_turns,
        None,
        streams.stomp_messages,
        alike=False,
    ),
    "sse-node": Wire(
        "sse-node", "SSE", _sse_until(b"\r\n\r\n"), None, streams.chunked_events, alike=False
    ),
    # Its ids count the messages of a second, so they are not equally long.
    "sse-nchan": Wire(
        "sse-nchan", "SSE", _sse_until(b": hi\n\n"), None, streams.events, even=False, alike=False
    ),
    # How many messages share a frame or a chunk is each connection's own.
    "ws-centrifugo": Wire(
        "ws-centrifugo",
        "WebSocket",
        lambda destinations, since: _CENTRIFUGO_WS,
        None,
        streams.publications,
        even=False,
        alike=False,
    ),
    "sse-centrifugo": Wire(
        "sse-centrifugo",
        "SSE",
        # The first event tells what it is subscribed to; a chunk ends behind it.
        _sse_until(b"\n\n\r\n", _CENTRIFUGO_SSE, has=b'"subs":{"%s"' % CHANNEL.encode()),
        None,
        streams.publication_events,
        even=False,
        alike=False,
    ),
    "sse-mercure": Wire(
        "sse-mercure",
        "SSE",
        _sse_until(b":\n\r\n", f"{MERCURE}?topic={TOPIC}"),
        None,
        streams.whole_events,
        even=False,
        alike=False,
    ),
}
ALL = WIRES | PEERS
