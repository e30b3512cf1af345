"""The web application: publishing, long poll, health, pages, and readable refusals.

It stands on aiohttp's lowest layer, one handler for every request: routing is the gate's, so
that a request means the same here and at the door.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import cast

from aiohttp import web
from multidict import CIMultiDict

from ..auth.identity import ANONYMOUS
from ..codecs.websocket_handshake import HandshakeError, check_upgrade
from ..errors import QueuecastError, Unavailable
from ..sessions.poll import poll
from ..sessions.poll_work import poll_with_acks
from ..sessions.services import RESTARTING, Services
from . import answers, browser
from .ack import Acker, AckFailed
from .answers import Answer
from .connection import Connections
from .drain import spread_over
from .gate import GUARDED, Cors, Gate, Route, split_target
from .handler import Handler, Server, Taken
from .handover import Handover
from .health import METHODS, VERBS, Health
from .limits import ServerLimits
from .publish import BatchFailed, Publisher
from .push import Push, Way, way_of
from .sockets import Sockets
from .sockjs import SockJs, greeting
from .uploads import Uploads

logger = logging.getLogger(__name__)

# Content type and body of a page by its path, or None when there is none there.
Page = Callable[[str], tuple[str, bytes] | None]

# Bytes of a body that means nothing.
_NOTHING = 4096

_METHODS = {
    "sse": "GET",
    "ws": "GET",
    "stomp": "GET",
    "poll": "GET",
    "publish": "POST",
    "ack": "POST",
    **dict.fromkeys(VERBS, METHODS),
    "": "GET, HEAD",
}


class Web:
    """Everything that is not a push connection."""

    def __init__(
        self,
        services: Services,
        gate: Gate,
        push: Push,
        sockjs: SockJs,
        connections: Connections,
        sockets: Sockets,
        limits: ServerLimits,
        uploads: Uploads,
        publisher: Publisher,
        health: Health,
        page: Page | None = None,
        handover: Handover | None = None,
    ) -> None:
        """handover: the way to other workers."""
        self._services = services
        self._gate = gate
        self._push = push
        self._sockjs = sockjs
        self._connections = connections
        self._sockets = sockets
        self._limits = limits
        self._health = health
        self._page = page
        self._uploads = uploads
        self._publisher = publisher
        self._handover = handover
        self._acker = Acker(services, uploads.read, handover)
        # At most one per connection, whose number is bounded.
        self._polls: set[asyncio.Task[bytes]] = set()

    def server(self) -> Server:
        """Return what makes the protocols of connections; call it inside the loop."""
        return Server(
            self.handle,
            self._sockets,
            access_log=None,
            keepalive_timeout=self._limits.keepalive,
            max_line_size=self._limits.head,
            max_field_size=self._limits.head,
            max_headers=self._limits.headers,
            # A refused body is read for so long, so that its sender sees the answer.
            lingering_time=2.0,
            # The body is the message's, as it came.
            auto_decompress=False,
        )

    async def end_polls(self, spread: float) -> None:
        """Answer every long poll that waits, over `spread` seconds: the gateway drains."""
        await spread_over(list(self._polls), spread, lambda task: task.cancel())

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        headers: dict[str, str] = {}
        for name, text in request.headers.items():
            key = name.lower()
            # As at the door: a byte is a character. aiohttp's surrogates fit into no answer.
            value = text
            if not text.isascii():
                value = text.encode("utf-8", "surrogateescape").decode("latin-1")
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        path, query = split_target(request.raw_path, headers)
        route = self._gate.route(path, query)
        owner = self._owner(route, request.method, query, headers)
        way = way_of(route, request.method) if owner is None else None
        if way is not None and (not request.body_exists or await self._emptied(request)):
            taken = self._take_over(request, route, way, query, headers)
            if taken is not None:
                return taken
        cors: Cors = ()
        try:
            cors = self._gate.admit(route, headers, request.transport)
            if owner is None:
                response = await self._answer(request, route, query, headers, cors)
            else:
                response = await self._pass_on(request, owner, path, query, headers)
        except BatchFailed as error:
            response = _response(answers.refusal(error, status=error.status, extra=error.extra))
        except AckFailed as error:
            response = _response(answers.refusal(error.error, extra=error.extra))
        except QueuecastError as error:
            response = _refusal(error)
        except ConnectionError:
            raise  # the client went; nobody is left to answer
        except Exception:
            logger.exception("%s %s failed", request.method, path)
            response = _response(answers.internal())
        if not response.prepared:
            for name, value in (answers.SERVER, *cors):
                response.headers[name] = value
        return response

    # -- routes ---------------------------------------------------------------------------

    async def _answer(
        self,
        request: web.BaseRequest,
        route: Route,
        query: str,
        headers: Mapping[str, str],
        cors: Cors,
    ) -> web.StreamResponse:
        if route.verb == "sockjs":
            return await self._sockjs.answer(request, route, query, headers, cors)
        if route.verb == "stomp" and self._gate.greets and "upgrade" not in headers:
            return greeting()
        allowed = _METHODS[route.verb]
        if request.method == "OPTIONS" and route.verb in GUARDED:
            return web.Response(
                status=204, headers=self._gate.preflight(headers, allowed, request.transport)
            )
        if request.method not in allowed.split(", "):
            if not route.verb and route.rest != "/" and self._found(route.rest) is None:
                # Else a misspelt /publish would read as if nothing could be posted at all.
                return _nothing_here()
            return _problem(
                405,
                "method_not_allowed",
                f"{request.method} is not possible here",
                f"allowed is {allowed}",
                ("Allow", allowed),
            )
        match route.verb:
            case "publish":
                if route.rest in ("", "/"):
                    return _json(await self._publisher.batch(request, ANONYMOUS))
                return _json(await self._publisher.single(request, ANONYMOUS, route.rest, query))
            case "ack":
                return _json(await self._acker.answer(request, ANONYMOUS, headers))
            case "poll":
                return await self._poll(request, route, query, headers, cors)
            case "healthz" | "readyz":
                return _response(await self._health.answer(route.verb))
            case "":
                return self._show(route.rest)
            case _:
                return _not_push(request, route, headers)

    async def _poll(
        self,
        request: web.BaseRequest,
        route: Route,
        query: str,
        headers: Mapping[str, str],
        cors: Cors,
    ) -> web.StreamResponse:
        wanted = self._gate.subscription(route, query, headers, cors)
        handler = cast(Handler, request.protocol)
        answer = poll_with_acks if wanted.ack or wanted.session else poll
        polling = asyncio.create_task(answer(self._services, wanted))
        handler.watch(polling)
        self._polls.add(polling)
        try:
            return _response(answers.raw(await polling))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not we were cancelled but the poll: by a shutdown, or because the client went.
            if self._push.draining:
                raise Unavailable(RESTARTING) from None
            raise ConnectionResetError("the client went") from None
        finally:
            self._polls.discard(polling)
            handler.watch(None)

    # -- other workers' -------------------------------------------------------------------

    def _owner(
        self, route: Route, method: str, query: str, headers: Mapping[str, str]
    ) -> int | None:
        if self._handover is None:
            return None
        return self._handover.place.owner(route, method, query, headers)

    async def _pass_on(
        self,
        request: web.BaseRequest,
        owner: int,
        path: str,
        query: str,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Let the worker answer that a request belongs to."""
        assert self._handover is not None
        body = None
        if request.body_exists:
            most = max(self._services.limits.frame, self._limits.batch)
            body = await self._uploads.read(request, most, "limits.frame")
        handler = cast(Handler, request.protocol)
        target = f"{path}?{query}" if query else path
        passing = asyncio.create_task(self._handover.forward(request, owner, target, headers, body))
        handler.watch(passing)
        try:
            return await passing
        except asyncio.CancelledError:
            passing.cancel()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ConnectionResetError("the client went") from None
        finally:
            handler.watch(None)

    @property
    def polls(self) -> int:
        """Long polls that wait."""
        return len(self._polls)

    def _found(self, path: str) -> tuple[str, bytes] | None:
        found = browser.module(path)
        if found is None and self._page is not None:
            found = self._page(path)
        return found

    def _show(self, path: str) -> web.Response:
        found = self._found(path)
        if found is not None:
            kind, body = found
            return web.Response(
                body=body, headers={"Content-Type": kind, "Cache-Control": "no-cache"}
            )
        if path == "/":
            return web.Response(text="Queuecast is running.\n")
        return _nothing_here()

    async def _emptied(self, request: web.BaseRequest) -> bool:
        """Read the body of a POST that begins a stream: some clients announce an empty one."""
        if request.method != "POST":
            return False
        try:
            await self._uploads.read(request, _NOTHING, "nothing")
        except QueuecastError:
            return False  # _answer says why
        return True

    def _take_over(
        self,
        request: web.BaseRequest,
        route: Route,
        way: Way,
        query: str,
        headers: Mapping[str, str],
    ) -> Taken | None:
        key = None
        if way is Way.WEBSOCKET:
            version = f"{request.version.major}.{request.version.minor}"
            try:
                key = check_upgrade(request.method, version, headers)
            except HandshakeError:
                return None  # _answer says why
        handler = cast(Handler, request.protocol)
        if handler.transport is None or handler.transport.is_closing():
            raise ConnectionResetError("the client went")
        session = self._push.session(handler.transport, route, query, headers, key)
        detached = handler.detach()
        self._connections.adopt(
            detached.transport,
            session,
            detached.rest,
            paused=detached.paused,
            release=detached.release,
        )
        return Taken()


def _nothing_here() -> web.Response:
    return _problem(
        404,
        "not_found",
        "there is nothing at this address",
        "known are /sse/…, /ws/…, /stomp/…, /poll/…, /publish/…, /ack, /healthz and /readyz",
    )


def _not_push(request: web.BaseRequest, route: Route, headers: Mapping[str, str]) -> web.Response:
    """Answer a push route's GET that cannot become a push connection."""
    if route.verb == "sse":
        return _problem(400, "bad_request", "a GET for events has no body")
    version = f"{request.version.major}.{request.version.minor}"
    try:
        check_upgrade(request.method, version, headers)
    except HandshakeError as error:
        code = "upgrade_required" if error.status == 426 else "bad_request"
        return _problem(error.status, code, error.text, "", *error.headers)
    return _problem(400, "bad_request", "a WebSocket's opening handshake has no body")


def _refusal(error: QueuecastError) -> web.Response:
    return _response(answers.refusal(error))


def _problem(
    status: int, code: str, text: str, hint: str = "", *headers: tuple[str, str]
) -> web.Response:
    return _response(answers.problem(status, code, text, hint, *headers))


def _json(value: object, status: int = 200) -> web.Response:
    return _response(answers.value(value, status))


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=CIMultiDict(answer.headers))
