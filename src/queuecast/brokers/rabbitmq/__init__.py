"""RabbitMQ: feeds over one queue per exchange, consumers, confirmed publishing. Needs pika."""

from .broker import RabbitBroker

__all__ = ["RabbitBroker"]
