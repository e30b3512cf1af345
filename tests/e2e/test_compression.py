"""permessage-deflate from outside: who gets it, what it carries, and what it costs."""

import asyncio
import json
import os
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from queuecast.hub.feed import Feed
from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, gateway, publish, request, until

if TYPE_CHECKING:
    from playwright.async_api import Page

Name = Callable[[], str]

CLIENTS = 1000
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
TICKER = json.dumps([{"symbol": "XAU", "bid": 2391.25 + n, "ask": 2391.5 + n} for n in range(20)])


@pytest_asyncio.fixture
async def packed() -> AsyncIterator[RunningGateway]:
    """A gateway with compression on."""
    async with gateway(
        server={"compression": True, "grace": "2s"}, limits={"message": "64KB", "frame": "128KB"}
    ) as running:
        yield running


class Raw:
    """Frames by hand, on a connection whose handshake was answered with `head`."""

    def __init__(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self._reader = reader
        self._writer = writer

    def send(self, first: int, payload: bytes) -> None:
        """Send a frame that begins with this byte."""
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
        mask = os.urandom(4)
        body = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
        self._writer.write(bytes((first,)) + length + mask + body)

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame's first byte and its payload, passing heartbeats over."""
        while True:
            first, length = await self._exactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self._exactly(2))
            payload = await self._exactly(length)
            if first != 0x89:
                return first, payload

    async def _exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self._reader.readexactly(count), PATIENCE)


@asynccontextmanager
async def connected(
    gw: RunningGateway, path: str, offer: str | None, *, before: str | None = None
) -> AsyncIterator[Raw]:
    """Shake hands. before: a path that is asked for first, on the same connection."""
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        if before is not None:
            writer.write(f"GET {before} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).lower()
            length = answer.partition(b"content-length: ")[2].split(b"\r\n")[0]
            await asyncio.wait_for(reader.readexactly(int(length)), PATIENCE)
        extension = "" if offer is None else f"Sec-WebSocket-Extensions: {offer}\r\n"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{extension}\r\n".encode()
        )
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode()
        assert head.startswith("HTTP/1.1 101 ")
        yield Raw(head, reader, writer)
    finally:
        writer.close()


