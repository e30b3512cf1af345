"""The WebSocket parser against the cases of RFC 6455, and our frames against the reader's eye."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs import websocket as ws
from queuecast.codecs.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Binary,
    Close,
    Event,
    Fault,
    Ping,
    Pong,
    Text,
    WebSocketParser,
)
from tests.unit.codecs.client_frames import chunks, client_frame, cut_at

LIMIT = 1 << 20
F = client_frame


def parse(data: bytes, chunk: int = 0, limit: int = LIMIT) -> list[Event]:
    parser = WebSocketParser(limit)
    pieces = chunks(data, chunk) if chunk else [data]
    return [event for piece in pieces for event in parser.receive_data(piece)]


def verdict(data: bytes, chunk: int = 0) -> list[object]:
    """Events, with a fault reduced to its code."""
    return [e.code if isinstance(e, Fault) else e for e in parse(data, chunk)]


NOT_UTF8 = bytes.fromhex("cebae1bdb9cf83cebcceb5eda080656469746564")
GREEK = "Hello-µ@ßöäüàá-UTF-8!!"
CHINESE = "磁盘告警：你好"
A125 = b"*" * 125

# Number and title follow the Autobahn test suite's groups: 1 framing, 2 pings, 3 reserved bits,
# 4 opcodes, 5 fragmentation, 6 UTF-8, 7 closing, 9 sizes, 10 one big message in small pieces.
CASES: dict[str, tuple[bytes, list[object]]] = {
    **{
        f"1.1 text of {n}": (F(TEXT, b"*" * n), [Text("*" * n)])
        for n in (0, 1, 124, 125, 126, 127, 128, 65535, 65536)
    },
    **{
        f"1.2 binary of {n}": (F(BINARY, b"\xfe" * n), [Binary(b"\xfe" * n)])
        for n in (0, 1, 124, 125, 126, 127, 128, 65535, 65536)
    },
    "2.1 empty ping": (F(PING), [Ping(b"")]),
    "2.2 ping with data": (F(PING, b"Hello"), [Ping(b"Hello")]),
    "2.3 binary ping": (F(PING, b"\x00\xff\xfe\xfd"), [Ping(b"\x00\xff\xfe\xfd")]),
    "2.4 longest ping": (F(PING, A125), [Ping(A125)]),
    "2.5 ping too long": (F(PING, b"\xfe" * 126), [1002]),
    "2.7 unasked pong": (F(PONG), [Pong(b"")]),
    "2.9 pong with data, then ping": (F(PONG, b"x") + F(PING, b"y"), [Pong(b"x"), Ping(b"y")]),
    "2.10 ten pings": (F(PING, b"p") * 10, [Ping(b"p")] * 10),
    **{
        f"3 rsv {rsv} on opcode {opcode}": (
            F(TEXT, b"a") + F(opcode, rsv=rsv) + F(PING),
            [Text("a"), 1002],
        )
        for rsv in range(1, 8)
        for opcode in (TEXT, BINARY, PING, CLOSE)
    },
    **{
        f"4 opcode {opcode}": (F(TEXT, b"a") + F(opcode, b"x") + F(PING), [Text("a"), 1002])
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "5.1 fragmented ping": (F(PING, b"a", fin=False) + F(CONTINUATION, b"b"), [1002]),
    "5.2 fragmented pong": (F(PONG, b"a", fin=False) + F(CONTINUATION, b"b"), [1002]),
    "5 fragmented close": (F(CLOSE, fin=False), [1002]),
    "5.3 two fragments": (F(TEXT, b"a", fin=False) + F(CONTINUATION, b"b"), [Text("ab")]),
    "5.6 ping between fragments": (
        F(TEXT, b"a", fin=False) + F(PING, b"p") + F(CONTINUATION, b"b"),
        [Ping(b"p"), Text("ab")],
    ),
    "5.9 continuation of nothing": (F(CONTINUATION, b"b") + F(TEXT, b"c"), [1002]),
    "5.12 unfinished continuation of nothing": (F(CONTINUATION, b"b", fin=False), [1002]),
    "5.10 continuation after the end": (F(TEXT, b"a") + F(CONTINUATION, b"b"), [Text("a"), 1002]),
    "5.15 message, then stray fragment": (
        F(TEXT, b"a", fin=False) + F(CONTINUATION, b"b") + F(CONTINUATION, b"c", fin=False),
        [Text("ab"), 1002],
    ),
    "5.18 text inside fragmented text": (F(TEXT, b"a", fin=False) + F(TEXT, b"b"), [1002]),
    "5 binary inside fragmented text": (F(TEXT, b"a", fin=False) + F(BINARY, b"b"), [1002]),
    "5.19 five fragments, two pings": (
        F(TEXT, b"1", fin=False)
        + F(CONTINUATION, b"2", fin=False)
        + F(PING, b"p")
        + F(CONTINUATION, b"3", fin=False)
        + F(CONTINUATION, b"4", fin=False)
        + F(PING, b"q")
        + F(CONTINUATION, b"5"),
        [Ping(b"p"), Ping(b"q"), Text("12345")],
    ),
    "5 fragmented binary": (
        F(BINARY, b"\xff", fin=False) + F(PONG) + F(CONTINUATION, b"\xfe"),
        [Pong(b""), Binary(b"\xff\xfe")],
    ),
    "5 close between fragments": (
        F(TEXT, b"a", fin=False) + F(CLOSE) + F(CONTINUATION, b"b"),
        [Close(1005, "")],
    ),
    "6.1 three empty fragments": (
        F(TEXT, fin=False) + F(CONTINUATION, fin=False) + F(CONTINUATION),
        [Text("")],
    ),
    "6.1 empty around one": (
        F(TEXT, fin=False) + F(CONTINUATION, b"mid", fin=False) + F(CONTINUATION),
        [Text("mid")],
    ),
    "6.2 valid": (F(TEXT, GREEK.encode()), [Text(GREEK)]),
    "6.2 Chinese": (F(TEXT, CHINESE.encode()), [Text(CHINESE)]),
    "6.2 cut inside a character": (
        F(TEXT, CHINESE.encode()[:4], fin=False) + F(CONTINUATION, CHINESE.encode()[4:]),
        [Text(CHINESE)],
    ),
    "6.2 every byte a fragment": (
        F(TEXT, fin=False)
        + b"".join(F(CONTINUATION, bytes((b,)), fin=False) for b in CHINESE.encode())
        + F(CONTINUATION),
        [Text(CHINESE)],
    ),
    "6.3 invalid": (F(TEXT, NOT_UTF8), [1007]),
    "6.3 invalid in a fragment, never finished": (F(TEXT, NOT_UTF8, fin=False), [1007]),
    "6.3 binary need not be UTF-8": (F(BINARY, NOT_UTF8), [Binary(NOT_UTF8)]),
    "7.1 text after close": (F(CLOSE, b"\x03\xe8") + F(TEXT, b"x"), [Close(1000, "")]),
    "7.1 ping after close": (F(CLOSE) + F(PING), [Close(1005, "")]),
    "7.1 two closes": (F(CLOSE) * 2, [Close(1005, "")]),
    "7.3.1 empty": (F(CLOSE), [Close(1005, "")]),
    "7.3.2 one byte": (F(CLOSE, b"a"), [1002]),
    "7.3.4 reason": (F(CLOSE, b"\x03\xe8bye"), [Close(1000, "bye")]),
    "7.3.5 longest": (F(CLOSE, b"\x03\xe8" + b"*" * 123), [Close(1000, "*" * 123)]),
    "7.3.6 too long": (F(CLOSE, b"\x03\xe8" + b"*" * 124), [1002]),
    "7.5.1 reason not UTF-8": (F(CLOSE, b"\x03\xe8" + NOT_UTF8), [1007]),
    **{
        f"7.7 code {code}": (F(CLOSE, code.to_bytes(2, "big")), [Close(code, "")])
        for code in (
            *(1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014),
            *(3000, 3999, 4000, 4401, 4999),
        )
    },
    **{
        f"7.9 code {code}": (F(CLOSE, code.to_bytes(2, "big")), [1002])
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "mask missing": (F(TEXT, b"a", mask=None), [1002]),
    "mask missing on a control frame": (F(PING, mask=None), [1002]),
    "mask missing in second frame": (F(PING) + F(TEXT, b"a", mask=None), [Ping(b""), 1002]),
    "mask of zeros": (F(TEXT, b"a", mask=bytes(4)), [Text("a")]),
    "length in two bytes that needs none": (F(TEXT, b"a", length_size=2), [1002]),
    "length in eight bytes that needs two": (F(TEXT, b"*" * 126, length_size=8), [1002]),
    "length with its highest bit set": (F(TEXT, length=1 << 63, length_size=8), [1002]),
    "length over the limit": (F(TEXT, length=LIMIT + 1), [1009]),
    "length far over the limit": (F(BINARY, length=(1 << 63) - 1), [1009]),
}


@pytest.mark.parametrize("chunk", [0, 1, 2, 7, 997])
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, chunk: int) -> None:
    data, expected = CASES[name]
    if chunk == 1 and len(data) > 1000:
        chunk = 61
    assert verdict(data, chunk) == expected


@pytest.mark.parametrize(
    ("text", "first_bad"),
    [
        (b"\xc0\xaf", 0),
        (b"\xe0\x80\xaf", 1),
        (b"\xed\xa0\x80", 1),
        (b"\xf0\x80\x80\xaf", 1),
        (b"\xf4\x90\x80\x80", 1),
        (b"\xf5\x80", 0),
        (b"\xff", 0),
        (b"\x80", 0),
        (b"\xe4\xbd\x41", 2),
        (b"\xf0\x9f\x98\x41", 3),
        (b"ok \xce\xba\xff", 5),
        (NOT_UTF8, 12),
    ],
)
@pytest.mark.parametrize("fin", [True, False])
def test_text_is_refused_at_its_first_impossible_byte(
    text: bytes, first_bad: int, fin: bool
) -> None:
    # Autobahn 6.4: the rest of the frame, even of the message, is not waited for.
    parser = WebSocketParser(LIMIT)
    head = F(TEXT, text + b"rest", fin=fin)
    start = len(head) - len(text) - 4
    for offset in range(start + first_bad):
        assert parser.receive_data(head[offset : offset + 1]) == []
    place = start + first_bad
    assert parser.receive_data(head[place : place + 1]) == [Fault(1007, "text is not UTF-8")]


def test_invalid_text_in_a_fragment_is_refused_with_that_fragment() -> None:
    parser = WebSocketParser(LIMIT)
    assert parser.receive_data(F(TEXT, b"\xce\xba", fin=False)) == []
    [fault] = parser.receive_data(F(CONTINUATION, b"\xf4\x90", fin=False))
    assert isinstance(fault, Fault)
    assert fault.code == 1007


@pytest.mark.parametrize("character", ["é", "你", "😀"])
def test_text_that_ends_inside_a_character_is_refused(character: str) -> None:
    cut = character.encode()[:-1]
    assert verdict(F(TEXT, cut)) == [1007]
    assert verdict(F(TEXT, cut, fin=False)) == []
    assert verdict(F(TEXT, cut, fin=False) + F(CONTINUATION)) == [1007]


def test_an_oversized_frame_is_refused_before_its_body_and_mask() -> None:
    parser = WebSocketParser(LIMIT)
    assert parser.receive_data(F(BINARY, length=LIMIT + 1)[:9]) == []
    [fault] = parser.receive_data(F(BINARY, length=LIMIT + 1)[9:10])
    assert fault == Fault(1009, f"frame over {LIMIT} bytes")


def test_fragments_are_counted_together() -> None:
    parser = WebSocketParser(100)
    assert parser.receive_data(F(BINARY, b"x" * 60, fin=False)) == []
    [fault] = parser.receive_data(F(CONTINUATION, length=41)[:2])
    assert fault == Fault(1009, "message over 100 bytes")


def test_a_message_of_exactly_the_limit_passes() -> None:
    data = F(BINARY, b"x" * 60, fin=False) + F(CONTINUATION, b"x" * 40)
    assert parse(data, limit=100) == [Binary(b"x" * 100)]
    assert parse(F(TEXT, b"x" * 100), limit=100) == [Text("x" * 100)]


def test_a_frame_limit_below_the_message_limit() -> None:
    parser = WebSocketParser(100, max_frame=10)
    ten = F(TEXT, b"x" * 10, fin=False) + F(CONTINUATION, b"y" * 10)
    assert parser.receive_data(ten) == [Text("x" * 10 + "y" * 10)]
    assert parser.receive_data(F(TEXT, b"x" * 11)) == [Fault(1009, "frame over 10 bytes")]


def test_the_limit_does_not_hold_for_control_frames() -> None:
    assert parse(F(PING, A125), limit=10) == [Ping(A125)]


@pytest.mark.parametrize("end", [F(CLOSE), F(3), F(TEXT, b"\xff")])
def test_nothing_is_said_or_kept_after_the_end(end: bytes) -> None:
    parser = WebSocketParser(LIMIT)
    assert not parser.closed
    assert len(parser.receive_data(end)) == 1
    assert parser.closed
    assert parser.receive_data(F(TEXT, b"x")) == []
    assert parser.receive_data(b"\x00" * 100) == []
    assert held(parser) == 0


def test_a_small_frame_follows_anything() -> None:
    # The way for one small frame per read must not be taken inside a message or a header.
    whole = F(TEXT, b"small")
    parser = WebSocketParser(LIMIT)
    assert parser.receive_data(F(BINARY, b"abc")[:-1]) == []
    assert parser.receive_data(F(BINARY, b"abc")[-1:]) == [Binary(b"abc")]
    assert parser.receive_data(whole) == [Text("small")]
    assert parser.receive_data(whole[:1]) == []
    assert parser.receive_data(whole[1:]) == [Text("small")]
    assert parser.receive_data(F(TEXT, b"a", fin=False)) == []
    [fault] = parser.receive_data(whole)
    assert isinstance(fault, Fault)
    assert fault.code == 1002


def held(parser: WebSocketParser) -> int:
    """Bytes that the parser keeps."""
    return len(parser._head) + len(parser._control) + len(parser._message or b"")


def test_an_idle_parser_is_small() -> None:
    parser = WebSocketParser(LIMIT)
    parser.receive_data(F(TEXT, b"x" * 1000))
    parser.receive_data(F(TEXT, b"x", fin=False) + F(CONTINUATION, b"y"))
    assert held(parser) == 0
    assert sys.getsizeof(parser) <= 200


def test_empty_fragments_hold_no_memory() -> None:
    parser = WebSocketParser(LIMIT)
    parser.receive_data(F(TEXT, b"\xe4", fin=False))
    empty = F(CONTINUATION, fin=False) * 1000
    for _ in range(20):
        assert parser.receive_data(empty) == []
    assert held(parser) == 1


def test_a_message_byte_by_byte_copies_each_byte_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handled = 0
    unmask = ws.unmask

    def counting(payload: bytes, mask: bytes) -> bytes:
        nonlocal handled
        handled += len(payload)
        return unmask(payload, mask)

    monkeypatch.setattr(ws, "unmask", counting)
    parser = WebSocketParser(LIMIT)
    data = F(TEXT, b"x" * 5000)
    for byte in chunks(data, 1):
        events = parser.receive_data(byte)
        assert len(parser._head) <= 13
    assert events == [Text("x" * 5000)]
    assert handled == 5000


frames = st.builds(
    client_frame,
    opcode=st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 3, 11]),
    payload=st.one_of(st.binary(max_size=140), st.text(max_size=60).map(str.encode)),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 0, 0, 1]),
    mask=st.binary(min_size=4, max_size=4),
)
streams = st.one_of(st.lists(frames, max_size=8).map(b"".join), st.binary(max_size=200))


@settings(max_examples=60, deadline=None)
@given(streams, st.lists(st.integers(0, 2000), max_size=12))
def test_any_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    whole = parse(data, limit=300)
    parser = WebSocketParser(300)
    pieces = [event for piece in cut_at(data, cuts) for event in parser.receive_data(piece)]
    assert pieces == whole
    assert parse(data, chunk=1, limit=300) == whole


@settings(max_examples=150, deadline=None)
@given(streams)
def test_a_fault_or_close_is_the_last_event(data: bytes) -> None:
    events = parse(data)
    assert not any(isinstance(event, Fault | Close) for event in events[:-1])


def fragments(message: str | bytes, cuts: list[int]) -> bytes:
    opcode = TEXT if isinstance(message, str) else BINARY
    pieces = list(cut_at(message.encode() if isinstance(message, str) else message, cuts))
    out = b""
    for number, piece in enumerate(pieces):
        out += F(CONTINUATION if number else opcode, piece, fin=number == len(pieces) - 1)
        out += F(PING, b"between")
    return out


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=200) | st.binary(max_size=300),
            st.lists(st.integers(0, 300), max_size=4),
        ),
        max_size=4,
    )
)
def test_messages_arrive_as_a_client_sent_them(
    messages: list[tuple[str | bytes, list[int]]],
) -> None:
    data = b"".join(fragments(message, cuts) for message, cuts in messages)
    received = [e for e in parse(data, chunk=50) if e != Ping(b"between")]
    assert received == [Text(m) if isinstance(m, str) else Binary(m) for m, _ in messages]


@given(st.binary(max_size=2000), st.binary(min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_unmask_is_xor_and_its_own_inverse(payload: bytes, mask: bytes) -> None:
    masked = ws.unmask(payload, mask)
    assert masked == bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    assert ws.unmask(masked, mask) == payload


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "8100"),
        (125, "817d"),
        (126, "817e007e"),
        (65535, "817effff"),
        (65536, "817f0000000000010000"),
    ],
)
def test_text_frame_header(length: int, header: str) -> None:
    assert ws.frame_header(TEXT, length) == bytes.fromhex(header)
    assert ws.text_frame(b"x" * length) == bytes.fromhex(header) + b"x" * length


def test_frames() -> None:
    # Examples of RFC 6455 section 5.7, as far as a server sends them.
    assert ws.text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert ws.ping_frame(b"Hello") == bytes.fromhex("890548656c6c6f")
    assert ws.pong_frame(b"Hello") == bytes.fromhex("8a0548656c6c6f")
    assert ws.frame(ws.BINARY, b"\x00" * 256) == bytes.fromhex("827e0100") + b"\x00" * 256
    assert ws.frame(ws.BINARY, b"\x00" * 65536)[:10] == bytes.fromhex("827f0000000000010000")
    assert ws.ping_frame() == b"\x89\x00"


def test_the_rfcs_masked_example() -> None:
    assert parse(bytes.fromhex("818537fa213d7f9f4d5158")) == [Text("Hello")]


@pytest.mark.parametrize(
    ("code", "reason", "body"),
    [
        (1000, "", b"\x03\xe8"),
        (1005, "", b""),
        (4401, "no", b"\x11\x31no"),
        (1001, "x" * 200, b"\x03\xe9" + b"x" * 123),
        (1001, "你" * 50, b"\x03\xe9" + "你".encode() * 41),
        (1001, "x" + "😀" * 50, b"\x03\xe9x" + "😀".encode() * 30),
        (1001, "\ud800", b"\x03\xe9?"),
    ],
)
def test_close_frame(code: int, reason: str, body: bytes) -> None:
    assert ws.close_frame(code, reason) == bytes((0x88, len(body))) + body
    assert len(body) <= 125


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000])
def test_a_close_code_that_may_not_be_sent(code: int) -> None:
    with pytest.raises(ValueError, match="may not be sent"):
        ws.close_frame(code)


def test_a_control_frame_over_125_bytes_is_not_made() -> None:
    with pytest.raises(ValueError, match="125"):
        ws.ping_frame(b"x" * 126)
