"""Thousands of subscribers in one process, cheap enough not to be the limit.

Raw sockets behind one epoll, every read into the same large buffer; a read is counted by its
markers, whole, not message by message. That alone would not notice a message that came in
another's stead, so at the end of a run

- every connection has exactly as many markers as messages were published,
- all connections have exactly the same number of bytes,
- the streams of a sample, chosen anew for each run, were kept and are parsed: every message is
  there, in order, and nothing else (a gap notice, a heartbeat) is,
- where latency is taken, the first message of every read of every connection is not one that was
  due before.

Anything else fails the benchmark. Who leaves or stays silent for `_SILENCE` fails it too.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable

from queuecast.server.listener import raise_open_files

from . import child, message
from .latencies import Latencies
from .wire import WIRES, Turn, check

_BUFFER = 256 * 1024
_SAMPLE = 8
# Connections opened at a time; the listen queue holds more.
_WAVE = 200
# Seconds after which what has not come will not come, and after which nothing more will.
_SILENCE = 10.0
_SETTLED = 0.05


class Receiver:
    """The subscribers, and the commands of the benchmark."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        # So that a command ends the wait for bytes.
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._buffer = bytearray(_BUFFER)
        self._wire = WIRES["ws"]
        self._stamped = False
        self._counts: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._kept: dict[int, bytearray] = {}
        self._latencies = Latencies()
        self._total = 0
        self._last = 0.0

    # -- connections ----------------------------------------------------------------------

    def open(self, port: int, wire: str, count: int) -> child.Answer:
        """Connect and wait until every subscription is live."""
        self._wire = WIRES[wire]
        left = count
        while left:
            wave = min(left, _WAVE)
            self._open_wave(port, wave)
            left -= wave
        return {}

    def _open_wave(self, port: int, count: int) -> None:
        opened = []
        for _ in range(count):
            made = socket.create_connection(("127.0.0.1", port), timeout=_SILENCE)
            opened.append(made)
        for turn in self._wire.turns:
            for each in opened:
                each.sendall(turn.ask)
            for each in opened:
                _hear(each, turn)
        for each in opened:
            each.setblocking(False)
            self._sockets[each.fileno()] = each
            self._epoll.register(each.fileno(), select.EPOLLIN)

    def close(self) -> child.Answer:
        """Disconnect everybody."""
        for number, each in self._sockets.items():
            self._epoll.unregister(number)
            each.close()
        self._sockets.clear()
        return {}

    # -- a run ----------------------------------------------------------------------------

    def begin(self, stamped: bool) -> child.Answer:
        """Begin to count. stamped: take the latency of every message too."""
        self._stamped = stamped
        self._counts = dict.fromkeys(self._sockets, 0)
        self._bytes = dict.fromkeys(self._sockets, 0)
        sample = random.sample(sorted(self._sockets), min(_SAMPLE, len(self._sockets)))
        self._kept = {number: bytearray() for number in sample}
        self._latencies = Latencies()
        self._total = 0
        return {}

    def finish(self, messages: int, cycle: int, lossy: bool = False) -> child.Answer:
        """Receive the rest of `messages` messages, and check everything.

        cycle: see wire.check. lossy: what is missing is answered as `lost`, for overload on
        purpose. Returns the time of the last byte (monotonic seconds) and the bytes of a delivery.
        """
        wanted = messages * len(self._sockets)
        # The marker stands at the front: the last message may not be whole yet.
        while self._total < wanted or not self._is_even():
            if not self._receive(_SILENCE):
                if lossy and self._total < wanted:
                    return {"last": self._last, "lost": wanted - self._total}
                raise ValueError(
                    f"{self._total} deliveries, {wanted} were due; "
                    f"{len(set(self._bytes.values()))} different numbers of bytes"
                )
        while self._receive(_SETTLED):
            pass
        self._check(messages, cycle)
        answer: child.Answer = {
            "last": self._last,
            "bytes": sum(self._bytes.values()) / max(1, wanted),
        }
        return answer | self._latencies.summary() if self._stamped else answer

    def _check(self, messages: int, cycle: int) -> None:
        for stream in self._kept.values():
            check(self._wire, bytes(stream), messages, cycle)
        wrong = [number for number, count in self._counts.items() if count != messages]
        if wrong:
            raise ValueError(f"{len(wrong)} connections do not have {messages} messages")
        if not self._is_even():
            raise ValueError("the connections have different numbers of bytes")

    def _is_even(self) -> bool:
        return len(set(self._bytes.values())) == 1

    # -- reading --------------------------------------------------------------------------

    def _receive(self, timeout: float) -> bool:
        """Wait for bytes and read them; returns whether any came.

        timeout: seconds, -1 for ever.
        """
        ready = self._epoll.poll(timeout, 1024)
        any_read = False
        for number, _ in ready:
            if number in self._sockets:
                self._read(number)
                any_read = True
        if any_read:
            self._last = time.monotonic()
        return any_read

    def _read(self, number: int) -> None:
        buffer = self._buffer
        size = self._sockets[number].recv_into(buffer)
        if size == 0:
            raise ValueError("the server closed a connection")
        count = buffer.count(message.MARKER, 0, size)
        self._counts[number] += count
        self._bytes[number] += size
        self._total += count
        kept = self._kept.get(number)
        if kept is not None:
            kept += memoryview(buffer)[:size]
        if self._stamped and count:
            self._take_stamp(number, size, count)

    def _take_stamp(self, number: int, size: int, count: int) -> None:
        """Take a read's first message: its latency, and whether it is the one that was due."""
        buffer = self._buffer
        place = buffer.find(message.MARKER, 0, size)
        if place + message.STAMP.stop > size:
            # Cut off by the end of the read, so it is this read's only one.
            return
        first = buffer[place + message.NUMBER.start : place + message.NUMBER.stop]
        stamp = buffer[place + message.STAMP.start : place + message.STAMP.stop]
        due = self._counts[number] - count
        if int(first) < due:
            raise ValueError(f"message {int(first)} instead of {due}: repeated or out of order")
        self._latencies.add((time.monotonic_ns() - int(stamp)) / 1e9, count)

    # -- commands -------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer commands until the standard input ends; read sockets meanwhile."""
        commands: dict[str, Callable[..., child.Answer]] = {
            "open": self.open,
            "close": self.close,
            "begin": self.begin,
            "finish": self.finish,
            "usage": child.usage,
        }
        while True:
            # A line is written whole and answered before the next one comes.
            if not select.select([sys.stdin], [], [], 0)[0]:
                self._receive(-1)
                continue
            line = os.read(sys.stdin.fileno(), 65536)
            if not line:
                return
            command = json.loads(line)
            name = command.pop("do")
            try:
                child.tell(commands[name](**command))
            except (ValueError, OSError) as error:
                child.tell({"error": f"{name}: {error}"})


def _hear(opened: socket.socket, turn: Turn) -> None:
    """Read the server's answer to one turn."""
    answer = b""
    while not answer.endswith(turn.end):
        data = opened.recv(65536)
        answer += data
        if not data or b"ERROR\n" in answer:
            raise ValueError(f"refused: {answer[:300]!r}")
    if turn.answer.startswith(b"HTTP") and not answer.startswith(turn.answer[:12]):
        raise ValueError(f"refused: {answer[:300]!r}")


def main() -> None:
    """Serve until the standard input ends."""
    raise_open_files()
    Receiver().serve()


if __name__ == "__main__":
    main()
