"""SockJS's addresses: what each answers, whether it came through the door or inside aiohttp.

Streams (xhr_streaming, eventsource, htmlfile) and WebSockets become connections of their own, as
every push request; polls and what clients send are answered here.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from ..codecs import sockjs
from ..codecs.deflate import negotiate
from ..codecs.http1 import response
from ..codecs.sockjs import SessionPath, SockJsError, Wire
from ..disconnect import Disconnect
from ..errors import BadRequest, NotFound, Unavailable
from ..sessions.request import one, parse_query
from ..sessions.services import Services, Transport
from ..sessions.sockjs import SockJsSession, SockJsSessions
from ..sessions.sockjs_link import SockJsWebSocketLink
from ..sessions.sockjs_receivers import PollReceiver, StreamReceiver
from ..sessions.stomp import StompSession
from .connection import Session
from .drain import spread_over
from .gate import Cors, Gate, Route
from .handler import Handler
from .refusal import Refusal
from .uploads import Uploads

logger = logging.getLogger(__name__)

_NO_CACHE: Final = ("Cache-Control", "no-store, no-cache, must-revalidate, max-age=0")
_YEAR: Final = 31_536_000  # seconds
_TEXT: Final = "text/plain; charset=UTF-8"
_SCRIPT: Final = "application/javascript; charset=UTF-8"

_METHODS: Final = {
    "websocket": "GET",
    "xhr": "POST",
    "xhr_send": "POST",
    "xhr_streaming": "POST",
    "eventsource": "GET",
    "htmlfile": "GET",
    "jsonp": "GET",
    "jsonp_send": "POST",
}
_STREAMS: Final = {
    "xhr_streaming": (Wire.XHR, _SCRIPT),
    "eventsource": (Wire.EVENTSOURCE, "text/event-stream; charset=UTF-8"),
    "htmlfile": (Wire.HTMLFILE, "text/html; charset=UTF-8"),
}
# A session's id is held as long as the session; sockjs-client's have 8 characters.
_LONGEST_ID: Final = 128

_COOKIE = re.compile(r"(?:^|;)\s*JSESSIONID=([A-Za-z0-9._~!:@+-]{1,128})\s*(?:;|$)")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(?:\s*,\s*[A-Za-z0-9-]{1,64}){0,31}")

# What sockjs-client looks for in its iframe is the two names; the rest is ours.
_IFRAME: Final = """<!DOCTYPE html>
<html>
<head>
  <meta charset="UTF-8">
  <title>SockJS</title>
  <script>
    var _sockjs_onload = function () { SockJS.bootstrap_iframe(); };
  </script>
  <script src="%s"></script>
