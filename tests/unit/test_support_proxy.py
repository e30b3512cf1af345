"""The faulty proxy of the tests does what its methods say, on both loops."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import TcpProxy

pytestmark = pytest.mark.both_loops

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """What the server behind the proxy has seen of its connections' ends."""

    def __init__(self) -> None:
        self.opened = 0
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            self.ends.put_nowait("fin")
        except ConnectionError:
            self.ends.put_nowait("rst")
        finally:
            writer.close()


@asynccontextmanager
async def proxied_echo() -> AsyncIterator[tuple[TcpProxy, Upstream]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with TcpProxy("127.0.0.1", port) as proxy:
            yield proxy, upstream
    finally:
        server.close()


async def connect(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> bytes:
    reader, writer = connection
    writer.write(data)
    return await reader.readexactly(len(data))


async def test_forwards_both_ways_and_counts() -> None:
    async with proxied_echo() as (proxy, _):
        first, second = await connect(proxy), await connect(proxy)
        body = "你好".encode() * 200_000
        first[1].write(body)
        assert await first[0].readexactly(len(body)) == body
        assert await ask(second, b"two") == b"two"
        assert (proxy.accepted, proxy.connections) == (2, 2)
        first[1].close()
        await proxy.until_open(1)
        assert (proxy.accepted, proxy.connections) == (2, 1)
        second[1].close()


async def test_passes_a_half_close_on() -> None:
    async with proxied_echo() as (proxy, upstream):
        reader, writer = await connect(proxy)
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == b"last words"
        assert await upstream.ends.get() == "fin"
        writer.close()


async def test_cut_resets_both_sides() -> None:
    async with proxied_echo() as (proxy, upstream):
        connection = await connect(proxy)
        await ask(connection, b"up")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await connection[0].read()
        assert await upstream.ends.get() == "rst"
        connection[1].close()


async def test_fin_ends_both_streams() -> None:
    async with proxied_echo() as (proxy, upstream):
        connection = await connect(proxy)
        await ask(connection, b"up")
        proxy.fin()
        assert await connection[0].read() == b""
        assert await upstream.ends.get() == "fin"
        connection[1].close()


async def test_stall_holds_everything_until_unstall() -> None:
    async with proxied_echo() as (proxy, _):
        old = await connect(proxy)
        await ask(old, b"up")
        proxy.stall()
        new = await connect(proxy)
        for _, writer in (old, new):
            writer.write(b"held")
        for reader, _ in (old, new):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        proxy.unstall()
        for reader, writer in (old, new):
            assert await reader.readexactly(4) == b"held"
            writer.close()


async def test_a_stalled_reader_stops_its_writer() -> None:
    async with proxied_echo() as (proxy, _):
        connection = await connect(proxy)
        await ask(connection, b"up")
        proxy.stall()
        # More than all the socket buffers on the way hold.
        connection[1].write(b"x" * (32 << 20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection[1].drain(), 0.2)
        connection[1].transport.abort()


async def test_refuse_and_accept_on_the_same_port() -> None:
    async with proxied_echo() as (proxy, _):
        old = await connect(proxy)
        await ask(old, b"up")
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        assert await ask(old, b"lives on") == b"lives on"
        await proxy.accept()
        new = await connect(proxy)
        assert await ask(new, b"again") == b"again"
        for _, writer in (old, new):
            writer.close()


async def test_latency_delays_each_way_and_keeps_order() -> None:
    async with proxied_echo() as (proxy, _):
        connection = await connect(proxy)
        await ask(connection, b"up")
        loop = asyncio.get_running_loop()
        proxy.latency(0.1)
        started = loop.time()
        connection[1].write(b"first ")
        # Only a lower bound: timers may round down by their resolution, never by more.
        assert await connection[0].readexactly(6) == b"first "
        assert loop.time() - started >= 0.19
        connection[1].write(b"slow ")
        await asyncio.sleep(0.02)  # Long enough to reach the proxy while its latency holds.
        proxy.latency(0)
        connection[1].write(b"fast")
        assert await connection[0].readexactly(9) == b"slow fast"
        connection[1].close()


async def test_a_dead_target_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound but not listening: nobody else can take it.
        async with TcpProxy("127.0.0.1", unused.getsockname()[1]) as proxy:
            reader, writer = await connect(proxy)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert proxy.accepted == 1
            writer.close()