async def receive(ws: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(ws.recv(), PATIENCE)


async def closed(ws: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as info:
        await receive(ws)
    assert info.value.rcvd is not None
    return info.value.rcvd.code, info.value.rcvd.reason


def extensions(ws: ClientConnection) -> str | None:
    assert ws.response is not None
    return ws.response.headers.get("Sec-WebSocket-Extensions")


# -- negotiation --------------------------------------------------------------------------


async def test_it_is_off_by_default(gw: RunningGateway, name: Name) -> None:
    async with connect(f"{gw.ws_url}/ws/topic/{name()}") as ws:
        assert "permessage-deflate" in ws.request.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
        assert extensions(ws) is None
        await ws.send(TICKER)
        assert await receive(ws) == TICKER
    async with connected(gw, f"/ws/topic/{name()}", ANSWER) as raw:
        assert "Extensions" not in raw.head
        raw.send(0xC1, compressed(b"hello"))
        assert await raw.frame() == (0x88, struct.pack("!H", 1002) + b"reserved bits are set")


async def test_without_an_offer_nothing_is_compressed(packed: RunningGateway, name: Name) -> None:
    async with connected(packed, f"/ws/topic/{name()}", None) as raw:
        assert "Extensions" not in raw.head
        raw.send(0x81, TICKER.encode())
        assert await raw.frame() == (0x81, TICKER.encode())
        raw.send(0xC1, compressed(b"hello"))
        first, payload = await raw.frame()
        assert (first, payload[:2]) == (0x88, struct.pack("!H", 1002))


@pytest.mark.parametrize("path", ["/healthz", None])
async def test_what_is_negotiated_is_kept(
    packed: RunningGateway, name: Name, path: str | None
) -> None:
    # Both ways in: on a connection of its own, and after another request on it.
    async with connected(packed, f"/ws/topic/{name()}", ANSWER, before=path) as raw:
        assert f"Sec-WebSocket-Extensions: {ANSWER}\r\n" in raw.head
        text = TICKER.encode()
        for _ in range(2):
            # Nothing refers to the message before: the same bytes, and a new inflater reads them.
            raw.send(0xC1, compressed(text))
            first, payload = await raw.frame()
            assert first == 0xC1
            assert len(payload) < len(text) / 3
            assert zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff") == text
        raw.send(0x81, b"short")
        assert await raw.frame() == (0x81, b"short")


async def test_a_small_window_is_declined(packed: RunningGateway, name: Name) -> None:
    url = f"{packed.ws_url}/ws/topic/{name()}"
    small = [ClientPerMessageDeflateFactory(server_max_window_bits=10)]
    async with connect(url, extensions=small) as ws:
        assert extensions(ws) is None
        await ws.send(TICKER)
        assert await receive(ws) == TICKER


# -- clients ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 9, 15])
async def test_the_websockets_library_both_ways(
    packed: RunningGateway, name: Name, bits: int | None
) -> None:
    url = f"{packed.ws_url}/ws/topic/{name()}"
    offer = [ClientPerMessageDeflateFactory(client_max_window_bits=bits or True)]
    messages: list[str | bytes] = [
        "",
        "x",
        TICKER,
        "磁盘告警：" * 1000,
        b"\xff",
        os.urandom(64 * 1024),
        b"\xff" * 64 * 1024,
        TICKER,
    ]
    async with connect(url, extensions=offer) as one, connect(url, compression=None) as two:
        assert extensions(one) == ANSWER
        assert extensions(two) is None
        for sender in (one, two):
            for message in messages:
                await sender.send(message)
                assert [await receive(one), await receive(two)] == [message, message]
        await one.send(iter(["磁盘", "告警", "x" * 5000, ""]))
        assert await receive(two) == "磁盘告警" + "x" * 5000


async def test_aiohttps_client(packed: RunningGateway, name: Name) -> None:
    url = f"{packed.url}/ws/topic/{name()}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as ws:
        assert ws.compress == 15
        for text in (TICKER, "短", TICKER):
            await ws.send_str(text)
            assert await asyncio.wait_for(ws.receive_str(), PATIENCE) == text


@pytest.mark.browser
async def test_chromium_both_ways(page: "Page", packed: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    await page.goto(f"{packed.url}/healthz")
    await page.evaluate(
        """url => {
            window.got = [];
            window.ws = new WebSocket(url);
            window.ws.onmessage = ({data}) => window.got.push(data);
        }""",
        f"{packed.ws_url}/ws{topic}",
    )
    await page.wait_for_function("window.ws.readyState === 1", timeout=PATIENCE * 1000)
    assert await page.evaluate("window.ws.extensions") == ANSWER
    bodies = [TICKER, "短", "", "磁盘告警：" * 2000, TICKER]
    for body in bodies:
        await publish(packed, topic, body)
    await page.wait_for_function("window.got.length === 5", timeout=PATIENCE * 1000)
    await page.evaluate("bodies => bodies.forEach(body => window.ws.send(body))", bodies)
    await page.wait_for_function("window.got.length === 10", timeout=PATIENCE * 1000)
    assert await page.evaluate("window.got") == bodies * 2


async def test_envelopes_and_queues(packed: RunningGateway, name: Name) -> None:
    topic, queue = f"/topic/{name()}", f"/queue/{name()}"
    url = f"{packed.ws_url}/ws?destination={topic}&destination={queue}"
    async with connect(url) as ws:
        assert extensions(ws) == ANSWER
        for _ in range(2):
            assert "subscribed" in json.loads(await receive(ws))
        for n, destination in enumerate((topic, queue)):
            await ws.send(json.dumps({"publish": destination, "body": TICKER, "id": n}))
            answers = [json.loads(await receive(ws)) for _ in range(2)]
            assert {"published": n} in answers
            assert [each["body"] for each in answers if "body" in each] == [TICKER]


async def test_a_bare_queue_is_sent_as_it_is(packed: RunningGateway, name: Name) -> None:
    async with connected(packed, f"/ws/queue/{name()}", "permessage-deflate") as raw:
        assert ANSWER in raw.head
        raw.send(0xC1, compressed(TICKER.encode()))
        assert await raw.frame() == (0x81, TICKER.encode())


async def test_a_refused_subscription_still_has_its_reason(packed: RunningGateway) -> None:
    async with connect(f"{packed.ws_url}/ws/exchange/nowhere/x") as ws:
        code, reason = await closed(ws)
        assert code == 4404
        assert "nowhere" in reason


# -- what is refused ----------------------------------------------------------------------


async def test_a_bomb(packed: RunningGateway, name: Name) -> None:
    async with connect(f"{packed.ws_url}/ws/topic/{name()}") as ws:
        await ws.send(bytes(10 << 20))
        assert await closed(ws) == (1009, "message over 65536 bytes")


async def test_many_large_messages_in_few_bytes(packed: RunningGateway, name: Name) -> None:
    # Hundreds of times the limit in one read; each is published, in order, and the pong is last.
    topic = f"/topic/{name()}"
    count = 300
    async with connected(packed, f"/ws{topic}", "permessage-deflate") as raw:
        for n in range(count):
            raw.send(0xC1, compressed(f"{n:4}".encode() + b" " * (65536 - 4)))
        raw.send(0x89, b"end")
        numbers: list[int] = []
        pong = False
        while len(numbers) < count or not pong:
            first, payload = await raw.frame()
            if first == 0x8A:
                pong = True
                continue
            text = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
            assert len(text) == 65536
            numbers.append(int(text))
        assert numbers == list(range(count))


@pytest.mark.parametrize(
    ("first", "payload", "code"),
    [
        (0xC1, b"\xff\xff\xff\xff", 1007),
        (0xC2, b"no deflate data", 1007),
        (0xC1, "utf", 1007),
        (0xC9, b"ping", 1002),
        (0xC0, b"continuation", 1002),
        (0xE1, b"two reserved bits", 1002),
    ],
)
async def test_bad_frames_close_with_their_code(
    packed: RunningGateway, name: Name, first: int, payload: bytes | str, code: int
) -> None:
    if payload == "utf":
        payload = compressed(b"caf\xe9, that is Latin-1")
    assert isinstance(payload, bytes)
    async with connected(packed, f"/ws/topic/{name()}", "permessage-deflate") as raw:
        raw.send(first, payload)
        opcode, body = await raw.frame()
        assert (opcode, int.from_bytes(body[:2], "big")) == (0x88, code)


# -- cost ---------------------------------------------------------------------------------


async def test_a_thousand_subscribers_cost_two_encodes_a_batch(
    packed: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    offers = ["permessage-deflate; client_max_window_bits", None, "permessage-deflate", None]
    async with AsyncExitStack() as stack:
        raws = [
            await stack.enter_async_context(connected(packed, f"/ws{topic}", offers[n % 4]))
            for n in range(CLIENTS)
        ]
        feed = await _feed(packed, topic)
        await until(
            lambda: sum(each.live for each in feed.subscribers) == CLIENTS, "live subscribers"
        )
        assert len(feed.cohorts) == 2
        before = replace(packed.gateway.hub.stats)
        batch = {"messages": [{"destination": topic, "body": f"{n}{TICKER}"} for n in range(20)]}
        answer = await request("POST", f"{packed.url}/publish", json=batch)
        assert answer.status == 200
        received = await asyncio.gather(*(_frames(raw, 20) for raw in raws))
        for n, frames in enumerate(received):
            for number, (first, payload) in enumerate(frames):
                assert first == (0x81 if n % 2 else 0xC1)
                if first & 0x40:
                    payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
                assert payload == f"{number}{TICKER}".encode()
        after = packed.gateway.hub.stats
        # Each cohort encodes every message once, and a batch of them in one go.
        assert after.encoded - before.encoded == 2 * 20
        assert after.encodes - before.encodes <= 2 * 3
        assert after.deliveries - before.deliveries == 20 * CLIENTS


async def _frames(raw: "Raw", count: int) -> list[tuple[int, bytes]]:
    return [await raw.frame() for _ in range(count)]


async def _feed(gw: RunningGateway, topic: str) -> Feed:
    await until(lambda: any(f.name == topic for f in gw.gateway.hub.feeds), f"feed of {topic}")
    return next(feed for feed in gw.gateway.hub.feeds if feed.name == topic)


def compressed(body: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (stream.compress(body) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
