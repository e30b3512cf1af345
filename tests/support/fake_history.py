"""A destination that a broker keeps, and the history of it that a feed reads."""

from __future__ import annotations

from collections.abc import Sequence

from queuecast.brokers.base import Page
from queuecast.errors import QueuecastError, Unavailable
from queuecast.message import Message
from queuecast.position import Mark, Start

from .fake_runtime import FakePromise


class Kept:
    """Messages in lanes, in the order in which they came; the oldest may be deleted.

    epoch: their numbering. deleted: per lane, the last offset that is not there any more.
    hold: when set, pages wait for it. error: raised instead of a page.
    """

    def __init__(self, epoch: str = "kept", lanes: int = 1) -> None:
        self.epoch = epoch
        self.messages: list[tuple[float, Message]] = []
        self.heads = [0] * lanes
        self.deleted = [0] * lanes
        self.hold: FakePromise | None = None
        self.error: Exception | None = None
        self.asked: list[tuple[Mark, ...]] = []
        self.located: list[Start] = []
        self.time = 0.0
        self.page_messages: int | None = None

    def marks(self) -> list[Mark]:
        return [Mark(self.epoch, offset) for offset in self.heads]

    def add(self, *bodies: str, lane: int = 0, key: str = "") -> list[Message]:
        """Publish; returns the messages as a feed gets them."""
        made = []
        for body in bodies:
            self.heads[lane] += 1
            offset = self.heads[lane]
            made.append(Message(body.encode(), "", key, offset=offset, lane=lane))
            self.messages.append((self.time, made[-1]))
        return made

    def delete(self, count: int) -> None:
        """Let retention take the oldest messages."""
        for _, message in self.messages[:count]:
            self.deleted[message.lane] = message.offset or 0
        del self.messages[:count]

    def recreate(self, epoch: str) -> None:
        """Lose everything, and begin to count anew."""
        self.epoch = epoch
        self.messages.clear()
        self.heads = [0] * len(self.heads)
        self.deleted = [0] * len(self.heads)

    def widen(self, lanes: int = 1) -> list[Mark]:
        self.heads += [0] * lanes
        self.deleted += [0] * lanes
        return [Mark(self.epoch, 0)] * lanes

    # -- brokers.base.HistoryReader -------------------------------------------------------

    def position(self) -> Sequence[int] | None:
        return None

    async def close(self) -> None:
        self.error = QueuecastError("closed")

    async def locate(self, start: Start) -> Sequence[Mark]:
        self.located.append(start)
        await self._answer()
        offsets = list(self.deleted if start.kind == "first" else self.heads)
        for lane in range(len(offsets)):
            found = [
                (at, message.offset or 0) for at, message in self.messages if message.lane == lane
            ]
            if start.kind == "last":
                found = found[-start.count :]
            elif start.kind == "time":
                found = [each for each in found if each[0] >= start.time]
            if found:
                offsets[lane] = found[0][1] - 1
        return [Mark(self.epoch, offset) for offset in offsets]

    async def history(self, after: Sequence[Mark], max_bytes: int) -> Page:
        self.asked.append(tuple(after))
        await self._answer()
        marks, gap = list(after), ""
        for lane, mark in enumerate(marks):
            if mark.epoch != self.epoch or mark.offset > self.heads[lane]:
                gap = "recreated"
                marks[lane] = Mark(self.epoch, self.deleted[lane])
            elif mark.offset < self.deleted[lane]:
                gap = gap or "deleted"
                marks[lane] = Mark(self.epoch, self.deleted[lane])
        start = list(marks)
        messages: list[Message] = []
        size = 0
        for _, message in self.messages:
            offset = message.offset or 0
            if offset <= marks[message.lane].offset:
                continue
            if messages and (size >= max_bytes or len(messages) == self.page_messages):
                break
            size += len(message.body) + 400
            messages.append(message)
            marks[message.lane] = Mark(self.epoch, offset)
        else:
            return Page(messages, self.marks(), gap, start if gap else None, end=True)
        return Page(messages, marks, gap, start if gap else None)

    async def _answer(self) -> None:
        if self.hold is not None:
            await self.hold
        if self.error is not None:
            raise self.error

    def go_away(self) -> None:
        self.error = Unavailable("the broker is away")
