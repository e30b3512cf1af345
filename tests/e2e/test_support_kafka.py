"""The Kafka that the other tests stand on: it starts, remembers, dies on demand."""

import uuid

import pytest
from confluent_kafka import Consumer, Producer

from tests.support.kafka import Kafka, KafkaServer

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


def produce(kafka: Kafka, topic: str, *bodies: bytes) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for body in bodies:
        producer.produce(topic, body)
    assert producer.flush(30) == 0


def read(kafka: Kafka, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    got = consumer.consume(count, timeout=60)
    consumer.close()
    return [bytes(message.value() or b"") for message in got]


def test_what_was_published_survives_a_kill(kafka_own: KafkaServer) -> None:
    topic = f"support-{uuid.uuid4().hex}"
    produce(kafka_own, topic, b"1", "你好".encode())
    kafka_own.kill()
    assert not kafka_own.running
    kafka_own.start()
    produce(kafka_own, topic, b"3")
    assert read(kafka_own, topic, 3) == [b"1", "你好".encode(), b"3"]


def test_kafkas_own_programs_run(kafka_own: KafkaServer) -> None:
    topic = f"support-{uuid.uuid4().hex}"
    produce(kafka_own, topic, b"1", b"2")
    shown = kafka_own.tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--bootstrap-server", kafka_own.bootstrap, "--topic", topic),
        *("--from-beginning", "--max-messages", "2"),
    )
    assert shown.split() == ["1", "2"]
