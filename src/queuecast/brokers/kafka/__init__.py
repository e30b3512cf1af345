"""Kafka: topics as feeds, consumer groups as work queues, idempotent publishing. Needs aiokafka."""

from .broker import KafkaBroker

__all__ = ["KafkaBroker"]
