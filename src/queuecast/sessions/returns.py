"""How often a message came back, so that one that nobody can handle goes round no longer.

Quorum queues count by themselves and say so in `x-delivery-count`, which holds on every node and
over restarts. For classic queues a node counts what its own clients were given and did not ack,
by the message's id, or where it has none by its body and properties. That is not exact: equal
messages without ids share a count, every node has its own, and a restart begins at none.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping

from ..message import Message

logger = logging.getLogger(__name__)

# Messages whose returns are remembered; those that came back longest ago go first. It bounds what
# a client costs that nacks everything for ever.
_MOST = 100_000
# Seconds between two warnings about one queue, and the queues that are kept apart in them.
_QUIET = 60.0
_QUEUES = 1000

_COUNT = "x-delivery-count"


class Returns:
    """The counts of this node. default: redeliveries of a message, 0 for any number.

    queues: the same by queue, where it is set. now: monotonic seconds.
    """

    def __init__(
        self,
        default: int = 0,
        queues: Mapping[str, int] | None = None,
        *,
        now: Callable[[], float] = lambda: 0.0,
        most: int = _MOST,
    ) -> None:
        self._default = default
        self._queues = queues or {}
        self._now = now
        self._most = most
        self._counts: dict[bytes, int] = {}
        self._warned: dict[str, float] = {}

    def limit(self, queue: str) -> int:
        """Return how often a queue's message may be delivered again, 0 for any number."""
        return self._queues.get(queue, self._default)

    def key(self, queue: str, message: Message) -> bytes:
        """Return by what a message is known again."""
        digest = hashlib.blake2b(queue.encode("utf-8", "replace"), digest_size=16)
        properties = message.properties
        if properties.message_id:
            digest.update(b"\0id\0" + properties.message_id.encode("utf-8", "replace"))
            return digest.digest()
        # Without what brokers add when they deliver again.
        headers = {name: value for name, value in properties.headers.items() if name != _COUNT}
        known = (
            message.exchange,
            message.routing_key,
            properties.content_type,
            properties.correlation_id,
            properties.timestamp,
            properties.type,
            sorted(headers.items(), key=lambda item: item[0]),
        )
        digest.update(repr(known).encode("utf-8", "replace") + b"\0")
        digest.update(message.body)
        return digest.digest()

    def came_back(self, key: bytes) -> None:
        """Count that a client had a message and did not ack it."""
        self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > self._most:
            del self._counts[next(iter(self._counts))]

    def forget(self, key: bytes) -> None:
        """It is settled."""
        self._counts.pop(key, None)

    def count(self, key: bytes, message: Message) -> int:
        """Return how often a message came back, as far as it is known."""
        if not message.redelivered:
            return 0
        counted = message.properties.headers.get(_COUNT)
        if isinstance(counted, int):
            return counted
        return self._counts.get(key, 0)

    def report(self, queue: str, message: Message, count: int) -> None:
        """Log that a message is given up; at most once a minute for a queue."""
        now = self._now()
        last = self._warned.get(queue)
        if last is not None and now - last < _QUIET:
            return
        if len(self._warned) >= _QUEUES:
            self._warned.clear()
        self._warned[queue] = now
        logger.warning(
            "queue %r: a message (id %r) came back %d times and is rejected: it goes to the "
            "queue's dead-letter exchange, or is dropped where there is none",
            queue,
            message.properties.message_id,
            count,
        )
