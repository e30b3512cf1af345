"""How STOMP frames lie on the wire: the layer under them, as a value.

It is part of every encoding: subscriptions whose framings are equal share their bytes, so all
that shows in the bytes must be in the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..codecs import deflate
from ..codecs.websocket import BINARY, TEXT, frame_header
from .encodings import is_utf8


class Framing:
    """One layer. Subclasses are frozen dataclasses, compared by value."""

    __slots__ = ()

    def wrap(self, frame: bytes, *, text: bool = True) -> bytes:
        """Return the wire bytes of a frame. text: whether it is UTF-8."""
        raise NotImplementedError

    def wrap_shared(self, frame: bytes, *, text: bool) -> bytes:
        """As `wrap`, of a frame that a whole cohort gets."""
        return self.wrap(frame, text=text)

    def wrap_any(self, frame: bytes) -> bytes:
        """As `wrap`, of a frame of which nobody knows whether it is UTF-8."""
        return self.wrap(frame, text=is_utf8(frame))


@dataclass(frozen=True, slots=True)
class RawFraming(Framing):
    """TCP: nothing lies between."""

    def wrap(self, frame: bytes, *, text: bool = True) -> bytes:
        return frame

    def wrap_any(self, frame: bytes) -> bytes:
        return frame


@dataclass(frozen=True, slots=True)
class WebSocketFraming(Framing):
    """A WebSocket message for each frame: text, unless the frame is not UTF-8.

    binary: never text. deflate: what a cohort shares goes out with permessage-deflate where it
    pays; it must be negotiated. What is for one client alone does not, as the RFC allows.
    """

    binary: bool = False
    deflate: bool = False

    def wrap(self, frame: bytes, *, text: bool = True) -> bytes:
        opcode = TEXT if text and not self.binary else BINARY
        return frame_header(opcode, len(frame)) + frame

    def wrap_shared(self, frame: bytes, *, text: bool) -> bytes:
        if not self.deflate:
            return self.wrap(frame, text=text)
        opcode, payload = deflate.pack(TEXT if text and not self.binary else BINARY, frame)
        return frame_header(opcode, len(payload)) + payload


RAW = RawFraming()


@lru_cache(maxsize=4)
def websocket_framing(binary: bool, deflate: bool) -> WebSocketFraming:
    """Return the framing that all connections of a kind share."""
    return WebSocketFraming(binary=binary, deflate=deflate)
