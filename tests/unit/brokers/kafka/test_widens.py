"""Partitions may be added: a reader of a topic says that its feed may get more lanes."""

from queuecast.brokers.base import WideningReader
from queuecast.brokers.kafka.reader import KafkaReader


def test_a_topics_reader_may_widen() -> None:
    assert KafkaReader.widens
    assert isinstance(KafkaReader.__new__(KafkaReader), WideningReader)
