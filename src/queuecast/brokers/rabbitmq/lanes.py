"""Messages that cannot be published at once: in lanes, each kept in order by one task.

A lane is what must not be overtaken: an exchange, or a queue. It exists while messages wait in
it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

from ...errors import QueuecastError, Unavailable
from ..background import Background
from .confirms import Outgoing

log = logging.getLogger(__name__)

# Messages that wait for room or for the broker: beyond, a publish fails at once, so that a burst
# of clients during an outage costs bounded memory.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 64 << 20

Lane = tuple[str, str]
"""(exchange, ""), ("", queue) for /queue, or (exchange, key) under topic permissions."""


class Lanes:
    """All lanes with waiting messages.

    send: sends a lane's first message, or raises why it cannot be sent; False when it is to be
    tried again, because another is first now. on_idle: called when a lane has become empty.
    """

    def __init__(
        self, send: Callable[[Lane, Outgoing], Awaitable[bool]], on_idle: Callable[[], None]
    ) -> None:
        self._send = send
        self._on_idle = on_idle
        self._lanes: dict[Lane, deque[Outgoing]] = {}
        self._background = Background(log)
        self._bytes = 0
        self.waiting = 0

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._lanes

    def has_room(self, item: Outgoing) -> bool:
        """Tell whether one more message may wait."""
        return self.waiting < MAX_WAITING and self._bytes + len(item.body) <= MAX_WAITING_BYTES

    def add(self, lane: Lane, item: Outgoing) -> None:
        """Let a message wait at the end of its lane."""
        self._items(lane, item).append(item)

    def add_first(self, lane: Lane, item: Outgoing) -> None:
        """Let a message that was sent before wait ahead of all others in its lane."""
        self._items(lane, item).appendleft(item)

    def is_first(self, lane: Lane, item: Outgoing) -> bool:
        items = self._lanes.get(lane)
        return items is not None and items[0] is item

    def _items(self, lane: Lane, item: Outgoing) -> deque[Outgoing]:
        self.waiting += 1
        self._bytes += len(item.body)
        items = self._lanes.get(lane)
        if items is None:
            items = self._lanes[lane] = deque()
            self._background.spawn(self._pump(lane, items), f"publishing to {lane}")
        return items

    async def _pump(self, lane: Lane, items: deque[Outgoing]) -> None:
        """Send a lane's messages one after the other until none waits."""
        try:
            while items:
                item = items[0]
                try:
                    if not item.done.done() and not await self._send(lane, item):
                        continue
                except QueuecastError as error:
                    if not item.done.done():
                        item.done.set_exception(error)
                self._left(item)
                items.remove(item)  # the first, or close to it
        finally:
            del self._lanes[lane]
            for item in items:
                self._left(item)
                if not item.done.done():
                    item.done.set_exception(Unavailable("publishing failed, see the log"))
            self._on_idle()

    def _left(self, item: Outgoing) -> None:
        self.waiting -= 1
        self._bytes -= len(item.body)
