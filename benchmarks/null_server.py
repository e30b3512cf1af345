"""The null server: accepts, greets, and writes ready-made bytes to everybody once per tick.

What it reaches is what the event loop and the kernel allow to any server. It knows no
destination, no log and no position, and knows a request by its bytes. Its answer to a handshake
is ready-made too, whatever the key.
"""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from queuecast.server.connection import WRITE_BUFFER
from queuecast.server.listener import BACKLOG, raise_open_files

from . import child, message
from .producer import as_fast_as_possible, at_a_rate, most
from .wire import WIRES, impersonal

# What a client says, and after which of it the client is subscribed.
_TURNS = {impersonal(turn.ask): turn for wire in WIRES.values() for turn in wire.usual}
_LAST = {wire.usual[-1] for wire in WIRES.values()}


class Subscriber(asyncio.Protocol):
    """One connection."""

    __slots__ = ("_heard", "_server", "_transport")

    def __init__(self, server: NullServer) -> None:
        self._server = server
        self._heard = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        turn = _TURNS.get(impersonal(self._heard))
        if turn is not None:
            self._heard = b""
            self._transport.write(turn.answer)
            if turn in _LAST:
                self._server.transports[self._transport] = None

    def pause_writing(self) -> None:
        self._server.paused += 1

    def resume_writing(self) -> None:
        self._server.paused -= 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.transports.pop(self._transport, None)


class NullServer:
    """All its connections, and the commands of the benchmark."""

    def __init__(self) -> None:
        self.transports: dict[asyncio.Transport, None] = {}
        self.paused = 0

    async def start(self) -> int:
        """Listen on a free loopback port and return it."""
        raise_open_files()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Subscriber(self), "127.0.0.1", 0, backlog=BACKLOG)
        return int(server.sockets[0].getsockname()[1])

    def write(self, data: bytes) -> None:
        """Write to everybody."""
        for transport in self.transports:
            transport.write(data)

    async def fan_out(
        self, wire: str, seconds: float, batch: int, size: int, topics: int
    ) -> child.Answer:
        """Write ready-made batches of `batch` messages for some seconds."""
        data = WIRES[wire].ready_made([message.body(number, size) for number in range(batch)])

        async def publish(first: int) -> None:
            self.write(data)

        made = await as_fast_as_possible(
            publish, lambda: self.paused > 0, seconds, batch, most(size)
        )
        return {**made, "cycle": batch}

    async def pace(self, wire: str, rate: float, messages: int, size: int) -> child.Answer:
        """Write one message each 1/rate seconds, with the time in it."""

        async def publish(number: int) -> None:
            self.write(WIRES[wire].ready_made([message.body(number, size, stamped=True)]))

        return {**await at_a_rate(publish, rate, messages), "cycle": messages}

    async def connections(self) -> child.Answer:
        """Return how many are connected."""
        return {"connections": len(self.transports)}


async def main() -> None:
    """Serve until the standard input ends."""
    server = NullServer()
    child.tell({"port": await server.start()})
    await child.serve(
        {"fan_out": server.fan_out, "pace": server.pace, "connections": server.connections}
    )


if __name__ == "__main__":
    uvloop.run(main())
