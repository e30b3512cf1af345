"""An open feed: a binding whose target is a sink."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ...errors import QueuecastError
from ...message import Message
from ..base import FeedSink

logger = logging.getLogger(__name__)


class Feed:
    """A feed of the embedded broker; implements base.FeedReader.

    handed: the offset up to which the broker has handed messages to everybody. on_close: called
    once when it ends.
    """

    __slots__ = ("_handed", "_last", "_on_close", "_sink", "closed", "exchange", "key")

    def __init__(
        self,
        exchange: str,
        key: str,
        sink: FeedSink,
        handed: Callable[[], int],
        on_close: Callable[[Feed], None],
    ) -> None:
        self.exchange = exchange
        self.key = key
        self.closed = False
        self._sink = sink
        self._handed = handed
        self._on_close = on_close
        self._last = 0

    def append(self, message: Message) -> None:
        """Hand a message to the sink; one that raises fails this feed and no other."""
        if self.closed:
            return
        self._last = message.offset or 0
        try:
            self._sink.append((message,))
        except Exception:
            logger.exception("a feed of exchange %r, key %r failed", self.exchange, self.key)
            self.fail(QueuecastError("the feed failed", "the gateway's log has the reason"))

    def fail(self, error: QueuecastError) -> None:
        """End the feed and tell its sink why."""
        if self.closed:
            return
        self._end()
        try:
            self._sink.fail(error)
        except Exception:
            logger.exception("a feed of exchange %r: fail() failed", self.exchange)

    def position(self) -> Sequence[int]:
        return (max(self._handed(), self._last),)

    async def close(self) -> None:
        if not self.closed:
            self._end()

    def _end(self) -> None:
        self.closed = True
        self._on_close(self)
