"""The transports, each one conversation written from its standard: SSE, WebSocket, long poll,
STOMP over WebSocket, and STOMP over SockJS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

from tests.chaos.clients import Again, Client, Refused, Visitor, Worker, refused

# Seconds without a byte after which a connection counts as lost; heartbeats come every 2.
SILENCE = 10.0
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)


def _path(verb: str, client: Client) -> tuple[str, list[tuple[str, str]]]:
    if len(client.destinations) == 1:
        return f"{client.url}/{verb}{quote(client.destinations[0])}", []
    return f"{client.url}/{verb}", [("destination", each) for each in client.destinations]


async def _check(response: aiohttp.ClientResponse, what: str) -> None:
    if response.status == 200:
        return
    text = await response.text()
    try:
        said = json.loads(text)
    except ValueError:
        raise Refused(f"{what}: {response.status} {text}") from None
    raise refused(said, what)


class _Connector(aiohttp.TCPConnector):
    """Knows the local port of its last connection, also when the answer was read whole."""

    port = 0

    async def connect(self, *arguments: Any, **named: Any) -> Any:
        connection = await super().connect(*arguments, **named)
        if connection.transport is not None:
            self.port = connection.transport.get_extra_info("sockname")[1]
        return connection


async def sse(client: Client) -> None:
    """EventSource as the HTML standard has it: an id counts when its event is dispatched."""
    url, query = _path("sse", client)
    if client.kind == "kept":
        query.append(("since", "first"))  # As a page's URL stays; Last-Event-ID wins over it.
    headers = {"Last-Event-ID": client.place} if client.place else {}
    address = f"{url}?{urlencode(query)}"
    connector = _Connector()
    async with (
        aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
        session.get(address, headers=headers) as response,
    ):
        await _check(response, "SSE")
        client.granted(connector.port)
        rest = b""
        while True:
            await client.reads()
            chunk = await response.content.readany()
            if not chunk:
                raise EOFError
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                _dispatch(client, event.decode())


def _dispatch(client: Client, event: str) -> None:
    kind, data, id = "message", None, ""
    for line in event.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                data = value if data is None else f"{data}\n{value}"
            case "event":
                kind = value
            case "id":
                id = value
    if data is None:
        return
    match kind:
        case "message":
            client.message(data, id)
        case "gap":
            client.gap(json.loads(data)["reason"], id)
        case "position":
            client.at(id)
        case "disconnect":
            raise refused(json.loads(data), "SSE")
        case _:
            raise Refused(f"SSE: an event {kind}: {data}")


async def poll(client: Client) -> None:
    """Long poll: `next` of an answer is `since` of the next request."""
    url, query = _path("poll", client)
    connector = _Connector()
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
        while True:
            await client.reads()
            since = [("since", client.since)] if client.since else []
            address = f"{url}?{urlencode([*query, *since, ('wait', '4')])}"
            async with session.get(address) as response:
                await _check(response, "poll")
                client.granted(connector.port)
                said = json.loads(await response.text())
            for each in said["messages"]:
                if "gap" in each:
                    client.gap(each["gap"]["reason"], each["position"])
                else:
                    client.message(each["body"], each["position"])
            client.at(said["next"])


@asynccontextmanager
async def _websocket(visitor: Visitor, path: str) -> AsyncIterator[ClientConnection]:
    url = visitor.url.replace("http:", "ws:") + path
    async with connect(
        url,
        open_timeout=SILENCE,
        close_timeout=0.1,
        ping_interval=None,
        compression=None,
        proxy=None,
    ) as ws:
        yield ws


async def _next(visitor: Visitor, ws: ClientConnection) -> str:
    await visitor.reads()
    async with asyncio.timeout(SILENCE):
        said = await ws.recv()
    return said if isinstance(said, str) else said.decode()


async def websocket(client: Client) -> None:
    """WebSocket with the envelope and `since`."""
    (destination,) = client.destinations
    query = {"envelope": "json", **({"since": client.since} if client.since else {})}
    async with _websocket(client, f"/ws{quote(destination)}?{urlencode(query)}") as ws:
        client.granted(ws.local_address[1])
        while True:
            said = json.loads(await _next(client, ws))
            if "error" in said:
                raise refused(said["error"], "WebSocket")
            if "gap" in said:
                client.gap(said["gap"]["reason"], said["position"])
            elif "body" in said:
                client.message(said["body"], said["position"])
            elif "position" in said:
                client.at(said["position"])


class _Stomp:
    """STOMP 1.2 frames over a WebSocket; `sockjs` wraps them as SockJS's protocol 0.3.3 says."""

    def __init__(self, visitor: Visitor, ws: ClientConnection, sockjs: bool) -> None:
        self._visitor = visitor
        self._ws = ws
        self._sockjs = sockjs
        self._frames: list[str] = []

    async def send(self, command: str, headers: dict[str, str], body: str = "") -> None:
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        frame = f"{command}\n{lines}\n{body}\0"
        await self._ws.send(json.dumps([frame]) if self._sockjs else frame)

    async def next(self) -> tuple[str, dict[str, str], str]:
        """Return the next frame's command, headers and body."""
        while not self._frames:
            text = await _next(self._visitor, self._ws)
            if self._sockjs:
                match text[0]:
                    case "a":
                        text = "".join(json.loads(text[1:]))
                    case "c":
                        raise Again(text)
                    case _:
                        text = ""
            self._frames = [each.lstrip("\n") for each in text.split("\0") if each.strip("\n")]
        head, _, body = self._frames.pop(0).partition("\n\n")
        command, *lines = head.split("\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name, _unescaped(value))
        if command == "ERROR":
            raise Again(f"{headers} {body}")
        return command, headers, body


def _unescaped(value: str) -> str:
    for escaped, plain in (("\\c", ":"), ("\\n", "\n"), ("\\r", "\r"), ("\\\\", "\\")):
        value = value.replace(escaped, plain)
    return value


@asynccontextmanager
async def _stomp(visitor: Visitor, sockjs: bool) -> AsyncIterator[_Stomp]:
    session = f"{visitor.chance.randrange(1 << 40):010x}"
    async with _websocket(visitor, f"/stomp/000/{session}/websocket" if sockjs else "/ws") as ws:
        stomp = _Stomp(visitor, ws, sockjs)
        login = {"accept-version": "1.2", "host": "/", "heart-beat": "0,2000"}
        if visitor.chance.random() < 0.5:
            login |= {"login": "guest", "passcode": "guest"}
        await stomp.send("CONNECT", login)
        command, _, _ = await stomp.next()
        assert command == "CONNECTED", command
        visitor.granted(ws.local_address[1])
        yield stomp


async def _read_stomp(client: Client, sockjs: bool) -> None:
    (destination,) = client.destinations
    async with _stomp(client, sockjs) as stomp:
        since = {"since": client.since} if client.since else {}
        subscribe = {"id": "0", "destination": destination, "receipt": "r", **since}
        await stomp.send("SUBSCRIBE", subscribe)
        while True:
            command, headers, body = await stomp.next()
            if command == "RECEIPT":
                client.at(headers.get("position", ""))
            elif "gap" in headers:
                client.gap(headers["gap"], headers["message-id"])
            else:
                client.message(body, headers["message-id"])


async def stomp(client: Client) -> None:
    """STOMP 1.2 over WebSocket with the header `since`."""
    await _read_stomp(client, sockjs=False)


async def sockjs(client: Client) -> None:
    """The same over SockJS's WebSocket transport."""
    await _read_stomp(client, sockjs=True)


async def websocket_work(worker: Worker) -> None:
    """A work queue over WebSocket with `ack=client`."""
    query = "envelope=json&ack=client&prefetch=5"
    async with _websocket(worker, f"/ws/queue/{worker.queue}?{query}") as ws:
        worker.granted(ws.local_address[1])
        while True:
            said = json.loads(await _next(worker, ws))
            if "error" in said and said["error"]["code"] == "returned":
                worker.returned += 1  # Its ack came after the broker had taken the message back.
                continue
            if "error" in said:
                raise refused(said["error"], "WebSocket")
            if "body" not in said:
                continue
            done = await worker.got(said["body"], bool(said.get("redelivered")))
            await ws.send(json.dumps({"ack": said["ack"]}))
            worker.acked[done] += 1


async def stomp_work(worker: Worker) -> None:
    """A work queue over STOMP with ack:client-individual."""
    async with _stomp(worker, sockjs=worker.chance.random() < 0.3) as stomp:
        subscribe = {"id": "0", "destination": f"/queue/{worker.queue}", "receipt": "r"}
        subscribe |= {"ack": "client-individual", "prefetch-count": "5"}
        await stomp.send("SUBSCRIBE", subscribe)
        while True:
            command, headers, body = await stomp.next()
            if command != "MESSAGE" or "gap" in headers:
                continue
            done = await worker.got(body, headers.get("redelivered") == "true")
            await stomp.send("ACK", {"id": headers["ack"]})
            worker.acked[done] += 1
