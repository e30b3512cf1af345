"""A broker that keeps what was published, read over sockets by those who come late or sleep."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from queuecast.brokers.base import Broker, FeedSink, HistoryReader
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.destination import Destination
from queuecast.message import NO_PROPERTIES, Properties
from tests.server.house import Client, House, request, running
from tests.support.fake_history import Kept

COUNT = 1500
LOG = {"messages": 20}


class KeepingBroker(EmbeddedBroker):
    """The embedded broker, with a history of one destination that can be read page by page."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept()
        self.sinks: list[FeedSink] = []

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> None:
        messages = self.kept.add(body.decode(), key=destination.name)
        for sink in self.sinks:
            sink.append(messages)

    async def open_feed(self, destination: Destination, sink: FeedSink) -> HistoryReader:  # type: ignore[override]
        sink.begin(self.kept.marks(), history=True)
        self.sinks.append(sink)
        return self.kept


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> KeepingBroker:
    made = KeepingBroker()

    def make_broker(url: str, **_: object) -> Broker:
        return made

    monkeypatch.setattr("queuecast.gateway.make_broker", make_broker)
    return made


@pytest.fixture
async def house(broker: KeepingBroker) -> AsyncIterator[House]:
    async with running(log=LOG) as house:
        live = await house.connect(request("GET", "/sse/topic/a"))
        await live.opened()
        for number in range(1, COUNT + 1):
            await broker.publish(Destination.parse("/topic/a"), body(number))
            if number % 10 == 0:
                await asyncio.sleep(0)
        yield house


def body(number: int) -> bytes:
    return f"m{number}".ljust(1000).encode()


async def messages(client: Client, last: int) -> list[tuple[str, int]]:
    """Read the ids and numbers of an SSE stream's messages, up to one; fails at a gap."""
    found: list[tuple[str, int]] = []
    while not found or found[-1][1] < last:
        event = (await client.until(b"\n\n")).decode()
        assert "event: gap" not in event
        match = re.search(r"id: (.*)\ndata: m([0-9]+)", event)
        if match is not None:
            found.append((match[1], int(match[2])))
    return found


@pytest.mark.parametrize(
    ("query", "first"), [("since=first", 1), ("last=1000", 501), ("since=kept-10", 11)]
)
async def test_late_pages_get_everything_and_then_live(
    house: House, broker: KeepingBroker, query: str, first: int
) -> None:
    client = await house.connect(request("GET", f"/sse/topic/a?{query}"))
    await client.opened()
    found = await messages(client, COUNT)
    assert found == [(f"kept-{number}", number) for number in range(first, COUNT + 1)]
    await broker.publish(Destination.parse("/topic/a"), body(COUNT + 1))
    assert await messages(client, COUNT + 1) == [(f"kept-{COUNT + 1}", COUNT + 1)]
    [feed] = house.gateway.hub.feeds
    await house.eventually(lambda: all(each.live for each in feed.subscribers))


async def test_one_who_slept_goes_on_in_the_history(house: House, broker: KeepingBroker) -> None:
    client = await house.connect(request("GET", "/sse/topic/a"))
    await client.opened()
    [feed] = house.gateway.hub.feeds
    last = COUNT
    while not any(each.passed() for each in feed.subscribers):
        # Until its socket is full and the log has gone past it.
        for _ in range(10):
            last += 1
            await broker.publish(Destination.parse("/topic/a"), body(last))
        await asyncio.sleep(0)
        assert last < 1_000_000
    found = await messages(client, last)
    assert [number for _, number in found] == list(range(COUNT + 1, last + 1))


async def test_polls_and_streams_take_each_others_positions(house: House) -> None:
    position, got = "kept-0", 0
    while got < 500:
        client = await house.connect(request("GET", f"/poll/topic/a?since={position}"))
        status, _, answer = await client.response()
        assert status == 200
        batch = json.loads(answer)
        for each in batch["messages"]:
            got += 1
            assert each["body"].strip() == f"m{got}"
        position = batch["next"]
        assert position == f"kept-{got}"
    client = await house.connect(request("GET", "/sse/topic/a", f"Last-Event-ID: {position}"))
    await client.opened()
    assert [number for _, number in await messages(client, COUNT)] == list(
        range(got + 1, COUNT + 1)
    )


async def test_a_broker_that_is_away_delays_a_page_and_nothing_else(
    house: House, broker: KeepingBroker
) -> None:
    broker.kept.go_away()
    client = await house.connect(request("GET", "/sse/topic/a?since=kept-5"))
    await client.opened()
    live = await house.connect(request("GET", "/sse/topic/a"))
    await live.opened()
    await broker.publish(Destination.parse("/topic/a"), body(COUNT + 1))
    assert await messages(live, COUNT + 1) == [(f"kept-{COUNT + 1}", COUNT + 1)]
    await house.eventually(lambda: broker.kept.asked)
    broker.kept.error = None
    assert [number for _, number in await messages(client, COUNT + 1)] == list(range(6, COUNT + 2))
