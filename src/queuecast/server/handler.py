"""aiohttp's side of a connection: counted, readable in its errors, and willing to let go.

A browser may send a push request on a keep-alive connection that aiohttp serves already. Then
the session takes the socket over and aiohttp's handler is made to believe that it was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

from ..codecs.http1 import error_body
from .sockets import Sockets

logger = logging.getLogger(__name__)


class Detached(NamedTuple):
    """A socket without a protocol.

    rest: bytes that came after the request's head. paused: its write buffer is full. release:
    to be called once the transport has its new protocol.
    """

    transport: asyncio.Transport
    rest: bytes
    paused: bool
    release: Callable[[], None]


class Handler(web.RequestHandler):
    """One connection that aiohttp serves."""

    __slots__ = ("_counted", "_sockets", "_watched")

    def __init__(
        self,
        server: web.Server,
        sockets: Sockets,
        *,
        loop: asyncio.AbstractEventLoop,
        **kwargs: Any,
    ) -> None:
        super().__init__(server, loop=loop, **kwargs)
        self._sockets = sockets
        self._counted = True
        self._watched: asyncio.Future[Any] | None = None

    def watch(self, future: asyncio.Future[Any] | None) -> None:
        """Cancel this future or task when the client goes: a poll has nobody to answer then."""
        self._watched = future

    def begin_within(self, seconds: float) -> None:
        """Close the connection unless a request is whole within so many seconds.

        Until the first one aiohttp waits for ever, and a head that never ends would keep it.
        """
        self._loop.call_later(seconds, self._check_begun)

    def _check_begun(self) -> None:
        if self.transport is not None and not self._request_count:
            self.transport.close()

    async def start(self) -> None:
        """Serve, unless the client is gone before this task has its turn.

        aiohttp then finds nothing left of what it made for it, and says so in everybody's log.
        """
        if self._manager is None:
            return
        try:
            await super().start()
        except TypeError:
            if self._manager is not None:
                raise
            logger.debug("a client went when its request came", exc_info=True)

    def detach(self) -> Detached:
        """Give the socket away."""
        transport = self.transport
        assert transport is not None
        # aiohttp reads no further than the head of an upgrade; what it kept is the client's first
        # frames. After a GET without upgrade it parses on: pipelined requests, which an endless
        # answer precedes for ever.
        rest = bytes(self._message_tail)
        self._message_tail = b""
        return Detached(transport, rest, self.writing_paused, self._let_go)

    def _let_go(self) -> None:
        # In this order: with a transport, connection_lost would close it.
        transport, self.transport = self.transport, None
        self._counted = False
        self.connection_lost(None)
        # It may have stopped reading while it had requests enough.
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._counted:
            self._counted = False
            self._sockets.leave()
        if self._watched is not None:
            self._watched.cancel()
            self._watched = None
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp itself could not parse; the client's fault is not our log's."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client went; nobody is left to answer
        if status >= 500:
            logger.error("serving %s failed", request.remote, exc_info=exc)
            message = "internal error, see the gateway's log"
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        code = "bad_request" if status < 500 else "internal"
        text = (message or "not a request").strip().splitlines()[0][:200]
        response = web.Response(
            status=status, body=error_body(code, text, ""), content_type="application/json"
        )
        response.force_close()
        return response


class Server(web.Server):
    """Makes the handlers."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        sockets: Sockets,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, **kwargs)
        self._sockets = sockets

    def __call__(self) -> Handler:
        return Handler(self, self._sockets, loop=self._loop, **self._kwargs)


class Taken(web.StreamResponse):
    """The answer of a request whose socket was taken over: aiohttp writes nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing."""

    async def write_eof(self, data: Any = b"") -> None:
        """Write nothing."""
