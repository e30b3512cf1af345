"""A bare aiohttp: what a handler costs that does nothing, for WebSockets and for POST."""

from __future__ import annotations

import uvloop
from aiohttp import web

from queuecast.server.listener import BACKLOG, raise_open_files

from . import child


class AiohttpServer:
    """Accepts WebSockets and says nothing; answers what is posted."""

    def __init__(self) -> None:
        self._open = 0

    async def start(self) -> int:
        """Listen on a free loopback port and return it."""
        raise_open_files()
        application = web.Application()
        application.router.add_get("/ws/{rest:.*}", self._websocket)
        application.router.add_post("/publish/{rest:.*}", self._publish)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG)
        await site.start()
        return int(runner.addresses[0][1])

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._open += 1
        try:
            async for _ in socket:
                pass
        finally:
            self._open -= 1
        return socket

    async def _publish(self, request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"published": request.match_info["rest"]})

    async def connections(self) -> child.Answer:
        """Return how many WebSockets are open."""
        return {"connections": self._open}


async def main() -> None:
    """Serve until the standard input ends."""
    server = AiohttpServer()
    child.tell({"port": await server.start()})
    await child.serve({"connections": server.connections})


if __name__ == "__main__":
    uvloop.run(main())
