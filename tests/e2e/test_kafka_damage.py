"""Records of Kafka whose checksum is wrong: everything else is read, and the gap is told."""

from __future__ import annotations

import asyncio

import pytest

from queuecast.brokers.kafka import KafkaBroker
from queuecast.destination import Destination
from tests.e2e.clients import Event, gateway, sse
from tests.support.confluent import create, produce
from tests.support.kafka import KafkaServer
from tests.support.sinks import DeliveryList, FeedList, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

D = Destination.parse
BAD = 5
GOOD = [b"record-%d" % n for n in range(10) if n != BAD]


def damage(kafka: KafkaServer, topic: str, body: bytes) -> None:
    """Change a byte of a record where it lies."""
    (segment,) = (kafka.data / f"{topic}-0").glob("*.log")
    data = segment.read_bytes()
    assert data.count(body) == 1
    segment.write_bytes(data.replace(body, body[:-1] + b"#"))


async def fill(kafka: KafkaServer, topic: str) -> None:
    for number in range(10):  # each a batch of its own
        await asyncio.to_thread(produce, kafka, topic, [b"record-%d" % number])


async def test_a_damaged_record_stops_no_reader(kafka_own: KafkaServer) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    healthy = await asyncio.to_thread(create, kafka_own)
    broker = KafkaBroker(kafka_own.url, ping=0.2)
    await broker.start()
    sink, other = FeedList(), FeedList()
    reader = await broker.open_feed(D(f"/topic/{topic}"), sink)
    beside = await broker.open_feed(D(f"/topic/{healthy}"), other)
    # It is held up, so that it comes to the record after the damage.
    await until(lambda: broker._live._consumer is not None, "the consumer", 60)
    broker._live._consumer.pause(*broker._live._consumer.assignment())
    await fill(kafka_own, topic)
    await fill(kafka_own, healthy)
    await asyncio.to_thread(kafka_own.stop)
    damage(kafka_own, topic, b"record-%d" % BAD)
    await asyncio.to_thread(kafka_own.start)
    await until(lambda: broker.ready, "ready", 120)
    broker._live._consumer.resume(*broker._live._consumer.assignment())
    await until(lambda: len(sink.messages) >= 9 and len(other.messages) >= 10, "the rest", 60)
    assert sink.bodies == GOOD
    assert sink.gaps == ["damaged"]
    assert len(other.messages) == 10
    assert other.gaps == []
    assert "damaged" in broker.status
    assert broker.ready
    await broker.publish(D(f"/topic/{topic}"), b"on")
    assert await sink.got(10) == [*GOOD, b"on"]
    await reader.close()
    await beside.close()

    # Work queues: who consumes gets all but the record that nobody can have.
    work = DeliveryList()
    consumer = await broker.consume(D(f"/queue/{topic}"), work, prefetch=100)
    await until(lambda: len(work.deliveries) >= 10, "the queue", 60)
    assert work.bodies == [*GOOD, b"on"]
    await consumer.close()
    await broker.close()

    # A replay: what is before it, the gap, what is behind it.
    async with gateway(broker={"url": kafka_own.url}) as gw:
        for query in ("since=first", "last=11"):
            async with sse(f"{gw.url}/sse/topic/{topic}?{query}") as stream:
                events: list[Event] = []
                while len(events) < 11:
                    event = await stream.any()
                    if event.type != "position":
                        events.append(event)
            told = [each.json["reason"] if each.type == "gap" else each.data for each in events]
            bodies = [body.decode() for body in [*GOOD, b"on"]]
            assert told == [*bodies[:BAD], "damaged", *bodies[BAD:]], query
