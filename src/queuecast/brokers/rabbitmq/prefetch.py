"""A consumer's prefetch across restarts of the consumer at the broker.

RabbitMQ counts unacked deliveries for each consumer tag, and a pause cancels the consumer: one
that begins anew may only get what its client's prefetch still has room for. When the broker has
sent all of that and earlier deliveries have been settled meanwhile, it begins anew once more; by
then nothing is on its way, so that no order is disturbed.
"""

from __future__ import annotations

_WEIGHT = 0.1  # of the latest message in the average size


class PrefetchWindow:
    """How many unacked deliveries the present consumer tag may have, and has."""

    def __init__(self, prefetch: int) -> None:
        self._prefetch = prefetch
        self._fit = prefetch  # what the gateway could hold, as far as it was found out
        self._size = 0.0  # of a body, on average
        self._first = 0  # deliveries after this tag are the present consumer's
        self._allowed = prefetch
        self._present = 0

    def begin(self, last: int, outstanding: int) -> int:
        """Return the prefetch of a consumer that begins. last: the latest delivery's tag."""
        self._first = last
        self._present = 0
        self._allowed = max(1, min(self._prefetch - outstanding, self._fit))
        self._fit = min(self._prefetch, self._fit * 2)
        return self._allowed

    def took(self, size: int) -> None:
        """Count a delivery. size: bytes of its body."""
        self._present += 1
        self._size += (size - self._size) * (_WEIGHT if self._size else 1.0)

    def settled(self, tag: int) -> None:
        """Count one that was acked or nacked."""
        if tag > self._first:
            self._present -= 1

    def refused(self, room: int) -> None:
        """Learn that a delivery could not be held. room: bytes that may be."""
        self._fit = max(1, min(self._prefetch, int(room / max(1.0, self._size))))

    @property
    def is_used_up(self) -> bool:
        """Whether the broker sends no more until something is settled."""
        return self._present >= self._allowed
