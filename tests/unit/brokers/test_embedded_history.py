"""The embedded broker's history: its bounds, and a watermark that never claims too much."""

from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.history import History, HistoryLimits
from queuecast.destination import Destination
from queuecast.message import Message
from queuecast.pattern import contains
from tests.support.sinks import FeedList
from tests.unit.brokers.hand_clock import HandClock


def all_keys(key: str) -> bool:
    return True


def add(history: History, offset: int, key: str, size: int = 1) -> None:
    history.add("e", Message(b"x" * size, "e", key, offset=offset))


def offsets(messages: list[Message]) -> list[int]:
    return [message.offset or 0 for message in messages]


def test_age_on_reading_and_on_adding() -> None:
    clock = HandClock()
    history = History(clock.now, HistoryLimits(age=300))
    add(history, 1, "a")
    clock.turn(200)
    add(history, 2, "a")
    add(history, 3, "b")
    clock.turn(100)
    assert history.read("e", "a", all_keys) == (1, history.read("e", "a", all_keys)[1])
    assert offsets(history.read("e", None, all_keys)[1]) == [2, 3]
    clock.turn(200)
    add(history, 4, "c")
    before = history.bytes
    assert history.read("e", None, all_keys)[0] == 3
    assert offsets(history.read("e", None, all_keys)[1]) == [4]
    assert history.bytes == before


def test_the_key_that_is_silent_longest_goes_first() -> None:
    history = History(HandClock().now, HistoryLimits(bytes=30_000))
    add(history, 1, "a", 8000)
    add(history, 2, "b", 8000)
    add(history, 3, "a", 8000)
    add(history, 4, "c", 8000)
    assert history.bytes <= 30_000
    assert history.read("e", "b", all_keys) == (2, [])
    watermark, found = history.read("e", None, all_keys)
    assert watermark == 2
    assert offsets(found) == [1, 3, 4]


def test_a_message_larger_than_all_history() -> None:
    history = History(HandClock().now, HistoryLimits(bytes=10_000))
    add(history, 1, "a")
    add(history, 2, "b")
    add(history, 3, "a", 20_000)
    assert history.read("e", "a", all_keys) == (3, [])
    assert history.read("e", "b", all_keys)[0] == 0


def test_many_keys_are_bounded_and_only_the_floor_forgets_which() -> None:
    history = History(HandClock().now, HistoryLimits(bytes=20_000), watermarks=50)
    for number in range(1, 1001):
        add(history, number, f"key.{number}")
    assert history.bytes <= 20_000
    kept = offsets(history.read("e", None, all_keys)[1])
    assert kept == list(range(kept[0], 1001))
    last_evicted = kept[0] - 1
    assert history.read("e", f"key.{last_evicted}", all_keys) == (last_evicted, [])
    # A key that nobody remembers gets the exchange's floor: a gap too many, never one too few.
    assert history.read("e", "key.1", all_keys)[0] == last_evicted - 50
    assert history.read("other", "key.1", all_keys) == (0, [])


def test_exchanges_are_apart() -> None:
    history = History(HandClock().now)
    history.add("e", Message(b"1", "e", "k", offset=1))
    history.add("f", Message(b"2", "f", "k", offset=2))
    assert offsets(history.read("e", "k", all_keys)[1]) == [1]
    history.forget("e", 2)
    assert history.read("e", "k", all_keys) == (2, [])
    assert offsets(history.read("f", None, all_keys)[1]) == [2]
    history.forget("f", 2)
    assert history.bytes == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["a", "b", "a.b", "a.c"]), st.integers(0, 3000)),
        st.integers(1, 200),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 4), st.integers(2, 60))
def test_what_lies_after_the_watermark_is_complete(
    steps: list[tuple[str, int] | int], messages: int, watermarks: int
) -> None:
    clock = HandClock()
    history = History(clock.now, HistoryLimits(messages, 300, 12_000), watermarks=watermarks)
    published: list[tuple[int, str]] = []
    for step in steps:
        if isinstance(step, int):
            clock.turn(step)
            continue
        published.append((len(published) + 1, step[0]))
        add(history, len(published), step[0], step[1])
        assert history.bytes <= 12_000
    for pattern in ("a", "b", "a.*", "#", "none"):
        matches = partial(contains, pattern)
        literal = pattern if pattern in ("a", "b", "none") else None
        watermark, found = history.read("e", literal, matches)
        wanted = [offset for offset, key in published if matches(key)]
        got = offsets(found)
        assert got == sorted(set(got))
        assert set(got) <= set(wanted)
        assert [n for n in got if n > watermark] == [n for n in wanted if n > watermark]
        if watermarks > 4:
            # Exact: the mark is a message of this very destination that is gone.
            assert watermark == max((n for n in wanted if n not in got), default=0)


async def test_feeds_of_every_exchange_type_find_their_backlog() -> None:
    broker = EmbeddedBroker(HandClock())
    await broker.start()
    for name in ("amq.direct", "amq.fanout", "amq.headers"):
        for key in ("a", "b"):
            await broker.publish(Destination.parse(f"/exchange/{name}/{key}"), key.encode())
    for text, bodies in (
        ("/exchange/amq.direct/a", [b"a"]),
        ("/exchange/amq.direct/c", []),
        ("/exchange/amq.fanout/a", [b"a", b"b"]),
        ("/exchange/amq.fanout", [b"a", b"b"]),
        ("/exchange/amq.headers", [b"a", b"b"]),
        ("/exchange/amq.topic/#", []),
    ):
        sink = FeedList()
        await broker.open_feed(Destination.parse(text), sink)
        assert [message.body for message in sink.backlog] == bodies, text
    await broker.close()


def test_within_what_time_nothing_is_missing() -> None:
    clock = HandClock()
    history = History(clock.now, HistoryLimits(2, 300))

    def complete(key: str | None) -> float:
        history.read("e", key, all_keys)
        return history.complete("e", key, all_keys)

    assert complete("a") == 0
    history.begin()
    clock.turn(10)
    assert complete("a") == 10  # since it began
    for offset in (1, 2):
        add(history, offset, "a")
        clock.turn(10)
    assert complete("a") == 30
    add(history, 3, "a")
    assert (complete("a"), complete("b"), complete(None)) == (20, 30, 20)
    clock.turn(290)
    assert (complete("a"), complete("b")) == (300, 320)
    clock.turn(20)
    assert complete("a") == 310  # the last one went for its age
    history.forget("e", 3)
    assert (complete("a"), complete("b")) == (0, 0)
