"""A back end: publishes to a RabbitMQ, at a fixed rate or as fast as it takes them.

The frames are written by hand, three of them ready-made but for the body, because a library would
be the limit. At a rate the stamp is when a message was due, not when it left: a broker that makes
its publisher wait, or a publisher that is late, adds to the latency and hides nothing. The
argument is the broker's URL.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pika
from pika import frame, spec

from . import child, message

# Between two looks at the clock, in which the broker can tell the publisher to stop.
_NAP = 0.002
_EXCHANGE = "amq.topic"
# Messages that are written at once.
_AT_ONCE = 500
# Messages without a confirm; the broker's own flow control stops us before.
_SILENCE = 60.0


class Link:
    """One connection with one channel that confirms."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        self._socket = socket.create_connection((parameters.host, parameters.port), _SILENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self.confirmed = 0
        user = parameters.credentials
        self._socket.sendall(frame.ProtocolHeader().marshal())
        self._expect(spec.Connection.Start)
        login = f"\0{user.username}\0{user.password}"
        self._send(0, spec.Connection.StartOk(client_properties={}, response=login))
        tune = self._expect(spec.Connection.Tune)
        # No heartbeats: it is idle while subscribers connect, and says nothing meanwhile.
        self._send(0, spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self._send(0, spec.Connection.Open(parameters.virtual_host))
        self._expect(spec.Connection.OpenOk)
        self.call(spec.Channel.Open(), spec.Channel.OpenOk)
        self.call(spec.Confirm.Select(), spec.Confirm.SelectOk)

    def call(self, method: Any, answer: type) -> Any:
        """Call a method of the channel and wait for its answer; returns that."""
        self._send(1, method)
        return self._expect(answer)

    def write(self, data: bytes) -> None:
        """Write frames, and take confirms that have come."""
        self._socket.sendall(data)
        self.listen(0.0)

    def listen(self, timeout: float) -> None:
        """Take what comes within some seconds; ValueError when the broker closes."""
        while select.select([self._socket], [], [], timeout)[0]:
            for _ in self._methods():
                pass
            timeout = 0.0

    def _expect(self, answer: type) -> Any:
        while True:
            for method in self._methods():
                if isinstance(method, answer):
                    return method

    def _methods(self) -> Iterator[Any]:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ValueError("RabbitMQ closed the publisher's connection")
        self._rest += data
        while True:
            used, found = frame.decode_frame(self._rest)
            if found is None:
                return
            self._rest = self._rest[used:]
            method = getattr(found, "method", None)
            if isinstance(method, spec.Basic.Ack):
                self.confirmed = method.delivery_tag
            elif isinstance(method, spec.Connection.Close | spec.Channel.Close | spec.Basic.Nack):
                raise ValueError(f"RabbitMQ refuses: {method}")
            else:
                yield method

    def _send(self, channel: int, method: Any) -> None:
        self._socket.sendall(frame.Method(channel, method).marshal())


class Publisher:
    """The commands of the benchmark."""

    def __init__(self, url: str) -> None:
        self._link = Link(url)
        self._sent = 0

    async def pace(self, rate: float, messages: int, size: int) -> child.Answer:
        """Publish `messages` messages, one each 1/rate seconds."""
        head = self._head(message.DESTINATION, size)
        started = time.monotonic()
        before = child.usage()["cpu"]
        number = 0
        while number < messages:
            now = time.monotonic()
            due = min(messages, int((now - started) * rate) + 1, number + _AT_ONCE)
            if due <= number:
                self._link.listen(_NAP)
                continue
            self._link.write(
                b"".join(
                    head
                    + message.body(each, size, stamped=True, due=started + each / rate)
                    + b"\xce"
                    for each in range(number, due)
                )
            )
            number = due
        elapsed = time.monotonic() - started
        self._sent += messages
        return {
            "started": started,
            "elapsed": elapsed,
            "busy": (child.usage()["cpu"] - before) / elapsed,
        }

    async def fill(
        self, messages: int, size: int, topics: int = 0, queue: str = "", persistent: bool = False
    ) -> child.Answer:
        """Publish `messages` messages to each destination, and wait until all are confirmed.

        queue: publish to that queue, declared here and durable, instead.
        """
        if queue:
            self._link.call(spec.Queue.Declare(queue=queue, durable=True), spec.Queue.DeclareOk)
            heads = [self._head(queue, size, exchange="", persistent=persistent)]
        else:
            heads = [
                self._head(message.destination(topic if topics else None), size)
                for topic in range(max(1, topics))
            ]
        started = time.monotonic()
        waiting: list[bytes] = []
        for number in range(messages):
            for topic, head in enumerate(heads):
                waiting.append(head + message.body(number, size, topic=topic) + b"\xce")
                if len(waiting) == _AT_ONCE:
                    self._link.write(b"".join(waiting))
                    waiting.clear()
        self._link.write(b"".join(waiting))
        self._sent += messages * len(heads)
        deadline = time.monotonic() + _SILENCE
        while self._link.confirmed < self._sent:
            self._link.listen(0.1)
            if time.monotonic() > deadline:
                raise ValueError(f"{self._sent - self._link.confirmed} messages not confirmed")
        return {"started": started, "elapsed": time.monotonic() - started}

    def _head(
        self, destination: str, size: int, *, exchange: str = _EXCHANGE, persistent: bool = False
    ) -> bytes:
        """Return the frames of a message up to its body (AMQP 0-9-1, 4.2.3 and 4.2.6)."""
        key = destination.rpartition("/")[2]
        properties = spec.BasicProperties(delivery_mode=2 if persistent else 1)
        return (
            bytes(frame.Method(1, spec.Basic.Publish(exchange=exchange, routing_key=key)).marshal())
            + bytes(frame.Header(1, size, properties).marshal())
            + b"\x03\x00\x01"
            + size.to_bytes(4, "big")
        )


async def main() -> None:
    """Serve until the standard input ends."""
    publisher = Publisher(sys.argv[1])
    child.tell({})
    await child.serve({"pace": publisher.pace, "fill": publisher.fill})


if __name__ == "__main__":
    asyncio.run(main())
