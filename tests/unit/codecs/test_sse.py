"""Event streams: the standard's own examples, line ends, and the way there and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs import sse
from queuecast.codecs.sse import EventStreamParser, EventTooLong, ServerSentEvent
from tests.unit.codecs.client_frames import chunks, cut_at

E = ServerSentEvent


def parse(data: bytes, chunk: int = 0) -> list[ServerSentEvent]:
    parser = EventStreamParser(10_000)
    pieces = chunks(data, chunk) if chunk else [data]
    return [event for piece in pieces for event in parser.receive_data(piece)]


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (sse.event(b"a"), b"data: a\n\n"),
        (sse.event(b""), b"data: \n\n"),
        (sse.event(b" a"), b"data:  a\n\n"),
        (sse.event(b"a\nb"), b"data: a\ndata: b\n\n"),
        (sse.event(b"a\n"), b"data: a\ndata: \n\n"),
        (sse.event(b"\r\n\r"), b"data: \ndata: \ndata: \n\n"),
        (sse.event(b"a\rb\r\nc\n\nd"), b"data: a\ndata: b\ndata: c\ndata: \ndata: d\n\n"),
        (sse.event(b"%d %b"), b"data: %d %b\n\n"),
        (sse.event(b"a", id="e1-7"), b"id: e1-7\ndata: a\n\n"),
        (sse.event(b"a", id=""), b"id: \ndata: a\n\n"),
        (
            sse.event("磁盘".encode(), id="键", event="gap", retry=0),
            "event: gap\nid: 键\nretry: 0\ndata: 磁盘\n\n".encode(),
        ),
        (sse.comment(), b":\n\n"),
        (sse.comment("hi"), b": hi\n\n"),
        (sse.comment("a\r\nevent: x"), b": a\n: event: x\n\n"),
        (sse.retry(3000), b"retry: 3000\n\n"),
    ],
)
def test_encode(encoded: bytes, expected: bytes) -> None:
    assert encoded == expected


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "\x00", "\n"])
def test_an_id_or_event_name_stays_on_its_line(bad: str) -> None:
    with pytest.raises(ValueError, match="no NUL, CR or LF"):
        sse.event(b"", id=bad)
    with pytest.raises(ValueError, match="no NUL, CR or LF"):
        sse.event(b"", event=bad)


def test_a_negative_retry() -> None:
    with pytest.raises(ValueError, match="not negative"):
        sse.retry(-1)
    with pytest.raises(ValueError, match="not negative"):
        sse.event(b"", retry=-1)


STREAMS: dict[str, tuple[bytes, list[ServerSentEvent]]] = {
    "three lines": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [E("YHOO\n+2\n10")]),
    "comment, ids, an id taken back": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third\n\n",
        [E("first event", id="1"), E("second event"), E(" third")],
    ),
    "empty data is an event": (b"data\n\ndata\ndata\n\ndata:", [E(""), E("\n")]),
    "one space goes": (
        b"data:test\n\ndata: test\n\ndata:  test\n\n",
        [E("test")] * 2 + [E(" test")],
    ),
    "event names": (
        b"event: add\ndata: 1\n\ndata: 2\n\nevent:\ndata: 3\n\n",
        [E("1", event="add"), E("2"), E("3")],
    ),
    "name without data is no event": (b"event: add\n\ndata: 1\n\n", [E("1")]),
    "last of several": (
        b"event: a\nevent: b\nid: 1\nid: 2\ndata: x\n\n",
        [E("x", event="b", id="2")],
    ),
    "id stays": (b"id: 1\n\ndata: x\n\ndata: y\n\n", [E("x", id="1"), E("y", id="1")]),
    "id with NUL is ignored": (b"id: 1\nid: 2\x00\ndata: x\n\n", [E("x", id="1")]),
    "unfinished event is dropped": (b"data: a\n\ndata: b\n", [E("a")]),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", [E("a\nb"), E("c")]),
    "CR LF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [E("a\nb"), E("c")]),
    "all line ends": (b"data: a\rdata: b\ndata: c\r\n\r\n", [E("a\nb\nc")]),
    "LF CR are two": (b"data: a\n\rdata: b\n\r", [E("a"), E("b")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [E("a")]),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [E("b")]),
    "part of a byte order mark": (b"\xef\xbbdata: a\n\ndata: b\n\n", [E("b")]),
    "unknown field, field in capitals": (b"foo: a\nData: a\n data: a\ndata: b\n\n", [E("b")]),
    "retry": (b"retry: 10\ndata: a\n\ndata: b\n\n", [E("a", retry=10), E("b")]),
    "bad retry": (b"retry: 1s\nretry: -1\nretry:\nretry: 1.5\ndata: a\n\n", [E("a")]),
    "retry of many digits": (b"retry: " + b"9" * 5000 + b"\ndata: a\n\n", [E("a")]),
    "colons in the value": (b"data: a: b:c\n\n", [E("a: b:c")]),
    "NUL in data": (b"data: a\x00b\n\n", [E("a\x00b")]),
    "NEL and form feed end no line": (
        "data: a\x85\x0c\u2028b\n\n".encode(),
        [E("a\x85\x0c\u2028b")],
    ),
    "not UTF-8": (b"data: a\xffb\xe4\n\n", [E("a\ufffdb\ufffd")]),
    "Chinese": ("event: 事件\ndata: 你好\n\n".encode(), [E("你好", event="事件")]),
}


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 11])
@pytest.mark.parametrize("name", STREAMS)
def test_parse(name: str, chunk: int) -> None:
    data, expected = STREAMS[name]
    assert parse(data, chunk) == expected


def test_the_last_event_id_changes_at_the_end_of_a_block() -> None:
    parser = EventStreamParser(100, last_event_id="0")
    assert parser.receive_data(b"data: a\n\nid: 1\n") == [E("a", id="0")]
    assert parser.last_event_id == "0"
    assert parser.receive_data(b"\n") == []
    assert parser.last_event_id == "1"


def test_the_reconnection_time() -> None:
    parser = EventStreamParser(100)
    assert parser.retry is None
    assert parser.receive_data(sse.retry(2500)) == []
    assert parser.retry == 2500


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize(
    "endless",
    [b"data: " + b"x" * 100, b"data: 123456789\n" * 20, b"data:\n" * 60, b": " + b"x" * 100],
)
def test_an_endless_event_is_cut_and_what_came_before_is_not_lost(
    endless: bytes, chunk: int
) -> None:
    parser = EventStreamParser(50)
    received: list[ServerSentEvent] = []

    def feed() -> None:
        for piece in chunks(b"id: 1\ndata: a\n\n" + endless, chunk):
            received.extend(parser.receive_data(piece))
        received.extend(parser.receive_data(b""))

    with pytest.raises(EventTooLong):
        feed()
    assert received == [E("a", id="1")]
    assert parser.last_event_id == "1"
    with pytest.raises(EventTooLong):
        parser.receive_data(b"\n\n")


def test_the_limit_is_for_one_event() -> None:
    parser = EventStreamParser(50)
    for _ in range(100):
        assert parser.receive_data(b"data: 0123456789\n: comment\n\n") == [E("0123456789")]


names = st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), max_size=9)
texts = st.text(max_size=20) | st.lists(
    st.sampled_from(["\r", "\n", "\r\n", " ", ":", "a", "data: ", "你"]), max_size=8
).map("".join)
blocks = st.tuples(texts, names, names, st.none() | st.integers(0, 10**9))


@settings(max_examples=100, deadline=None)
@given(st.lists(blocks, max_size=5), st.lists(st.integers(0, 500), max_size=8))
def test_there_and_back(events: list[tuple[str, str, str, int | None]], cuts: list[int]) -> None:
    stream = b"".join(
        sse.event(data.encode(), id=id_, event=name, retry=ms) + sse.comment(data)
        for data, id_, name, ms in events
    )
    expected = [
        E(data.replace("\r\n", "\n").replace("\r", "\n"), name or "message", id_, ms)
        for data, id_, name, ms in events
    ]
    parser = EventStreamParser(10_000)
    received = [e for piece in cut_at(stream, cuts) for e in parser.receive_data(piece)]
    assert received == expected


PIECES = [
    b"data",
    b"id",
    b"event",
    b":",
    b" ",
    b"\r",
    b"\n",
    b"\r\n",
    b"x",
    b"\xef\xbb\xbf",
    b"\xff",
]


def outcome(pieces: list[bytes]) -> tuple[list[ServerSentEvent], str, bool]:
    parser = EventStreamParser(12)
    events: list[ServerSentEvent] = []
    try:
        for piece in [*pieces, b""]:
            events += parser.receive_data(piece)
    except EventTooLong:
        return events, parser.last_event_id, True
    return events, parser.last_event_id, False


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_any_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    assert outcome(list(cut_at(data, cuts))) == outcome([data])
    assert outcome(list(chunks(data, 1))) == outcome([data])
