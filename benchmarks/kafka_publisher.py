"""A back end: publishes to a Kafka, at a fixed rate or as fast as it takes them.

As amqp_publisher does to a RabbitMQ; the argument is the Kafka's address. The topic has one
partition, so that there is one order.
"""

from __future__ import annotations

import asyncio
import sys
import time

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from . import child, message

_NAP = 0.002
_SILENCE = 60.0
_TOPIC = message.DESTINATION.rpartition("/")[2]


class Publisher:
    """One producer, and the commands of the benchmark."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        # Within a millisecond what gathers goes in one request; more would be latency.
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "linger.ms": 1,
                "acks": 1,
                "queue.buffering.max.messages": 2_000_000,
            }
        )

    async def create(self, topic: str = _TOPIC) -> child.Answer:
        """Create the topic with one partition; it may be there."""
        admin = AdminClient({"bootstrap.servers": self._bootstrap})
        made = admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
        try:
            made[topic].result(_SILENCE)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
        return {}

    async def pace(self, rate: float, messages: int, size: int) -> child.Answer:
        """Publish `messages` messages, one each 1/rate seconds."""
        started = time.monotonic()
        before = child.usage()["cpu"]
        number = 0
        while number < messages:
            due = min(messages, int((time.monotonic() - started) * rate) + 1)
            if due <= number:
                self._producer.poll(_NAP)
                continue
            for each in range(number, due):
                body = message.body(each, size, stamped=True, due=started + each / rate)
                self._producer.produce(_TOPIC, body)
            number = due
        elapsed = time.monotonic() - started
        self._flush()
        return {
            "started": started,
            "elapsed": elapsed,
            "busy": (child.usage()["cpu"] - before) / elapsed,
        }

    async def fill(self, messages: int, size: int) -> child.Answer:
        """Publish `messages` messages, and wait until the Kafka has them."""
        started = time.monotonic()
        for number in range(messages):
            self._producer.produce(_TOPIC, message.body(number, size))
        self._flush()
        return {"started": started, "elapsed": time.monotonic() - started}

    def _flush(self) -> None:
        left = self._producer.flush(_SILENCE)
        if left:
            raise ValueError(f"Kafka did not take {left} messages")


async def main() -> None:
    """Serve until the standard input ends."""
    publisher = Publisher(sys.argv[1])
    child.tell({})
    await child.serve({"create": publisher.create, "pace": publisher.pace, "fill": publisher.fill})


if __name__ == "__main__":
    asyncio.run(main())
