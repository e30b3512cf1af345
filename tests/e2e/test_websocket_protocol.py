"""RFC 6455 against a raw socket: what no well-behaved client would send."""

import asyncio
import base64
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, publish

Name = Callable[[], str]


class RawSocket:
    """Frames by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> None:
        head = bytes([(0x80 if fin else 0) | opcode])
        bit = 0x80 if masked else 0
        if len(payload) < 126:
            head += bytes([bit | len(payload)])
        elif len(payload) < 65536:
            head += struct.pack("!BH", bit | 126, len(payload))
        else:
            head += struct.pack("!BQ", bit | 127, len(payload))
        if masked:
            mask = os.urandom(4)
            head += mask
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.writer.write(head + payload)

    async def frame(self) -> tuple[int, bytes]:
        first, second = await self._exactly(2)
        assert not second & 0x80, "a server's frame is not masked"
        length = second
        if length == 126:
            (length,) = struct.unpack("!H", await self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._exactly(8))
        return first & 0x0F, await self._exactly(length)

    async def _exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), PATIENCE)

    async def close_code(self) -> int:
        opcode, payload = await self.frame()
        assert opcode == 8, (opcode, payload)
        return int.from_bytes(payload[:2], "big") if payload else 1005

    def reset(self) -> None:
        """Close with RST: a linger time of zero."""
        raw_socket = self.writer.get_extra_info("socket")
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def ended(self) -> bool:
        return await asyncio.wait_for(self.reader.read(1), PATIENCE) == b""


@asynccontextmanager
async def raw(
    gw: RunningGateway, path: str, *, receive_buffer: int = 0
) -> AsyncIterator[RawSocket]:
    """Shake hands. receive_buffer: bytes that the kernel takes for us, 0 for its own choice."""
    host, port = gw.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    assert head.startswith(b"HTTP/1.1 101 ")
    accept = base64.b64encode(
        hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    )
    assert b"sec-websocket-accept: " + accept.lower() in head.lower()
    try:
        yield RawSocket(reader, writer)
    finally:
        writer.close()


def _unmasked(ws: RawSocket) -> None:
    ws.send(1, b"x", masked=False)


def _bad_text(ws: RawSocket) -> None:
    ws.send(1, b"\xc3\x28")


def _bad_text_in_fragments(ws: RawSocket) -> None:
    ws.send(1, b"\xe4\xbd", fin=False)
    ws.send(0, b"x")


def _oversized(ws: RawSocket) -> None:
    ws.writer.write(struct.pack("!BBQ", 0x82, 0x80 | 127, 1 << 40) + b"mask")


def _oversized_in_fragments(ws: RawSocket) -> None:
    for _ in range(5):
        ws.send(2 if _ == 0 else 0, b"x" * 20_000, fin=False)


def _reserved_bit(ws: RawSocket) -> None:
    ws.writer.write(bytes([0xC1, 0x80]) + b"mask")


def _unknown_opcode(ws: RawSocket) -> None:
    ws.send(3, b"")


def _continuation_of_nothing(ws: RawSocket) -> None:
    ws.send(0, b"x")


def _fragmented_ping(ws: RawSocket) -> None:
    ws.send(9, b"x", fin=False)


def _long_ping(ws: RawSocket) -> None:
    ws.send(9, b"x" * 126)


def _close_code_1005(ws: RawSocket) -> None:
    ws.send(8, struct.pack("!H", 1005))


@pytest.mark.parametrize(
    ("offend", "code"),
    [
        (_unmasked, 1002),
        (_bad_text, 1007),
        (_bad_text_in_fragments, 1007),
        (_oversized, 1009),
        (_oversized_in_fragments, 1009),
        (_reserved_bit, 1002),
        (_unknown_opcode, 1002),
        (_continuation_of_nothing, 1002),
        (_fragmented_ping, 1002),
        (_long_ping, 1002),
        (_close_code_1005, 1002),
    ],
)
async def test_an_offence_closes_with_its_code(
    gw: RunningGateway, name: Name, offend: Callable[[RawSocket], None], code: int
) -> None:
    async with raw(gw, f"/ws/topic/{name()}") as ws:
        ws.send(1, b"fine")
        assert await ws.frame() == (1, b"fine")
        offend(ws)
        assert await ws.close_code() == code


async def test_the_gateway_ends_the_connection_after_an_offence(
    gw: RunningGateway, name: Name
) -> None:
    async with raw(gw, f"/ws/topic/{name()}") as ws:
        _unmasked(ws)
        assert await ws.close_code() == 1002
        assert await ws.ended()


async def test_a_fault_after_good_frames_still_publishes_those(
    gw: RunningGateway, name: Name
) -> None:
    path = f"/ws/topic/{name()}"
    async with raw(gw, path) as reader, raw(gw, path) as ws:
        for n in range(300):
            ws.send(1, str(n).encode())
        ws.send(1, b"x", masked=False)
        for n in range(300):
            assert await reader.frame() == (1, str(n).encode())


async def test_a_ping_between_fragments(gw: RunningGateway, name: Name) -> None:
    async with raw(gw, f"/ws/topic/{name()}") as ws:
        ws.send(1, "你".encode()[:2], fin=False)
        ws.send(9, b"now")
        assert await ws.frame() == (10, b"now")
        ws.send(10, b"a pong that nobody asked for")
        ws.send(0, "你".encode()[2:])
        assert await ws.frame() == (1, "你".encode())


async def test_a_frame_that_comes_byte_by_byte(gw: RunningGateway, name: Name) -> None:
    async with raw(gw, f"/ws/topic/{name()}") as ws:
        for byte in b"\x81\x85\x00\x00\x00\x00hello":
            ws.writer.write(bytes([byte]))
            await ws.writer.drain()
            await asyncio.sleep(0)
        assert await ws.frame() == (1, b"hello")


async def test_close_without_a_code(gw: RunningGateway, name: Name) -> None:
    async with raw(gw, f"/ws/topic/{name()}") as ws:
        ws.send(8, b"")
        assert await ws.close_code() == 1005
        assert await ws.ended()


async def test_nothing_is_published_after_the_close_frame(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with raw(gw, f"/ws{topic}") as reader, raw(gw, f"/ws{topic}") as ws:
        ws.send(1, b"before")
        ws.send(8, struct.pack("!H", 1000))
        ws.send(1, b"after")
        assert await reader.frame() == (1, b"before")
        await publish(gw, topic, "fence")
        assert await reader.frame() == (1, b"fence")


async def test_frames_in_one_packet_with_the_handshake(gw: RunningGateway, name: Name) -> None:
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /ws/topic/{name()} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        + b"\x81\x82\x00\x00\x00\x00hi"
    )
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    assert await RawSocket(reader, writer).frame() == (1, b"hi")
    writer.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", b"426"),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n", b"426"),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n", b"400"),
    ],
)
async def test_what_is_no_handshake(gw: RunningGateway, headers: str, status: bytes) -> None:
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /ws/topic/x HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    line = await asyncio.wait_for(reader.readline(), PATIENCE)
    assert line.split()[1] == status
    writer.close()
