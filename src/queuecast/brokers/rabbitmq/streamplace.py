"""Where a consumer stands in a stream, so that it goes on there and not where it began.

RabbitMQ keeps no place for it, and an ack to a stream settles nothing but the prefetch. After a
lost connection reading starts at the first offset that was not acked; what was acked behind it
is passed over.

A stream may be read by its name alone, /queue/NAME. It is then recognised by the offset on its
first delivery. That is a header like others, which a publisher can set, so the queue is asked
before such a place is relied on: only a stream takes a consumer with an offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pika.exceptions

from ...message import Message
from ...queuespec import STREAM_OFFSET
from .connection import Link
from .failures import PRECONDITION_FAILED, Away, of_channel


def offset_of(message: Message) -> int | None:
    """Return the offset that RabbitMQ put on a stream's delivery."""
    offset = message.properties.headers.get(STREAM_OFFSET)
    return offset if isinstance(offset, int) and not isinstance(offset, bool) else None


async def is_stream(link: Link, queue: str) -> bool | None:
    """Tell whether a queue is a stream, None if that cannot be told now.

    Raises Unavailable, LimitExceeded and pika's AMQPError when the connection is lost.
    """
    try:
        async with link.probe(fresh=True) as channel:
            await channel.qos(1)
            await channel.consume(queue, "stream-probe", _ignore, arguments={STREAM_OFFSET: "next"})
            # What it was sent meanwhile stays unacked there: nobody shall borrow it again.
            channel.abandon()
    except pika.exceptions.ChannelClosedByBroker as error:
        if isinstance(of_channel(error), Away):
            return None
        return False if error.reply_code == PRECONDITION_FAILED else None
    return True


def _ignore(*delivery: object) -> None:
    """Nothing is taken from a stream by reading it."""


class StreamPlace:
    """One consumer's place. arguments: as it asked for, x-stream-offset among them or not.

    sure: the queue is known to be a stream; until then nothing is passed over.
    """

    def __init__(self, arguments: Mapping[str, Any], *, sure: bool = True) -> None:
        self.sure = sure
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
        if not self.sure:
            return arguments
        if self._again:
            arguments[STREAM_OFFSET] = min(self._again)
        elif self._last is not None:
            arguments[STREAM_OFFSET] = self._last + 1
        return arguments

    def takes(self, message: Message) -> bool:
        """Tell whether a delivery is to be handed on; marks what comes again."""
        if not self.sure:
            return True
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

    def returned(self, tag: int) -> None:
        """A delivery was not taken after all: it comes again once reading starts anew."""
        offset = self._offsets.pop(tag, None)
        if offset is not None and self._last is not None:
            self._again.add(offset)
            self._until = self._last

    def settled(self, tag: int) -> None:
        """A delivery was acked."""
        self._offsets.pop(tag, None)

    def void(self) -> None:
        """The channel is gone: what is unacked comes again."""
        self._again.update(self._offsets.values())
        self._offsets.clear()
        if self._last is not None:
            self._until = self._last
