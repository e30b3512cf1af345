"""Turns a push request into a session, wherever on a connection the request arrived.

A request that is refused gets a session too, one that says so and closes: whoever takes the
socket over from the door or from aiohttp is always a connection with a session.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping

from ..codecs.deflate import negotiate
from ..codecs.http1 import error_body, response
from ..codecs.websocket_handshake import offered_subprotocols
from ..disconnect import for_error
from ..errors import QueuecastError, Refused, Unavailable
from ..sessions.services import RESTARTING, Services
from ..sessions.sse import SseSession, refusal
from ..sessions.stomp import StompSession
from ..sessions.stomp_link import WebSocketLink, choose_subprotocol
from ..sessions.websocket import WebSocketSession, refuse
from .connection import Session
from .gate import Cors, Gate, Route
from .opening import Opening, Openings
from .refusal import Refusal
from .sockjs import SockJs, is_stream, is_websocket


class Way(enum.Enum):
    """How a push connection begins: with a WebSocket's opening handshake, or any request."""

    WEBSOCKET = "websocket"
    STREAM = "stream"


def way_of(route: Route, method: str) -> Way | None:
    """Return how a request becomes a push connection; None: it is an ordinary one."""
    if route.verb == "sockjs":
        if is_websocket(route, method):
            return Way.WEBSOCKET
        return Way.STREAM if is_stream(route, method) else None
    if method != "GET":
        return None
    if route.verb == "sse":
        return Way.STREAM
    return Way.WEBSOCKET if route.verb in ("ws", "stomp") else None


class Push:
    """Makes the sessions."""

    def __init__(self, services: Services, gate: Gate, sockjs: SockJs) -> None:
        self._services = services
        self._gate = gate
        self._sockjs = sockjs
        self._openings = Openings()
        self.draining = False

    def session(
        self,
        transport: asyncio.Transport,
        route: Route,
        query: str,
        headers: Mapping[str, str],
        key: str | None,
        raw: bytes = b"",
    ) -> Session:
        """Return the session that answers a push request; not started yet.

        key: Sec-WebSocket-Key when it is a WebSocket's opening handshake. raw: the bytes of its
        head, by which those that are alike are known (`again`).
        """
        try:
            cors = self._gate.admit(route, headers, transport)
        except Refused as error:
            # The one refusal that a WebSocket is not accepted for (RFC 6455 section 10.2): a
            # foreign page learns nothing, not even the reason.
            return Refusal(transport, refusal_plain(error))
        try:
            if self.draining:
                raise Unavailable(RESTARTING)
            if route.verb == "sockjs":
                return self._sockjs.push(transport, route, query, headers, key, cors)
            opening = self._opening(route, query, headers, cors, is_websocket=key is not None)
        except QueuecastError as error:
            return self._refused(transport, error, key, cors)
        # Where the peer's address decides what its headers mean they mean it there alone.
        if raw and not self._gate.knows_proxies:
            self._openings.keep(raw, opening)
        return self._make(transport, opening, key)

    def again(self, transport: asyncio.Transport, data: bytes) -> Session | None:
        """Return the session of a client whose first bytes ask for what others have asked for.

        None: they have to be read.
        """
        found = self._openings.find(data)
        if found is None or self.draining:
            return None
        return self._make(transport, *found)

    def _opening(
        self,
        route: Route,
        query: str,
        headers: Mapping[str, str],
        cors: Cors,
        *,
        is_websocket: bool,
    ) -> Opening:
        """Read what a request asks for; raises BadRequest and its kin."""
        stomp = route.verb == "stomp" and is_websocket
        return Opening(
            headers=headers,
            cors=cors,
            is_websocket=is_websocket,
            extension=negotiate(headers) if is_websocket and self._services.compression else None,
            request=None if stomp else self._gate.subscription(route, query, headers, cors),
            subprotocol=choose_subprotocol(offered_subprotocols(headers)) if stomp else None,
        )

    def _make(self, transport: asyncio.Transport, opening: Opening, key: str | None) -> Session:
        services = self._services
        request = opening.request
        if key is None:
            assert request is not None
            return SseSession(services, transport, request)
        if request is not None:
            return WebSocketSession(
                services, transport, request, key=key, extension=opening.extension
            )
        link = WebSocketLink(
            services.limits.frame,
            key,
            opening.subprotocol,
            opening.cors,
            extension=opening.extension,
            binary=services.stomp.binary,
        )
        return StompSession(services, transport, link, self._gate.peer(opening.headers, transport))

    def _refused(
        self, transport: asyncio.Transport, error: QueuecastError, key: str | None, cors: Cors
    ) -> Session:
        if key is not None:
            return WebSocketRefusal(transport, key, error, cors)
        # Any final status stops an EventSource for good: one that may come back is cut off.
        return Refusal(transport, b"" if self.draining else refusal(error, cors))


class WebSocketRefusal(Refusal):
    """Accepts a WebSocket and closes it with the reason."""

    __slots__ = ("_cors", "_error", "_key")

    def __init__(
        self, transport: asyncio.Transport, key: str, error: QueuecastError, cors: Cors
    ) -> None:
        super().__init__(transport, b"")
        self._key = key
        self._error = error
        self._cors = cors

    def start(self) -> None:
        refuse(self._transport, self._key, self._error, self._cors)


def refusal_plain(error: QueuecastError) -> bytes:
    """Return the HTTP response that refuses a request without CORS."""
    return answer(
        for_error(error).status, error_body(error.code, error.text, error.hint, error.retry)
    )


def answer(status: int, body: bytes, headers: Cors = ()) -> bytes:
    """Return a whole JSON response that closes its connection."""
    return response(
        status,
        (("Content-Type", "application/json"), ("Cache-Control", "no-store"), *headers),
        body,
    )
