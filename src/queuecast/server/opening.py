"""Openings: what the head of a push request asks for, read once for all that are alike.

The visitors of a page send one head for each version of a browser, but for a WebSocket's random
key and the cookie, which means nothing here; so do all who come back after a restart. What follows
from the rest of it (where it leads, that Host and Origin passed, what is subscribed to) is an
opening, and a request with the very same bytes has the same one, on whatever connection. Who asks,
and whether that one may, is asked each time.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from ..sessions.request import SubscribeRequest
from .gate import Cors

# Bytes of a head, and how many are kept: some 5 MB, and 20 for strangers who fill each with as many
# tiny headers or destinations as fit.
_MOST_HEAD = 2 * 1024
_KEPT = 1000
# Heads of which no more is known than, by a hash, that they were there; strangers who send ever new
# ones have them forgotten all together.
_SEEN = 4096
# Heads with a login are not kept: it is its client's secret, and decides about the answer.
_LOGINS = frozenset(("authorization", "proxy-authorization"))

# The lines as browsers write them, with the base64 of 16 bytes (RFC 6455 section 4.1), and with a
# value that no reader could understand otherwise. No other line of a head can look like them, so
# heads that differ in them alone differ in the key and the cookie alone.
_KEY = re.compile(rb"\r\nSec-WebSocket-Key: ([0-9A-Za-z+/]{21}[AQgw]==)\r\n")
_COOKIE: Final = b"\r\nCookie: "
_PLAIN = re.compile(rb"[\x20-\x7e]*")


class Opening(NamedTuple):
    """What one kind of head asks for.

    headers: all but the cookie. is_websocket: it begins with a WebSocket's handshake.
    extension: the answer to what permessage-deflate was offered. request: None for STOMP, whose
    clients subscribe later; subprotocol: the one of theirs that was chosen.
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
        # By the head without key and cookie; used longest ago first.
        self._kept: OrderedDict[bytes, Opening] = OrderedDict()
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, data: bytes) -> tuple[Opening, str | None] | None:
        """Return what a client's first bytes ask for, with its WebSocket key.

        None unless they are a whole head, and no more, that differs from one before in its key
        and cookie at most.
        """
        head, _ = _without_cookie(data)
        head, key = _without_key(head)
        opening = self._kept.get(head)
        # An empty key leaves the same bytes; a head's reader has the words for it.
        if opening is None or (opening.is_websocket and key is None):
            return None
        self._kept.move_to_end(head)
        # One that a stream's head has for no reason opens no WebSocket.
        return opening, key if opening.is_websocket else None

    def keep(self, raw: bytes, opening: Opening) -> None:
        """Remember what a head asks for, if it came before. raw: its bytes, no more.

        Where each client's is another one, as behind a proxy that adds its address, to keep them
        would cost as much as to read them.
        """
        head, cookie = _without_cookie(raw)
        head, key = _without_key(head)
        seen = hash(head)
        if seen not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen.add(seen)
            return
        headers = dict(opening.headers)
        if headers.pop("cookie", "") != cookie or not _LOGINS.isdisjoint(headers):
            return  # a login, or a cookie in another line, would be kept
        if len(head) > _MOST_HEAD or (opening.is_websocket and key is None):
            return
        self._kept[head] = opening._replace(headers=headers)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _without_cookie(raw: bytes) -> tuple[bytes, str]:
    """Return a head without the value of its first cookie line, and that as its reader has it."""
    begin = raw.find(_COOKIE) + len(_COOKIE)
    end = raw.find(b"\r\n", begin)
    if begin < len(_COOKIE) or end < 0 or not _PLAIN.fullmatch(raw, begin, end):
        return raw, ""
    return raw[:begin] + raw[end:], raw[begin:end].decode("ascii").strip(" ")


def _without_key(raw: bytes) -> tuple[bytes, str | None]:
    """Return a head without its WebSocket key, and the key."""
    found = _KEY.search(raw)
    if found is None:
        return raw, None
    return raw[: found.start(1)] + raw[found.end(1) :], found[1].decode("ascii")
