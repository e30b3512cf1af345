"""STOMP in WebSocket messages, and the bytes that sessions share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.codecs.stomp import Frame
from queuecast.codecs.websocket import BINARY, CONTINUATION, PING, TEXT, close_frame
from queuecast.codecs.websocket import CLOSE as CLOSE_OPCODE
from queuecast.message import Message
from queuecast.sessions.stomp_framing import RAW
from queuecast.sessions.stomp_link import (
    Broken,
    RawLink,
    WebSocketLink,
    choose_subprotocol,
)
from tests.unit.sessions.stomp_rig import Client, Got, House, frames, masked, stomp

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """Cut our WebSocket frames into opcode and payload."""
    found = []
    while data:
        assert data[0] & 0x80, "ours are never fragmented"
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        found.append((data[0] & 0x0F, data[start : start + length]))
        data = data[start + length :]
    return found


def opened(house: House, offered: tuple[str, ...] = ()) -> Client:
    client = house.websocket(offered)
    assert client.transport.written.startswith(b"HTTP/1.1 101 ")
    client.transport.written = b""
    return client


def say(client: Client, *payloads: bytes, opcode: int = TEXT) -> list[tuple[int, bytes]]:
    client.session.receive_data(b"".join(masked(opcode, payload) for payload in payloads))
    client.house.runtime.settle()
    data, client.transport.written = client.transport.written, b""
    return messages(data)


LOGIN = stomp("CONNECT", accept_version="1.2", login="guest", passcode="guest")


def logged_in(house: House) -> Client:
    client = opened(house)
    ((opcode, payload),) = say(client, LOGIN)
    assert opcode == TEXT
    assert frames(payload)[0].command == "CONNECTED"
    return client


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((), None),
        (("mqtt",), None),
        (("v10.stomp", "v11.stomp"), "v11.stomp"),
        (("v10.stomp", "v12.stomp", "v11.stomp", "x"), "v12.stomp"),
    ],
)
def test_the_highest_subprotocol_is_echoed(offered: tuple[str, ...], chosen: str | None) -> None:
    assert choose_subprotocol(offered) == chosen
    answer = House().websocket(offered).transport.written.decode()
    assert (f"Sec-WebSocket-Protocol: {chosen}\r\n" in answer) is (chosen is not None)
    assert ("Sec-WebSocket-Protocol" in answer) is (chosen is not None)


def test_several_frames_in_a_message_and_a_frame_over_several() -> None:
    house = House()
    client = opened(house)
    say(client, LOGIN + stomp("SEND", b"1", destination="/topic/a"))
    two = stomp("SEND", b"2", destination="/topic/a")
    say(client, two[:5], two[5:20], two[20:] + b"\n")
    say(client, stomp("SEND", b"\xff", destination="/topic/a"), opcode=BINARY)
    client.session.receive_data(
        masked(TEXT, b"SEND\ndestin", fin=False) + masked(CONTINUATION, b"ation:/topic/a\n\n4\0")
    )
    house.runtime.settle()
    assert [each.body for each in house.published] == [b"1", b"2", b"\xff", b"4"]


def test_each_frame_is_a_message_and_text_where_it_can_be() -> None:
    house = House()
    client = logged_in(house)
    say(client, stomp("SUBSCRIBE", id="1", destination="/topic/a"))
    house.append("/topic/a", "你好".encode(), b"\xff\xfe", b"")
    got = messages(client.transport.written)
    assert [opcode for opcode, _ in got] == [TEXT, BINARY, TEXT]
    assert [frames(payload)[0].body for _, payload in got] == ["你好".encode(), b"\xff\xfe", b""]
    client.transport.written = b""
    house.feeds["/topic/a"].gap("lost")
    house.runtime.settle()
    ((opcode, payload),) = messages(client.transport.written)
    assert (opcode, frames(payload)[0].headers["gap"]) == (TEXT, "lost")


def test_a_queues_messages_are_framed_too() -> None:
    house = House()
    client = logged_in(house)
    say(client, stomp("SUBSCRIBE", id="1", destination="/queue/a"))
    house.consumers[0].deliver(b"\xff")
    house.runtime.settle()
    ((opcode, payload),) = messages(client.transport.written)
    assert (opcode, frames(payload)[0].body) == (BINARY, b"\xff")


def test_pings_are_answered_and_ours_need_an_answer() -> None:
    client = logged_in(House())
    assert say(client, b"hello", opcode=PING) == [(0xA, b"hello")]
    for _ in range(2):
        client.session.heartbeat(0)
    assert [opcode for opcode, _ in messages(client.transport.written)] == [PING, PING]
    client.transport.written = b""
    client.session.heartbeat(0)
    error, close = messages(client.transport.written)
    assert frames(error[1])[0].headers["message"] == "timeout"
    assert close[0] == CLOSE_OPCODE


def test_beats_are_messages() -> None:
    house = House()
    client = opened(house)
    say(client, LOGIN[:-2] + b"heart-beat:0,2000\n\n\0")
    house.runtime.advance(1)
    assert messages(client.transport.written) == [(TEXT, b"\n")]


def test_closing_is_answered_after_what_was_sent() -> None:
    house = House()
    client = logged_in(house)
    house.confirm_at_once = False
    bye = close_frame(1000, "")
    client.session.receive_data(
        masked(TEXT, stomp("SEND", b"x", destination="/topic/a", receipt="1"))
        + masked(CLOSE_OPCODE, bye[2:])
    )
    house.runtime.settle()
    assert client.transport.written == b""
    house.published[0].confirm.set_result(None)
    house.runtime.settle()
    receipt, close = messages(client.transport.written)
    assert frames(receipt[1])[0].command == "RECEIPT"
    assert close == (CLOSE_OPCODE, b"\x03\xe8")
    assert client.transport.closed, "browsers wait for it"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(TEXT, b"SEND\nno colon\n\n\0"), 1007),
        (masked(TEXT, b"\xff"), 1007),
        (b"\x81\x05hello", 1002),
        (bytes((0x82, 0xFF)) + (1 << 20).to_bytes(8, "big") + bytes(4), 1009),
    ],
)
def test_garbage_is_closed_with_a_code(data: bytes, code: int) -> None:
    house = House()
    client = opened(house)
    client.session.receive_data(data)
    ((opcode, payload),) = messages(client.transport.written)
    assert opcode == CLOSE_OPCODE
    assert int.from_bytes(payload[:2], "big") == code
    assert len(payload) > 2, "the reason can be read"
    client.session.receive_data(masked(TEXT, LOGIN))
    assert house.logins == []
    client.session.receive_data(masked(CLOSE_OPCODE, payload[:2]))
    assert client.transport.closed or client.session.closed
    house.runtime.advance(2)
    assert client.transport.closed


def test_after_the_login_messages_may_be_larger() -> None:
    large = bytes((0x82, 0xFF)) + (100_000).to_bytes(8, "big") + bytes(4) + b"\n" * 100_000
    house = House()
    stranger = opened(house)
    stranger.session.receive_data(large)
    assert stranger.gone
    known = logged_in(house)
    known.session.receive_data(large)
    house.runtime.settle()
    assert not known.gone


def test_nothing_follows_what_is_broken() -> None:
    link = WebSocketLink(1000, KEY)
    bad = masked(TEXT, b"SEND\nx\n\n\0")
    got = link.receive_data(bad + masked(TEXT, stomp("SEND", destination="/topic/a")))
    assert [type(each) for each in got] == [Broken]


@given(st.lists(st.binary(max_size=8), max_size=4), st.data())
def test_any_cut_of_the_bytes_gives_the_same_frames(
    bodies: list[bytes], data: st.DataObject
) -> None:
    bodies = [body.replace(b"\0", b"") for body in bodies]
    sent = b"".join(stomp("MESSAGE", body, n=str(n)) for n, body in enumerate(bodies))
    link = WebSocketLink(100_000, KEY)
    got = []
    while sent:
        size = data.draw(st.integers(1, min(100, len(sent))))
        wire, sent = masked(BINARY, sent[:size]), sent[size:]
        cut = data.draw(st.integers(0, len(wire)))
        got += link.receive_data(wire[:cut]) + link.receive_data(wire[cut:])
    assert [each.body for each in got if isinstance(each, Frame)] == bodies


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_crash_a_session(data: bytes, socket: bool) -> None:
    house = House()
    client = logged_in(house) if socket else house.open()
    client.session.receive_data(masked(BINARY, data[:125]) + data[125:] if socket else data)
    house.runtime.settle()
    house.runtime.advance(12)
    client.session.connection_lost()
    assert client.gone


# -- cohorts ------------------------------------------------------------------------------


def subscribers(house: House, count: int, **headers: str) -> list[Client]:
    made = []
    for _ in range(count):
        client = logged_in(house)
        say(client, stomp("SUBSCRIBE", destination="/topic/a", **headers))
        client.transport.writes.clear()
        client.transport.written = b""
        made.append(client)
    return made


def test_a_thousand_pages_share_one_encode_and_get_one_write_a_tick() -> None:
    house = House()
    clients = subscribers(house, 1000, id="sub-0")
    house.append("/topic/a", b"warm up")
    before = house.hub.stats.encodes
    for client in clients:
        client.transport.writes.clear()
    house.append("/topic/a", *[b"%d" % n for n in range(50)])
    assert house.hub.stats.encodes - before == 1
    first = clients[0].transport.writes
    assert len(first) == 1
    assert len(messages(first[0])) == 50
    for client in clients:
        assert len(client.transport.writes) == 1
        assert client.transport.writes[0] is first[0], "the very object"


def test_what_differs_on_the_wire_is_not_shared() -> None:
    house = House()
    subscribers(house, 3, id="a")
    subscribers(house, 3, id="b")
    for _ in range(3):
        raw = house.open()
        raw.log_in()
        raw.say("SUBSCRIBE", id="a", destination="/topic/a")
    old = house.open()
    old.log_in("1.0")
    old.say("SUBSCRIBE", id="a", destination="/topic/a")
    house.append("/topic/a", b"warm up")
    before = house.hub.stats.encodes
    house.append("/topic/a", b"x")
    assert house.hub.stats.encodes - before == 3
    assert [each.body for each in old.got()] == [b"warm up", b"x"]


def test_raw_frames_have_no_layer() -> None:
    assert RAW.wrap_any(b"\xff") == b"\xff"
    link = RawLink(1000)
    assert link.opening() == link.closing(1000, "bye") == b""


def test_a_slow_page_does_not_hold_the_others_up() -> None:
    house = House()
    slow, fast = subscribers(house, 2, id="1")
    slow.session.pause_writing()
    house.append("/topic/a", b"1", b"2")
    assert slow.transport.written == b""
    assert len(messages(fast.transport.written)) == 2
    slow.session.resume_writing()
    house.runtime.settle()
    bodies = [frames(payload)[0].body for _, payload in messages(slow.transport.written)]
    assert bodies == [b"1", b"2"]


def test_messages_of_other_lanes_keep_their_headers() -> None:
    house = House()
    client = logged_in(house)
    say(client, stomp("SUBSCRIBE", id="1", destination="/exchange/e/#"))
    house.feeds["/exchange/e/#"].append([Message(b"x", "e", "a/b%c")])
    house.runtime.settle()
    ((_, payload),) = messages(client.transport.written)
    got: Got = frames(payload)[0]
    assert got.headers["destination"] == "/exchange/e/a%2Fb%25c"
