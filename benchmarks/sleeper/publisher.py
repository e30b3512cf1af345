"""The publisher: JSON batches over HTTP on one connection, each at its time, answered later.

Waiting for each answer would let a slow gateway slow its publisher down and so look faster; a
message's time stamp is the moment at which it was due.
"""

from __future__ import annotations

import asyncio
import time

import uvloop

from .. import child, message

# Batches a second, and how many may be unanswered: then the publisher waits, and says so with the
# rate that it reached.
_BATCHES = 100
_UNANSWERED = 200


class Publisher:
    """Numbers go on from one command to the next."""

    def __init__(self) -> None:
        self._next = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, port: int) -> child.Answer:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        return {}

    async def publish(self, rate: float, seconds: float, size: int) -> child.Answer:
        """Publish for some seconds. size: bytes of a body.

        Returns the number of the last message, and the rate until the last answer came.
        """
        assert self._writer is not None
        first = self._next
        count = round(rate / _BATCHES)
        batches = max(1, round(seconds * _BATCHES))
        free = asyncio.Semaphore(_UNANSWERED)
        answers = asyncio.create_task(self._answers(batches, free))
        began = time.monotonic()
        for number in range(batches):
            due = began + number / _BATCHES
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await free.acquire()
            self._writer.write(self._request(count, size, due))
            await self._writer.drain()
        await answers
        reached = (self._next - first) / (time.monotonic() - began)
        return {"last": self._next - 1, "rate": reached}

    def _request(self, count: int, size: int, due: float) -> bytes:
        made = []
        for number in range(self._next, self._next + count):
            body = message.body(number, size, stamped=True, due=due)
            made.append(b'{"destination":"%b","body":"%b"}' % (_DESTINATION, body))
        self._next += count
        batch = b'{"messages":[%b]}' % b",".join(made)
        head = (
            "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(batch)}\r\n\r\n"
        )
        return head.encode() + batch

    async def _answers(self, count: int, free: asyncio.Semaphore) -> None:
        assert self._reader is not None
        for _ in range(count):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            text = await self._reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                raise ValueError(f"{head!r} {text[:300]!r}")
            free.release()


_DESTINATION = message.DESTINATION.encode()


async def main() -> None:
    """Serve until the standard input ends."""
    publisher = Publisher()
    await child.serve({"open": publisher.open, "publish": publisher.publish})


if __name__ == "__main__":
    uvloop.run(main())
