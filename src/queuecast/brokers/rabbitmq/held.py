"""What waits in the gateway for a consumer's sink that is paused, within the node's budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ...delivery import DeliveryBudget
from ..base import Delivery

# Bytes of bodies held for one sink, or half of its share in the node's budget. A prefetch of a
# thousand large messages would otherwise stand in memory for each client that does not read.
MAX_BYTES = 4 << 20


class Held:
    """Deliveries in order; bounded by the consumer's prefetch and by `has_room`."""

    def __init__(self, budget: DeliveryBudget) -> None:
        self._budget = budget
        self._deliveries: deque[Delivery] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._deliveries)

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self._deliveries)

    @property
    def share(self) -> int:
        """Bytes that the node's budget has for it."""
        return self._budget.share // 2

    def has_room(self, size: int) -> bool:
        """Whether a body of that size may be held as well; a single one of any size may."""
        fits = not self or self._bytes + size <= min(MAX_BYTES, self.share)
        return fits and self._budget.has_room(size)

    def add(self, delivery: Delivery) -> None:
        """Hold one more."""
        self._deliveries.append(delivery)
        self._count(len(delivery.message.body))

    def take(self) -> Delivery:
        """Return the first, which is held no more."""
        delivery = self._deliveries.popleft()
        self._count(-len(delivery.message.body))
        return delivery

    def clear(self) -> None:
        """Hold nothing any more."""
        self._deliveries.clear()
        self._count(-self._bytes)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size
