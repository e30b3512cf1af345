"""permessage-deflate: messages in and out, against zlib on the other side."""

from __future__ import annotations

import os
import random
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs import deflate
from queuecast.codecs.deflate import DeflateParser, compress, pack
from queuecast.codecs.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    RSV1,
    TEXT,
    Binary,
    Event,
    Fault,
    Ping,
    Text,
    WebSocketParser,
    frame_header,
)
from tests.unit.codecs.client_frames import chunks, client_frame, cut_at

LIMIT = 1 << 20
F = client_frame
CORRUPT = Fault(1007, "the message is not valid deflate data")
NOT_UTF8 = Fault(1007, "text is not UTF-8")
TAIL = b"\x00\x00\xff\xff"


def deflated(data: bytes, bits: int = 15, level: int = 6, strategy: int = 0) -> bytes:
    """Compress as section 7.2.1 has it, with the client's choice of window, level and strategy."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -bits, 8, strategy)
    out = stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)
    assert out.endswith(TAIL)
    return out[:-4]


def final(data: bytes) -> bytes:
    """Compress into blocks of which the last has BFINAL (7.2.3.4), without the byte after it."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def inflated(payload: bytes) -> bytes:
    """Inflate as a client that has just begun: nothing may be referred to."""
    stream = zlib.decompressobj(-15)
    return stream.decompress(payload + TAIL)


def parse(data: bytes, chunk: int = 0, limit: int = LIMIT) -> list[Event]:
    parser = DeflateParser(limit)
    return feed(parser, chunks(data, chunk) if chunk else [data])


