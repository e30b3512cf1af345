"""The clients that read all the time: each checks every number, and takes the time it took."""

from __future__ import annotations

import asyncio
import re
import time
from typing import cast
from urllib.parse import quote

import uvloop

from .. import child, message
from ..latencies import Latencies

_BODY = re.compile(rb"\$(\d{11})@(\d{20})")
_NUMBER = re.compile(rb"\$(\d{11})@\d{20}")
# Seconds for all to have what was published; far more than any should take.
_PATIENCE = 120.0

_WEBSOCKET = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
# RFC 6455 section 5.5.3: a pong that nobody asked for. The gateway takes it for a sign of life, so
# that its pings need not be looked for among the messages.
_PONG = b"\x8a\x80" + bytes(4)
_PONG_EVERY = 10.0
# Wires by their verb: more headers, the answer, and what ends it.
_WIRES = {
    "sse": ("Accept: text/event-stream\r\n", b"HTTP/1.1 200", b"\ndata: \n\n"),
    "ws": (_WEBSOCKET, b"HTTP/1.1 101", b"\r\n\r\n"),
}


class Reader(asyncio.Protocol):
    """One client; `failure` says what it should not have seen."""

    def __init__(self, wire: str, destination: str, latencies: Latencies) -> None:
        headers, self._granted, self._end = _WIRES[wire]
        self.name = f"{wire} {destination}"
        self._request = f"GET /{wire}{quote(destination)} HTTP/1.1\r\nHost: localhost\r\n{headers}"
        self._latencies = latencies
        self._rest = b""
        self.live = asyncio.get_running_loop().create_future()
        self.following = 0
        self.failure: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(f"{self._request}\r\n".encode())

    def pong(self) -> None:
        """Show the gateway that this client is there."""
        self._transport.write(_PONG)
        asyncio.get_running_loop().call_later(_PONG_EVERY, self.pong)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self.live.done():
            head, end, data = data.partition(self._end)
            if not end:
                self._rest = head
                return
            self.live.set_result(head.startswith(self._granted))
        first = _BODY.search(data)
        if first is None:
            self._rest = data
            return
        numbers = list(map(int, _NUMBER.findall(data)))
        self._latencies.add((time.monotonic_ns() - int(first[2])) / 1e9, len(numbers))
        self._check(numbers, data)
        self.following = numbers[-1] + 1
        # Behind the last whole body: its padding, and perhaps the beginning of the next.
        self._rest = data[data.rfind(b"$%011d@" % numbers[-1]) + message.STAMP.stop :]

    def _check(self, numbers: list[int], data: bytes) -> None:
        expected = list(range(self.following, self.following + len(numbers)))
        if self.failure is not None:
            return
        if numbers != expected:
            self.failure = f"{self.name}: {numbers[0]}..{numbers[-1]} for {expected[0]}.."
        elif b"gap" in data:
            self.failure = f"{self.name}: a gap before {self.following}"

    def connection_lost(self, exc: Exception | None) -> None:
        if self.failure is None:
            self.failure = f"{self.name}: closed after {self.following} messages"


class Others:
    """All of them, and the commands of the run."""

    def __init__(self) -> None:
        self._readers: list[Reader] = []
        self._latencies = Latencies()

    async def open(self, port: int, destinations: list[str], count: int) -> child.Answer:
        """Subscribe `count` clients, wires and destinations in turn; all are live then."""
        loop = asyncio.get_running_loop()
        for number in range(count):
            wire = ("sse", "ws")[number // len(destinations) % 2]
            made = Reader(wire, destinations[number % len(destinations)], self._latencies)
            await loop.create_connection(lambda made=made: made, "127.0.0.1", port)  # type: ignore[misc]
            async with asyncio.timeout(_PATIENCE):
                if not await made.live:
                    raise ValueError(f"{made.name} was refused")
            self._readers.append(made)
            if wire == "ws":
                made.pong()
        return {}

    async def reach(self, last: int) -> child.Answer:
        """Return once all have the message `last`, with the latencies since this was last asked."""
        async with asyncio.timeout(_PATIENCE):
            while any(each.following <= last for each in self._readers):
                self._raise_failure()
                await asyncio.sleep(0.01)
        self._raise_failure()
        summary = self._latencies.summary()
        self._latencies.clear()
        return summary

    def _raise_failure(self) -> None:
        failures = [each.failure for each in self._readers if each.failure is not None]
        if failures:
            raise ValueError("; ".join(failures[:5]))


async def main() -> None:
    """Serve until the standard input ends."""
    others = Others()
    await child.serve({"open": others.open, "reach": others.reach})


if __name__ == "__main__":
    uvloop.run(main())
