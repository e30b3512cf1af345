"""Retained destinations: their bounds, their history, and disk and memory doing the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queuecast.brokers.base import ExchangeSpec, FeedReader, HistoryReader, QueueSpec
from queuecast.brokers.embedded import store, store_reader
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.destination import Destination
from queuecast.errors import Unavailable
from queuecast.message import Message, Properties
from queuecast.pattern import contains
from queuecast.position import Mark, Position, Start
from queuecast.retention import RetainRule
from tests.contract.sinks import FeedList, until
from tests.support.durable import image, on_disk, writer_of

D = Destination.parse
ALL = 1 << 30
Make = Callable[..., Awaitable[EmbeddedBroker]]


def rule(
    text: str = "/topic/job.#", *, age: float = 0, bytes: int = ALL, messages: int = 0
) -> RetainRule:
    return RetainRule(D(text), age, bytes, messages)


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


def bytes_in(directory: Path) -> int:
    """Return the size of all files of a data directory."""
    return sum(path.stat().st_size for path in directory.iterdir())


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [message.body for message in messages]


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


# On disk only


async def test_it_is_there_after_a_kill_and_a_close(tmp_path: Path) -> None:
    rules = (rule(messages=50),)
    broker = on_disk(tmp_path / "a", rules=rules)
    await broker.start()
    await publish(broker, "/topic/job.a", *numbers(0, 100))
    history = await reader(broker, "/topic/job.a")
    place = await history.locate(Start("last", count=7))
    position = history.position()
    image(tmp_path / "a", tmp_path / "b")
    await broker.close()
    for directory in (tmp_path / "a", tmp_path / "b"):
        again = on_disk(directory, rules=rules)
        await again.start()
        history = await reader(again, "/topic/job.a")
        # A client goes on where it was: the epoch is the same.
        assert bodies(await read(history, place)) == numbers(93, 100)
        assert bodies(await read(history, await history.locate(Start("first")))) == numbers(50, 100)
        await publish(again, "/topic/job.a", b"100")
        assert position is not None
        after = await read(history, [place[0]._replace(offset=position[0])])
        assert bodies(after) == [b"100"]
        await again.close()


async def test_rules_that_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run(*rules: RetainRule) -> list[list[bytes]]:
        broker = on_disk(tmp_path, rules=rules)
        await broker.start()
        found = []
        for each in rules:
            history = await reader(broker, str(each.destination))
            found.append(bodies(await read(history, await history.locate(Start("first")))))
        await publish(broker, "/topic/job.a", b"x")
        await broker.close()
        return found

    assert await run(rule()) == [[]]
    assert await run(rule(messages=5)) == [[b"x"]]
    assert await run(rule("/topic/job.a"), rule()) == [[], [b"x"] * 2]
    assert await run(rule("/topic/job.a")) == [[b"x"]]
    assert "its 3 messages are dropped" in caplog.text
    # A rule that comes back knows nothing of what was before, and says so.
    broker = on_disk(tmp_path, rules=(rule(),))
    await broker.start()
    history = await reader(broker, "/topic/job.a")
    page = await history.history([Mark(broker.epoch, 1)], 100)
    assert (page.gap, page.messages) == ("evicted", [])
    await broker.close()


async def test_files_stay_bounded_while_20_times_the_bound_is_published(tmp_path: Path) -> None:
    bound = 2 << 20
    broker = on_disk(tmp_path, synchronous="normal", rules=(rule(bytes=bound),))
    await broker.start()
    largest = 0
    body = b"x" * 2000
    for _ in range(20):
        await publish(broker, "/topic/job.a", *(body for _ in range(bound // len(body))))
        largest = max(largest, bytes_in(tmp_path))
    # The file, its write-ahead log until the next checkpoint, and what waits for reuse.
    assert largest < 3 * bound + (10 << 20), largest
    await broker.close()
    # Rows do not fill their pages: half of each is the worst that can be.
    assert bytes_in(tmp_path) < 3 * bound


async def test_space_is_given_back(tmp_path: Path) -> None:
    broker = on_disk(tmp_path, synchronous="normal", rules=(rule(age=3),))
    await broker.start()
    await broker.declare(queues=[QueueSpec("q")])
    await publish(broker, "/topic/job.a", *(b"x" * 10_000 for _ in range(1000)))
    assert bytes_in(tmp_path) > 10 << 20
    await until(lambda: bytes_in(tmp_path) < 3 << 20, "small files", timeout=60)
    await broker.close()


async def test_the_last_of_a_pattern_looks_at_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far back and among many: key by key, and the same as by looking at everything."""
    monkeypatch.setattr(store_reader, "_ROWS", 50)
    monkeypatch.setattr(store_reader, "_ROWS_BACK", 100)
    monkeypatch.setattr(store_reader, "_KEYS", 7)
    broker = on_disk(tmp_path, synchronous="normal", rules=(rule(),))
    await broker.start()
    for number in range(40):
        await publish(broker, f"/topic/job.rare.{number % 20}", b"%d" % number)
    await publish(broker, "/topic/job.often", *(b"x" for _ in range(2000)))
    history = await reader(broker, "/topic/job.rare.*")
    for count in (1, 3, 25, 40, 41):
        place = await history.locate(Start("last", count=count))
        assert bodies(await read(history, place)) == numbers(max(0, 40 - count), 40)
    one = await reader(broker, "/topic/job.rare.7")
    place = await one.locate(Start("last", count=1))
    assert bodies(await read(one, place)) == [b"27"]
    await broker.close()