def feed(parser: DeflateParser, pieces: Iterable[bytes]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += parser.receive_data(piece)
        while parser.pending:
            events += parser.receive_data(b"")
    return events


def message(opcode: int, payload: bytes, *, fragments: int = 1, between: bytes = b"") -> bytes:
    """Frame a compressed payload in about so many fragments."""
    size = max(1, -(-len(payload) // fragments))
    parts = list(chunks(payload, size)) or [b""]
    last = len(parts) - 1
    return b"".join(
        F(CONTINUATION if n else opcode, part, fin=n == last, rsv=0 if n else 4)
        + (between if n < last else b"")
        for n, part in enumerate(parts)
    )


# -- out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 63, 64, 100, 8192, 16378, 16379, 16384, 32768, 65535, 65536, 131072, 1 << 20]
)
@pytest.mark.parametrize("kind", ["zeros", "noise", "text"])
def test_what_is_compressed_inflates_in_any_order(size: int, kind: str) -> None:
    body = {
        "zeros": bytes(size),
        "noise": random.Random(size).randbytes(size),
        "text": (b'{"symbol": "gold", "bid": 2391.5}' * (size // 32 + 1))[:size],
    }[kind]
    first, again = compress(body), compress(body)
    # Nothing of the messages before it: two in a row are the same bytes.
    assert first == again
    assert inflated(first) == body
    assert not first.endswith(TAIL)


def test_only_what_pays_is_compressed() -> None:
    small = b"a" * (deflate.MIN_COMPRESSED - 1)
    assert pack(TEXT, small) == (TEXT, small)
    noise = os.urandom(1000)
    assert pack(BINARY, noise) == (BINARY, noise)
    opcode, payload = pack(TEXT, b"a" * deflate.MIN_COMPRESSED)
    assert opcode == TEXT | RSV1
    assert len(payload) < deflate.MIN_COMPRESSED
    assert pack(BINARY, bytes(100))[0] == BINARY | RSV1


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536])
def test_the_header_of_a_compressed_frame_has_rsv1(length: int) -> None:
    for opcode in (TEXT, BINARY):
        plain = frame_header(opcode, length)
        header = frame_header(opcode | RSV1, length)
        assert header == bytes((plain[0] | 0x40,)) + plain[1:]


def test_threads_share_the_compressor_without_mixing_messages() -> None:
    bodies = [bytes((n,)) * 20_000 + os.urandom(2000) for n in range(4)]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(100):
            if inflated(compress(bodies[n])) != bodies[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- in -----------------------------------------------------------------------------------

# RFC 7692, section 7.2.3: "Hello" in its various clothes.
HELLO = bytes.fromhex("f248cdc9c90700")
EXAMPLES: dict[str, tuple[bytes, str]] = {
    "7.2.3.1 one frame": (F(TEXT, HELLO, rsv=4), "Hello"),
    "7.2.3.1 two frames": (
        F(TEXT, HELLO[:3], rsv=4, fin=False) + F(CONTINUATION, HELLO[3:]),
        "Hello",
    ),
    "7.2.3.3 stored block": (
        F(TEXT, bytes.fromhex("000500faff48656c6c6f00"), rsv=4),
        "Hello",
    ),
    "7.2.3.4 BFINAL": (F(TEXT, bytes.fromhex("f348cdc9c9070000"), rsv=4), "Hello"),
    "7.2.3.5 two blocks": (F(TEXT, bytes.fromhex("f248050000 00ffffcac9c90700"), rsv=4), "Hello"),
    "7.2.3.6 empty": (F(TEXT, b"\x00", rsv=4), ""),
    "BFINAL without the byte after it": (F(TEXT, bytes.fromhex("f348cdc9c90700"), rsv=4), "Hello"),
    "no bytes at all": (F(TEXT, rsv=4), ""),
    "BFINAL, then the rest": (F(TEXT, final(b"Hel") + deflated(b"lo"), rsv=4), "Hello"),
    "not compressed": (F(TEXT, b"Hello"), "Hello"),
    "not compressed, fragmented": (
        F(TEXT, b"Hel", fin=False) + F(CONTINUATION, b"lo"),
        "Hello",
    ),
}


@pytest.mark.parametrize("chunk", [0, 1, 3])
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, chunk: int) -> None:
    data, text = EXAMPLES[name]
    # Twice: nothing stays behind from the message before.
    assert parse(data * 2, chunk) == [Text(text)] * 2


# Autobahn's groups 12.1 to 12.5 and 13.*: sizes by kind of message by the client's parameters.
@pytest.mark.parametrize("size", [0, 16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072])
@pytest.mark.parametrize("bits", [9, 12, 15])
@pytest.mark.parametrize("kind", ["json", "chinese", "noise"])
def test_sizes_windows_and_fragments(size: int, bits: int, kind: str) -> None:
    if kind == "noise":
        body = random.Random(size).randbytes(size)
        event: Event = Binary(body)
        opcode = BINARY
    else:
        pattern = '{"id": 7, "name": "Grüße"}' if kind == "json" else "磁盘告警：你好"
        text = (pattern * size)[: size // 3]
        body = text.encode()
        event = Text(text)
        opcode = TEXT
    payload = deflated(body, bits)
    assert parse(message(opcode, payload)) == [event]
    assert parse(message(opcode, payload, fragments=7)) == [event]
    assert parse(message(opcode, payload), chunk=1000) == [event]


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_FIXED])
def test_levels_and_strategies(level: int, strategy: int) -> None:
    body = b"the quick brown fox " * 5000
    payload = deflated(body, level=level, strategy=strategy)
    assert parse(message(BINARY, payload, fragments=3)) == [Binary(body)]


def test_control_frames_between_compressed_fragments() -> None:
    data = message(TEXT, deflated(b"hello " * 100), fragments=4, between=F(PING, b"p"))
    events = parse(data)
    assert events == [Ping(b"p")] * 3 + [Text("hello " * 100)]
    assert parse(data, chunk=1) == events


def test_compressed_and_plain_messages_take_turns() -> None:
    one = message(TEXT, deflated("一".encode() * 50))
    data = F(TEXT, b"a") + one + F(BINARY, b"b") + one + F(TEXT, b"c", fin=False)
    assert parse(data + F(CONTINUATION, b"d") + one) == [
        Text("a"),
        Text("一" * 50),
        Binary(b"b"),
        Text("一" * 50),
        Text("cd"),
        Text("一" * 50),
    ]


def test_a_block_after_a_final_one_may_refer_back() -> None:
    body = os.urandom(1000)
    stream = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=body)
    second = stream.compress(body) + stream.flush(zlib.Z_SYNC_FLUSH)
    assert len(second) < 100, "it does refer to the first"
    payload = final(body) + second[:-4]
    assert parse(message(BINARY, payload), chunk=7) == [Binary(body * 2)]


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_rsv1_on_a_control_frame_is_a_fault(opcode: int) -> None:
    [text, fault] = parse(F(TEXT, b"a") + F(opcode, rsv=4) + F(PING))
    assert text == Text("a")
    assert isinstance(fault, Fault)
    assert fault.code == 1002


def test_rsv1_on_a_continuation_is_a_fault() -> None:
    data = F(TEXT, HELLO[:3], rsv=4, fin=False) + F(CONTINUATION, HELLO[3:], rsv=4)
    assert [e.code for e in parse(data) if isinstance(e, Fault)] == [1002]
    assert [e.code for e in parse(data, chunk=1) if isinstance(e, Fault)] == [1002]


