"""What a gateway remembers of a stream, against lists that remember everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.brokers.rabbitmq.stream_index import KeyIndex, Samples, Window
from queuecast.message import Message

KEYS = "abcde"


def is_one_of(keys: str) -> Callable[[str], bool]:
    return lambda key: key in keys


class Everything:
    """The model: all messages, with their offsets."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, str]] = []

    def of(self, keys: str) -> list[int]:
        return [offset for offset, key in self.messages if key in keys]


# Offsets rise, with holes as streams have them.
MESSAGES = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(KEYS)), max_size=60)


def fill(
    steps: list[tuple[int, str]], index: KeyIndex, model: Everything, start: int
) -> tuple[KeyIndex, int]:
    offset = start
    for step, key in steps:
        index.add(key, offset)
        model.messages.append((offset, key))
        offset += step
    return index, offset


def check(index: KeyIndex, model: Everything) -> None:
    """Whatever the index says it knows is so."""
    for keys in ("a", "b", "ab", KEYS, "z"):
        truth = model.of(keys)
        for count in (1, 3, 100):
            known = asyncio.run(index.last(is_one_of(keys), count))
            exact = [offset for offset in known.offsets if offset > known.lost]
            assert exact == [offset for offset in truth if offset > known.lost][-count:]
        for after in (-1, 0, 5, 40):
            known = asyncio.run(index.after(is_one_of(keys), after))
            exact = [offset for offset in known.offsets if offset > known.lost]
            low = max(known.lost, after)
            assert exact == [offset for offset in truth if offset > low]
    for key in (*KEYS, "z"):
        known = index.of(key)
        assert [offset for offset in known.offsets if offset > known.lost] == [
            offset for offset in model.of(key) if offset > known.lost
        ]


@given(MESSAGES, MESSAGES, st.integers(1, 8), st.integers(1, 5), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_what_is_known_is_true_whatever_was_forgotten(
    past: list[tuple[int, str]],
    present: list[tuple[int, str]],
    per_key: int,
    max_keys: int,
    max_offsets: int,
) -> None:
    bounds = {"per_key": per_key, "max_keys": max_keys, "max_offsets": max_offsets}
    model = Everything()
    before, border = fill(past, KeyIndex(0, **bounds), model, 0)
    index, _ = fill(present, KeyIndex(border, **bounds), model, border)
    check(index, model)
    index.merge(before)
    check(index, model)
    assert len(index) <= max_keys
    assert index.offsets <= max_offsets or len(index) <= 1
    assert index.offsets == sum(len(index.of(key).offsets) for key in KEYS)


def test_with_room_for_all_everything_is_known() -> None:
    model = Everything()
    steps = [(1, KEYS[number % 5]) for number in range(50)]
    before, border = fill(steps[:20], KeyIndex(0), model, 0)
    index, _ = fill(steps[20:], KeyIndex(border), model, border)
    assert index.of("z").lost == 19
    index.merge(before)
    for key in (*KEYS, "z"):
        assert index.of(key).lost == -1
        assert list(index.of(key).offsets) == model.of(key)


def test_ever_new_keys_do_not_grow_it() -> None:
    index = KeyIndex(0, max_keys=100)
    for number in range(10_000):
        index.add(f"key.{number}", number)
    assert len(index) == index.offsets == 100
    assert index.of("key.5").lost == 9899
    assert list(index.of("key.9950").offsets) == [9950]


async def test_a_long_search_lets_others_run() -> None:
    index = KeyIndex(0)
    for number in range(5_000):
        index.add(f"key.{number}", number)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    known = await index.last(lambda key: key == "key.0", 1)
    task.cancel()
    assert list(known.offsets) == [0]
    assert turns >= 5


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50)), max_size=40), st.integers(0, 60))
def test_a_window_is_a_run_without_holes(steps: list[tuple[int, int]], wanted: int) -> None:
    window = Window(100)
    assert not window.covers(wanted)
    window.clear(0)
    offset, added = 0, []
    for step, size in steps:
        window.add(offset, Message(b"%d" % offset), size)
        added.append((offset, size))
        offset += step
    found = [each for each, _ in window.read(wanted)]
    if window.covers(wanted):
        assert found == [each for each, _ in added if each >= wanted]
    assert sum(size for each, size in added if each in set(window_offsets(window))) <= 100 or (
        len(window) == 1
    )


def window_offsets(window: Window) -> list[int]:
    return [offset for offset, _ in window.read(0)]


def test_a_window_forgets_its_dead_prefix() -> None:
    window = Window(1000)
    window.clear(0)
    for number in range(10_000):
        window.add(number, Message(b""), 10)
    assert len(window) == 100
    assert window.covers(9900)
    assert not window.covers(9899)
    assert window_offsets(window) == list(range(9900, 10_000))
    window.clear()
    assert not window.covers(9950)


def test_samples_answer_with_a_place_that_was_reached_by_then() -> None:
    samples = Samples()
    assert samples.before(1e12) is None
    reached = [(100.0 + tenth / 10, tenth) for tenth in range(200)]
    for now, offset in reached:
        samples.note(now, offset)
    assert samples.before(99.9) is None
    for time in (100.0, 100.05, 103.14, 119.9, 200.0):
        found = samples.before(time)
        assert found is not None
        # Never later than the truth, and a second earlier at most.
        truth = max(offset for now, offset in reached if now <= time)
        assert truth - 11 <= found <= truth


def test_a_message_before_a_pause_is_older_than_the_pause() -> None:
    samples = Samples()
    samples.note(100.0, 1)
    samples.note(100.2, 2)
    samples.note(160.0, 3)
    assert samples.before(150.0) == 2


@pytest.mark.parametrize("count", [20_000])
def test_samples_are_bounded(count: int) -> None:
    samples = Samples()
    for number in range(count):
        samples.note(float(number), number)
    assert samples.before(0.0) is None
    assert samples.before(float(count)) == count - 1
