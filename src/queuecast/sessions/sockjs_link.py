"""STOMP in SockJS: the framings, and the links that read what a client sent.

SockJS carries texts alone. A body that is not UTF-8 goes out as base64 with the header
`content-transfer-encoding:base64` in front of all others; RabbitMQ's plugin broke the connection
instead.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from ..codecs import deflate, sockjs, websocket
from ..codecs.deflate import DeflateParser
from ..codecs.sockjs import SockJsError, Wire
from ..codecs.stomp import StompParser
from ..codecs.websocket import (
    TEXT,
    WebSocketParser,
    close_frame,
    frame_header,
    ping_frame,
    pong_frame,
    text_frame,
)
from ..codecs.websocket_handshake import handshake_response
from .stomp_framing import Framing
from .stomp_link import BEFORE_LOGIN, Broken, Incoming, Left, Reply, incoming, stomp_limits

_BASE64 = b"content-transfer-encoding:base64\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True, slots=True)
class SockJsWebSocketFraming(Framing):
    """A SockJS frame in a WebSocket message for each STOMP frame. deflate: see WebSocketFraming."""

    deflate: bool = False

    def wrap(self, frame: bytes, *, text: bool = True) -> bytes:
        return text_frame(sockjs.message(_as_text(frame, text)))

    def wrap_shared(self, frame: bytes, *, text: bool) -> bytes:
        if not self.deflate:
            return self.wrap(frame, text=text)
        opcode, payload = deflate.pack(TEXT, sockjs.message(_as_text(frame, text)))
        return frame_header(opcode, len(payload)) + payload


@dataclass(frozen=True, slots=True)
class SockJsFraming(Framing):
    """A SockJS frame for each STOMP frame, as an HTTP transport's wire has it."""

    wire: Wire

    def wrap(self, frame: bytes, *, text: bool = True) -> bytes:
        return self.wire.wrap(sockjs.message(_as_text(frame, text)))


def _as_text(frame: bytes, text: bool) -> str:
    return (frame if text else _in_base64(frame)).decode("utf-8", "replace")


def _in_base64(frame: bytes) -> bytes:
    """Return one of our own frames (codecs.stomp_encode) with its body in base64."""
    head, _, rest = frame.partition(b"\n\n")
    body = base64.b64encode(rest.removesuffix(b"\0\n"))
    command, *lines = head.split(b"\n")
    kept = [line + b"\n" for line in lines if not line.startswith(_LENGTH)]
    return b"%b\n%b%b%b%d\n\n%b\0\n" % (
        command,
        _BASE64,
        b"".join(kept),
        _LENGTH,
        len(body),
        body,
    )


class SockJsWebSocketLink:
    """STOMP in SockJS on a WebSocket of its own; see WebSocketLink for the parameters."""

    __slots__ = ("_frame", "_opening", "_parser", "_socket", "framing")

    kind = "sockjs-websocket"
    bare = False

    def __init__(
        self,
        frame: int,
        key: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        extension: str | None = None,
    ) -> None:
        self.framing: Framing = SockJsWebSocketFraming(deflate=extension is not None)
        self._frame = frame
        parser = WebSocketParser if extension is None else DeflateParser
        self._socket = parser(min(frame, BEFORE_LOGIN))
        self._parser = StompParser(stomp_limits(frame))
        self._opening = handshake_response(key, headers=headers, extension=extension)

    @property
    def pending(self) -> bool:
        return self._socket.pending

    def opening(self) -> bytes:
        opening, self._opening = self._opening, b""
        return opening + text_frame(sockjs.OPEN)

    def receive_data(self, data: bytes) -> list[Incoming]:
        found: list[Incoming] = []
        for event in self._socket.receive_data(data):
            match event:
                case websocket.Text() | websocket.Binary():
                    found += self._messages(event.data)
                case websocket.Fault():
                    found.append(Broken(event.code, event.reason))
                case websocket.Ping():
                    found.append(Reply(pong_frame(event.data)))
                case websocket.Close():
                    found.append(Left(close_frame(event.code)))
                case websocket.Pong():
                    pass  # that bytes came is all that is asked of it
            if found and isinstance(found[-1], Broken):
                break
        return found

    def _messages(self, payload: bytes | str) -> list[Incoming]:
        if not payload:
            return []  # ignored, says the protocol
        try:
            texts = sockjs.parse_messages(payload)
        except SockJsError as error:
            return [Broken(websocket.INVALID_PAYLOAD, str(error))]
        return [incoming(event) for event in self._parser.receive_data("".join(texts).encode())]

    def authenticated(self) -> None:
        self._socket.set_limit(self._frame)
        self._parser.authenticated()

    def ping(self) -> bytes:
        # The heartbeat is for the client's library, which cannot see the ping; it answers nothing.
        return text_frame(sockjs.HEARTBEAT) + ping_frame()

    def closing(self, code: int, reason: str) -> bytes:
        return text_frame(sockjs.close(code, reason)) + close_frame(code, reason)


class SockJsLink:
    """STOMP in a SockJS session over HTTP: what it receives are messages, as UTF-8.

    ending: the SockJS frame that ends the session, once the STOMP session has said its last word;
    it is the end of what that one writes. limit: the bytes that a request may bring now.
    """

    __slots__ = ("_frame", "_parser", "_wire", "ending", "framing", "limit")

    kind = "sockjs"
    bare = False
    pending = False

    def __init__(self, frame: int, wire: Wire) -> None:
        self.framing: Framing = SockJsFraming(wire)
        self.ending = b""
        self.limit = min(frame, BEFORE_LOGIN)
        self._frame = frame
        self._wire = wire
        self._parser = StompParser(stomp_limits(frame))

    def opening(self) -> bytes:
        return b""

    def receive_data(self, data: bytes) -> list[Incoming]:
        return [incoming(event) for event in self._parser.receive_data(data)]

    def authenticated(self) -> None:
        self.limit = self._frame
        self._parser.authenticated()

    def ping(self) -> bytes:
        return b""

    def closing(self, code: int, reason: str) -> bytes:
        if self.ending:
            return b""
        self.ending = sockjs.close(code, reason)
        return self._wire.wrap(self.ending)

    @property
    def wire(self) -> Wire:
        """How the session's frames lie in its answers."""
        return self._wire
