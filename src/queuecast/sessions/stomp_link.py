"""What lies between a client's bytes and STOMP frames, and where a transport is plugged in.

A StompSession is given two things. Its *transport* moves bytes: a socket, or whatever offers
`services.Transport`. Its *link* gives the bytes their meaning: it reads frames from what the
client sent and says how ours lie on the wire (`framing`). The session knows neither WebSocket
nor TCP: what a link must answer by itself (a ping) comes out of `receive_data` as a Reply, the
client's own ending as Left, and a broken protocol as Broken. So a new way to carry STOMP is a
link, and a framing if its bytes are others.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias

from ..codecs import websocket
from ..codecs.deflate import DeflateParser
from ..codecs.stomp import Event as StompEvent
from ..codecs.stomp import Fault, Frame, Heartbeat, StompLimits, StompParser
from ..codecs.websocket import WebSocketParser, close_frame, ping_frame, pong_frame
from ..codecs.websocket_handshake import handshake_response
from .stomp_framing import RAW, Framing, websocket_framing

# Frames of strangers, and WebSocket messages of theirs: it stops a crowd that never logs in.
BEFORE_LOGIN = 64 * 1024

_SUBPROTOCOLS = ("v12.stomp", "v11.stomp", "v10.stomp")


class Reply(NamedTuple):
    """The link itself answers: bytes to write."""

    data: bytes


class Left(NamedTuple):
    """The client ends the link: bytes that answer it, once what it sent before is confirmed."""

    data: bytes


class Broken(NamedTuple):
    """The client broke a protocol: the WebSocket close code and the reason."""

    code: int
    reason: str


Incoming: TypeAlias = Frame | Heartbeat | Reply | Left | Broken


class Link(Protocol):
    """One connection's layer.

    kind: what it is called in metrics. framing: how our frames lie on the wire. bare: frames lie
    on the socket itself, so that it may be some other protocol's client who connected, and that
    the end of what we write is shown by the socket.
    """

    kind: str
    framing: Framing
    bare: bool

    @property
    def pending(self) -> bool:
        """Whether the last call left bytes for a call of its own, with none."""

    def opening(self) -> bytes:
        """Return what is written before everything else."""

    def receive_data(self, data: bytes) -> list[Incoming]:
        """Return what these bytes complete; nothing follows a Broken or Left."""

    def authenticated(self) -> None:
        """Raise the limits to those of clients who have logged in."""

    def ping(self) -> bytes:
        """Return what a client that is there answers, b"" if the link has nothing like it."""

    def closing(self, code: int, reason: str) -> bytes:
        """Return what is written after everything else."""


class RawLink:
    """STOMP on TCP. frame: the largest frame in bytes."""

    __slots__ = ("_parser",)

    kind = "stomp-tcp"
    framing: Framing = RAW
    bare = True
    pending = False

    def __init__(self, frame: int) -> None:
        self._parser = StompParser(stomp_limits(frame))

    def opening(self) -> bytes:
        return b""

    def receive_data(self, data: bytes) -> list[Incoming]:
        return [incoming(event) for event in self._parser.receive_data(data)]

    def authenticated(self) -> None:
        self._parser.authenticated()

    def ping(self) -> bytes:
        return b""

    def closing(self, code: int, reason: str) -> bytes:
        return b""


class WebSocketLink:
    """STOMP in WebSocket messages. key: the handshake's; subprotocol: what of the client's offer
    was chosen; headers: more lines of the answer.

    A frame that we send is one message; those of the client may span messages and share them.
    extension: what deflate.negotiate answers to the client's offers. binary: our messages are
    never text.
    """

    __slots__ = ("_frame", "_opening", "_parser", "_socket", "framing")

    kind = "stomp-websocket"
    bare = False

    def __init__(
        self,
        frame: int,
        key: str,
        subprotocol: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
        *,
        extension: str | None = None,
        binary: bool = False,
    ) -> None:
        self.framing: Framing = websocket_framing(binary, extension is not None)
        self._frame = frame
        parser = WebSocketParser if extension is None else DeflateParser
        # For a compressed message it is the bound of what it inflates to.
        self._socket = parser(min(frame, BEFORE_LOGIN))
        self._parser = StompParser(stomp_limits(frame))
        self._opening = handshake_response(key, subprotocol, headers, extension=extension)

    @property
    def pending(self) -> bool:
        return self._socket.pending

    def opening(self) -> bytes:
        opening, self._opening = self._opening, b""
        return opening

    def receive_data(self, data: bytes) -> list[Incoming]:
        found: list[Incoming] = []
        for event in self._socket.receive_data(data):
            match event:
                case websocket.Text():
                    found += map(incoming, self._parser.receive_data(event.data.encode()))
                case websocket.Binary():
                    found += map(incoming, self._parser.receive_data(event.data))
                case websocket.Fault():
                    found.append(Broken(event.code, event.reason))
                case websocket.Ping():
                    found.append(Reply(pong_frame(event.data)))
                case websocket.Close():
                    # Our close frame repeats the client's code (RFC 6455 section 5.5.1).
                    found.append(Left(close_frame(event.code)))
                case websocket.Pong():
                    pass  # that bytes came is all that is asked of it
            if self._parser.closed and not isinstance(event, websocket.Close):
                break
        return found

    def authenticated(self) -> None:
        self._socket.set_limit(self._frame)
        self._parser.authenticated()

    def ping(self) -> bytes:
        return ping_frame()

    def closing(self, code: int, reason: str) -> bytes:
        return close_frame(code, reason)


def choose_subprotocol(offered: Iterable[str]) -> str | None:
    """Return the highest STOMP subprotocol that a client offers, or None."""
    names = set(offered)
    return next((name for name in _SUBPROTOCOLS if name in names), None)


@lru_cache(maxsize=16)
def stomp_limits(frame: int) -> StompLimits:
    """Return a parser's limits. frame: the largest frame of a client who has logged in, bytes."""
    return StompLimits(max_frame=frame, max_frame_before_login=min(frame, BEFORE_LOGIN))


def incoming(event: StompEvent) -> Incoming:
    """Return what a STOMP parser found as a link gives it on."""
    # Web STOMP's close code for what cannot be parsed.
    return Broken(websocket.INVALID_PAYLOAD, event.reason) if isinstance(event, Fault) else event
