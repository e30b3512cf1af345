"""Sinks that remember what a broker handed them, and bounded waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from queuecast.brokers.base import Consumer, Delivery
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


async def until(holds: Callable[[], object], what: str, timeout: float = 15.0) -> None:
    """Poll until `holds()` is true; raises TimeoutError, naming `what`, after `timeout` s."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not holds():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        await asyncio.sleep(0.005)


class FeedList:
    """A feed's sink. calls: the names of all calls, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.start: Sequence[Mark] | None = None
        self.backlog: list[Message] = []
        self.keeps_history = False
        self.messages: list[Message] = []
        self.gaps: list[str] = []
        self.error: QueuecastError | None = None
        self.widened: list[Mark] = []

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        self.calls.append("begin")
        self.start = start
        self.backlog = list(backlog)
        self.keeps_history = history

    def append(self, messages: Sequence[Message]) -> None:
        self.calls.append("append")
        self.messages.extend(messages)

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        self.calls.append("gap")
        self.gaps.append(reason)

    def widen(self, marks: Sequence[Mark]) -> None:
        self.widened += marks

    def fail(self, error: QueuecastError) -> None:
        self.calls.append("fail")
        self.error = error

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    async def got(self, count: int) -> list[bytes]:
        """Wait for at least so many messages and return all bodies."""
        await until(lambda: len(self.messages) >= count, f"{count} messages in a feed")
        return self.bodies


class DeliveryList:
    """A consumer's sink, which also settles: by hand, or acking at once.

    most: the most deliveries that were ever outstanding.
    """

    def __init__(self) -> None:
        self.consumer: Consumer | None = None
        self.deliveries: list[Delivery] = []
        self.outstanding: list[Delivery] = []
        self.most = 0
        self.acks_at_once = False
        self.resets = 0
        self.gaps: list[str] = []
        self.error: QueuecastError | None = None

    def deliver(self, delivery: Delivery) -> bool | None:
        self.deliveries.append(delivery)
        self.outstanding.append(delivery)
        self.most = max(self.most, len(self.outstanding))
        if self.acks_at_once:
            self.ack()
        return None

    def reset(self) -> None:
        self.resets += 1
        self.outstanding.clear()

    def gap(self, reason: str) -> None:
        self.gaps.append(reason)

    def cancelled(self, error: QueuecastError) -> None:
        self.error = error

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self.deliveries]

    def ack(self) -> bool:
        """Ack the oldest outstanding delivery."""
        assert self.consumer is not None
        return self.consumer.ack(self.outstanding.pop(0).tag)

    def nack(self, *, requeue: bool = True) -> bool:
        """Nack the oldest outstanding delivery."""
        assert self.consumer is not None
        return self.consumer.nack(self.outstanding.pop(0).tag, requeue=requeue)

    async def got(self, count: int) -> list[bytes]:
        """Wait for at least so many deliveries and return all bodies."""
        await until(lambda: len(self.deliveries) >= count, f"{count} deliveries")
        return self.bodies


class ListFeed(FeedList):
    """The sink of a feed without offsets: messages and gaps in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[bytes | str] = []

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        assert not self.calls, "begin comes first, and once"
        assert start is None
        super().begin(start, backlog, history=history, complete=complete)
        self.append(backlog)

    def append(self, messages: Sequence[Message]) -> None:
        assert self.calls[:1] == ["begin"]
        super().append(messages)
        self.events.extend(message.body for message in messages)

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        super().gap(reason, start)
        self.events.append(reason)

    async def until(self, count: int, patience: float = 30.0) -> None:
        """Wait for at least `count` messages."""
        await eventually(
            lambda: len(self.messages) >= count,
            f"{count} messages (got {len(self.messages)}, gaps {self.gaps})",
            patience,
        )


class ListDeliveries(DeliveryList):
    """The same of a queue: its tests settle by the consumer."""

    async def until(self, count: int, patience: float = 30.0) -> None:
        """Wait for at least `count` deliveries."""
        await eventually(lambda: len(self.deliveries) >= count, f"{count} deliveries", patience)
