"""The door: reads the first request head of a connection and chooses who serves it.

A push request that is understood in full becomes a session on a lean connection, and a small
publish begins one of posts.py. Everything else goes to aiohttp with every byte, as if aiohttp had
accepted the connection itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from ..codecs.http1 import HeadError, HeadParser, RequestHead, error_body
from ..codecs.websocket_handshake import HandshakeError, check_upgrade
from .answers import INTERNAL
from .connection import NOBODY, Connection, Connections
from .gate import Gate
from .limits import ServerLimits
from .posts import Posts
from .push import Push, Way, answer, way_of
from .siblings import Place
from .sockets import Sockets
from .throttle import Throttle

logger = logging.getLogger(__name__)

# Seconds that a refused client has to read its answer while what it still sends is thrown away:
# closing with unread bytes makes the kernel send a reset, which can destroy the answer.
LINGER = 2.0


class Doors:
    """What all doors share; called, it makes one (a protocol factory).

    Every door has the same time for its head, so the order of arrival is the order of the
    deadlines, and one look at the oldest replaces a timer per connection.
    """

    def __init__(
        self,
        gate: Gate,
        push: Push,
        connections: Connections,
        hand_over: Callable[[], asyncio.Protocol],
        sockets: Sockets,
        limits: ServerLimits,
        now: Callable[[], float],
        posts: Posts,
        place: Place | None = None,
    ) -> None:
        """hand_over: makes the protocol for everything else. now: monotonic seconds. place: this
        worker's among several.
        """
        self.gate = gate
        self.push = push
        self.connections = connections
        self.hand_over = hand_over
        self.sockets = sockets
        self.limits = limits
        self.posts = posts
        self.place = place
        self.throttle = Throttle(logger)
        self.closed = False
        self._reading: dict[Door, float] = {}
        self._lingering: dict[Door, float] = {}
        self._now = now

    def __call__(self) -> Door:
        return Door(self)

    def __len__(self) -> int:
        return len(self._reading) + len(self._lingering)

    def arrived(self, door: Door) -> None:
        """Start the time limit of a head."""
        self._reading[door] = self._now() + self.limits.head_seconds

    def refused(self, door: Door) -> None:
        """Start the time limit of a refusal."""
        self._reading.pop(door, None)
        self._lingering[door] = self._now() + LINGER

    def left(self, door: Door) -> None:
        """Forget a door that is gone or has handed over."""
        self._reading.pop(door, None)
        self._lingering.pop(door, None)

    def sweep(self, now: float) -> None:
        """End those whose time is over; called about once a second. now: monotonic seconds."""
        for doors in (self._reading, self._lingering):
            late = []
            for door, deadline in doors.items():
                if deadline > now:
                    break
                late.append(door)
            for door in late:
                door.expire()

    def close(self) -> None:
        """Cut off whoever has not said what it wants, and who was just being accepted."""
        self.closed = True
        for door in (*self._reading, *self._lingering):
            door.abort()


class Door(Connection):
    """Reads one request head, and is the session's connection from then on."""

    __slots__ = ("_doors", "_parser", "_reading")

    def __init__(self, doors: Doors) -> None:
        super().__init__(doors.connections)
        self._doors = doors
        # Whether the head is not whole yet; and its parser, from the first bytes on.
        self._reading = False
        self._parser: HeadParser | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        doors = self._doors
        if doors.closed:
            # Loops accept first and make the connection in a later turn.
            doors.sockets.enter()
            self.transport.abort()
            return
        if not doors.sockets.enter():
            self._turn_away()
            return
        self._reading = True
        doors.arrived(self)

    def data_received(self, data: bytes) -> None:
        if not self._reading:
            self.session.receive_data(data)  # nobody's, where it was refused: see LINGER
            return
        parser = self._parser
        if parser is None:
            if self._begin_known(data):
                return
            limits = self._doors.limits
            parser = self._parser = HeadParser(limits.head, limits.headers)
        try:
            head = parser.receive_data(data)
        except HeadError as error:
            self._refuse(error.status, "bad_request", error.text, error.hint)
            return
        if head is None:
            return
        self._reading = False
        self._parser = None
        try:
            self._choose(head)
        except Exception:
            logger.exception("choosing for %s %s failed", head.method, head.path)
            self._refuse(500, "internal", INTERNAL)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.session is not NOBODY:
            super().connection_lost(exc)
            return
        self._doors.left(self)
        self._doors.sockets.leave()

    def expire(self) -> None:
        """The time is over: for the head, or for reading the refusal."""
        if self._parser is not None:
            seconds = self._doors.limits.head_seconds
            self._refuse(408, "timeout", f"the request head was not complete after {seconds:g} s")
        elif self._reading:
            # Browsers open connections ahead of need; an answer to no question confuses them.
            self._doors.left(self)
            self.transport.close()
        else:
            self.abort()

    def abort(self) -> None:
        """Cut the client off."""
        self._doors.left(self)
        self.transport.abort()

    def _begin_known(self, data: bytes) -> bool:
        """Begin what a client wants whose first bytes others have sent; returns whether it did."""
        doors = self._doors
        if len(data) > doors.limits.head:
            return False
        try:
            session = doors.push.again(self.transport, data)
            if session is None:
                return False
            self._reading = False
            doors.left(self)
            doors.connections.settle(self, session)
        except Exception:
            logger.exception("beginning a connection failed")
            self._refuse(500, "internal", INTERNAL)
        return True

    def _choose(self, head: RequestHead) -> None:
        doors = self._doors
        transport = self.transport
        route = doors.gate.route(head.path, head.query)
        way = way_of(route, head.method)
        if way is None and doors.posts.take(transport, head):
            doors.left(self)
            return
        if way is None or _has_body(head):
            self._hand_over(head)
            return
        place = doors.place
        if (
            place is not None
            and place.owner(route, head.method, head.query, head.headers) is not None
        ):
            self._hand_over(head)
            return
        key = None
        if way is Way.WEBSOCKET:
            try:
                key = check_upgrade(head.method, head.version, head.headers)
            except HandshakeError:
                self._hand_over(head)  # there it is answered in JSON
                return
        raw = b"" if head.rest else head.raw
        session = doors.push.session(transport, route, head.query, head.headers, key, raw)
        doors.left(self)
        doors.connections.settle(self, session, head.rest)

    def _hand_over(self, head: RequestHead) -> None:
        self._doors.left(self)
        handler = self._doors.hand_over()
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        handler.data_received(head.raw)

    def _turn_away(self) -> None:
        sockets = self._doors.sockets
        self._doors.throttle.warning(
            f"{sockets.limit} connections are open, that is the limit: a client was turned away"
        )
        if not sockets.may_answer:
            self.transport.abort()
            return
        text = f"the gateway has {sockets.limit} connections, that is its limit"
        self._refuse(503, "limit", text, retry=True)

    def _refuse(
        self, status: int, code: str, text: str, hint: str = "", *, retry: bool = False
    ) -> None:
        self._reading = False
        self._parser = None
        transport = self.transport
        headers = (("Retry-After", "5"),) if retry else ()
        transport.write(answer(status, error_body(code, text, hint, retry), headers))
        if not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._doors.refused(self)


def _has_body(head: RequestHead) -> bool:
    # What follows the head of a push request are its client's frames; a body would be mistaken
    # for them, so it is left to aiohttp to refuse.
    return head.headers.get("content-length", "0") != "0" or "transfer-encoding" in head.headers
