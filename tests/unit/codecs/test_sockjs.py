"""SockJS frames, wires and addresses."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs import sockjs
from queuecast.codecs.sockjs import SockJsError, Wire

# Everything that Python can encode: no halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
many = st.lists(texts, min_size=1, max_size=8)


@settings(deadline=None)
@given(texts)
def test_a_message_comes_back(text: str) -> None:
    frame = sockjs.message(text)
    assert frame.startswith(b"a[")
    assert json.loads(frame[1:]) == [text]


def test_what_browsers_would_change_is_escaped() -> None:
    ranges = ((0x00, 0x1F), (0x200C, 0x200F), (0x2028, 0x202F), (0x2060, 0x206F), (0xFFF0, 0xFFFF))
    killers = "".join(chr(code) for low, high in ranges for code in range(low, high + 1))
    quoted = sockjs.quote("é" + killers)
    assert json.loads(quoted) == "é" + killers
    assert quoted[1:3] == "é".encode(), "what is safe stays as short as it is"
    assert quoted[3:].isascii()
    assert all(f"\\u{code:04x}".encode() in quoted for code in range(0x2028, 0x2030))


@settings(deadline=None)
@given(texts, st.integers(1000, 4999))
def test_an_ending_names_code_and_reason(text: str, code: int) -> None:
    frame = sockjs.close(code, text)
    assert frame.startswith(b"c[")
    assert json.loads(frame[1:]) == [code, text]


def test_the_protocols_own_endings() -> None:
    assert sockjs.close(3000, "Go away!") == b'c[3000,"Go away!"]'


# -- wires --------------------------------------------------------------------------------


def decode_uri(text: str) -> str:
    """JavaScript's decodeURI, as far as a lone %25 goes; any other escape is an error."""
    assert not re.search("%(?!25)", text), "decodeURI would change it or throw"
    return text.replace("%25", "%")


@settings(deadline=None)
@given(many)
def test_frames_of_xhr_are_lines(messages: list[str]) -> None:
    data = b"".join(Wire.XHR.wrap(sockjs.message(text)) for text in messages)
    lines = data.split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line[1:])[0] for line in lines] == messages


@settings(deadline=None)
@given(many)
def test_frames_of_eventsource_are_events(messages: list[str]) -> None:
    data = b"".join(Wire.EVENTSOURCE.wrap(sockjs.message(text)) for text in messages)
    events = data.split(b"\r\n\r\n")
    assert events.pop() == b""
    found = []
    for event in events:
        assert event.startswith(b"data: a[")
        assert b"\n" not in event
        assert b"\r" not in event
        found += json.loads(decode_uri(event[6:].decode())[1:])
    assert found == messages


@settings(deadline=None)
@given(texts)
def test_frames_of_htmlfile_are_scripts(text: str) -> None:
    data = Wire.HTMLFILE.wrap(sockjs.message(text))
    script = re.fullmatch(rb"<script>\np\((.*)\);\n</script>\r\n", data, re.DOTALL)
    assert script is not None
    assert b"<" not in script[1], "no message ends the script"
    assert json.loads(json.loads(script[1])[1:]) == [text]


def test_the_words_of_the_protocol() -> None:
    assert Wire.XHR.wrap(sockjs.OPEN) == b"o\n"
    assert Wire.EVENTSOURCE.wrap(sockjs.OPEN) == b"data: o\r\n\r\n"
    assert Wire.HTMLFILE.wrap(sockjs.OPEN) == b'<script>\np("o");\n</script>\r\n'
    assert Wire.HTMLFILE.wrap(sockjs.message("x")) == b'<script>\np("a[\\"x\\"]");\n</script>\r\n'
    assert sockjs.jsonp("callback", b"o") == b'/**/callback("o");\r\n'
    assert sockjs.jsonp("x", sockjs.message("b")) == b'/**/x("a[\\"b\\"]");\r\n'


def test_preludes_get_browsers_to_show_what_follows() -> None:
    assert Wire.XHR.prelude() == b"h" * 2048 + b"\n"
    assert Wire.EVENTSOURCE.prelude() == b"\r\n"
    page = Wire.HTMLFILE.prelude("_jp.a1")
    assert len(page) > 1024
    assert b"var c = parent._jp.a1;" in page


@settings(deadline=None)
@given(many)
def test_a_poll_is_answered_with_one_frame(messages: list[str]) -> None:
    lines = b"".join(Wire.XHR.wrap(sockjs.message(text)) for text in messages)
    frame = sockjs.merge(lines)
    assert frame.startswith(b"a[")
    assert json.loads(frame[1:]) == messages


