"""Clients that come while the gateway starts: they wait, and probes are answered."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from queuecast.config import from_tables
from queuecast.errors import Unavailable
from queuecast.gateway import Gateway
from tests.server.house import Client, House, request, upgrade

CONNECT = b"CONNECT\naccept-version:1.2\nhost:localhost\n\n\0"
SUBSCRIBE = b"SUBSCRIBE\nid:1\ndestination:/topic/a\nreceipt:r\n\n\0"


class Opening:
    """A broker's start that goes on when the test says so."""

    def __init__(self, gateway: Gateway, errors: Sequence[Exception]) -> None:
        """errors: what the first attempts raise."""
        self.go = asyncio.Event()
        self.errors = list(errors)
        self._start = gateway.broker.start
        gateway.broker.start = self.start  # type: ignore[method-assign]

    async def start(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await self.go.wait()
        await self._start()


@asynccontextmanager
async def starting(*errors: Exception, **tables: Any) -> AsyncIterator[tuple[House, Opening]]:
    """Run a gateway whose broker is not started yet."""
    server = {"port": 0, "stomp_tcp": "0", **tables.pop("server", {})}
    gateway = Gateway(from_tables({"server": server, **tables}))
    opening = Opening(gateway, errors)
    task = asyncio.create_task(gateway.start())
    async with asyncio.timeout(10):
        while not gateway._started:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    house = House(gateway)
    try:
        yield house, opening
    finally:
        opening.go.set()
        await task
        await house.close()


def frame(text: bytes) -> bytes:
    """Return a masked text frame; the mask is zero."""
    assert len(text) < 126
    return b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text


async def stomp_socket(house: House) -> Client:
    host, _, port = house.gateway.stomp_url.removeprefix("tcp://").rpartition(":")
    client = Client(*await asyncio.open_connection(host, int(port)))
    house._clients.append(client)
    return client


async def health(house: House, path: str) -> tuple[int, dict[str, Any]]:
    client = await house.connect(request("GET", path))
    status, _, body = await client.response()
    client.writer.close()
    return status, json.loads(body)


async def test_every_transport_waits_for_the_start() -> None:
    async with starting(exchange=[{"name": "late"}]) as (house, opening):
        sse = await house.connect(request("GET", "/sse/topic/a"))
        # Its exchange is declared only after the broker was reached.
        declared = await house.connect(request("GET", "/sse/exchange/late/a"))
        bare = await house.connect(upgrade("/ws/topic/a"))
        enveloped = await house.connect(upgrade("/ws/topic/a?envelope=json"))
        work = await house.connect(upgrade("/ws/queue/q"))
        stomp = await house.connect(upgrade("/ws"))
        await stomp.send(frame(CONNECT))
        await stomp.send(frame(SUBSCRIBE))
        raw = await stomp_socket(house)
        await raw.send(CONNECT + SUBSCRIBE)
        sockjs = await house.connect(request("POST", "/stomp/000/abcdefgh/xhr_streaming"))
        poll = await house.connect(request("GET", "/poll/topic/a?wait=0"))
        verdict = await house.connect(request("GET", "/sse/topic/a", "Accept: application/json"))
        published = await house.connect(request("POST", "/publish/queue/q", body=b"first"))
        batch = await house.connect(
            request(
                "POST",
                "/publish",
                "Content-Type: application/json",
                body=b'{"messages":[{"destination":"/queue/q","body":"second"}]}',
            )
        )

        assert await health(house, "/healthz") == (200, {"status": "ok"})
        assert await health(house, "/readyz") == (
            503,
            {"ready": False, "status": "starting: not started"},
        )
        await raw.until(b"CONNECTED\n")
        opening.go.set()

        await sse.opened()
        await declared.opened()
        for socket in (bare, enveloped, work, stomp):
            assert (await socket.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await enveloped.until(b'"heartbeat"')
        await work.until(b"first")
        await work.until(b"second")
        await stomp.until(b"RECEIPT\nreceipt-id:r\n")
        await raw.until(b"RECEIPT\nreceipt-id:r\n")
        assert (await sockjs.until(b"o\n")).startswith(b"HTTP/1.1 200 ")
        assert (await poll.response())[0] == 200
        assert (await verdict.response())[0] == 200
        assert (await published.response())[0] == 200
        assert (await batch.response())[0] == 200
        await house.eventually(lambda: house.server.readiness()[0])
        assert (await health(house, "/readyz"))[0] == 200

        # And the first message reaches all of them.
        await house.publish("/topic/a", b"hello")
        for client in (sse, bare, enveloped, stomp, raw):
            await client.until(b"hello")


async def test_publishes_that_waited_keep_their_order() -> None:
    async with starting() as (house, opening):
        writer = await stomp_socket(house)
        await writer.send(CONNECT)
        for number in range(50):
            await writer.send(b"SEND\ndestination:/queue/w\n\n<%d>\0" % number)
        await writer.until(b"CONNECTED\n")
        opening.go.set()
        await writer.send(b"SEND\ndestination:/queue/w\nreceipt:r\n\n<50>\0")
        await writer.until(b"receipt-id:r\n")
        reader = await stomp_socket(house)
        await reader.send(CONNECT + b"SUBSCRIBE\nid:1\ndestination:/queue/w\n\n\0")
        found = []
        for _ in range(51):
            await reader.until(b"<")
            found.append(int((await reader.until(b">"))[:-1]))
        assert found == list(range(51))


async def test_a_client_waits_no_longer_than_for_its_head() -> None:
    async with starting(limits={"head_timeout": 0.3}) as (house, _):
        poll = await house.connect(request("GET", "/poll/topic/a"))
        socket = await house.connect(upgrade("/ws/topic/a"))
        sse = await house.connect(request("GET", "/sse/topic/a"))
        publish = await house.connect(request("POST", "/publish/topic/a", body=b"x"))
        for client in (poll, publish):
            status, problem = await client.problem()
            assert (status, problem["code"], problem["retry"]) == (503, "unavailable", True)
        await socket.until(b"\r\n\r\n")
        (code,) = struct.unpack("!H", (await socket.reader.readexactly(4))[2:])
        assert code == 4453
        answer = await sse.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"event: disconnect" in answer


async def test_a_broker_that_is_away_at_first_is_waited_for() -> None:
    async with starting(Unavailable("connection refused")) as (house, opening):
        assert not opening.errors
        client = await house.connect(request("GET", "/sse/topic/a"))
        opening.go.set()
        await client.opened()
