"""A publisher at Kafka itself, as a back end's."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from confluent_kafka import Producer

from tests.chaos.sources import Source


class KafkaPublisher:
    """Publishes at Kafka itself with librdkafka's idempotent producer, as a back end does."""

    def __init__(
        self, source: Source, bootstrap: str, topic: str, key: str | None, interval: float
    ) -> None:
        self.source = source
        self._topic, self._key = topic, key
        self._interval = interval
        self._settings: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 0,
            # It goes on trying for ever, and Kafka has the record once: no outcome is unknown.
            "message.timeout.ms": 0,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
        self._stopping = threading.Event()
        self._abandoned = False

    async def run(self) -> None:
        try:
            await asyncio.to_thread(self._run)
        finally:
            self._abandoned = True  # Nobody can cancel a thread.

    def stop(self) -> None:
        """Finish the number at hand."""
        self._stopping.set()

    def _run(self) -> None:
        source = self.source
        producer = Producer(self._settings)
        while not self._stopping.wait(self._interval) and not self._abandoned:
            self._publish(producer, source.confirmed + 1)
            if not self._abandoned:
                source.confirm(source.confirmed + 1)

    def _publish(self, producer: Any, number: int) -> None:
        """Publish a number and return when Kafka has it, however long that takes."""
        answers: list[Any] = []

        def done(error: Any, _: Any) -> None:
            answers.append(error)

        body = self.source.body(number).encode()
        producer.produce(self._topic, body, self._key, on_delivery=done)
        while not answers and not self._abandoned:
            producer.poll(0.1)
        if answers and answers[0] is not None:
            raise RuntimeError(f"{self._topic}: {answers[0]}")
