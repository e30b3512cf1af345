"""What somebody wants of a stream's history: a page, the last messages of a pattern, an index.

The history pass hands messages to requests; each knows when it has enough.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from ...message import Message
from .stream_holes import Hole
from .stream_index import KeyIndex

# Bytes that a message counts beside its body: in memory, and in a page, so that empty ones fill it.
_OVERHEAD = 400


def take_offset(message: Message) -> int:
    """Return the offset of a stream's message, taken out of its headers.

    The message's own counts from 1.
    """
    headers = message.properties.headers
    if not isinstance(headers, dict):
        raise TypeError("a stream's message without headers")
    offset = int(headers.pop("x-stream-offset"))
    message.offset = offset + 1
    return offset


def keys_of(message: Message) -> Iterable[str]:
    """Return the routing keys of a message: its own, and the sender-selected ones (CC)."""
    more = message.properties.headers.get("CC")
    if not isinstance(more, list):
        return (message.routing_key,)
    keys = [message.routing_key, *(key for key in more if isinstance(key, str))]
    return dict.fromkeys(keys)


def size_of(message: Message) -> int:
    """Return about how many bytes a message holds in memory."""
    return _OVERHEAD + len(message.body)


class Request:
    """Somebody who waits for messages of a pattern (None: of all).

    want: the first offset of interest; the pass moves it on. head: the last offset that counts,
    of a message that exists. at: where to attach, at or before `want`: a message that is known to
    exist shows whether those after it do.
    """

    def __init__(self, pattern: str | None, want: int, head: int, at: int | None = None) -> None:
        self.pattern = pattern
        self.want = want
        self.head = head
        self.at = want if at is None else at
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, offset: int, message: Message) -> bool:
        """Take the next message of the pattern; tell whether that is enough."""
        raise NotImplementedError

    def lose(self, first: int) -> None:
        """Learn that what is wanted begins at `first` only: the rest was deleted."""
        self.want = self.at = first

    def meet(self, hole: Hole) -> bool:
        """Come to a place where messages are missing; return whether to end right before it."""
        return False

    def pause(self, after: int) -> bool:
        """Learn that others have their turn now; tell whether to end with what there is."""
        return False

    def finish(self, after: int) -> None:
        """Learn that everything before the offset `after` was handed over."""
        self.want = after
        if not self.done.done():
            self.done.set_result(None)


class PageRequest(Request):
    """A page: the pattern's messages from `want` on.

    final: the last offset of the pattern up to `head`, where it is known. gap_at: where it begins
    because messages before that are missing; missed: why, "" when they were deleted.
    """

    def __init__(
        self, pattern: str, want: int, head: int, at: int, final: int | None, max_bytes: int
    ) -> None:
        super().__init__(pattern, want, head, at)
        self.messages: list[Message] = []
        self.gap_at: int | None = None
        self.missed = ""
        self._final = final
        self._left = max_bytes
        self.after = want

    def take(self, offset: int, message: Message) -> bool:
        self.messages.append(message)
        self._left -= size_of(message)
        return self._left <= 0 or (self._final is not None and offset >= self._final)

    def lose(self, first: int) -> None:
        super().lose(first)
        self.gap_at = first

    def meet(self, hole: Hole) -> bool:
        if self.messages:
            return True  # the next page begins with it
        self.gap_at = hole.offset + 1
        self.missed = hole.why
        return False

    def pause(self, after: int) -> bool:
        return True  # also an empty page is progress: its reader asks again from there

    def finish(self, after: int) -> None:
        full = self._left <= 0
        # All of the pattern was handed over: what lies between its last message and the head is
        # not for it.
        ended = not full and self._final is not None and after > self._final
        self.after = max(after, self.head + 1) if ended else after
        super().finish(after)


class LastRequest(Request):
    """Where the pattern's last `count` messages up to `head` are."""

    def __init__(self, pattern: str, want: int, head: int, count: int) -> None:
        super().__init__(pattern, want, head)
        self.offsets: deque[int] = deque(maxlen=count)

    def take(self, offset: int, message: Message) -> bool:
        self.offsets.append(offset)
        return False


class Backfill(Request):
    """An index of the messages from `want` up to `head`."""

    def __init__(self, want: int, head: int) -> None:
        super().__init__(None, want, head)
        self.index = KeyIndex(want)

    def take(self, offset: int, message: Message) -> bool:
        if offset <= self.head:
            for key in keys_of(message):
                self.index.add(key, offset)
        return False