async def test_a_closed_broker_has_no_history(tmp_path: Path) -> None:
    broker = on_disk(tmp_path, rules=(rule(),))
    await broker.start()
    history = await reader(broker, "/topic/job.a")
    await broker.close()
    with pytest.raises(Unavailable):
        await history.locate(Start("first"))


async def test_a_last_of_very_many_begins_at_the_first(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reader, "MOST_LAST", 3)
    broker = await make(rule())
    await publish(broker, "/topic/job.a", *numbers(0, 10))
    history = await reader(broker, "/topic/job.a")
    place = await history.locate(Start("last", count=1000))
    assert bodies(await read(history, place)) == numbers(0, 10)


async def test_a_store_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    broker = on_disk(tmp_path, rules=(rule(),))
    await broker.start()
    await publish(broker, "/topic/job.a", b"1")
    history = await reader(broker, "/topic/job.a")
    place = await history.locate(Start("first"))
    writer_of(broker).database.execute("UPDATE retained_1 SET properties = 'nonsense'")
    with pytest.raises(Unavailable, match="cannot be read"):
        await history.history(place, 1000)
    await broker.close()


async def test_a_clock_that_jumps_keeps_the_order_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = on_disk(tmp_path, rules=(rule(age=3600),))
    await broker.start()
    now = time.time()

    def turn_to(at: float) -> None:
        monkeypatch.setattr(store, "time", SimpleNamespace(time=lambda: at))

    for at, body in ((now, b"1"), (now - 100, b"2"), (now + 10, b"3")):
        turn_to(at)
        await publish(broker, "/topic/job.a", body)
    history = await reader(broker, "/topic/job.a")
    place = await history.locate(Start("time", time=now - 1))
    assert bodies(await read(history, place)) == [b"1", b"2", b"3"]
    # Far in the future by mistake, and corrected: what comes now is not kept until then.
    turn_to(now + 10**6)
    await publish(broker, "/topic/job.a", b"4")
    turn_to(now)
    await publish(broker, "/topic/job.a", b"5")
    times = [at for (at,) in writer_of(broker).database.execute("SELECT at FROM retained_1")]
    assert times == [now, now, now + 10, now + 10**6, now]
    await broker.close()


KEYS = ["job.a", "job.b", "job.a.x", "job"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), st.integers(0, 400)),
        st.just("restart"),
    ),
    max_size=40,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    STEPS,
    st.integers(0, 8),
    st.sampled_from([0, 500, 3000]),
    st.sampled_from(["job.a", "job.*", "job.#", "*.a.#"]),
    st.integers(1, 12),
    st.integers(1, 2000),
)
def test_disk_is_like_a_list(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int] | str],
    messages: int,
    size: int,
    pattern: str,
    count: int,
    max_bytes: int,
) -> None:
    """Whatever is published, wherever it is restarted: history is the end of what was published."""
    directory = tmp_path_factory.mktemp("store")
    rules = (rule("/topic/#", messages=messages, bytes=size or ALL),)

    async def live() -> None:
        broker = on_disk(directory, synchronous="normal", rules=rules)
        await broker.start()
        published: list[tuple[str, bytes, int]] = []
        for number, step in enumerate(steps):
            if isinstance(step, str):
                await broker.close()
                broker = on_disk(directory, synchronous="normal", rules=rules)
                await broker.start()
                continue
            body = b"%d" % number + b"x" * step[1]
            await broker.publish(D(f"/topic/{step[0]}"), body)
            published.append((step[0], body, broker.counts().offset))
        kept: list[tuple[str, bytes, int]] = []
        total = 0
        for key, body, offset in published:
            kept.append((key, body, offset))
            total += len(key) + len(body) + 64
            while kept and ((messages and len(kept) > messages) or (size and total > size)):
                gone = kept.pop(0)
                total -= len(gone[0]) + len(gone[1]) + 64
        history = await reader(broker, f"/topic/{pattern}")
        expected = [body for key, body, _ in kept if contains(pattern, key)]
        first = await history.locate(Start("first"))
        assert bodies(await read(history, first, max_bytes)) == expected
        last = await history.locate(Start("last", count=count))
        assert bodies(await read(history, last, max_bytes)) == expected[-count:]
        for _, _, offset in published:
            page = await history.history([Mark(broker.epoch, offset)], max_bytes)
            gone_after = [each[2] for each in published if each not in kept and each[2] > offset]
            assert bool(page.gap) == bool(gone_after)
        await broker.close()

    asyncio.run(live())
