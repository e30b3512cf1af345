"""The STOMP parser: what a client sends, in any chunking, becomes the same events."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs.stomp import (
    MAX_COMMAND,
    Event,
    Fault,
    Frame,
    Heartbeat,
    StompLimits,
    StompParser,
)
from queuecast.codecs.stomp_encode import encode_frame
from tests.unit.codecs.client_frames import chunks, cut_at

SMALL = StompLimits(max_frame=300, max_frame_before_login=200, max_headers=3, max_header=40)
BEAT = Heartbeat()
CHINESE = "磁盘告警：你好"


def parse(data: bytes, chunk: int = 0, limits: StompLimits | None = None) -> list[Event]:
    parser = StompParser(limits) if limits else StompParser()
    pieces = chunks(data, chunk) if chunk else [data]
    return [event for piece in pieces for event in parser.receive_data(piece)]


def send(body: bytes = b"", /, **headers: str) -> Frame:
    return Frame("SEND", {name.replace("_", "-"): value for name, value in headers.items()}, body)


GOOD: dict[str, tuple[bytes, list[Event]]] = {
    "nothing": (b"", []),
    "one frame": (b"SEND\ndestination:/queue/a\n\nhi\0", [send(b"hi", destination="/queue/a")]),
    "no header": (b"DISCONNECT\n\n\0", [Frame("DISCONNECT", {}, b"")]),
    "CR LF everywhere": (
        b"SEND\r\na:1\r\nb:2\r\n\r\nx\r\ny\0\r\n",
        [send(b"x\r\ny", a="1", b="2"), BEAT],
    ),
    "LF and CR LF mixed": (b"SEND\na:1\r\nb:2\n\r\nx\0", [send(b"x", a="1", b="2")]),
    "noise between frames": (
        b"\0\0\r\n\n\0BEGIN\n\n\0\n\0\r\n\nABORT\n\n\0\0",
        [BEAT, BEAT, Frame("BEGIN", {}, b""), BEAT, BEAT, BEAT, Frame("ABORT", {}, b"")],
    ),
    "an LF alone is a heart-beat": (b"\n", [BEAT]),
    "a CR LF is one heart-beat": (b"\r\n", [BEAT]),
    "a NUL alone is nothing": (b"\0\0\0", []),
    "two frames": (b"SEND\n\na\0SEND\n\nb\0", [send(b"a"), send(b"b")]),
    "content-length over NULs": (
        b"SEND\ncontent-length:5\n\na\0b\0\n\0",
        [send(b"a\0b\0\n", content_length="5")],
    ),
    "content-length 0": (b"SEND\ncontent-length:0\n\n\0", [send(content_length="0")]),
    "content-length among blanks": (
        b"SEND\ncontent-length: 2 \n\n\0\0\0",
        [send(b"\0\0", content_length=" 2 ")],
    ),
    "content-length is only SEND's": (
        b"MESSAGE\ncontent-length:3\n\na\0\0\0",
        [Frame("MESSAGE", {"content-length": "3"}, b"a")],
    ),
    "the first content-length counts": (
        b"SEND\ncontent-length:1\ncontent-length:9\n\n\0\0",
        [send(b"\0", content_length="1")],
    ),
    "a wrong content-length matters to SEND alone": (
        b"CONNECT\ncontent-length:x\n\n\0",
        [Frame("CONNECT", {"content-length": "x"}, b"")],
    ),
    "a body where none belongs": (b"BEGIN\n\nbody\0", [Frame("BEGIN", {}, b"body")]),
    "no content-length ends at NUL": (b"SEND\n\na\0\0", [send(b"a")]),
    "all escapes in a value": (rb"SEND" + b"\n" + rb"a:\r\n\c\\" + b"\n\n\0", [send(a="\r\n:\\")]),
    "escapes in a name": (rb"SEND" + b"\n" + rb"a\cb\\:1" + b"\n\n\0", [send(**{"a:b\\": "1"})]),
    "escaped backslash before n": (b"SEND\na:\\\\n\n\n\0", [send(a="\\n")]),
    "escapes in CONNECT too": (
        b"CONNECT\npasscode:a\\cb\n\n\0",
        [Frame("CONNECT", {"passcode": "a:b"}, b"")],
    ),
    "a bare colon in a value": (b"SEND\na:b:c::\n\n\0", [send(a="b:c::")]),
    "an empty value": (b"SEND\na:\n\n\0", [send(a="")]),
    "the first of repeated headers": (b"SEND\na:1\na:2\nb:3\n\n\0", [send(a="1", b="3")]),
    "the first, however written": (
        b"SEND\nx:1\n\\\\:2\n\\\\:3\n\n\0",
        [send(x="1", **{"\\": "2"})],
    ),
    "blanks are kept": (b"SEND\n a : 1 \n\n\0", [send(**{" a ": " 1 "})]),
    "unknown command": (b"NOT A COMMAND\nid:1\n\n\0", [Frame("NOT A COMMAND", {"id": "1"}, b"")]),
    "a command of a control character": (b"\x01\n\n\0", [Frame("\x01", {}, b"")]),
    "lower case is another command": (b"send\n\n\0", [Frame("send", {}, b"")]),
    "Chinese": (
        f"SEND\ndestination:/topic/{CHINESE}\n\n{CHINESE}\0".encode(),
        [send(CHINESE.encode(), destination=f"/topic/{CHINESE}")],
    ),
    "Chinese in a command": ("发送\n\n\0".encode(), [Frame("发送", {}, b"")]),
    "a body of any bytes": (b"SEND\n\n\xff\xfe\r\n\\x\0", [send(b"\xff\xfe\r\n\\x")]),
    "longest command": (b"C" * MAX_COMMAND + b"\n\n\0", [Frame("C" * MAX_COMMAND, {}, b"")]),
}

BAD: dict[str, tuple[bytes, str]] = {
    "unknown escape": (b"SEND\na:\\t\n\n\0", "escape"),
    "escape in upper case": (b"SEND\na:\\N\n\n\0", "escape"),
    "escape of nothing": (b"SEND\na:x\\\n\n\0", "escape"),
    "escape of nothing before CR": (b"SEND\na:x\\\r\n\n\0", "escape"),
    "unknown escape in a name": (b"SEND\n\\a:1\n\n\0", "escape"),
    "header without a colon": (b"SEND\nabc\n\n\0", "colon"),
    "an escaped colon is none": (b"SEND\na\\cb\n\n\0", "colon"),
    "header without a name": (b"SEND\n:abc\n\n\0", "name"),
    "CR in a command": (b"SE\rND\n\n\0", "CR"),
    "CR in a header": (b"SEND\na:b\rc\n\n\0", "CR"),
    "two CRs": (b"SEND\r\r\n\n\0", "CR"),
    "CR between frames": (b"\rSEND\n\n\0", "CR"),
    "CR, CR, LF between frames": (b"\n\r\r\n", "CR"),
    "NUL in a command": (b"DISCONNECT\0\n", "NUL"),
    "NUL in a header": (b"SEND\na:1\0", "NUL"),
    "no empty line": (b"DISCONNECT\n\0", "NUL"),
    "content-length no number": (b"SEND\ncontent-length:x\n\n\0", "content-length"),
    "content-length empty": (b"SEND\ncontent-length:\n\n\0", "content-length"),
    "content-length negative": (b"SEND\ncontent-length:-1\n\n\0", "content-length"),
    "content-length in other digits": (
        "SEND\ncontent-length:٣\n\nabc\0".encode(),
        "content-length",
    ),
    "content-length in many digits": (
        b"SEND\ncontent-length:" + b"0" * 5000 + b"\n\n\0",
        "content-length",
    ),
    "content-length too small": (b"SEND\ncontent-length:1\n\nab\0", "no NUL"),
    "command not UTF-8": (b"\xff\n\n\0", "UTF-8"),
    "header not UTF-8": (b"SEND\na:\xe9\n\n\0", "UTF-8"),
    "long command": (b"C" * (MAX_COMMAND + 1) + b"\n\n\0", "command over 32 bytes"),
    "a TLS hello": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"x" * 50, "NUL"),
    "an HTTP request": (b"GET /a-rather-long-path-to-ask-for HTTP/1.1\r\n", "command over"),
}


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", GOOD)
def test_frames(name: str, chunk: int) -> None:
    data, events = GOOD[name]
    assert parse(data, chunk) == events


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_the_last_event(name: str, chunk: int) -> None:
    data, word = BAD[name]
    events = parse(b"SEND\n\nbefore\0" + data + b"\n\nSEND\n\nafter\0", chunk)
    assert events[0] == send(b"before")
    fault = events[-1]
    assert isinstance(fault, Fault)
    assert word in fault.reason
    assert not any(isinstance(event, Fault | Frame) for event in events[1:-1])


@pytest.mark.parametrize("chunk", [0, 1, 5])
@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"SEND\na:1\nb:2\nc:3\n\n\0", ""),
        (b"SEND\na:1\nb:2\nc:3\nd:4\n\n\0", "more than 3 headers"),
        (b"SEND\na:1\na:2\na:3\na:4\n\n\0", "more than 3 headers"),
        (b"SEND\na:" + b"x" * 38 + b"\n\n\0", ""),
        (b"SEND\na:" + b"x" * 39 + b"\n\n\0", "header over 40 bytes"),
        (b"SEND\na:" + b"\\\\" * 19 + b"\n\n\0", ""),
        (b"SEND\na:" + b"\\\\" * 20 + b"\n\n\0", "header over 40 bytes"),
        (b"SEND\na:" + b"x" * 500, "header over 40 bytes"),
        (b"SEND\n\n" + b"x" * 194 + b"\0", ""),
        (b"SEND\n\n" + b"x" * 195 + b"\0", "frame over 200 bytes"),
        (b"SEND\n\n" + b"x" * 195, "frame over 200 bytes"),
        (b"SEND\ncontent-length:175\n\n" + b"\0" * 176, ""),
        (b"SEND\ncontent-length:176\n\n", "frame over 200 bytes"),
        (b"SEND\ncontent-length:99999999999999999999\n\n", "frame over 200 bytes"),
    ],
)
def test_limits(data: bytes, word: str, chunk: int) -> None:
    last = parse(data, chunk, SMALL)[-1]
    if not word:
        assert isinstance(last, Frame)
    else:
        assert isinstance(last, Fault)
        assert word in last.reason


@pytest.mark.parametrize("chunk", [0, 1, 5])
def test_a_head_is_bounded_by_the_frame_too(chunk: int) -> None:
    limits = StompLimits(max_frame=50, max_frame_before_login=50, max_headers=100, max_header=40)
    data = b"SEND\n" + b"a:1234567\n" * 9
    assert parse(data, chunk, limits) == [Fault("frame over 50 bytes")]


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_login_raises_the_limit_on_a_frame(cut: int) -> None:
    data = b"SEND\n\n" + b"x" * 294 + b"\0"
    assert isinstance(parse(data, limits=SMALL)[-1], Fault)
    parser = StompParser(SMALL)
    assert parser.receive_data(data[:cut]) == []
    parser.authenticated()
    parser.authenticated()
    assert parser.receive_data(data[cut:]) == [send(b"x" * 294)]
    too_much = data[:-1] + b"x\0"
    assert parser.receive_data(too_much) == [Fault("frame over 300 bytes")]


def test_default_limits() -> None:
    stranger = StompParser()
    assert isinstance(stranger.receive_data(b"SEND\n\n" + b"x" * 65536)[-1], Fault)
    user = StompParser()
    user.authenticated()
    body = bytes(4 * 1024 * 1024 - 30)
    head = b"SEND\ncontent-length:%d\n\n" % len(body)
    [frame] = user.receive_data(head + body + b"\0")
    assert isinstance(frame, Frame)
    assert frame.body == body
    assert isinstance(user.receive_data(b"SEND\ncontent-length:4194304\n\n")[-1], Fault)
    many = b"".join(b"h%d:\n" % n for n in range(100))
    [frame] = parse(b"SEND\n" + many + b"\n\0")
    assert isinstance(frame, Frame)
    assert len(frame.headers) == 100
    assert isinstance(parse(b"SEND\n" + many + b"h:\n\n\0")[-1], Fault)


def test_nothing_is_kept_after_a_fault() -> None:
    parser = StompParser(SMALL)
    assert parser.receive_data(b"SEND\n\n" + b"x" * 100) == []
    assert isinstance(parser.receive_data(b"x" * 101)[-1], Fault)
    assert parser.closed
    assert parser.receive_data(b"\nSEND\n\n\0") == []
    held = [getattr(parser, name) for name in ("_line", "_body")]
    assert held == [None, None]


def test_memory_while_idle() -> None:
    parser = StompParser()
    assert len(parser.receive_data(b"SEND\na:1\n\n" + b"x" * 5000 + b"\0\n")) == 2
    assert sys.getsizeof(parser) <= 160
    assert [getattr(parser, name) for name in ("_line", "_body")] == [None, None]


def test_work_grows_with_the_bytes_not_with_their_square() -> None:
    """Counted, not timed: no piece of an unfinished line or body is searched twice."""

    class Counted(bytes):
        searched = 0

        def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
            found = super().find(sub, start, end)
            last = found + 1 if found >= 0 else len(self) if end is None else min(end, len(self))
            Counted.searched += max(0, last - start)
            return found

    parser = StompParser()
    parser.authenticated()
    data = b"SEND\n" + b"a:" + b"x" * 15_000 + b"\n" + b"b:2\n\n" + b"y" * 50_000 + b"\0"
    events = [event for piece in chunks(data, 10) for event in parser.receive_data(Counted(piece))]
    assert [type(event) for event in events] == [Frame]
    assert Counted.searched <= 3 * len(data)

    # Many small frames in one read, with CR LF: each looks only a little ahead for its end.
    Counted.searched = 0
    data = b"BEGIN\r\n\r\n\0" * 5000
    assert len(StompParser().receive_data(Counted(data))) == 5000
    assert Counted.searched <= 5000 * 1024 + 3 * len(data)


def test_version_1_0_trims_the_left_of_values() -> None:
    [frame] = parse(b"SEND\na: \t1 \nb:2\n c:3\n\n x\0")
    assert isinstance(frame, Frame)
    assert frame.trimmed() == Frame("SEND", {"a": "1 ", "b": "2", " c": "3"}, b" x")


# Bytes that mean something, so that random input gets far.
WORDS = st.sampled_from(
    [
        b"SEND",
        b"\n",
        b"\r\n",
        b"\r",
        b"\x00",
        b"\n\n",
        b":",
        b"\\",
        b"\\c",
        b"\\r",
        b"a:1\n",
        b"content-length:",
        b"3",
        b"abc",
        b"CONNECT\n",
        b"BEGIN\n\n\x00",
        b"\xe4\xbd\xa0",
        b"\xff",
    ]
)
STREAMS = st.one_of(st.binary(max_size=300), st.lists(WORDS, max_size=60).map(b"".join))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = TEXTS.filter(bool)
FRAMES = st.builds(
    Frame,
    st.sampled_from(["SEND", "CONNECT", "SUBSCRIBE", "ACK", "磁盘"]),
    st.dictionaries(
        st.one_of(NAMES, st.sampled_from(["a:b", "\\", "\r\n", CHINESE])),
        st.one_of(TEXTS, st.sampled_from(["\\n\n\r:", CHINESE, "\\\\c"])),
        max_size=6,
    ),
    st.binary(max_size=200),
).filter(lambda frame: "content-length" not in frame.headers)


@settings(max_examples=500, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 2000), max_size=30), st.booleans())
def test_any_chunking_of_any_bytes_gives_the_same_events(
    data: bytes, cuts: list[int], small: bool
) -> None:
    limits = SMALL if small else StompLimits()
    whole = StompParser(limits).receive_data(data)
    parser = StompParser(limits)
    cut = [event for piece in cut_at(data, cuts) for event in parser.receive_data(piece)]
    assert cut == whole == parse(data, 1, limits)
    assert not any(isinstance(event, Fault) for event in whole[:-1])


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(0, 5000), max_size=20))
def test_what_is_encoded_is_read_back(frames: list[Frame], cuts: list[int]) -> None:
    # Only SEND's content-length is believed, so only its body may hold a NUL.
    frames = [
        frame
        if frame.command == "SEND"
        else Frame(frame.command, frame.headers, frame.body.replace(b"\0", b""))
        for frame in frames
    ]
    data = b"".join(encode_frame(f.command, f.headers.items(), f.body) for f in frames)
    parser = StompParser()
    events = [event for piece in cut_at(data, cuts) for event in parser.receive_data(piece)]
    expected: list[Event] = []
    for frame in frames:
        length = {"content-length": str(len(frame.body))} if frame.body else {}
        expected += [Frame(frame.command, frame.headers | length, frame.body), BEAT]
    assert events == expected
