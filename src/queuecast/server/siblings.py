"""Which of several workers on one port a request belongs to.

A SockJS session lives on one worker, and so does what a client holds unacked; but the system gives
each new connection to any of them. The name tells whose it is: an ack id and the session of a long
poll begin with their worker's name, and the id of a SockJS session, which its client chose, falls
to a worker by its checksum. So does an idempotency key, or a publish that is tried again would
be done again by another worker.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import socket

from ..codecs import sockjs
from ..errors import QueuecastError
from ..sessions.acks import AckId
from ..sessions.idempotency import HEADER
from ..sessions.request import one, parse_query
from .gate import Route

_KEY = HEADER.lower()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands among the others.

    number: from 0. node: the name that all of them share. directory: of their Unix sockets, which
    only they reach. http, stomp: sockets that listen already, where each cannot have its own.
    """

    number: int
    count: int
    node: str
    directory: Path
    http: Sequence[socket] = ()
    stomp: Sequence[socket] = ()

    @property
    def name(self) -> str:
        """This worker's own name, as it stands in ack ids."""
        return f"{self.node}-{self.number}"

    @property
    def is_first(self) -> bool:
        """Whether it does what only one of them is to do."""
        return self.number == 0

    def door(self, number: int) -> Path:
        """Return where a worker takes requests from the others."""
        return self.directory / f"{number}.door"

    def admin(self, number: int) -> Path:
        """Return where a worker shows its metrics."""
        return self.directory / f"{number}.admin"

    @property
    def parent(self) -> Path:
        """Where the parent tells of all of them."""
        return self.directory / "parent"

    def fits(self) -> bool:
        """Tell whether the paths are short enough for Unix sockets."""
        return len(str(self.admin(self.count))) < 104

    # -- whose ----------------------------------------------------------------------------

    def owner(
        self, route: Route, method: str, query: str, headers: Mapping[str, str]
    ) -> int | None:
        """Return the worker to hand a request to; None: it is ours, or anybody's.

        headers: lower-case names.
        """
        number: int | None = None
        if route.verb == "sockjs":
            path = sockjs.parse_path(route.rest)
            if path is not None and path.transport != "websocket" and method != "OPTIONS":
                number = self._by_checksum(path.session)
        elif route.verb == "poll" and "session=" in query:
            number = self._of_poll(query)
        elif route.verb == "publish" and method == "POST" and _KEY in headers:
            number = self._by_checksum(headers[_KEY].strip('"'))
        return None if number == self.number else number

    def by_owner(self, ids: Iterable[object]) -> dict[int | None, list[object]]:
        """Sort ack ids by the workers that gave them out; ours, and what is none, under None."""
        found: dict[int | None, list[object]] = {}
        for id in ids:
            try:
                number = self._of_node(AckId.parse(id).node)
            except QueuecastError:
                number = None  # said by who settles it
            found.setdefault(None if number == self.number else number, []).append(id)
        return found

    def _of_poll(self, query: str) -> int | None:
        try:
            session = one(parse_query(query), "session")
        except QueuecastError:
            return None
        return self._of_node((session or "").partition(".")[0])

    def _of_node(self, name: str) -> int | None:
        node, _, number = name.rpartition("-")
        if node != self.node or not (number.isascii() and number.isdigit() and len(number) < 4):
            return None
        return int(number) if int(number) < self.count else None

    def _by_checksum(self, id: str) -> int:
        return zlib.crc32(id.encode("utf-8", "surrogateescape")) % self.count
