"""Openings: what the head of a push request asks for, read once for all that are alike.

The visitors of a page send one head for each version of a browser, but for a WebSocket's random
key; so do all who come back after a restart. What follows from the rest of it (where it leads, that
Host and Origin passed, what is subscribed to) is an opening, and a request with the very same bytes
has the same one, on whatever connection. Who asks, and whether that one may, is asked each time.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from ..sessions.request import SubscribeRequest
from .gate import Cors

# Bytes of a head, and how many are kept: some 5 MB, and 20 for strangers who fill each with as many
# tiny headers or destinations as fit.
_MOST_HEAD = 2 * 1024
_KEPT = 1000
# What one client alone has to say: no other's head is like it, and no secret outlives its client.
_OWN = frozenset(("cookie", "authorization", "proxy-authorization"))

# The line as browsers write it, with the base64 of 16 bytes (RFC 6455 section 4.1). No other line
# of a head can look like it, so heads that differ in it alone differ in the key alone.
_KEY = re.compile(rb"\r\nSec-WebSocket-Key: ([0-9A-Za-z+/]{21}[AQgw]==)\r\n")


class Opening(NamedTuple):
    """What one kind of head asks for.

    headers: all of them. is_websocket: it begins with a WebSocket's handshake. extension: the
    answer to what permessage-deflate was offered. request: None for STOMP, whose clients subscribe
    later; subprotocol: the one of theirs that was chosen.
    """

    headers: Mapping[str, str]
    cors: Cors
    is_websocket: bool
    extension: str | None
    request: SubscribeRequest | None
    subprotocol: str | None


class Openings:
    """The openings of the last thousand heads."""

    def __init__(self) -> None:
        # By the head without its key; used longest ago first.
        self._kept: OrderedDict[bytes, Opening] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, data: bytes) -> tuple[Opening, str | None] | None:
        """Return what a client's first bytes ask for, with its WebSocket key.

        None unless they are a whole head, and no more, that differs from one before in its key at
        most.
        """
        if len(data) > _MOST_HEAD:
            return None
        head, key = _split(data)
        opening = self._kept.get(head)
        # An empty key leaves the same bytes; a head's reader has the words for it.
        if opening is None or (opening.is_websocket and key is None):
            return None
        self._kept.move_to_end(head)
        # One that a stream's head has for no reason opens no WebSocket.
        return opening, key if opening.is_websocket else None

    def keep(self, raw: bytes, opening: Opening) -> None:
        """Remember what a head asks for, if others may have the same. raw: its bytes, no more."""
        if len(raw) > _MOST_HEAD or not _OWN.isdisjoint(opening.headers):
            return
        head, key = _split(raw)
        if opening.is_websocket and key is None:
            return
        self._kept[head] = opening
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _split(raw: bytes) -> tuple[bytes, str | None]:
    """Return a head without its WebSocket key, and the key."""
    found = _KEY.search(raw)
    if found is None:
        return raw, None
    return raw[: found.start(1)] + raw[found.end(1) :], found[1].decode("ascii")
