"""What lies between a socket and STOMP frames: nothing (TCP), or WebSocket messages.

A frame that we send is one WebSocket message, text unless it is not UTF-8; those of the client
may span messages and share them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeAlias

from ..codecs import websocket
from ..codecs.stomp import Event as StompEvent
from ..codecs.stomp import Fault, StompLimits, StompParser
from ..codecs.websocket import BINARY, TEXT, WebSocketParser, close_frame, frame_header
from ..codecs.websocket_handshake import handshake_response
from .encodings import is_utf8

# Frames of strangers, and WebSocket messages of theirs: it stops a crowd that never logs in.
BEFORE_LOGIN = 64 * 1024

_SUBPROTOCOLS = ("v12.stomp", "v11.stomp", "v10.stomp")


class Broken(NamedTuple):
    """The client broke a protocol: the WebSocket close code and the reason."""

    code: int
    reason: str


Incoming: TypeAlias = StompEvent | websocket.Ping | websocket.Close | Broken


class Framing(enum.Enum):
    """How frames lie on the wire; part of an encoding's value."""

    RAW = "raw"
    WEBSOCKET = "websocket"

    def wrap(self, frame: bytes, *, text: bool = True) -> bytes:
        """Return the wire bytes of a frame. text: whether it is UTF-8."""
        if self is Framing.RAW:
            return frame
        return frame_header(TEXT if text else BINARY, len(frame)) + frame

    def wrap_any(self, frame: bytes) -> bytes:
        """Return the wire bytes of a frame that may not be UTF-8."""
        return self.wrap(frame, text=self is Framing.RAW or is_utf8(frame))


class Link(Protocol):
    """One connection's layer."""

    framing: Framing

    def opening(self) -> bytes:
        """Return what is written before everything else."""

    def receive_data(self, data: bytes) -> list[Incoming]:
        """Return what these bytes complete; nothing follows a Broken or Close."""

    def authenticated(self) -> None:
        """Raise the limits to those of clients who have logged in."""

    def closing(self, code: int, reason: str) -> bytes:
        """Return what is written after everything else."""


class RawLink:
    """STOMP on TCP. frame: the largest frame in bytes."""

    __slots__ = ("_parser",)

    framing = Framing.RAW

    def __init__(self, frame: int) -> None:
        self._parser = StompParser(_limits(frame))

    def opening(self) -> bytes:
        return b""

    def receive_data(self, data: bytes) -> list[Incoming]:
        return [_incoming(event) for event in self._parser.receive_data(data)]

    def authenticated(self) -> None:
        self._parser.authenticated()

    def closing(self, code: int, reason: str) -> bytes:
        return b""


class WebSocketLink:
    """STOMP in WebSocket messages. key: the handshake's; headers: more lines of its answer."""

    __slots__ = ("_frame", "_opening", "_parser", "_socket")

    framing = Framing.WEBSOCKET

    def __init__(
        self,
        frame: int,
        key: str,
        offered: Iterable[str] = (),
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._frame = frame
        self._socket = WebSocketParser(min(frame, BEFORE_LOGIN))
        self._parser = StompParser(_limits(frame))
        self._opening = handshake_response(key, choose_subprotocol(offered), headers)

    def opening(self) -> bytes:
        opening, self._opening = self._opening, b""
        return opening

    def receive_data(self, data: bytes) -> list[Incoming]:
        incoming: list[Incoming] = []
        for event in self._socket.receive_data(data):
            match event:
                case websocket.Text():
                    incoming += map(_incoming, self._parser.receive_data(event.data.encode()))
                case websocket.Binary():
                    incoming += map(_incoming, self._parser.receive_data(event.data))
                case websocket.Fault():
                    incoming.append(Broken(event.code, event.reason))
                case websocket.Ping() | websocket.Close():
                    incoming.append(event)
                case websocket.Pong():
                    pass  # that bytes came is all that is asked of it
            if self._parser.closed and not isinstance(event, websocket.Close):
                break
        return incoming

    def authenticated(self) -> None:
        self._socket.set_limit(self._frame)
        self._parser.authenticated()

    def closing(self, code: int, reason: str) -> bytes:
        return close_frame(code, reason)


def choose_subprotocol(offered: Iterable[str]) -> str | None:
    """Return the highest STOMP subprotocol that a client offers, or None."""
    names = set(offered)
    return next((name for name in _SUBPROTOCOLS if name in names), None)


def _limits(frame: int) -> StompLimits:
    return StompLimits(max_frame=frame, max_frame_before_login=min(frame, BEFORE_LOGIN))


def _incoming(event: StompEvent) -> Incoming:
    # Web STOMP's close code for what cannot be parsed.
    return Broken(websocket.INVALID_PAYLOAD, event.reason) if isinstance(event, Fault) else event
