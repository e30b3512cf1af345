"""A TCP proxy that fails on command: resets, half-closes, stalls, refusals, latency.

Put it between a client and a server and call the fault by name. It runs on the test's own loop;
while a test blocks that loop, the proxy stands still.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self, cast

from tests.support.processes import free_port

# Bytes that latency may hold back per direction before reading pauses, so that a long delay on a
# fast stream does not keep the whole stream in memory.
_DELAYED_LIMIT = 1 << 20


class _End(asyncio.Protocol):
    """One side of a proxied connection: the socket of the client or of the server."""

    def __init__(self, proxy: "TcpProxy") -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self.peer: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._paused_for: set[str] = set()
        # What was read although reading is paused: at most one read, because uvloop begins to read
        # after connection_made whatever that asked for, and pausing takes hold on the next turn.
        self._held: deque[bytes] = deque()
        # Bytes for this end that latency holds back: when they are due, and b"" for end of stream.
        self._delayed: deque[tuple[float, bytes]] = deque()
        self._delayed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_closed = False
        self._read_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._proxy.stalled:
            self._paused_for.add("stall")
        self._loop.call_soon(self._apply_pause)

    def data_received(self, data: bytes) -> None:
        if self._paused_for or self.peer is None:
            self._held.append(data)
            self._apply_pause()
            return
        self.peer.send(data)

    def eof_received(self) -> bool:
        self._read_closed = True
        if self._paused_for or self.peer is None:
            self._held.append(b"")
        else:
            self.peer.send(b"")
        return True  # Keep the other direction open: a half-close is passed on as one.

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._proxy.forget(self)
        peer, self.peer = self.peer, None
        if peer is None:
            return
        peer.peer = None
        if exc is not None:
            peer.reset()
        else:
            peer.close()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause("peer does not read")

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.resume("peer does not read")

    def send(self, data: bytes) -> None:
        """Write to this end, after the proxy's latency; b"" ends the stream."""
        if not self._proxy.delay and not self._delayed:
            self._write(data)
            return
        due = self._loop.time() + self._proxy.delay
        if self._delayed:
            due = max(due, self._delayed[-1][0])  # Bytes never overtake when latency shrinks.
        self._delayed.append((due, data))
        self._delayed_bytes += len(data)
        if self._delayed_bytes > _DELAYED_LIMIT and self.peer is not None:
            self.peer.pause("latency holds back too much")
        if self._timer is None:
            self._timer = self._loop.call_at(self._delayed[0][0], self._send_due)

    def _send_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._delayed and self._delayed[0][0] <= now:
            data = self._delayed.popleft()[1]
            self._delayed_bytes -= len(data)
            self._write(data)
        if self._delayed_bytes <= _DELAYED_LIMIT and self.peer is not None:
            self.peer.resume("latency holds back too much")
        if self._delayed:
            self._timer = self._loop.call_at(self._delayed[0][0], self._send_due)

    def _write(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing() or self._write_closed:
            return
        if data:
            self.transport.write(data)
            return
        self._write_closed = True
        try:
            self.transport.write_eof()
        except OSError:  # It was reset, which the loop has not noticed yet.
            self.transport.abort()
            return
        if self._read_closed:
            self.transport.close()

    def pause(self, reason: str) -> None:
        self._paused_for.add(reason)
        self._apply_pause()

    def resume(self, reason: str) -> None:
        self._paused_for.discard(reason)
        while self._held and not self._paused_for and self.peer is not None:
            self.peer.send(self._held.popleft())
        self._apply_pause()

    def _apply_pause(self) -> None:
        if self.transport is None or self.transport.is_closing() or self._read_closed:
            return
        reading = self.transport.is_reading()
        if self._paused_for and reading:
            self.transport.pause_reading()
        elif not self._paused_for and not reading:
            self.transport.resume_reading()

    def finish(self) -> None:
        """Send what is held back and then FIN; bytes that come later for this end are dropped."""
        self._flush()
        self._write(b"")

    def close(self) -> None:
        """Send what is held back and close."""
        self._flush()
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Close with RST: a linger time of zero makes close() drop everything unsent."""
        if self.transport is None:
            return
        # Also when it is closing already: it may wait for ever for a peer that does not read.
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):  # The kernel may have ended the socket already.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _flush(self) -> None:
        self._cancel_timer()
        while self._delayed:
            self._write(self._delayed.popleft()[1])
        self._delayed_bytes = 0

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TcpProxy:
    """Forwards 127.0.0.1:`port` to host:port until told to fail.

        async with TcpProxy("127.0.0.1", rabbit.port) as proxy:
            connect(f"amqp://guest:guest@127.0.0.1:{proxy.port}/")
            proxy.cut()

    `accepted` counts the connections ever taken, `connections` those open on the client's side.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._target_port = port
        self.port = free_port()
        self.accepted = 0
        self.stalled = False
        self.delay = 0.0
        self._server: asyncio.Server | None = None
        self._clients: set[_End] = set()
        self._ends: set[_End] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        return len(self._clients)

    async def until_open(self, connections: int) -> None:
        """Wait until exactly this many connections are open."""
        while self.connections != connections:
            self._changed.clear()
            await self._changed.wait()

    def cut(self) -> None:
        """Reset every connection on both sides, as a crashed host or an impatient firewall does."""
        for end in list(self._ends):
            end.reset()

    def fin(self) -> None:
        """End the stream to both sides of every connection; reading from them goes on."""
        for end in list(self._ends):
            end.finish()

    def stall(self) -> None:
        """Stop reading on both sides, of later connections too: nothing passes, nothing closes."""
        self.stalled = True
        for end in list(self._ends):
            end.pause("stall")

    def unstall(self) -> None:
        """Let everything pass again, what was sent meanwhile first."""
        self.stalled = False
        for end in list(self._ends):
            end.resume("stall")

    def latency(self, seconds: float) -> None:
        """Delay what arrives from now on by this long, each way; order is kept."""
        self.delay = seconds

    def redirect(self, port: int) -> None:
        """Dial another server for connections that come from now on, as a load balancer does."""
        self._target_port = port

    async def refuse(self) -> None:
        """Stop listening, so that new connections are refused; open ones live on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Listen, again on the same port."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._client, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Stop listening and reset everything."""
        await self.refuse()
        dialling = list(self._dialling)
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        self.cut()
        while self._ends:
            self._changed.clear()
            await self._changed.wait()

    def _client(self) -> asyncio.Protocol:
        return _Client(self)

    def forget(self, end: _End) -> None:
        self._clients.discard(end)
        self._ends.discard(end)
        self._changed.set()

    def took(self, client: _End) -> None:
        """Count a client's new connection and dial the server for it."""
        self.accepted += 1
        self._clients.add(client)
        self._ends.add(client)
        self._changed.set()
        client.pause("dialling")
        task = asyncio.get_running_loop().create_task(self._dial(client))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, client: _End) -> None:
        server = await self._dial_server()
        if server is None:
            client.reset()
            return
        if client not in self._ends:  # The client left meanwhile.
            server.reset()
            return
        self._ends.add(server)
        server.peer, client.peer = client, server
        client.resume("dialling")

    async def _dial_server(self) -> _End | None:
        """Return a connection to the first target that accepts one."""
        loop = asyncio.get_running_loop()
        for port in self._targets():
            server = _End(self)
            try:
                await loop.create_connection(lambda made=server: made, self._host, port)  # type: ignore[misc]
            except OSError:
                continue
            return server
        return None

    def _targets(self) -> Sequence[int]:
        return (self._target_port,)


class FailoverProxy(TcpProxy):
    """Passes each connection to the first of several servers that accepts one.

    preferred: the index of the port that is tried first; the others follow in their order. A
    server that stands still accepts all the same, as it does behind a real balancer.
    """

    def __init__(self, ports: Sequence[int], *, preferred: int = 0) -> None:
        super().__init__("127.0.0.1", ports[preferred])
        self._order = (*ports[preferred:], *ports[:preferred])

    def _targets(self) -> Sequence[int]:
        return self._order


class _Client(_End):
    """The client's side, which the proxy counts and dials for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.took(self)
