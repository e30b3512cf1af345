"""Where a consumer stands in a stream, so that it goes on there and not where it began.

RabbitMQ keeps no place for it, and an ack to a stream settles nothing but the prefetch. After a
lost connection reading starts at the first offset that was not acked; what was acked behind it
is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...message import Message
from ...queuespec import STREAM_OFFSET


def offset_of(message: Message) -> int | None:
    """Return the offset that RabbitMQ put on a stream's delivery."""
    offset = message.properties.headers.get(STREAM_OFFSET)
    return offset if isinstance(offset, int) and not isinstance(offset, bool) else None


class StreamPlace:
    """One consumer's place. arguments: as it asked for, x-stream-offset among them or not."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._asked = arguments
        self._last: int | None = None  # of the last message taken
        # Tags of what is not acked yet, with their offsets; bounded by the prefetch.
        self._offsets: dict[int, int] = {}
        # What is to come again, up to _until; bounded by the prefetch.
        self._again: set[int] = set()
        self._until = -1

    @property
    def is_lost(self) -> bool:
        """Whether a new start would be somewhere else than the first one was."""
        start = self._asked.get(STREAM_OFFSET, "next")
        return self._last is None and start in ("next", "last")

    def arguments(self) -> dict[str, Any]:
        """Return the consumer's arguments for a start here."""
        arguments = dict(self._asked)
        if self._again:
            arguments[STREAM_OFFSET] = min(self._again)
        elif self._last is not None:
            arguments[STREAM_OFFSET] = self._last + 1
        return arguments

    def takes(self, message: Message) -> bool:
        """Tell whether a delivery is to be handed on; marks what comes again."""
        offset = offset_of(message)
        if offset is None or offset > self._until:
            return self._last is None or offset is None or offset > self._last
        if offset not in self._again:
            return False
        message.redelivered = True
        return True

    def taken(self, tag: int, message: Message) -> None:
        """A delivery was handed on."""
        offset = offset_of(message)
        if offset is None:
            return
        self._offsets[tag] = offset
        self._again.discard(offset)
        self._last = offset if self._last is None else max(self._last, offset)

    def settled(self, tag: int) -> None:
        """A delivery was acked."""
        self._offsets.pop(tag, None)

    def void(self) -> None:
        """The channel is gone: what is unacked comes again."""
        self._again.update(self._offsets.values())
        self._offsets.clear()
        if self._last is not None:
            self._until = self._last
