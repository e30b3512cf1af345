"""The chaos test's Kafka: its topics, the destinations that read them, and a publisher beside us.

A topic keeps its records whoever listens, so nothing here is ever allowed to be missing: no fault
of a gateway, of the network or of Kafka itself makes a gap due.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from confluent_kafka import Producer

from tests.chaos.sources import KEPT, LIVE, WORK, Source

# Read as a whole, and by key: three partitions, each with an order of its own.
KEYED = "kept.keyed"
_KEYS = ("red", "green", "blue", "white")

# Kafka knows what was committed: what was acked a moment before one of these comes again as new.
UNMARKED = ("kill node", "kill broker", "cut broker", "fin broker", "stall broker")

_PARTITIONS = {KEYED: 3, "chaos-spread": 3}


def make_sources() -> list[Source]:
    """Return the sources of a run on Kafka."""
    made: list[Source] = []
    for kind in (KEPT, LIVE):
        made += [Source("a", kind, "http", 40), Source("b", kind, "kafka", 40)]
        # Large, so that a client that does not read fills every buffer on its way.
        made.append(Source("large", kind, "kafka", 16_000))
    wide = (f"/topic/{KEYED}", f"/exchange/{KEYED}/#")
    for number, key in enumerate(_KEYS):
        via = ("http", "kafka")[number % 2]
        address = f"/exchange/{KEYED}/{key}"
        made.append(Source(key, KEPT, via, 40, address=address, wide=wide))
    return [*made, Source("single", WORK, "http", 40), Source("spread", WORK, "kafka", 40)]


def destinations(kind: str) -> tuple[list[str], list[str]]:
    """Return what clients of a kind subscribe to, and what one does on one connection."""
    simple = [f"/topic/{kind}.{name}" for name in ("a", "b", "large")]
    if kind != KEPT:
        return [*simple[:2], *simple], simple[:2]
    keyed = [f"/exchange/{KEYED}/{key}" for key in _KEYS]
    choices = [*simple, keyed[0], keyed[1], f"/topic/{KEYED}", f"/exchange/{KEYED}/#"]
    return choices, [simple[0], keyed[2]]


def tables(url: str) -> str:
    """Return the broker's part of a gateway's configuration."""
    text = f'[broker]\nurl = "{url}"\n'
    for source in make_sources():
        topic = topic_of(source)[0]
        if f'"{topic}"' not in text:
            partitions = _PARTITIONS.get(topic, 1)
            text += f'[[topic]]\nname = "{topic}"\npartitions = {partitions}\n'
    return text


def topic_of(source: Source) -> tuple[str, str | None]:
    """Return the topic and the record key of a source."""
    if source.kind == WORK:
        return source.queue, None
    _, verb, topic, *key = source.destination.split("/")
    return topic, key[0] if verb == "exchange" else None


class KafkaPublisher:
    """Publishes at Kafka itself with librdkafka's idempotent producer, as a back end does."""

    def __init__(self, source: Source, bootstrap: str, interval: float) -> None:
        self.source = source
        self._topic, self._key = topic_of(source)
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
                source.confirmed += 1

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
