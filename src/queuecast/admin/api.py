"""The admin listener: metrics, health and who is slow, apart from what clients reach.

    GET /metrics                      for Prometheus
    GET /admin                        a page for people
    GET /admin/connections?limit=20   the connections that are furthest behind, as JSON
    GET /healthz, /readyz             as on the clients' port

Destinations and clients' addresses stand there, so it is never public: on loopback only pages of
this machine may ask, elsewhere, and wherever a token is set, who shows the token.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from aiohttp import web

from ..auth.origins import OriginCheck
from ..codecs.http1 import error_body
from ..errors import BadRequest, ConfigError, QueuecastError, Refused
from ..hostport import host_port
from ..metrics import CONTENT_TYPE, render
from .listing import MOST_ROWS
from .page import page
from .view import View

logger = logging.getLogger(__name__)

# Connections at a time, and the seconds that one has for its first request: who floods the port
# must not use up the file descriptors that clients need.
MOST = 64
_FIRST = 10.0
# Lines of the list of connections, where the request does not say.
ROWS = 20
# How much a stranger may make us read before anything is checked.
_HEAD = 8192
_PATHS = "/metrics, /admin, /admin/connections, /healthz and /readyz"


class Unauthorized(Refused):
    """The token is missing or wrong."""


class Admin:
    """Serves a view. token: what requests must show, "" for nothing. host: where it listens."""

    def __init__(self, view: View, *, host: str = "127.0.0.1", token: str = "") -> None:
        self._view = view
        self._token = token.encode()
        self._origins: OriginCheck | None = OriginCheck((), host)
        self._servers: list[asyncio.Server] = []
        self._http: web.Server | None = None
        # Connections without a request, with what ends them; at most MOST.
        self._silent: dict[asyncio.Protocol, asyncio.TimerHandle] = {}

    async def listen(self, host: str, port: int) -> str:
        """Listen on TCP; returns the URL. Raises ConfigError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._make(), host, port)
        except OSError as error:
            # Not its own text, in which asyncio repeats the address.
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise ConfigError(
                f"admin.listen: cannot listen on {host} port {port}: {why}",
                "choose another port, or 0 for a free one",
            ) from None
        self._servers.append(server)
        return f"http://{host_port(host, server.sockets[0].getsockname()[1])}"

    async def listen_unix(self, path: Path) -> None:
        """Listen on a socket in a directory that only our own processes reach; raises OSError.

        Whoever opens it is trusted.
        """
        self._origins = None
        _remove(path)
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(self._make(), str(path)))

    async def close(self) -> None:
        """Stop, cutting off what is under way."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for timer in self._silent.values():
            timer.cancel()
        if self._http is not None:
            await self._http.shutdown(0.1)

    def _make(self) -> Callable[[], asyncio.Protocol]:
        self._http = http = web.Server(
            self._handle,
            access_log=None,
            keepalive_timeout=75.0,
            max_line_size=_HEAD,
            max_field_size=_HEAD,
        )
        loop = asyncio.get_running_loop()

        def make() -> asyncio.Protocol:
            if max(len(http.connections), len(self._silent)) >= MOST:
                return _Full()
            made = http()
            self._silent[made] = loop.call_later(_FIRST, self._end, made)
            return made

        return make

    def _end(self, silent: web.RequestHandler) -> None:
        """Cut off who has asked for nothing."""
        self._silent.pop(silent, None)
        if silent.transport is not None:
            silent.transport.abort()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        timer = self._silent.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        headers: dict[str, str] = {}
        try:
            self._admit(request)
            response = await self._answer(request)
        except Unauthorized as error:
            headers["WWW-Authenticate"] = "Bearer"
            response = _problem(401, error)
        except BadRequest as error:
            response = _problem(400, error)
        except Refused as error:
            response = _problem(403, error)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            response = _problem(500, QueuecastError("internal error, see the gateway's log"))
        response.headers.update(headers)
        response.headers["Server"] = "queuecast"
        response.headers["Cache-Control"] = "no-store"
        return response

    def _admit(self, request: web.BaseRequest) -> None:
        """Raise Refused for a request that may not come in."""
        if self._origins is None:
            return
        self._origins.check({name.lower(): value for name, value in request.headers.items()})
        if not self._token:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        shown = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown, self._token):
            raise Unauthorized("the token is missing or wrong", "send Authorization: Bearer TOKEN")

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            response = _problem(405, BadRequest(f"{request.method} is not possible here"))
            response.headers["Allow"] = "GET, HEAD"
            return response
        view = self._view
        match request.path:
            case "/metrics":
                body = render(await view.metrics())
                return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
            case "/metrics.json" if self._origins is None:  # for the parent of workers
                return _json(await view.metrics())
            case "/admin" | "/admin/":
                shown = page(await view.readiness(), await view.connections(ROWS))
                return web.Response(body=shown, content_type="text/html", charset="utf-8")
            case "/admin/connections":
                rows = await view.connections(_limit(request.query.getall("limit", [])))
                return _json({"connections": rows})
            case "/healthz":
                alive = await view.alive()
                return _json({"status": "ok" if alive else "nobody serves"}, 200 if alive else 503)
            case "/readyz":
                readiness = await view.readiness()
                return _json(readiness._asdict(), 200 if readiness.ready else 503)
            case _:
                text = "there is nothing at this address"
                return _problem(404, BadRequest(text, f"known are {_PATHS}"), "not_found")


class _Full(asyncio.Protocol):
    """Turns a connection away: there are enough."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _remove(path: Path) -> None:
    """Remove the socket that a worker left behind when it was killed."""
    path.unlink(missing_ok=True)


def _limit(values: list[str]) -> int:
    if not values:
        return ROWS
    text = values[0]
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if len(values) > 1 or not is_number or not 1 <= int(text) <= MOST_ROWS:
        raise BadRequest(f"limit={text[:32]!r} is not a count", f"give 1 to {MOST_ROWS}")
    return int(text)


def _json(value: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value) + b"\n"
    return web.Response(status=status, body=body, content_type="application/json")


def _problem(status: int, error: QueuecastError, code: str = "") -> web.Response:
    body = error_body(code or error.code, error.text, error.hint, error.retry)
    return web.Response(status=status, body=body, content_type="application/json")
