"""Retained destinations of the embedded broker for tests: rules, readers, all of a history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from queuecast.brokers.base import FeedReader, HistoryReader
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.destination import Destination
from queuecast.message import Message
from queuecast.position import Mark
from queuecast.retention import RetainRule
from tests.support.sinks import FeedList

D = Destination.parse
ALL = 1 << 30


def rule(
    text: str = "/topic/job.#", *, age: float = 0, bytes: int = ALL, messages: int = 0
) -> RetainRule:
    return RetainRule(D(text), age, bytes, messages)


async def publish(broker: EmbeddedBroker, where: str, *bodies: bytes) -> None:
    await asyncio.gather(*(broker.publish(D(where), body) for body in bodies))


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


async def reader(broker: EmbeddedBroker, where: str) -> HistoryReader:
    """Open a feed whose reader has history."""
    opened: FeedReader = await broker.open_feed(D(where), FeedList())
    assert isinstance(opened, HistoryReader)
    return opened


async def read(
    history: HistoryReader, after: Sequence[Mark], max_bytes: int = 1000
) -> list[Message]:
    """Return everything after a place, page by page, none of which may have a gap."""
    found: list[Message] = []
    while True:
        page = await history.history(after, max_bytes)
        assert page.gap == ""
        assert page.messages or page.end
        found += page.messages
        if page.messages:
            assert page.after[0].offset >= (page.messages[-1].offset or 0)
        assert page.after[0].offset >= after[0].offset
        after = page.after
        if page.end:
            return found


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [message.body for message in messages]