</head>
<body></body>
</html>
"""


@dataclass(frozen=True, slots=True)
class SockJsOptions:
    """websocket: whether its clients may use WebSocket. cookie: answers set JSESSIONID.

    client_url: where the iframe page loads sockjs-client from; there is no page when empty.
    """

    websocket: bool = True
    cookie: bool = False
    client_url: str = ""


class SockJs:
    """Answers what lies under SockJS's base path."""

    def __init__(
        self,
        services: Services,
        gate: Gate,
        sessions: SockJsSessions,
        uploads: Uploads,
        options: SockJsOptions,
    ) -> None:
        self._services = services
        self._gate = gate
        self._sessions = sessions
        self._uploads = uploads
        self._options = options
        self._page = (_IFRAME % options.client_url).encode()
        self._etag = f'"{hashlib.sha256(self._page).hexdigest()[:32]}"'
        self.draining = False

    @property
    def sessions(self) -> SockJsSessions:
        """All sessions over HTTP."""
        return self._sessions

    async def disconnect_all(self, reason: Disconnect, spread: float) -> None:
        """End every session over HTTP, evenly over `spread` seconds."""

        def disconnect(session: SockJsSession) -> None:
            try:
                session.disconnect(reason)
            except Exception:
                logger.exception("a session could not be disconnected")
                session.abort()

        await spread_over(list(self._sessions), spread, disconnect)

    def sweep(self, now: float) -> None:
        """End what nobody asks for any more; called about once a second."""
        self._sessions.sweep(now)

    # -- push connections -----------------------------------------------------------------

    def push(
        self,
        transport: asyncio.Transport,
        route: Route,
        query: str,
        headers: Mapping[str, str],
        key: str | None,
        cors: Cors,
    ) -> Session:
        """Return the session of a stream's or WebSocket's connection; raises QueuecastError.

        key: Sec-WebSocket-Key of a WebSocket's opening handshake.
        """
        path = _session_path(route)
        if key is not None:
            if not self._options.websocket:
                return _refusal(transport, 404, "WebSocket is switched off here.", cors)
            return self._websocket(transport, headers, key, cors)
        wire, kind = _STREAMS[path.transport]
        callback = ""
        if wire is Wire.HTMLFILE:
            try:
                callback = _callback(query)
            except SockJsError as error:
                return _refusal(transport, 500, str(error), cors)
        session = self._session(path, wire, transport, headers)
        lines = [
            "HTTP/1.1 200 OK",
            f"Content-Type: {kind}",
            f"{_NO_CACHE[0]}: {_NO_CACHE[1]}",
            "X-Accel-Buffering: no",
            # Without a length it ends with the connection (RFC 9112 section 6.3), so that its
            # bytes have no framing of their own and a cohort shares them.
            "Connection: close",
            *(f"{name}: {value}" for name, value in (*cors, *self._more(headers))),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + wire.prelude(callback)
        return StreamReceiver(transport, session, wire, head)

    def _websocket(
        self, transport: asyncio.Transport, headers: Mapping[str, str], key: str, cors: Cors
    ) -> Session:
        services = self._services
        extension = negotiate(headers) if services.compression else None
        link = SockJsWebSocketLink(services.limits.frame, key, cors, extension=extension)
        return StompSession(services, transport, link, self._gate.peer(headers, transport))

    def _session(
        self,
        path: SessionPath,
        wire: Wire,
        transport: asyncio.BaseTransport,
        headers: Mapping[str, str],
    ) -> SockJsSession:
        """Return the session that a receiver is for; an unknown one begins."""
        peer = self._gate.peer(headers, transport)
        origin = headers.get("origin")
        session = self._sessions.find(path.session, peer, origin)
        if session is None:
            if self.draining:
                raise Unavailable("the gateway is restarting")
            return self._sessions.open(path.session, wire, peer, origin)
        session.check_wire(wire)
        return session

    # -- requests -------------------------------------------------------------------------

    async def answer(
        self,
        request: web.BaseRequest,
        route: Route,
        query: str,
        headers: Mapping[str, str],
        cors: Cors,
    ) -> web.StreamResponse:
        """Answer a request that is no push connection; raises QueuecastError."""
        allowed = self._allowed(route.rest)
        if request.method == "OPTIONS":
            return self._preflight(request, headers, allowed)
        if request.method not in allowed.split(", "):
            return _plain(405, "", {"Allow": f"OPTIONS, {allowed}"})
        if route.rest in ("", "/"):
            return _plain(200, sockjs.GREETING.decode())
        if route.rest == "/info":
            return self._info()
        if sockjs.is_iframe(route.rest):
            return self._iframe(request, headers)
        path = _session_path(route)
        try:
            match path.transport:
                case "xhr":
                    return await self._poll(request, path, headers, cors, None)
                case "jsonp":
                    return await self._poll(request, path, headers, cors, _callback(query))
                case "xhr_send" | "jsonp_send":
                    return await self._send(request, path, headers)
                case "websocket":
                    return _no_websocket(headers)
                case _:
                    raise BadRequest("this request has a body, a stream's has none")
        except SockJsError as error:
            return _plain(500, f"{error}\n")

    def _allowed(self, rest: str) -> str:
        if rest in ("", "/", "/info") or sockjs.is_iframe(rest):
            return "GET"
        path = sockjs.parse_path(rest)
        if path is None or path.transport not in _METHODS:
            raise NotFound("there is nothing at this address", "SockJS knows /info and its own")
        return _METHODS[path.transport]

    def _preflight(
        self, request: web.BaseRequest, headers: Mapping[str, str], allowed: str
    ) -> web.Response:
        made = self._gate.preflight(headers, f"OPTIONS, {allowed}", request.transport)
        made["Access-Control-Max-Age"] = str(_YEAR)
        made["Cache-Control"] = f"public, max-age={_YEAR}"
        made["Expires"] = _next_year()
        return web.Response(status=204, headers={**made, **dict(_asked_headers(headers))})

    def _info(self) -> web.Response:
        body = {
            "websocket": self._options.websocket,
            # The protocol's own words, which no client reads: who may is checked at each request.
            "origins": ["*:*"],
            "cookie_needed": self._options.cookie,
            "entropy": secrets.randbits(32),
        }
        return web.Response(
            body=msgspec.json.encode(body),
            headers=dict((_NO_CACHE, ("Content-Type", "application/json; charset=UTF-8"))),
        )

    def _iframe(self, request: web.BaseRequest, headers: Mapping[str, str]) -> web.Response:
        if not self._options.client_url:
            raise NotFound(
                "the iframe transports are switched off",
                "server.sockjs_client_url says where the page loads sockjs-client from",
            )
        ancestors = self._gate.ancestors(headers, request.transport)
        made = {
            "Cache-Control": f"public, max-age={_YEAR}",
            "Expires": _next_year(),
            "ETag": self._etag,
            # In the frame a page is of our own origin: who may not use us must not frame it.
            "Content-Security-Policy": f"frame-ancestors {ancestors}",
        }
        if self._etag in headers.get("if-none-match", ""):
            return web.Response(status=304, headers=made)
        made["Content-Type"] = "text/html; charset=UTF-8"
        return web.Response(body=self._page, headers=made)

    async def _poll(
        self,
        request: web.BaseRequest,
        path: SessionPath,
        headers: Mapping[str, str],
        cors: Cors,
        callback: str | None,
    ) -> web.StreamResponse:
        handler = cast(Handler, request.protocol)
        if handler.transport is None:
            raise ConnectionResetError("the client went")
        session = self._session(path, Wire.XHR, handler.transport, headers)
        receiver = PollReceiver(self._services.runtime, session, self._sessions.heartbeat)
        handler.watch(cast("asyncio.Future[bytes]", receiver.answer))
        attached = session.attach(receiver)
        try:
            frame = await receiver.answer
            body = frame + b"\n" if callback is None else sockjs.jsonp(callback, frame)
            made: CIMultiDict[str] = CIMultiDict((*cors, *self._more(headers)))
            made.extend((_NO_CACHE, ("Content-Type", _SCRIPT), ("Server", "queuecast")))
            made["X-Content-Type-Options"] = "nosniff"
            answer = web.Response(body=body, headers=made)
            # Here, so that it shows when the client is gone.
            await answer.prepare(request)
            await answer.write_eof()
        except asyncio.CancelledError:
            if attached:
                receiver.cancelled()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ConnectionResetError("the client went") from None
        except ConnectionError:
            if attached:
                receiver.cancelled()
            raise
        finally:
            handler.watch(None)
        return answer

    async def _send(
        self, request: web.BaseRequest, path: SessionPath, headers: Mapping[str, str]
    ) -> web.Response:
        if request.transport is None:
            raise ConnectionResetError("the client went")
        peer = self._gate.peer(headers, request.transport)
        origin = headers.get("origin")
        session = self._sessions.find(path.session, peer, origin)
        if session is None or session.over:
            raise NotFound(
                "there is no such session",
                "it is over, or lives on another node: a load balancer must keep each to its node",
            )
        payload = await self._uploads.read(request, session.limit, "limits.frame")
        jsonp = path.transport == "jsonp_send"
        if jsonp and "x-www-form-urlencoded" in headers.get("content-type", ""):
            payload = _form(payload)
        await session.receive(sockjs.parse_messages(payload))
        made = dict((_NO_CACHE, ("Content-Type", _TEXT), *self._more(headers)))
        return web.Response(
            status=200 if jsonp else 204, body=b"ok" if jsonp else None, headers=made
        )

    def _more(self, headers: Mapping[str, str]) -> Cors:
        """Return header lines of answers at a session's addresses."""
        lines = _asked_headers(headers)
        if not self._options.cookie:
            return lines
        found = _COOKIE.search(headers.get("cookie", ""))
        return (*lines, ("Set-Cookie", f"JSESSIONID={found[1] if found else 'dummy'}; Path=/"))


def is_stream(route: Route, method: str) -> bool:
    """Tell whether a SockJS request is answered by a connection that goes on."""
    path = sockjs.parse_path(route.rest)
    return (
        path is not None
        and path.transport in _STREAMS
        and method == _METHODS[path.transport]
        and len(path.session) <= _LONGEST_ID
    )


def is_websocket(route: Route, method: str) -> bool:
    """Tell whether a SockJS request is for its WebSocket."""
    path = sockjs.parse_path(route.rest)
    return method == "GET" and path is not None and path.transport == "websocket"


def greeting() -> web.Response:
    """Return what the base path answers."""
    return _plain(200, sockjs.GREETING.decode())


def _refusal(transport: Transport, status: int, text: str, cors: Cors) -> Refusal:
    lines = (("Content-Type", _TEXT), _NO_CACHE, *cors)
    return Refusal(transport, response(status, lines, f"{text}\n".encode()))


def _session_path(route: Route) -> SessionPath:
    path = sockjs.parse_path(route.rest)
    if path is None or len(path.session) > _LONGEST_ID:
        raise NotFound("there is nothing at this address")
    return path


def _callback(query: str) -> str:
    parameters = parse_query(query)
    return sockjs.callback_name(one(parameters, "c") or one(parameters, "callback"))


def _form(body: bytes) -> bytes:
    try:
        fields = parse_query(body.decode())
    except UnicodeDecodeError:
        raise SockJsError("Broken JSON encoding.") from None
    return (one(fields, "d") or "").encode()


def _asked_headers(headers: Mapping[str, str]) -> Cors:
    """Return the line that allows the headers which a page wants to send: none has a power."""
    asked = headers.get("access-control-request-headers", "").strip()
    if not _HEADER_NAMES.fullmatch(asked) or "origin" not in headers:
        return ()
    return (("Access-Control-Allow-Headers", asked),)


def _no_websocket(headers: Mapping[str, str]) -> web.Response:
    if headers.get("upgrade", "").lower() != "websocket":
        return _plain(400, 'Can "Upgrade" only to "WebSocket".\n')
    return _plain(400, '"Connection" must be "Upgrade", and the version 13.\n')


def _plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    made = {"Cache-Control": _NO_CACHE[1], **(headers or {})}
    if text:
        made["Content-Type"] = _TEXT
    return web.Response(status=status, body=text.encode() or None, headers=made)


def _next_year() -> str:
    return email.utils.formatdate(time.time() + _YEAR, usegmt=True)
