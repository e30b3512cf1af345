"""Our STOMP frames, byte by byte, and that the fast path writes what the plain one does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.codecs.stomp import Frame, Heartbeat, StompParser
from queuecast.codecs.stomp_encode import MessageHead, encode_frame, header_lines, message_head

CHINESE = "磁盘告警：你好"


@pytest.mark.parametrize(
    ("command", "headers", "body", "expected"),
    [
        ("RECEIPT", [("receipt-id", "77")], b"", b"RECEIPT\nreceipt-id:77\n\n\0\n"),
        ("RECEIPT", [], b"", b"RECEIPT\n\n\0\n"),
        ("ERROR", [("message", "x")], b"why\n", b"ERROR\nmessage:x\ncontent-length:4\n\nwhy\n\0\n"),
        ("MESSAGE", [("a:b", "\r\n:\\")], b"", b"MESSAGE\na\\cb:\\r\\n\\c\\\\\n\n\0\n"),
        ("MESSAGE", [("content-length", "9")], b"a", b"MESSAGE\ncontent-length:1\n\na\0\n"),
        ("MESSAGE", [("content-length", "9")], b"", b"MESSAGE\n\n\0\n"),
        ("MESSAGE", [("k", CHINESE)], b"", f"MESSAGE\nk:{CHINESE}\n\n\0\n".encode()),
        ("MESSAGE", [("k", "a\0b")], b"", "MESSAGE\nk:a\ufffdb\n\n\0\n".encode()),
        ("MESSAGE", [("k", "\ud800")], b"", b"MESSAGE\nk:?\n\n\0\n"),
        ("MESSAGE", [], b"\0\0", b"MESSAGE\ncontent-length:2\n\n\0\0\0\n"),
        ("CONNECTED", [("server", "a:b\\")], b"", b"CONNECTED\nserver:a:b\\\n\n\0\n"),
    ],
)
def test_frames(command: str, headers: list[tuple[str, str]], body: bytes, expected: bytes) -> None:
    assert encode_frame(command, headers, body) == expected


@pytest.mark.parametrize("pair", [("a", "b\nc"), ("a", "b\r"), ("a\n", "b"), ("a:b", "c")])
def test_connected_has_no_escapes_so_some_headers_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="CONNECTED"):
        encode_frame("CONNECTED", [pair])


def test_message_bytes() -> None:
    head = MessageHead("sub-0", "/topic/a.b")
    assert head.encode("e-1", b"hello") == (
        b"MESSAGE\nsubscription:sub-0\ndestination:/topic/a.b\nmessage-id:e-1\n"
        b"redelivered:false\ncontent-length:5\n\nhello\0\n"
    )
    lines = header_lines([("content-type", "text/plain"), ("x", "a:b")])
    assert head.encode("T_1@@s@@9", b"", lines, redelivered=True, ack="T_1@@s@@9") == (
        b"MESSAGE\nsubscription:sub-0\ndestination:/topic/a.b\nmessage-id:T_1@@s@@9\n"
        b"redelivered:true\nack:T_1@@s@@9\ncontent-type:text/plain\nx:a\\cb\n\n\0\n"
    )


def test_a_subscription_without_an_id_names_none() -> None:
    assert MessageHead(None, "/queue/a").encode("1", b"") == (
        b"MESSAGE\ndestination:/queue/a\nmessage-id:1\nredelivered:false\n\n\0\n"
    )


def test_equal_subscriptions_share_one_head() -> None:
    assert message_head("sub-0", "/topic/a") is message_head("sub-0", "/topic/a")
    assert message_head("sub-0", "/topic/a") is not message_head("sub-1", "/topic/a")
    assert message_head.cache_info().maxsize is not None


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = TEXTS.filter(bool)
OURS = {"subscription", "destination", "message-id", "redelivered", "ack", "content-length"}


@given(
    st.none() | TEXTS,
    TEXTS,
    TEXTS,
    st.booleans(),
    st.none() | TEXTS,
    st.dictionaries(NAMES.filter(lambda name: name not in OURS), TEXTS, max_size=4),
    st.binary(max_size=50),
)
def test_the_fast_path_writes_what_encode_frame_does(
    subscription: str | None,
    destination: str,
    message_id: str,
    redelivered: bool,
    ack: str | None,
    more: dict[str, str],
    body: bytes,
) -> None:
    pairs = [] if subscription is None else [("subscription", subscription)]
    pairs += [("destination", destination), ("message-id", message_id)]
    pairs += [("redelivered", "true" if redelivered else "false")]
    pairs += [] if ack is None else [("ack", ack)]
    pairs += more.items()
    data = MessageHead(subscription, destination).encode(
        message_id, body, header_lines(more.items()), redelivered=redelivered, ack=ack
    )
    assert data == encode_frame("MESSAGE", pairs, body)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_text_breaks_out_of_its_header(name: str, value: str) -> None:
    events = StompParser().receive_data(encode_frame("MESSAGE", [("x" + name, value), ("z", "1")]))
    assert len(events) == 2
    frame, beat = events
    assert isinstance(frame, Frame)
    assert isinstance(beat, Heartbeat)
    assert len(frame.headers) == 2
    assert frame.headers["z"] == "1"
