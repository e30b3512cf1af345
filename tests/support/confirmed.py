"""A publisher beside the gateway: numbers to an exchange, and what the broker said of each."""

from __future__ import annotations

import contextlib
import threading
import time

import pika
import pika.channel
import pika.exceptions
import pika.spec

from queuecast.errors import QueuecastError


class ConfirmedPublisher:
    """Publishes rising numbers by a connection of its own, in a thread, until it is stopped.

    url: of the broker's node that it is connected to. acked, nacked: the numbers that the broker
    confirmed and refused; what it has not answered for is in neither. pause: seconds between two.
    """

    def __init__(self, url: str, exchange: str, key: str, *, pause: float = 0.01) -> None:
        self._url = url
        self._exchange = exchange
        self._key = key
        self._pause = pause
        self.acked: list[int] = []
        self.nacked: list[int] = []
        self.sent = 0
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="confirmed publisher")

    def __enter__(self) -> ConfirmedPublisher:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self, patience: float = 60.0) -> None:
        """Publish no more, and wait for the confirms; patience: seconds."""
        if not self._stopping.is_set():
            self._patience = patience
            self._stopping.set()
            self._thread.join()

    def _run(self) -> None:
        try:
            connection = pika.BlockingConnection(pika.URLParameters(self._url))
            # The raw channel: a blocking one would wait for each confirm.
            channel: pika.channel.Channel = connection.channel()._impl
            channel.confirm_delivery(self._on_confirm)
            while not self._stopping.is_set():
                self.sent += 1
                channel.basic_publish(self._exchange, self._key, b"%d" % self.sent)
                connection.process_data_events(self._pause)
            ends = time.monotonic() + self._patience
            while len(self.acked) + len(self.nacked) < self.sent and time.monotonic() < ends:
                connection.process_data_events(0.05)
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()
        except (pika.exceptions.AMQPError, QueuecastError) as error:
            self.error = error

    def _on_confirm(self, frame: pika.frame.Method) -> None:
        method = frame.method
        answered = len(self.acked) + len(self.nacked)
        into = self.acked if isinstance(method, pika.spec.Basic.Ack) else self.nacked
        if method.multiple:
            known = {*self.acked, *self.nacked}
            into.extend(n for n in range(1, method.delivery_tag + 1) if n not in known)
        else:
            into.append(method.delivery_tag)
        assert len(self.acked) + len(self.nacked) > answered