def test_messages_that_look_like_borders_survive_a_merge() -> None:
    messages = ['"]\na["', '"]', 'a["', "\\", '\\"]\\na[\\"', ""]
    lines = b"".join(Wire.XHR.wrap(sockjs.message(text)) for text in messages)
    assert json.loads(sockjs.merge(lines)[1:]) == messages


# -- from the client ----------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(texts, max_size=8), st.booleans())
def test_messages_of_a_client(messages: list[str], ascii_only: bool) -> None:
    payload = json.dumps(messages, ensure_ascii=ascii_only)
    assert sockjs.parse_messages(payload) == messages
    assert sockjs.parse_messages(payload.encode()) == messages


def test_one_text_is_one_message() -> None:
    assert sockjs.parse_messages(b'"x"') == ["x"]


@settings(deadline=None)
@given(st.text(max_size=40))
def test_halves_of_pairs_become_what_a_websocket_makes_of_them(text: str) -> None:
    """`st.text()` makes none; json.dumps writes those that are put in by hand."""
    payload = json.dumps([text + "\ud800", "\udfff\\ud800"])
    assert sockjs.parse_messages(payload) == [text + "\ufffd", "\ufffd\\ud800"]


@pytest.mark.parametrize("payload", [b"", ""])
def test_no_payload(payload: bytes | str) -> None:
    with pytest.raises(SockJsError, match=r"Payload expected\."):
        sockjs.parse_messages(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b'["x',
        b"x",
        b"[1]",
        b"{}",
        b"null",
        b'["\xff"]',
        b'["a\nb"]',
        b'["x"] y',
        b'["\\ud800", 1]',
        b'["\\ud800"',
        b"[" * 100_000,
        b'["\\ud800", ' + b"[" * 100_000,
    ],
)
def test_what_is_no_array_of_texts(payload: bytes) -> None:
    with pytest.raises(SockJsError, match=r"Broken JSON encoding\."):
        sockjs.parse_messages(payload)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_garbage_is_refused_or_read_never_more(payload: bytes) -> None:
    try:
        messages = sockjs.parse_messages(payload)
    except SockJsError:
        return
    assert all(text.encode().decode() == text for text in messages)


@pytest.mark.parametrize("name", ["callback", "_jp.a1b2c3", "x", "a-b_c.d9"])
def test_names_of_callbacks(name: str) -> None:
    assert sockjs.callback_name(name) == name


@pytest.mark.parametrize("name", ["a(b)", "x;alert(1)", "<b>", "é", "a b", "x" * 129, "a\n"])
def test_no_names_of_callbacks(name: str) -> None:
    with pytest.raises(SockJsError, match='invalid "callback" parameter'):
        sockjs.callback_name(name)


@pytest.mark.parametrize("name", ["", None])
def test_callbacks_are_required(name: str | None) -> None:
    with pytest.raises(SockJsError, match='"callback" parameter required'):
        sockjs.callback_name(name)


# -- addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "server", "session"),
    [
        ("/000/abc/xhr", "000", "abc"),
        ("/_/_/xhr", "_", "_"),
        ("/abcdefgh_i-j%20/abcdefg_i-j%20/xhr", "abcdefgh_i-j%20", "abcdefg_i-j%20"),
    ],
)
def test_sessions_addresses(rest: str, server: str, session: str) -> None:
    assert sockjs.parse_path(rest) == (server, session, "xhr")


@pytest.mark.parametrize(
    "rest",
    ["///xhr", "/a./a/xhr", "/a/a./xhr", "/./../xhr", "/a/xhr", "//a/xhr", "/a/b/c/xhr", "/a/b/"],
)
def test_no_sessions_addresses(rest: str) -> None:
    assert sockjs.parse_path(rest) is None


@pytest.mark.parametrize(
    "rest", ["/iframe.html", "/iframe-a.html", "/iframe-.html", "/iframe-0.1.2abc-dirty.2144.html"]
)
def test_the_iframes_addresses(rest: str) -> None:
    assert sockjs.is_iframe(rest)


@pytest.mark.parametrize(
    "rest",
    ["/iframe.htm", "/iframe", "/IFRAME.HTML", "/iframe.HTML", "/iframe.xml", "/iframe-/.html"],
)
def test_no_iframes_addresses(rest: str) -> None:
    assert not sockjs.is_iframe(rest)


def test_addresses_among_others() -> None:
    for rest in ("/info", "/websocket", "/iframe.html", "/123/abc/websocket", "/000/a/xhr"):
        assert sockjs.is_unmistakable(rest)
    for rest in (
        "",
        "/",
        "/exchange/events/xhr",
        "/topic/a",
        "/queue/websocket",
        "/12/a/xhr",
        "/123/a/b",
    ):
        assert not sockjs.is_unmistakable(rest)
