"""How many bytes the queues hold, and how many they may."""

from __future__ import annotations

from ...message import Message

# What a message costs beside its strings: the objects of message, entry and containers.
OVERHEAD = 400


def weight(message: Message) -> int:
    """Estimate the bytes that a message takes in memory."""
    total = OVERHEAD + len(message.body) + len(message.routing_key)
    headers = message.properties.headers
    if headers:
        total += sum(len(name) + _weight(value) for name, value in headers.items())
    return total


def _weight(value: object) -> int:
    if isinstance(value, str | bytes):
        return 100 + len(value)
    if isinstance(value, dict):
        return 100 + sum(len(str(name)) + _weight(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return 100 + sum(_weight(item) for item in value)
    return 100


class Memory:
    """The queues' common budget.

    limit: bytes for all queues together; a publisher without consumers must not take the
    machine's memory.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more are within the limit."""
        return self.used + size <= self.limit
