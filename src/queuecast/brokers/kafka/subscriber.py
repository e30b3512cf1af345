"""One subscription's share of a group's records: brokers.base.Consumer for Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...delivery import Delivery, DeliverySink
from ...errors import QueuecastError
from .window import Item

if TYPE_CHECKING:
    from .group import Group


class Subscriber:
    """Holds at most `prefetch` records that are neither acked nor given back."""

    def __init__(self, group: Group, sink: DeliverySink, prefetch: int) -> None:
        self._group = group
        self._sink = sink
        self._prefetch = prefetch
        self._held: dict[int, Item] = {}
        self._tag = 0
        self._paused = False
        self.closed = False

    @property
    def has_room(self) -> bool:
        """Whether it takes one more."""
        return len(self._held) < self._prefetch and not self._paused and not self.closed

    def give(self, item: Item) -> None:
        """Deliver a record."""
        self._tag += 1
        item.tag, item.holder = self._tag, self
        self._held[self._tag] = item
        item.window.delivered(item)
        if self._sink.deliver(Delivery(item.message, self._tag)) is False:
            # The sink has no room: it says when it takes more.
            self.suspend((self._tag,))

    def gap(self, reason: str) -> None:
        """Tell of records that are lost before the next one."""
        self._sink.gap(reason)

    def drop(self, item: Item) -> None:
        """Forget a record whose partition is another node's now; its ack will be too late."""
        self._held.pop(item.tag, None)
        item.holder = None
        if not self._held:
            self._sink.reset()

    # -- delivery.Consumer ----------------------------------------------------------------

    def ack(self, tag: int) -> bool:
        """Settle a record."""
        item = self._held.pop(tag, None)
        if item is None:
            return False
        item.holder = None
        self._group.settle(item)
        return True

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        """Give a record back; without `requeue` it is done, for Kafka has no dead letters."""
        item = self._held.pop(tag, None)
        if item is None:
            return False
        item.holder = None
        if requeue:
            self._group.give_back((item,))
        else:
            self._group.settle(item)
        return True

    def pause(self) -> None:
        """Take no more for now."""
        self._paused = True

    def suspend(self, tags: Sequence[int]) -> None:
        """Give these back, and take no more for now."""
        self._paused = True
        items = [self._held.pop(tag) for tag in tags if tag in self._held]
        for item in items:
            item.holder = None
        self._group.give_back(items)

    def resume(self) -> None:
        """Take more again."""
        self._paused = False
        self._group.schedule()

    async def close(self) -> None:
        """Leave; what is held goes to others."""
        if self.closed:
            return
        self.closed = True
        self._group.leave(self, self._release())

    def cancel(self, error: QueuecastError) -> None:
        """End: the group cannot go on."""
        if not self.closed:
            self.closed = True
            self._release()
            self._sink.cancelled(error)

    def _release(self) -> list[Item]:
        items = list(self._held.values())
        self._held.clear()
        for item in items:
            item.holder = None
        return items
