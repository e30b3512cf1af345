"""Retained destinations on disk: kills and restarts, rules that change, files, a model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queuecast.brokers.base import QueueSpec
from queuecast.brokers.embedded import store_reader
from queuecast.errors import Unavailable
from queuecast.pattern import contains
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule
from tests.support.durable import image, on_disk, writer_of
from tests.support.sinks import until
from tests.unit.brokers.retained_rig import ALL, D, bodies, numbers, publish, read, reader, rule


def bytes_in(directory: Path) -> int:
    """Return the size of all files of a data directory."""
    return sum(path.stat().st_size for path in directory.iterdir())


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
