"""The door: reads the first request head of a connection and chooses who serves it.

A push request that is understood in full becomes a session on a lean connection, and a small
publish begins one of posts.py. Everything else goes to aiohttp with every byte, as if aiohttp had
accepted the connection itself.

A connection beyond the limit gets a reserved place: its request is read too, so that a probe of
health has its true answer, and everything else its refusal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

from ..codecs.http1 import HeadError, HeadParser, RequestHead, error_body, response
from ..codecs.websocket_handshake import HandshakeError, check_upgrade
from ..errors import QueuecastError
from . import answers
from .answers import INTERNAL
from .connection import NOBODY, Connection, Connections
from .gate import Cors, Gate, Route
from .health import METHODS, VERBS, Health
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
# Connections beyond the limit that are served in this way, so that a flood does not exhaust the
# file descriptors that the broker's connections and the log need.
RESERVE = 64
# Seconds that each has for its head.
RESERVE_SECONDS = 2.0


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
        health: Health,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        place: Place | None = None,
    ) -> None:
        """hand_over: makes the protocol for everything else. now: monotonic seconds. spawn: see
        Runtime. place: this worker's among several.
        """
        self.gate = gate
        self.push = push
        self.connections = connections
        self.hand_over = hand_over
        self.sockets = sockets
        self.limits = limits
        self.posts = posts
        self.health = health
        self.spawn = spawn
        self.place = place
        self.throttle = Throttle(logger)
        self.closed = False
        self._reading: dict[Door, float] = {}
        self._lingering: dict[Door, float] = {}
        # Those beyond the limit, in the order of arrival, and those of them that are reading.
        self._reserved: dict[Door, None] = {}
        self._late: dict[Door, float] = {}
        self._now = now

    def __call__(self) -> Door:
        return Door(self)

    def __len__(self) -> int:
        return len(self._reading) + len(self._late) + len(self._lingering)

    def arrived(self, door: Door) -> None:
        """Start the time limit of a head."""
        self._reading[door] = self._now() + self.limits.head_seconds

    def reserve(self, door: Door) -> None:
        """Give a door beyond the limit one of the reserved places.

        Where all are taken the oldest has to go, rather one that has its answer: connections
        that come in a flood, or say nothing, must not keep a probe out.
        """
        if len(self._reserved) >= RESERVE:
            answered = (each for each in self._reserved if each in self._lingering)
            (next(answered, None) or next(iter(self._reserved))).abort()
        self._reserved[door] = None
        self._late[door] = self._now() + min(RESERVE_SECONDS, self.limits.head_seconds)

    def is_reserved(self, door: Door) -> bool:
        """Return whether a door has a reserved place."""
        return door in self._reserved

    def refused(self, door: Door) -> None:
        """Start the time limit of a refusal."""
        self.left(door)
        self._lingering[door] = self._now() + LINGER

    def left(self, door: Door) -> None:
        """Forget the time limits of a door that is gone or has handed over."""
        self._reading.pop(door, None)
        self._late.pop(door, None)
        self._lingering.pop(door, None)

    def gone(self, door: Door) -> None:
        """Forget a door whose connection has ended."""
        self.left(door)
        self._reserved.pop(door, None)

    def sweep(self, now: float) -> None:
        """End those whose time is over; called about once a second. now: monotonic seconds."""
        for doors in (self._reading, self._late, self._lingering):
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
        for door in (*self._reading, *self._reserved, *self._lingering):
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
        self._reading = True
        if doors.sockets.enter():
            doors.arrived(self)
            return
        doors.throttle.warning(
            f"{doors.sockets.limit} connections are open, that is the limit: a client was turned "
            "away"
        )
        doors.reserve(self)

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
        self._doors.gone(self)
        self._doors.sockets.leave()

    def expire(self) -> None:
        """The time is over: for the head, or for reading the refusal."""
        if self._reading and self._doors.is_reserved(self):
            self._turn_away()
        elif self._parser is not None:
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
        self._reading = False
        self._parser = None
        self._doors.gone(self)
        self.transport.abort()

    def _begin_known(self, data: bytes) -> bool:
        """Begin what a client wants whose first bytes others have sent; returns whether it did."""
        doors = self._doors
        if len(data) > doors.limits.head or doors.is_reserved(self):
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
        if doors.is_reserved(self):
            if route.verb in VERBS and head.method in METHODS.split(", "):
                doors.left(self)
                doors.spawn(self._answer_probe(route, head), "answer a probe")
            else:
                self._turn_away()
            return
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

    async def _answer_probe(self, route: Route, head: RequestHead) -> None:
        """Answer a probe of health in a reserved place, which stays its own until then."""
        doors = self._doors
        cors: Cors = ()
        try:
            cors = doors.gate.admit(route, head.headers, self.transport)
            found = await doors.health.answer(route.verb)
        except QueuecastError as error:
            found = answers.refusal(error)
        except Exception:
            logger.exception("answering %s failed", head.path)
            found = answers.internal()
        if self.transport.is_closing():
            return  # the client went, or somebody else has the place
        headers = (answers.SERVER, *found.headers, *cors)
        data = response(found.status, headers, found.body)
        self._end(data.removesuffix(found.body) if head.method == "HEAD" else data)

    def _turn_away(self) -> None:
        limit = self._doors.sockets.limit
        text = f"the gateway has {limit} connections, that is its limit"
        self._refuse(503, "limit", text, retry=True)

    def _refuse(
        self, status: int, code: str, text: str, hint: str = "", *, retry: bool = False
    ) -> None:
        headers = (("Retry-After", "5"),) if retry else ()
        self._end(answer(status, error_body(code, text, hint, retry), headers))

    def _end(self, data: bytes) -> None:
        """Write an answer that is the last, and let the client read it."""
        self._reading = False
        self._parser = None
        transport = self.transport
        transport.write(data)
        if not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._doors.refused(self)


def _has_body(head: RequestHead) -> bool:
    # What follows the head of a push request are its client's frames; a body would be mistaken
    # for them, so it is left to aiohttp to refuse.
    return head.headers.get("content-length", "0") != "0" or "transfer-encoding" in head.headers
