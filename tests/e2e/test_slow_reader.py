"""One of 100 clients never reads while a million messages pass.

The gateway's memory stays bounded, the other 99 get everything in order, and the one, when it
reads again, gets the rest or is told of the gap.
"""

import asyncio
import contextlib
import json
import re
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TOTAL = 1_000_000
# By then every log, buffer and cache that may fill has filled.
WARM_UP = 100_000
# What all of it together may take: 8 MB of log by its own estimate, 512 KB of encoded chunks per
# cohort, at most 128 KB for each of the 99 on their way, and Python's own slack.
FILLED = 40 << 20
# What 900,000 more may add. A backlog kept for the one would be over 35 MB of events.
GROWTH = 8 << 20
PATIENCE = 100.0

_POSITION = re.compile(rb"event: position\nid: (\w+)-(\d+)\ndata: \n\n")


class Follower(asyncio.Protocol):
    """Compares what comes, byte by byte, with what must come."""

    def __init__(self, request: bytes, expect: Callable[[bytes], tuple[int, bytes] | None]) -> None:
        """expect: given the first bytes, where the messages begin and what they all must be."""
        self._request = request
        self._expect = expect
        self._first = b""
        self._expected: memoryview | None = None
        self._at = 0
        self.ready = asyncio.get_running_loop().create_future()
        self.done = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._expected is None:
            self._first += data
            found = self._expect(self._first)
            if found is None:
                return
            begin, expected = found
            self._expected = memoryview(expected)
            self.ready.set_result(None)
            data = self._first[begin:]
        end = self._at + len(data)
        if self._expected[self._at : end] != data:
            self._fail(f"other bytes than expected within {self._at}..{end}: {data[:80]!r}")
        self._at = end
        if end == len(self._expected) and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the gateway closed at byte {self._at}")

    def _fail(self, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(AssertionError(text))
            self.transport.abort()


def ws_frames() -> bytes:
    bodies = (b"%d" % n for n in range(TOTAL))
    return b"".join(b"\x81" + bytes([len(body)]) + body for body in bodies)


def sse_events(epoch: str, base: int) -> bytes:
    return b"".join(
        b"id: %b-%d\ndata: %d\n\n" % (epoch.encode(), base + 1 + n, n) for n in range(TOTAL)
    )


class Stream:
    """The client that stops reading: a small receive buffer, and reads only when told to."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self._rest = b""

    def head(self) -> tuple[str, int]:
        """Read up to the first position; returns epoch and offset."""
        while (found := _POSITION.search(self._rest)) is None:
            self._rest += self.socket.recv(4096)
        self._rest = self._rest[found.end() :]
        return found[1].decode(), int(found[2])

    def events_until(self, last: int) -> list[tuple[str, str, str]]:
        """Read on until the message `last`: (event type, id, data) of everything."""
        events: list[tuple[str, str, str]] = []
        while True:
            *blocks, self._rest = self._rest.split(b"\n\n")
            for block in blocks:
                fields = dict(
                    line.split(": ", 1) for line in block.decode().split("\n") if ": " in line
                )
                events.append((fields.get("event", "message"), fields["id"], fields["data"]))
            if events and events[-1][2] == str(last):
                return events
            data = self.socket.recv(1 << 16)
            assert data, "the gateway closed"
            self._rest += data


@asynccontextmanager
async def flood(destination: str) -> AsyncIterator[tuple[Process, int]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.flood", destination),
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdin=PIPE,
        stdout=PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        yield process, int(url.rsplit(":", 1)[1])
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def tell(process: Process, command: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command.encode() + b"\n")
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).decode().strip()


async def watch(process: psutil.Process, peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], process.memory_info().rss)
        await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_client_that_never_reads_costs_bounded_memory_and_nobody_waits() -> None:
    topic = "/topic/flood"
    async with flood(topic) as (process, port):
        slow = Stream(port, f"/sse{topic}")
        epoch, base = await asyncio.to_thread(slow.head)
        frames, events = ws_frames(), sse_events(epoch, base)

        def expect_frames(first: bytes) -> tuple[int, bytes] | None:
            end = first.find(b"\r\n\r\n")
            return None if end < 0 else (end + 4, frames)

        def expect_events(first: bytes) -> tuple[int, bytes] | None:
            found = _POSITION.search(first)
            if found is None:
                return None
            assert (found[1].decode(), int(found[2])) == (epoch, base)
            return found.end(), events

        upgrade = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        )
        loop = asyncio.get_running_loop()
        followers: list[Follower] = []
        for number in range(99):
            verb, headers, expect = (
                ("sse", "", expect_events) if number % 11 == 0 else ("ws", upgrade, expect_frames)
            )
            request = f"GET /{verb}{topic} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()
            _, follower = await loop.create_connection(
                lambda request=request, expect=expect: Follower(request, expect),  # type: ignore[misc]
                "127.0.0.1",
                port,
            )
            followers.append(follower)
        await asyncio.gather(*(follower.ready for follower in followers))

        measured = psutil.Process(process.pid)
        idle = measured.memory_info().rss
        assert await tell(process, f"publish 0 {WARM_UP}") == "done"
        filled = measured.memory_info().rss
        peak = [filled]
        watching = asyncio.create_task(watch(measured, peak))
        assert await tell(process, f"publish {WARM_UP} {TOTAL - WARM_UP}") == "done"
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(follower.done for follower in followers))
        watching.cancel()
        print(f"resident: idle {idle}, filled {filled}, peak {peak[0]} bytes")
        assert filled - idle < FILLED
        assert peak[0] - filled < GROWTH

        # One encode a batch and cohort, whoever many are in it: two cohorts, and the slow one's
        # own few chunks.
        stats = json.loads(await tell(process, "stats"))
        assert stats["appended"] == TOTAL
        assert stats["encoded"] < 2.1 * TOTAL
        assert stats["gaps"] == 0, "nobody but the slow one may miss anything"

        for follower in followers:
            follower.done = loop.create_future()  # more will come, which nobody compares
            follower.transport.abort()
        reading = asyncio.create_task(asyncio.to_thread(slow.events_until, TOTAL))
        # It is live again: what is published now arrives as well.
        while not reading.done():
            stats = json.loads(await tell(process, "stats"))
            if stats["gaps"]:
                break
            await asyncio.sleep(0.01)
        assert await tell(process, f"publish {TOTAL} 1") == "done"
        got = await asyncio.wait_for(reading, PATIENCE)
        slow.socket.close()

    check_without_silent_hole(got, epoch, base)


def check_without_silent_hole(got: list[tuple[str, str, str]], epoch: str, base: int) -> None:
    """Every number is there in order, except where a gap says which are not."""
    following = 0
    gaps = 0
    for kind, position, data in got:
        if kind == "gap":
            gaps += 1
            notice = json.loads(data)
            assert notice["reason"] == "evicted"
            assert notice["last"] == f"{epoch}-{base + following}"
            assert notice["first"] == position
            following = int(position.partition("-")[2]) - base
            continue
        assert (kind, int(data)) == ("message", following)
        assert position == f"{epoch}-{base + 1 + following}"
        following += 1
    assert following == TOTAL + 1
    assert gaps == 1
