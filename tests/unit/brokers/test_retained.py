"""Retained destinations of the embedded broker, in memory and on disk alike: bounds, history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from queuecast.brokers.base import ExchangeSpec, FeedReader, HistoryReader
from queuecast.brokers.embedded import store_reader
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.message import Properties
from queuecast.position import Mark, Position, Start
from queuecast.retention import RetainRule
from tests.support.durable import on_disk
from tests.support.sinks import FeedList, until
from tests.unit.brokers.retained_rig import D, bodies, numbers, publish, read, reader, rule

Make = Callable[..., Awaitable[EmbeddedBroker]]


@pytest.fixture(params=["memory", "disk"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Return a started broker with rules."""
    made: list[EmbeddedBroker] = []

    async def make(*rules: RetainRule) -> EmbeddedBroker:
        if request.param == "memory":
            broker = EmbeddedBroker(retain=rules)
        else:
            broker = on_disk(tmp_path / str(len(made)), synchronous="normal", rules=rules)
        made.append(broker)
        await broker.start()
        return broker

    yield make
    for broker in made:
        await broker.close()


async def test_history_from_every_start(make: Make) -> None:
    broker = await make(rule())
    await publish(broker, "/topic/job.a", *numbers(0, 30))
    await publish(broker, "/topic/job.b", *numbers(30, 60))
    await publish(broker, "/topic/other", b"other")
    await publish(broker, "/topic/job.a", *numbers(60, 70))
    for where, expected in (
        ("/topic/job.a", numbers(0, 30) + numbers(60, 70)),
        ("/topic/job.*", numbers(0, 70)),
        ("/topic/job.#", numbers(0, 70)),
        ("/topic/job.none", []),
        ("/topic/job.*.none", []),
    ):
        history = await reader(broker, where)
        first = await history.locate(Start("first"))
        assert bodies(await read(history, first)) == expected, where
        for count in (1, 5, 11, 40, 100):
            place = await history.locate(Start("last", count=count))
            assert bodies(await read(history, place)) == expected[-count:], (where, count)
        live = await history.locate(Start("live"))
        assert await read(history, live) == []
        position = Position(await history.locate(Start("last", count=3)))
        assert await history.locate(Start("since", position=position)) == position
        await history.close()


async def test_messages_are_as_they_were_published(make: Make) -> None:
    broker = await make(rule())
    sent = Properties(content_type="text/plain", headers={"a": [1, b"\xff"]})
    await broker.publish(D("/topic/job.1"), b"\0\xff", sent)
    history = await reader(broker, "/topic/job.1")
    (message,) = await read(history, await history.locate(Start("first")))
    assert (message.exchange, message.routing_key) == ("amq.topic", "job.1")
    assert (message.body, message.properties) == (b"\0\xff", sent)
    assert message.offset == 1


async def test_a_place_in_time(make: Make) -> None:
    broker = await make(rule())
    await publish(broker, "/topic/job.a", b"1", b"2")
    await asyncio.sleep(0.01)
    between = time.time()
    await asyncio.sleep(0.01)
    await publish(broker, "/topic/job.a", b"3")
    await publish(broker, "/topic/job.b", b"4")
    history = await reader(broker, "/topic/job.a")
    for at, expected in ((between - 60, [b"1", b"2", b"3"]), (between, [b"3"]), (between + 60, [])):
        place = await history.locate(Start("time", time=at))
        assert bodies(await read(history, place)) == expected


async def test_pages_are_bounded_and_never_empty(make: Make) -> None:
    broker = await make(rule())
    await publish(broker, "/topic/job.a", *(b"x" * 1000 for _ in range(10)))
    history = await reader(broker, "/topic/job.a")
    place = await history.locate(Start("first"))
    assert len((await history.history(place, 3500)).messages) in (2, 3)
    assert len((await history.history(place, 1)).messages) == 1


@pytest.mark.parametrize(
    ("bounds", "kept"), [(rule(messages=10), 10), (rule(bytes=5000), None), (rule(age=3600), 100)]
)
async def test_bounds_and_the_gap(make: Make, bounds: RetainRule, kept: int | None) -> None:
    broker = await make(bounds)
    await publish(broker, "/topic/job.a", *numbers(0, 100))
    history = await reader(broker, "/topic/job.a")
    first = await history.locate(Start("first"))
    found = await read(history, first)
    assert bodies(found) == numbers(100 - len(found), 100)
    assert len(found) == kept or (kept is None and 5 < len(found) < 90)
    before = [first[0]._replace(offset=0)]
    page = await history.history(before, 10)
    assert page.gap == ("evicted" if len(found) < 100 else "")
    if page.gap:
        assert page.start == tuple(first)
        assert page.messages[0].body == found[0].body
    # At the very border nothing is missing.
    assert (await history.history(first, 10)).gap == ""


