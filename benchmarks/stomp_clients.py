"""STOMP clients over WebSocket that work: they send with receipts, or consume a queue with acks.

The argument is the server's port. Each client waits for the receipt of a SEND before its next;
consumers ack what they read at once, with one ACK for each message.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import sys
import time
from collections import Counter

from . import child, message
from .wire import STOMP_CONNECT, STOMP_UPGRADE, Turn, client_frame

_SILENCE = 30.0
_ERROR = b"ERROR\n"
_RECEIPT = b"RECEIPT\n"
_DELIVERY = re.compile(rb"\nack:([^\n]+)\n.*?\n\n\$(\d{11})", re.DOTALL)
# What it answers stands behind all acks; on a DISCONNECT the plugin leaves without a word.
_LAST = client_frame(b"UNSUBSCRIBE\nid:w\nreceipt:bye\n\n\0")


class Client:
    """One connection, logged in."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tail = b""
        for turn in (STOMP_UPGRADE, STOMP_CONNECT):
            self._say(turn)

    def _say(self, turn: Turn) -> None:
        self.socket.sendall(turn.ask)
        answer = b""
        while turn.end not in answer:
            answer += self.read()

    def read(self) -> bytes:
        """Read once; ValueError when the server refuses or leaves."""
        data = self.socket.recv(1 << 18)
        if not data or _ERROR in data:
            raise ValueError(f"refused: {data[:300]!r}")
        return data

    def whole(self) -> bytes:
        """Read once and return what is whole, up to the end of a frame."""
        data = self.tail + self.read()
        end = data.rfind(b"\0") + 1
        self.tail = data[end:]
        return data[:end]


class Clients:
    """The commands of the benchmark."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def sends(self, seconds: float, clients: int, size: int) -> child.Answer:
        """Send for some seconds; returns how many were answered, and the seconds that it took."""
        opened = [Client(self._port) for _ in range(clients)]
        by_number = {client.socket.fileno(): client for client in opened}
        poll = _poll(opened)
        number = 0

        def send(client: Client) -> None:
            nonlocal number
            head = f"SEND\ndestination:{message.DESTINATION}\nreceipt:r{number}\n\n".encode()
            body = message.body(number, size)
            client.socket.sendall(client_frame(head + body + b"\0"))
            number += 1

        started = time.monotonic()
        for client in opened:
            send(client)
        waiting, answered = len(opened), 0
        while waiting:
            ready = poll.poll(_SILENCE)
            if not ready:
                raise ValueError(f"{waiting} receipts did not come")
            over = time.monotonic() > started + seconds
            for place, _ in ready:
                client = by_number[place]
                if _RECEIPT not in client.whole():
                    continue
                answered += 1
                if over:
                    waiting -= 1
                else:
                    send(client)
        elapsed = time.monotonic() - started
        for client in opened:
            client.socket.close()
        return {"answered": answered, "sent": number, "elapsed": elapsed}

    async def work(self, queue: str, messages: int, clients: int, prefetch: int) -> child.Answer:
        """Consume and ack a queue; returns the seconds until the last ack was taken.

        Raises ValueError unless every message came exactly once.
        """
        opened = [Client(self._port) for _ in range(clients)]
        by_number = {client.socket.fileno(): client for client in opened}
        poll = _poll(opened)
        subscribe = (
            f"SUBSCRIBE\nid:w\ndestination:{queue}\nack:client-individual\n"
            f"prefetch-count:{prefetch}\n\n\0"
        )
        seen: Counter[int] = Counter()
        started = time.monotonic()
        for client in opened:
            client.socket.sendall(client_frame(subscribe.encode()))
        left = messages
        while left > 0:
            ready = poll.poll(_SILENCE)
            if not ready:
                raise ValueError(f"{left} of {messages} messages did not come")
            for place, _ in ready:
                client = by_number[place]
                # A length in a WebSocket frame's head may hold a zero byte too; what is cut off
                # there has no message in it.
                found = [_DELIVERY.search(part) for part in client.whole().split(b"\0")]
                acks = []
                for delivery in found:
                    if delivery is not None:
                        seen[int(delivery[2])] += 1
                        acks.append(client_frame(b"ACK\nid:%s\n\n\0" % delivery[1]))
                client.socket.sendall(b"".join(acks))
                left -= len(acks)
        for client in opened:
            client.socket.sendall(_LAST)
        for client in opened:
            while _RECEIPT not in client.whole():
                pass
        elapsed = time.monotonic() - started
        for client in opened:
            client.socket.close()
        if set(seen) != set(range(messages)) or seen.total() != messages:
            raise ValueError(f"{len(seen)} of {messages} messages came, {seen.total()} times")
        return {"elapsed": elapsed}


def _poll(clients: list[Client]) -> select.epoll:
    poll = select.epoll()
    for client in clients:
        poll.register(client.socket.fileno(), select.EPOLLIN)
    return poll


async def main() -> None:
    """Serve until the standard input ends."""
    clients = Clients(int(sys.argv[1]))
    child.tell({})
    await child.serve({"sends": clients.sends, "work": clients.work})


if __name__ == "__main__":
    asyncio.run(main())