@pytest.mark.parametrize("rsv", [1, 2, 3, 5, 6, 7])
def test_the_other_reserved_bits_stay_faults(rsv: int) -> None:
    assert parse(F(TEXT, HELLO, rsv=rsv)) == [Fault(1002, "reserved bits are set")]


def test_without_the_extension_rsv1_is_a_fault() -> None:
    parser = WebSocketParser(LIMIT)
    assert parser.receive_data(F(TEXT, HELLO, rsv=4)) == [Fault(1002, "reserved bits are set")]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff\xff",
        b"\x07",
        b"Hello, this is no deflate data",
        HELLO[:-3],
        deflated(b"some text that is long enough " * 3)[:-4],
        HELLO + b"\x01",
        final(b"Hello") + b"garbage",
        final(b"Hello") + b"\x01",
        b"\x00\x05\x00\xfa\xffHel",
    ],
)
@pytest.mark.parametrize("chunk", [0, 1])
def test_corrupt_cut_off_or_trailing_bytes(payload: bytes, chunk: int) -> None:
    assert parse(F(BINARY, payload, rsv=4) + F(PING), chunk) == [CORRUPT]


def test_a_reference_to_the_message_before_is_corrupt() -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = os.urandom(300)
    first = (stream.compress(body) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    second = (stream.compress(body) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(second) < 100, "it does refer to the first"
    data = message(BINARY, first) + message(BINARY, second)
    assert parse(data) == [Binary(body), CORRUPT]


@pytest.mark.parametrize(
    "text", [b"\xff" * 100, "你".encode() * 9 + b"\xe4\xbd", b"ok \xed\xa0\x80"]
)
def test_text_is_validated_after_inflation(text: bytes) -> None:
    assert parse(message(TEXT, deflated(text))) == [NOT_UTF8]
    assert parse(message(TEXT, deflated(text), fragments=3), chunk=1) == [NOT_UTF8]
    assert parse(message(BINARY, deflated(text))) == [Binary(text)]


# -- bounds -------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [bytes(1000), os.urandom(1000)])
def test_the_limit_is_the_inflated_size(body: bytes) -> None:
    payload = deflated(body)
    for fragments in (1, 5):
        data = message(BINARY, payload, fragments=fragments)
        assert parse(data, limit=1000) == [Binary(body)]
        assert parse(data, limit=999) == [Fault(1009, "message over 999 bytes")]
        assert parse(data, chunk=1, limit=999) == [Fault(1009, "message over 999 bytes")]


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    limit = 64 * 1024
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(stream.compress(bytes(1 << 20)) for _ in range(64))
    bomb = (bomb + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < limit + 8192, "64 MB in a frame that is let in"
    data = F(BINARY, bomb, rsv=4)
    parser = DeflateParser(limit)
    tracemalloc.start()
    try:
        [fault] = parser.receive_data(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fault == Fault(1009, "message over 65536 bytes")
    assert peak < 12 * limit, "unmasking the frame and its limit's worth of output, not 64 MB"
    assert parser._message is None


def test_a_bomb_in_small_fragments_ends_at_the_limit() -> None:
    payload = deflated(bytes(10 << 20))
    parser = DeflateParser(1000)
    events = parser.receive_data(F(BINARY, payload[:100], rsv=4, fin=False))
    assert events == [Fault(1009, "message over 1000 bytes")]


def test_a_compressed_frame_is_refused_from_its_header() -> None:
    parser = DeflateParser(1000)
    frame = F(BINARY, rsv=4, length=1190, length_size=2)
    assert parser.receive_data(frame[:4]) == [Fault(1009, "compressed frame over 1189 bytes")]
    parser = DeflateParser(1000, max_frame=100)
    assert parser.receive_data(F(BINARY, b"x" * 101)) == [Fault(1009, "frame over 100 bytes")]


def test_many_bombs_in_one_read_are_inflated_one_limit_at_a_time() -> None:
    limit = 10_000
    one = message(BINARY, deflated(bytes(limit // 2)))
    parser = DeflateParser(limit)
    calls = [parser.receive_data(one * 100 + F(PING, b"end"))]
    while parser.pending:
        calls.append(parser.receive_data(b""))
    assert [len(events) for events in calls] == [2] * 50 + [1]
    assert calls[-1] == [Ping(b"end")]
    # More may come while there is a rest, and stays behind it.
    more = parser.receive_data(one * 3) + parser.receive_data(F(TEXT, b"x"))
    assert more == [Binary(bytes(limit // 2))] * 3 + [Text("x")]
    assert not parser.pending
    assert parser._head == b""


def test_plain_messages_are_not_held_back() -> None:
    parser = DeflateParser(1000)
    data = F(BINARY, bytes(1000)) * 50
    assert len(parser.receive_data(data)) == 50
    assert not parser.pending


def test_final_blocks_without_end_are_refused() -> None:
    empty = final(b"")
    assert len(empty) == 2
    for chunk in (0, 1, 64):
        assert parse(message(BINARY, empty * 64), chunk) == [Binary(b"")]
        [fault] = parse(message(BINARY, empty * 100_000), chunk and chunk * 61)
        assert fault == Fault(1009, "message of over 64 deflate streams")


def test_an_idle_parser_holds_nothing_and_costs_one_word_more() -> None:
    plain = WebSocketParser(LIMIT)
    parser = DeflateParser(LIMIT)
    assert sys.getsizeof(parser) <= sys.getsizeof(plain) + 16
    parser.receive_data(message(TEXT, deflated(b"x" * 1000), fragments=3))
    parser.receive_data(message(TEXT, deflated(b"x" * 1000)))
    assert parser._inflater is None
    assert parser._message is None
    parser.receive_data(message(TEXT, deflated(b"x" * 1000))[:-2])
    assert parser._inflater is not None, "the middle of a message is what costs"


def test_nothing_is_kept_after_a_fault() -> None:
    parser = DeflateParser(LIMIT)
    [fault] = parser.receive_data(F(TEXT, HELLO[:3], rsv=4, fin=False) + F(TEXT, b"x"))
    assert fault == Fault(1002, "new message inside a fragmented one")
    assert parser.closed
    assert parser._inflater is None
    assert parser.receive_data(F(TEXT, b"x")) == []


# -- properties ---------------------------------------------------------------------------

bodies = st.one_of(st.text(max_size=300), st.binary(max_size=300), st.just("ab" * 5000))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(bodies, st.booleans(), st.integers(1, 6), st.sampled_from([9, 15])), max_size=5
    ),
    st.lists(st.integers(0, 3000), max_size=12),
)
def test_messages_arrive_however_they_are_cut(
    messages: list[tuple[str | bytes, bool, int, int]], cuts: list[int]
) -> None:
    data = b""
    for body, compressed, fragments, bits in messages:
        opcode = TEXT if isinstance(body, str) else BINARY
        raw = body.encode() if isinstance(body, str) else body
        if compressed:
            data += message(opcode, deflated(raw, bits), fragments=fragments, between=F(PONG))
        else:
            data += F(opcode, raw)
    expected = [Text(b) if isinstance(b, str) else Binary(b) for b, *_ in messages]
    parser = DeflateParser(LIMIT)
    events = feed(parser, cut_at(data, cuts))
    assert [e for e in events if isinstance(e, Text | Binary)] == expected


payloads = st.one_of(
    st.binary(max_size=100),
    st.binary(max_size=200).map(deflated),
    st.text(max_size=60).map(lambda text: deflated(text.encode())),
    st.binary(max_size=100).map(final),
    st.builds(bytes.__add__, st.binary(max_size=60).map(final), st.binary(max_size=20)),
)
frames = st.builds(
    client_frame,
    opcode=st.sampled_from([CONTINUATION, TEXT, BINARY, BINARY, PING, CLOSE]),
    payload=payloads,
    fin=st.booleans(),
    rsv=st.sampled_from([0, 4, 4, 4, 1]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(frames, max_size=6).map(b"".join), st.lists(st.integers(0, 2000), max_size=12))
def test_any_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    whole = parse(data)
    parser = DeflateParser(LIMIT)
    pieces = feed(parser, cut_at(data, cuts))
    assert pieces == whole
    assert parse(data, chunk=1) == whole
    assert not any(isinstance(event, Fault) for event in whole[:-1])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_no_message_is_longer_than_the_limit(payload: bytes, limit: int) -> None:
    for event in parse(F(BINARY, payload, rsv=4), limit=limit):
        if isinstance(event, Binary):
            assert len(event.data) <= limit


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=8))
def test_what_we_send_a_client_inflates(bodies: list[bytes]) -> None:
    for body in bodies:
        opcode, payload = pack(BINARY, body)
        assert (inflated(payload) if opcode & RSV1 else payload) == body
