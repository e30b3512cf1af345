"""Brokers with a [[retain]] rule: a reader's history, from every start, page by page."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from queuecast.brokers.base import Broker, FeedReader, HistoryReader
from queuecast.destination import Destination
from queuecast.message import Message
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule
from tests.contract.conftest import RETAINING, retaining_broker
from tests.support.sinks import FeedList, until

D = Destination.parse


@pytest.fixture(params=RETAINING)
async def retaining(request: pytest.FixtureRequest, name: str) -> AsyncIterator[Broker]:
    """A started broker that keeps all of /topic/NAME.#."""
    rule = RetainRule(D(f"/topic/{name}.#"), age=3600, bytes=16 << 20)
    made = retaining_broker(str(request.param), request, (rule,))
    await made.start()
    yield made
    await made.close()


async def reader(broker: Broker, where: str, sink: FeedList | None = None) -> HistoryReader:
    opened: FeedReader = await broker.open_feed(D(where), sink or FeedList())
    assert isinstance(opened, HistoryReader)
    return opened


async def read(history: HistoryReader, after: Sequence[Mark]) -> list[Message]:
    """Return everything after a place."""
    found: list[Message] = []
    while True:
        page = await history.history(after, 2000)
        assert page.gap == ""
        assert page.messages or page.end
        found += page.messages
        after = page.after
        if page.end:
            return found


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [message.body for message in messages]


async def test_every_start(retaining: Broker, name: str) -> None:
    for number in range(40):
        key = "b" if number % 4 == 3 else "a"
        await retaining.publish(D(f"/topic/{name}.{key}"), b"%d" % number)
    for where, expected in (
        (f"/topic/{name}.b", [b"%d" % number for number in range(3, 40, 4)]),
        (f"/topic/{name}.*", [b"%d" % number for number in range(40)]),
    ):
        history = await reader(retaining, where)
        assert bodies(await read(history, await history.locate(Start("first")))) == expected
        for count in (1, 4, 100):
            place = await history.locate(Start("last", count=count))
            assert bodies(await read(history, place))[-count:] == expected[-count:]
        assert bodies(await read(history, await history.locate(Start("time", time=1)))) == expected
        await history.close()


async def test_a_place_is_good_in_every_reader(retaining: Broker, name: str) -> None:
    for number in range(20):
        await retaining.publish(D(f"/topic/{name}.a"), b"%d" % number)
    first = await reader(retaining, f"/topic/{name}.a")
    place = await first.locate(Start("last", count=5))
    await first.close()
    second = await reader(retaining, f"/topic/{name}.a")
    assert bodies(await read(second, place))[-5:] == [b"%d" % number for number in range(15, 20)]
    await second.close()


async def test_history_and_live_meet(retaining: Broker, name: str) -> None:
    """Whatever is after the reader's position comes live, all before it is history."""

    async def publish() -> None:
        for number in range(200):
            await retaining.publish(D(f"/topic/{name}.a"), b"%d" % number)

    publishing = asyncio.ensure_future(publish())
    await asyncio.sleep(0.01)
    sink = FeedList()
    history = await reader(retaining, f"/topic/{name}.a", sink)
    assert sink.start is not None
    border = sink.start[0]
    await publishing
    past = [message for message in await read_all(history) if before(message, border)]

    def rest() -> list[Message]:
        return [m for m in [*sink.backlog, *sink.messages] if not before(m, border)]

    await until(lambda: len(past) + len(rest()) >= 200, "all messages")
    assert bodies(past + rest()) == [b"%d" % number for number in range(200)]
    await history.close()


async def read_all(history: HistoryReader) -> list[Message]:
    return await read(history, await history.locate(Start("first")))


def before(message: Message, border: Mark) -> bool:
    return cast(int, message.offset) <= border.offset


async def test_a_foreign_place_begins_at_the_first_with_a_gap(retaining: Broker, name: str) -> None:
    for number in range(5):
        await retaining.publish(D(f"/topic/{name}.a"), b"%d" % number)
    history = await reader(retaining, f"/topic/{name}.a")
    page = await history.history([Mark("0000elsewhere", 3)], 100_000)
    assert page.gap
    assert page.start is not None
    assert bodies(page.messages)[:1] == [b"0"]
    await history.close()
