"""A back end that publishes with POST: at a fixed rate, or as many clients that wait for answers.

At a rate the requests are pipelined on one keep-alive connection (RFC 9112, 9.3.2), so that they
keep their order and nobody waits for answers; the stamp is when a message was due. The arguments
are the server's port and whose requests it understands (posts.POSTS).
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import sys
import time

from . import child, message
from .posts import POSTS

_NAP = 0.002
_SILENCE = 30.0
_OK = b"HTTP/1.1 2"
# Centrifugo tells of its errors in an answer with status 200.
_REFUSED = re.compile(rb'HTTP/1\.1 [^2]|\{"error"')
# An answer's mark may be cut in two by the end of a read.
_MARK = 16


class Client:
    """One keep-alive connection; it counts the answers, of which any that refuses is an error."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answered = 0
        self._tail = b""

    def send(self, data: bytes) -> None:
        """Write requests, and read answers while the server does not take more."""
        self.socket.setblocking(False)
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self.socket], [self.socket], [], _SILENCE)
            if readable:
                self.read()
            if writable:
                view = view[self.socket.send(view) :]
            if not readable and not writable:
                raise ValueError("the server takes no more requests")

    def read(self) -> None:
        """Read once; ValueError for an answer that is not a 2xx, or tells of an error."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ValueError("the server closed the publisher's connection")
        data = self._tail + data
        if found := _REFUSED.search(data):
            raise ValueError(f"refused: {data[found.start() :][:300]!r}")
        # What stands in the last read's end whole was counted then.
        self.answered += data.count(_OK) - self._tail.count(_OK)
        self._tail = data[-_MARK:]

    def listen(self, timeout: float) -> bool:
        """Read what comes within some seconds; returns whether something did."""
        if not select.select([self.socket], [], [], timeout)[0]:
            return False
        self.read()
        return True


class Publisher:
    """The commands of the benchmark."""

    def __init__(self, port: int, dialect: str = "queuecast") -> None:
        self._port = port
        self._post = POSTS[dialect]

    async def pace(self, rate: float, messages: int, size: int) -> child.Answer:
        """Publish `messages` messages, one each 1/rate seconds."""
        client = Client(self._port)
        started = time.monotonic()
        before = child.usage()["cpu"]
        number = 0
        while number < messages:
            due = min(messages, int((time.monotonic() - started) * rate) + 1)
            if due <= number:
                client.listen(_NAP)
                continue
            bodies = [
                message.body(each, size, stamped=True, due=started + each / rate)
                for each in range(number, due)
            ]
            client.send(b"".join(map(self._post, bodies)))
            number = due
        elapsed = time.monotonic() - started
        while client.answered < messages:
            if not client.listen(_SILENCE):
                raise ValueError(f"{client.answered} of {messages} requests were answered")
        client.socket.close()
        return {
            "started": started,
            "elapsed": elapsed,
            "busy": (child.usage()["cpu"] - before) / elapsed,
        }

    async def load(self, seconds: float, clients: int, size: int) -> child.Answer:
        """Publish for some seconds; each client waits for an answer before its next request.

        Returns how many were answered, all of them with a 2xx, and the seconds that it took.
        """
        opened = {client.socket: client for client in (Client(self._port) for _ in range(clients))}
        number = 0
        started = time.monotonic()
        before = child.usage()["cpu"]
        for client in opened.values():
            client.socket.sendall(self._post(message.body(number, size)))
            number += 1
        waiting = len(opened)
        poll = select.epoll()
        by_number = {}
        for each in opened:
            poll.register(each.fileno(), select.EPOLLIN)
            by_number[each.fileno()] = opened[each]
        while waiting:
            ready = poll.poll(_SILENCE)
            if not ready:
                raise ValueError(f"{waiting} requests are not answered")
            over = time.monotonic() > started + seconds
            for place, _ in ready:
                client = by_number[place]
                had = client.answered
                client.read()
                if client.answered == had:
                    continue
                if over:
                    waiting -= 1
                    continue
                client.socket.sendall(self._post(message.body(number, size)))
                number += 1
        elapsed = time.monotonic() - started
        answered = sum(client.answered for client in opened.values())
        for each in opened:
            each.close()
        if answered != number:
            raise ValueError(f"{answered} of {number} requests were answered")
        busy = (child.usage()["cpu"] - before) / elapsed
        return {"answered": answered, "elapsed": elapsed, "busy": busy}


async def main() -> None:
    """Serve until the standard input ends."""
    publisher = Publisher(int(sys.argv[1]), *sys.argv[2:])
    child.tell({})
    await child.serve({"pace": publisher.pace, "load": publisher.load})


if __name__ == "__main__":
    asyncio.run(main())