async def test_age_goes_on_without_publishing(make: Make) -> None:
    broker = await make(rule(age=0.3))
    await publish(broker, "/topic/job.a", b"1")
    history = await reader(broker, "/topic/job.a")
    start = await history.locate(Start("live"))

    async def floor() -> int:
        return (await history.locate(Start("first")))[0].offset

    for _ in range(500):
        if await floor() == start[0].offset:
            break
        await asyncio.sleep(0.02)
    assert await floor() == start[0].offset
    assert (await history.history(start, 10)).messages == []


async def test_foreign_and_future_places_begin_at_the_first(make: Make) -> None:
    broker = await make(rule(messages=5))
    await publish(broker, "/topic/job.a", *numbers(0, 20))
    history = await reader(broker, "/topic/job.a")
    first = await history.locate(Start("first"))
    for place in (Mark("elsewhere", 3), Mark(broker.epoch, 10_000)):
        page = await history.history([place], 10_000)
        assert page.gap == "epoch"
        assert page.start == tuple(first)
        assert bodies(page.messages) == numbers(15, 20)


async def test_which_rule_keeps_what(make: Make) -> None:
    broker = await make(rule("/topic/job.urgent", messages=2), rule("/topic/job.#", messages=50))
    await publish(broker, "/topic/job.urgent", *numbers(0, 5))
    await publish(broker, "/topic/job.slow", *numbers(5, 10))
    # The first rule that holds decides: `job.urgent` keeps two, and all of `job.#` is kept too.
    urgent = await reader(broker, "/topic/job.urgent")
    assert bodies(await read(urgent, await urgent.locate(Start("first")))) == numbers(3, 5)
    every = await reader(broker, "/topic/job.*")
    assert bodies(await read(every, await every.locate(Start("first")))) == numbers(0, 10)
    for where in ("/topic/#", "/topic/other"):
        assert not isinstance(await broker.open_feed(D(where), FeedList()), HistoryReader)


@pytest.mark.parametrize(
    ("kind", "pattern", "feed", "expected"),
    [
        ("direct", "/a", "/a", [b"a"]),
        ("direct", "/#", "/b", [b"b"]),
        ("fanout", "", "", [b"a", b"b"]),
        ("fanout", "/#", "/x", [b"a", b"b"]),
        ("headers", "", "", [b"a", b"b"]),
        ("topic", "/#", "/*", [b"a", b"b"]),
    ],
)
async def test_every_type_of_exchange(
    make: Make, kind: str, pattern: str, feed: str, expected: list[bytes]
) -> None:
    broker = await make(rule(f"/exchange/e{pattern}"))
    await broker.declare([ExchangeSpec("e", kind)])
    await publish(broker, "/exchange/e/a", b"a")
    await publish(broker, "/exchange/e/b", b"b")
    history = await reader(broker, f"/exchange/e{feed}")
    assert bodies(await read(history, await history.locate(Start("first")))) == expected


async def test_what_passes_through_to_an_alternate_exchange_is_kept(make: Make) -> None:
    broker = await make(rule("/exchange/last"))
    arguments = {"alternate-exchange": "last"}
    await broker.declare([ExchangeSpec("e", arguments=arguments), ExchangeSpec("last", "fanout")])
    await publish(broker, "/exchange/e/a", b"a")
    history = await reader(broker, "/exchange/last")
    assert bodies(await read(history, await history.locate(Start("first")))) == [b"a"]


async def test_history_and_live_meet(make: Make) -> None:
    """Many clients read back while messages come: nobody misses or repeats one."""
    broker = await make(rule())

    async def publish_all() -> None:
        for number in range(300):
            await broker.publish(D("/topic/job.a"), b"%d" % number)

    async def follow() -> None:
        sink = FeedList()
        opened: FeedReader = await broker.open_feed(D("/topic/job.a"), sink)
        history = cast(HistoryReader, opened)
        joined = sink.start
        assert joined is not None
        backlog = await read(history, await history.locate(Start("first")), 200)
        await until(lambda: sink.bodies[-1:] == [b"299"] or done.done(), "the last message")
        await done
        known = backlog[-1].offset if backlog else 0
        rest = [m for m in [*sink.backlog, *sink.messages] if (m.offset or 0) > (known or 0)]
        assert bodies(backlog + rest) == numbers(0, 300)

    done = asyncio.ensure_future(publish_all())
    followers = []
    for _ in range(5):
        followers.append(asyncio.ensure_future(follow()))
        await asyncio.sleep(0.005)
    await asyncio.gather(done, *followers)


async def test_a_last_of_very_many_begins_at_the_first(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reader, "MOST_LAST", 3)
    broker = await make(rule())
    await publish(broker, "/topic/job.a", *numbers(0, 10))
    history = await reader(broker, "/topic/job.a")
    place = await history.locate(Start("last", count=1000))
    assert bodies(await read(history, place)) == numbers(0, 10)
