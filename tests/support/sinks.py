"""Sinks that remember what a broker handed them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from queuecast.brokers.base import Delivery
from queuecast.errors import QueuecastError
from queuecast.message import Message
from queuecast.position import Mark


async def eventually(ready: Callable[[], bool], what: str, patience: float = 30.0) -> None:
    """Wait until ready() holds; fails naming `what` after `patience` seconds."""
    try:
        async with asyncio.timeout(patience):
            while not ready():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {patience:g} s: {what}") from None


class ListFeed:
    """A feed's sink: messages and gaps in the order in which they came."""

    def __init__(self) -> None:
        self.begun = 0
        self.messages: list[Message] = []
        self.events: list[bytes | str] = []
        self.gaps: list[str] = []
        self.failed: QueuecastError | None = None
        self.widened: list[Mark] = []

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        assert not self.events, "begin comes first"
        self.begun += 1
        assert start is None
        self.append(backlog)

    def append(self, messages: Sequence[Message]) -> None:
        assert self.begun == 1
        self.messages.extend(messages)
        self.events.extend(message.body for message in messages)

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        self.gaps.append(reason)
        self.events.append(reason)

    def widen(self, marks: Sequence[Mark]) -> None:
        self.widened += marks

    def fail(self, error: QueuecastError) -> None:
        self.failed = error

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    async def until(self, count: int, patience: float = 30.0) -> None:
        """Wait for at least `count` messages."""
        await eventually(
            lambda: len(self.messages) >= count,
            f"{count} messages (got {len(self.messages)}, gaps {self.gaps})",
            patience,
        )


class ListDeliveries:
    """A consumer's sink."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.resets = 0
        self.gaps: list[str] = []
        self.error: QueuecastError | None = None

    def deliver(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def reset(self) -> None:
        self.resets += 1

    def gap(self, reason: str) -> None:
        self.gaps.append(reason)

    def cancelled(self, error: QueuecastError) -> None:
        self.error = error

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self.deliveries]

    async def until(self, count: int, patience: float = 30.0) -> None:
        """Wait for at least `count` deliveries."""
        await eventually(lambda: len(self.deliveries) >= count, f"{count} deliveries", patience)
