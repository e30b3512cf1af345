"""Thousands of subscribers in one process, cheap enough not to be the limit.

Raw sockets behind one epoll, every read into the same large buffer. Where all subscribers have to
get the same bytes, each read is compared with what the first to come so far has got
(reference.py), and that is parsed at the end of the run: every message is there, in order, and
nothing else (a gap notice, a heartbeat) is.

Where streams differ, with several destinations or a peer that numbers each connection's messages,
a read is counted by its markers, whole, not message by message. That alone would not notice a
message that came in another's stead, so at the end of a run

- every connection has exactly as many markers as messages were published for it,
- all connections to one destination have exactly the same number of bytes,
- the streams of a sample, chosen anew for each run, were kept and are parsed,
- where latency is taken, the first message of every read of every connection is not one that was
  due before.

Anything else fails the benchmark. Who leaves or stays silent for `_SILENCE` fails it too.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from queuecast.server.listener import raise_open_files

from . import child, message, streams
from .latencies import Latencies
from .reference import Reference
from .wire import ALL, Turn, personal

_BUFFER = 256 * 1024
_SAMPLE = 8
# Bytes that a sample's stream may have, so that it fits in memory.
KEPT = 64 << 20
# Connections opened at a time, and subscriptions; the listen queue holds more, and an answer to
# one must not wait for very many others.
_WAVE, _SUBSCRIBED = 200, 2000
# Seconds after which what has not come will not come, and after which nothing more will.
_SILENCE = 20.0
_SETTLED = 0.05
# Between two chunks of a stream (RFC 9112, 7.1), and room for two of them in a message's head.
_BORDER = re.compile(rb"\r\n[0-9a-f]+\r\n")
_BORDERS = 16
_TIMEOUT = struct.pack("ll", int(_SILENCE), 0)


# Connections that are being opened: their destinations by number, and what is said on them.
_Wave = list[tuple[socket.socket, tuple[int, ...], tuple[Turn, ...]]]


class Receiver:
    """The subscribers, and the commands of the benchmark."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._asked = False
        self._sockets: dict[int, socket.socket] = {}
        # The destinations of each connection, by number.
        self._topics: dict[int, tuple[int, ...]] = {}
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        # Where all have to get the same; and whose connections got something else.
        self._reference: Reference | None = None
        self._alike = True
        self._strayed: set[int] = set()
        self._wire = ALL["ws"]
        self._stamped = False
        self._even = True
        self._counts: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._kept: dict[int, bytearray] = {}
        self._latencies = Latencies()
        self._total = 0
        self._last = 0.0

    # -- connections ----------------------------------------------------------------------

    def open(
        self,
        port: int,
        wire: str,
        count: int,
        first: int = 0,
        topics: int = 0,
        subscriptions: int = 1,
        since: str = "",
        destinations: list[str] | None = None,
        unlike: bool = False,
        alike: bool = True,
    ) -> child.Answer:
        """Connect and wait until every subscription is live; returns when it began and ended.

        first: the number of the first connection. topics: how many destinations they are spread
        over, 0 for the one that everybody has; `subscriptions` of them for each connection.
        since: resume there, and count what comes at once. destinations: names instead of those.
        unlike: no two heads are alike, over WebSocket. alike: False where several processes serve
        them, each with positions of its own.
        """
        self._wire = ALL[wire]
        self._even = self._wire.even and topics <= 1
        self._alike = alike and self._even and self._wire.alike and subscriptions == 1
        self._alike = self._alike and not destinations
        if since:
            self.begin(stamped=False)
        started = time.monotonic()
        at_once = max(1, min(_WAVE, _SUBSCRIBED // subscriptions))
        before: _Wave = []
        for wave in range(first, first + count, at_once):
            dialled = []
            for number in range(wave, min(wave + at_once, first + count)):
                begin = number * subscriptions
                chosen = tuple((begin + n) % max(1, topics) for n in range(subscriptions))
                names = [message.destination(topic if topics else None) for topic in chosen]
                if destinations is not None:
                    names = [destinations[topic] for topic in chosen]
                dialled.append((_dial(port), chosen, self._wire.turns(names, since)))
                dialled[-1][0].sendall(personal(dialled[-1][2][0].ask, unlike=unlike))
            self._greet(before, since)
            before = dialled
        self._greet(before, since)
        ended = self._last = time.monotonic()
        return {"started": started, "ended": ended}

    def _greet(self, wave: _Wave, since: str) -> None:
        rests: list[bytes] = []
        for place in range(len(wave[0][2]) if wave else 0):
            if place:
                for made, _, turns in wave:
                    made.sendall(turns[place].ask)
            rests = [_hear(made, turns[place]) for made, _, turns in reversed(wave)]
        for (made, topics, _), rest in zip(reversed(wave), rests, strict=True):
            if rest and not since:
                raise ValueError(f"more than an answer: {rest[:300]!r}")
            made.setblocking(False)
            number = made.fileno()
            self._sockets[number] = made
            self._topics[number] = topics
            self._epoll.register(number, select.EPOLLIN)
            if since:
                self._counts[number] = self._bytes[number] = 0
                if self._reference is None and len(self._kept) < _SAMPLE:
                    self._kept[number] = bytearray()
                self._buffer[: len(rest)] = rest
                self._count(number, len(rest))

    def close(self) -> child.Answer:
        """Disconnect everybody."""
        for number, each in self._sockets.items():
            self._epoll.unregister(number)
            each.close()
        self._sockets.clear()
        self._topics.clear()
        return {}

    # -- a run ----------------------------------------------------------------------------

    def begin(self, stamped: bool) -> child.Answer:
        """Begin to count. stamped: take the latency of every message too."""
        self._stamped = stamped
        self._reference = Reference(stamped=stamped) if self._alike else None
        self._strayed.clear()
        self._counts = dict.fromkeys(self._sockets, 0)
        self._bytes = dict.fromkeys(self._sockets, 0)
        size = 0 if self._alike else min(_SAMPLE, len(self._sockets))
        sample = random.sample(sorted(self._sockets), size)
        self._kept = {number: bytearray() for number in sample}
        self._latencies = Latencies()
        self._total = 0
        return {}

    def finish(
        self,
        messages: int,
        cycle: int,
        lossy: bool = False,
        silence: float = _SILENCE,
        first: int = 0,
        ordered: bool = True,
    ) -> child.Answer:
        """Receive the rest of `messages` messages of each subscription, and check everything.

        cycle, first, ordered: see streams.check. lossy: what is missing is answered as `lost`,
        for overload on purpose. silence: seconds after which nothing more will come. Returns the
        time of the last byte (monotonic seconds), and all bytes.
        """
        wanted = messages * sum(map(len, self._topics.values()))
        # The marker stands at the front: the last message may not be whole yet.
        while self._total < wanted or not self._is_even():
            if self._strayed or not self._receive(silence):
                if lossy and self._total < wanted:
                    return {"last": self._last, "lost": wanted - self._total}
                raise ValueError(
                    f"{self._total} deliveries, {wanted} were due; "
                    f"{len(set(self._bytes.values()))} different numbers of bytes; "
                    f"{len(self._strayed)} connections got other bytes than the first"
                )
        while self._receive(_SETTLED):
            pass
        self._check(messages, cycle, first, ordered)
        answer: child.Answer = {"last": self._last, "bytes": sum(self._bytes.values())}
        return answer | self._latencies.summary() if self._stamped else answer

    def _check(self, messages: int, cycle: int, first: int, ordered: bool) -> None:
        if self._strayed:
            raise ValueError(f"{len(self._strayed)} connections got other bytes than the first")
        reference = self._reference
        if reference is not None:
            whole = bytes(reference.data)
            streams.check(self._wire.split, whole, messages, cycle, (0,), first, ordered)
        for number, stream in self._kept.items():
            streams.check(
                self._wire.split,
                bytes(stream),
                messages,
                cycle,
                self._topics[number],
                first,
                ordered,
            )
        wrong = [
            number
            for number, count in self._counts.items()
            if count != messages * len(self._topics[number])
        ]
        if wrong:
            raise ValueError(f"{len(wrong)} connections do not have {messages} messages")
        if not self._is_even():
            raise ValueError("the connections have different numbers of bytes")

    def _is_even(self) -> bool:
        return not self._even or len(set(self._bytes.values())) <= 1

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
            else:
                self._asked = True
        if any_read:
            self._last = time.monotonic()
        return any_read

    def _read(self, number: int) -> None:
        size = self._sockets[number].recv_into(self._buffer)
        if size == 0:
            raise ValueError("the server closed a connection")
        self._count(number, size)

    def _count(self, number: int, size: int) -> None:
        """Take what has come on a connection: the first bytes of the buffer."""
        if number not in self._counts:
            return  # no run has begun
        if self._reference is not None:
            self._compare(self._reference, number, size)
            return
        buffer = self._buffer
        count = buffer.count(message.MARKER, 0, size)
        self._counts[number] += count
        self._bytes[number] += size
        self._total += count
        kept = self._kept.get(number)
        if kept is not None:
            kept += self._view[:size]
            if len(kept) > KEPT:
                raise ValueError("the run is too long to be checked")
        if self._stamped and count:
            self._take_stamp(number, size, count)

    def _compare(self, reference: Reference, number: int, size: int) -> None:
        place = self._bytes[number]
        found = None if number in self._strayed else reference.take(place, self._view[:size])
        if found is None:
            self._strayed.add(number)
            return
        first, count = found
        self._bytes[number] = place + size
        self._counts[number] += count
        self._total += count
        if len(reference.data) > KEPT:
            raise ValueError("the run is too long to be checked")
        if self._stamped and count:
            stamp = reference.stamp(first)
            if stamp is not None:
                self._latencies.add((time.monotonic_ns() - stamp) / 1e9, count)

    def _take_stamp(self, number: int, size: int, count: int) -> None:
        """Take a read's first message: its latency, and whether it is the one that was due."""
        place = self._buffer.find(message.MARKER, 0, size)
        text = bytes(self._buffer[place : min(size, place + message.STAMP.stop + _BORDERS)])
        if b"\r\n" in text:
            text = _BORDER.sub(b"", text)
        if len(text) < message.STAMP.stop:
            # Cut off by the end of the read, so it is this read's only one.
            return
        first, stamp = text[message.NUMBER], text[message.STAMP]
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
        failed = ""
        # So that a command ends the wait for bytes.
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            try:
                while not self._asked:
                    self._receive(-1)
            except (ValueError, OSError) as error:
                # Said in answer to the next command; nothing is read any more.
                failed = failed or str(error)
                self.close()
                continue
            # A line is answered before the next one comes.
            self._asked = False
            # A pipe holds less than the names of thousands of destinations.
            line = b""
            while not line.endswith(b"\n"):
                piece = os.read(sys.stdin.fileno(), 1 << 20)
                if not piece:
                    return
                line += piece
            command: dict[str, Any] = json.loads(line)
            name = command.pop("do")
            try:
                if failed and name != "usage":
                    raise ValueError(failed)
                child.tell(commands[name](**command))
            except (ValueError, OSError) as error:
                child.tell({"error": f"{name}: {error}"})


def _dial(port: int) -> socket.socket:
    made = socket.socket()
    # Cheaper than Python's own timeout, which polls before each call.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
    made.connect(("127.0.0.1", port))
    return made


def _hear(opened: socket.socket, turn: Turn) -> bytes:
    """Read the server's answer to one turn; returns what came after it."""
    answer = b""
    while turn.end not in answer:
        try:
            data = opened.recv(65536)
        except BlockingIOError:
            raise ValueError(f"no answer in time, only {answer[:300]!r}") from None
        answer += data
        # STOMP's refusal, and Centrifugo's.
        if not data or b"ERROR\n" in answer or b'"error":{' in answer:
            raise ValueError(f"refused: {answer[:300]!r}")
    if turn.has not in answer:
        raise ValueError(f"refused: {answer[-300:]!r}")
    if turn.answer.startswith(b"HTTP") and not answer.startswith(
        (b"HTTP/1.1 101", b"HTTP/1.1 200")
    ):
        raise ValueError(f"refused: {answer[:300]!r}")
    return answer[answer.index(turn.end) + len(turn.end) :]


def main() -> None:
    """Serve until the standard input ends."""
    raise_open_files()
    Receiver().serve()


if __name__ == "__main__":
    main()
