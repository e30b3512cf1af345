"""Plans: what the head of a small publish asks for, read once for all requests that begin alike.

A publisher says the same head again and again, but for its Content-Length. What follows from the
rest of it (route, origin, policy, destination, properties) is a plan, and a request with the very
same bytes has the same one, on whatever connection. There is no plan for anything but a body of
known, small size: aiohttp has everything else.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import NamedTuple

from ..auth.identity import ANONYMOUS
from ..codecs.http1 import RequestHead
from ..errors import QueuecastError
from ..sessions.idempotency import HEADER
from . import answers
from .answers import Answer
from .gate import Cors, Gate
from .publish import Publisher, Wanted
from .siblings import Place

# Bytes of a body, well within one read. A larger one is a stream, for which aiohttp is made.
MOST = 64 * 1024
# Bytes of a head. Each connection remembers its last one, also while it is idle.
_MOST_HEAD = 4 * 1024
# Plans that are kept for other connections and later: a few MB, whatever strangers say.
_KEPT = 1000

# The line as clients write it. A head has one only, and no other line can look like it: so two
# heads that differ in these digits alone differ in the length of the body alone.
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,9})\r\n")

# Each changes where a request ends, or what its connection is afterwards.
_NOT_PLAIN = ("transfer-encoding", "expect", "upgrade")
_CONNECTIONS = ("", "keep-alive", "close")
# A comma may be two header lines, of which aiohttp refuses some and takes the first of others.
_SINGLE = ("content-type", "content-encoding", HEADER)


class Plan:
    """What one kind of head asks for.

    wanted: what is to be published, or the answer that refuses it. last: the client wants no more
    than this answer. success: the answer to a publish that went well, as it was made at `date`.
    """

    __slots__ = ("cors", "date", "last", "success", "wanted")

    def __init__(self, cors: Cors, wanted: Wanted | Answer, *, last: bool) -> None:
        self.cors = cors
        self.wanted = wanted
        self.last = last
        self.success = b""
        self.date = ""


class Request(NamedTuple):
    """The beginning of a request.

    head: the bytes, with the empty line. size: those of head and body together.
    """

    head: bytes
    size: int
    plan: Plan


class Plans:
    """Makes the plans of one server."""

    def __init__(
        self, gate: Gate, publisher: Publisher, limit: int, place: Place | None = None
    ) -> None:
        """limit: bytes of a message's body. place: this worker's among several."""
        self._gate = gate
        self._publisher = publisher
        self._most = min(limit, MOST)
        self._place = place
        # By the head without its length's digits; used longest ago first.
        self._kept: OrderedDict[bytes, Plan] = OrderedDict()

    def known(self, raw: bytes) -> Request | None:
        """Return the request of a head, if there was one lately that differs in length at most."""
        found = _LENGTH.search(raw)
        if found is None:
            return None
        key = _without(found)
        plan = self._kept.get(key)
        length = int(found[1])
        if plan is None or length > self._most:
            return None
        self._kept.move_to_end(key)
        return Request(raw, len(raw) + length, plan)

    def read(
        self, head: RequestHead, raw: bytes, transport: asyncio.BaseTransport
    ) -> Request | None:
        """Return the request of a head, None when it is not for us. raw: its bytes, no more."""
        if len(raw) > _MOST_HEAD:
            return None
        headers = head.headers
        length = headers.get("content-length", "")
        if head.method != "POST" or head.version != "1.1" or not _is_plain(headers, length):
            return None
        if len(length) > 9 or int(length) > self._most:
            return None
        route = self._gate.route(head.path, head.query)
        if route.verb != "publish" or route.rest in ("", "/"):
            return None
        place = self._place
        if place is not None and place.owner(route, head.method, head.query, headers) is not None:
            return None
        cors: Cors = ()
        wanted: Wanted | Answer
        try:
            cors = self._gate.admit(route, headers, transport)
            wanted = self._publisher.wanted(ANONYMOUS, route.rest, head.query, headers)
        except QueuecastError as error:
            wanted = answers.refusal(error)
        last = headers.get("connection", "").lower() == "close"
        plan = Plan(cors, wanted, last=last)
        # A refusal is to be logged each time, a key is another one each time, and where the peer's
        # address decides what its headers mean they mean it there alone.
        if isinstance(wanted, Wanted) and HEADER not in headers and not self._gate.knows_proxies:
            self._keep(raw, plan)
        return Request(raw, len(raw) + int(length), plan)

    def _keep(self, raw: bytes, plan: Plan) -> None:
        found = _LENGTH.search(raw)
        if found is None:
            return
        self._kept[_without(found)] = plan
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _without(length: re.Match[bytes]) -> bytes:
    """Return a head without the digits of its length."""
    raw = length.string
    return raw[: length.start(1)] + raw[length.end(1) :]


def _is_plain(headers: dict[str, str], length: str) -> bool:
    if not (length.isascii() and length.isdigit()):
        return False
    if any(name in headers for name in _NOT_PLAIN):
        return False
    if headers.get("connection", "").lower() not in _CONNECTIONS:
        return False
    return all(
        value.isascii() and "," not in value for name in _SINGLE if (value := headers.get(name))
    )
