"""Stand-ins for Centrifugo and Mercure: their documented protocol, as far as a benchmark uses it.

    python -m tests.support.peer_stand_in centrifugo --config FILE
    python -m tests.support.peer_stand_in mercure run --adapter caddyfile --config FILE

They are not the programs. They follow what the programs' documentation says of the configuration
file, the server API, the JSON client protocol (several replies of a frame are lines) and the
streams of events, whose chunks end anywhere, as Go's net/http cuts them.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

# Where a chunk of a stream is cut, so that a message spans several.
_CUT = 53
_CENTRIFUGO_KEYS = {"http_server", "http_api", "client", "channel", "uni_sse", "usage_stats"}


class Subscribers:
    """Those of each channel; what is published within a turn of the loop comes in one piece."""

    def __init__(self) -> None:
        self._queues: dict[str, list[asyncio.Queue[bytes]]] = {}

    def add(self, channel: str) -> asyncio.Queue[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.setdefault(channel, []).append(queue)
        return queue

    def publish(self, channel: str, data: bytes) -> None:
        for queue in self._queues.get(channel, ()):
            queue.put_nowait(data)


async def _gathered(queue: asyncio.Queue[bytes]) -> list[bytes]:
    found = [await queue.get()]
    while not queue.empty():
        found.append(queue.get_nowait())
    return found


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


def centrifugo(config: dict[str, Any]) -> tuple[web.Application, int]:
    """Return the server of a configuration file; SystemExit for what it does not know."""
    if unknown := set(config) - _CENTRIFUGO_KEYS:
        raise SystemExit(f"unknown keys found in the configuration: {sorted(unknown)}")
    key = config["http_api"]["key"]
    options = config["channel"]["without_namespace"]
    may = (
        options.get("allow_subscribe_for_client", False)
        and options.get("allow_subscribe_for_anonymous", False)
        and config["client"].get("allow_anonymous_connect_without_token", False)
    )
    subscribers = Subscribers()

    async def publish(request: web.Request) -> web.Response:
        if request.headers.get("X-API-Key") != key:
            return web.Response(status=401, text="Unauthorized\n")
        asked = json.loads(await request.text())
        if not asked.get("channel") or "data" not in asked:
            return web.json_response({"error": {"code": 107, "message": "bad request"}})
        push = {"channel": asked["channel"], "pub": {"data": asked["data"]}}
        subscribers.publish(asked["channel"], json.dumps(push, separators=(",", ":")).encode())
        return web.json_response({"result": {}})

    async def websocket(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        queue: asyncio.Queue[bytes] | None = None
        connected = False
        while queue is None:
            replies: list[dict[str, Any]] = []
            for line in (await socket.receive_str()).split("\n"):
                command = json.loads(line)
                reply: dict[str, Any] = {"id": command["id"]}
                if "connect" in command:
                    connected = True
                    reply["connect"] = {"client": str(uuid.uuid4()), "version": "0", "ping": 25}
                elif not connected or not may:
                    reply["error"] = {"code": 103, "message": "permission denied"}
                else:
                    queue = subscribers.add(command["subscribe"]["channel"])
                    reply["subscribe"] = {}
                replies.append(reply)
            lines = [json.dumps(reply, separators=(",", ":")) for reply in replies]
            await socket.send_str("\n".join(lines))
        lines = ["{}"]  # a ping
        while True:
            lines += [f'{{"push":{push.decode()}}}' for push in await _gathered(queue)]
            await socket.send_str("\n".join(lines))
            lines = []

    async def uni_sse(request: web.Request) -> web.StreamResponse:
        if not config["uni_sse"]["enabled"]:
            return web.Response(status=404)
        channels = json.loads(request.query["cf_connect"])["subs"] if may else {}
        queues = [subscribers.add(channel) for channel in channels]
        response = await _stream(request)
        await response.write(b"\r\n")
        connect = {"client": str(uuid.uuid4()), "version": "0", "subs": channels, "ping": 25}
        line = json.dumps({"connect": connect}, separators=(",", ":"))
        await response.write(f"data: {line}\n\n".encode())
        while True:
            events = b"".join(b"data: %s\n\n" % push for push in await _gathered(queues[0]))
            for place in range(0, len(events), _CUT):
                await response.write(events[place : place + _CUT])

    application = web.Application()
    application.router.add_post("/api/publish", publish)
    application.router.add_get("/connection/websocket", websocket)
    application.router.add_get("/connection/uni_sse", uni_sse)
    return application, config["http_server"]["port"]


def mercure(caddyfile: str) -> tuple[web.Application, int]:
    """Return the hub of a Caddyfile; SystemExit without a site or a publisher's key."""
    site = re.search(r"^http://:(\d+) \{$", caddyfile, re.M)
    key = re.search(r"^\s+publisher_jwt (\S+)$", caddyfile, re.M)
    if site is None or key is None:
        raise SystemExit("a site and a publisher_jwt are wanted")
    anonymous = re.search(r"^\s+anonymous$", caddyfile, re.M) is not None
    subscribers = Subscribers()

    def may_publish(request: web.Request) -> bool:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        signed, _, mac = token.rpartition(".")
        wanted = hmac.digest(key[1].encode(), signed.encode(), hashlib.sha256)
        if kind != "Bearer" or _decoded(mac) != wanted:
            return False
        return "*" in json.loads(_decoded(signed.partition(".")[2]))["mercure"]["publish"]

    async def publish(request: web.Request) -> web.Response:
        if not may_publish(request):
            return web.Response(status=401, text="Unauthorized\n")
        form = await request.post()
        if "topic" not in form:
            return web.Response(status=400, text='Missing "topic" parameter\n')
        name = f"urn:uuid:{uuid.uuid4()}"
        event = f"id: {name}\ndata: {form['data']!s}\n\n"
        subscribers.publish(str(form["topic"]), event.encode())
        return web.Response(text=name)

    async def subscribe(request: web.Request) -> web.StreamResponse:
        if not anonymous:
            return web.Response(status=401, text="Unauthorized\n")
        if "topic" not in request.query:
            return web.Response(status=400, text='Missing "topic" parameter.\n')
        queue = subscribers.add(request.query["topic"])
        response = await _stream(request)
        await response.write(b":\n")
        while True:
            await response.write(await queue.get())

    application = web.Application()
    application.router.add_post("/.well-known/mercure", publish)
    application.router.add_get("/.well-known/mercure", subscribe)
    return application, int(site[1])


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def main() -> None:
    """Serve as the one that is named, with the program's own arguments."""
    match sys.argv[1:]:
        case ["centrifugo", "--config", file]:
            application, port = centrifugo(json.loads(Path(file).read_text()))
        case ["mercure", "run", "--adapter", "caddyfile", "--config", file]:
            application, port = mercure(Path(file).read_text())
        case arguments:
            raise SystemExit(f"unknown arguments {arguments}")
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
