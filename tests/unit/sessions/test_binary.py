"""Bodies that are bytes whatever they look like: who says so, what they become, what they cost."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from queuecast.codecs.sockjs import Wire
from queuecast.codecs.websocket import frame
from queuecast.destination import Destination
from queuecast.errors import BadRequest
from queuecast.hub.log import Entry
from queuecast.message import Message
from queuecast.position import Mark, Vector
from queuecast.sessions.binary import ALWAYS, BinaryRules, parse_binary
from queuecast.sessions.encodings import (
    Framed,
    PollEncoding,
    SseEncoding,
    WebSocketEncoding,
    naming,
)
from queuecast.sessions.request import SubscribeRequest
from queuecast.sessions.sockjs_link import SockJsFraming, SockJsWebSocketFraming
from queuecast.sessions.sse import SseSession
from queuecast.sessions.stomp_encodings import StompEncoding, StompWorkEncoding
from queuecast.sessions.stomp_framing import RAW, WebSocketFraming
from queuecast.sessions.websocket import WebSocketSession

from .stomp_rig import Client, FakeTransport, House, masked

TOPIC = Destination.parse("/topic/avro.a")
# An Avro record of a schema registry: text, if one believes UTF-8.
BODY = b"\x00\x00\x00\x00\x07\rtext"
ENCODED = base64.b64encode(BODY).decode()
NAMED = naming(TOPIC)


def encoded(encoding: Framed | StompEncoding, body: bytes = BODY) -> bytes:
    message = Message(body, "amq.topic", "avro.a")
    return encoding.encode([Entry(0, 1, message, 0.0)], Vector([Mark("e", 0)]))


# -- what becomes of a body ---------------------------------------------------------------


def test_bare() -> None:
    assert encoded(SseEncoding(binary=ALWAYS)) == (
        f"event: binary\nid: e-1\ndata: {ENCODED}\n\n".encode()
    )
    assert encoded(WebSocketEncoding(binary=ALWAYS)) == frame(2, BODY)
    assert encoded(WebSocketEncoding()) == frame(1, BODY)
    assert b"event: binary" not in encoded(SseEncoding())


@pytest.mark.parametrize("body", [BODY, b"", b"{}", b"\xff"])
def test_enveloped(body: bytes) -> None:
    for encoding in (
        SseEncoding(NAMED, envelope=True, binary=ALWAYS),
        WebSocketEncoding(NAMED, envelope=True, binary=ALWAYS),
        PollEncoding(NAMED, ALWAYS),
    ):
        data = encoded(encoding, body)
        said = msgspec.json.decode(data[data.index(b"{") : data.rindex(b"}") + 1])
        assert base64.b64decode(said["base64"]) == body
        assert "body" not in said


def test_stomp() -> None:
    def made(framing: Any) -> bytes:
        return encoded(StompEncoding("1", framing, "/topic/avro.a", binary=ALWAYS))

    raw = made(RAW)
    assert BODY in raw, "STOMP's bodies are bytes anyway"
    assert made(WebSocketFraming()) == frame(2, raw)
    assert encoded(StompEncoding("1", WebSocketFraming(), "/topic/avro.a")) == frame(1, raw)
    for framing in (SockJsWebSocketFraming(), SockJsFraming(Wire.XHR)):
        said = made(framing)
        assert b"content-transfer-encoding:base64" in said
        assert ENCODED.encode() in said
    work = StompWorkEncoding("1", WebSocketFraming(), None, acks=False, binary=ALWAYS)
    assert work.encode_delivery(Message(b"x", "", "q"), "T_1@@s@@1")[0] == 0x82


def test_compressed_frames_are_binary_too() -> None:
    body = b"a" * 200
    data = encoded(WebSocketEncoding(deflate=True, binary=ALWAYS), body)
    assert data[0] == 0xC2
    assert encoded(WebSocketEncoding(deflate=True), body)[0] == 0xC1


def test_works_messages() -> None:
    data = WebSocketEncoding(binary=ALWAYS).encode_delivery(Message(b"x", "", "q"), None)
    assert data == frame(2, b"x")
    said = msgspec.json.decode(
        PollEncoding(NAMED, ALWAYS).encode_delivery(Message(b"x", "", "q"), "a").rstrip(b",")
    )
    assert (said["base64"], said["ack"]) == ("eA==", "a")


# -- rules --------------------------------------------------------------------------------

RULES = BinaryRules(
    [
        Destination.parse(each)
        for each in ("/topic/avro.#", "/exchange/bytes", "/exchange/e/*.raw", "/queue/blobs")
    ]
)


@pytest.mark.parametrize(
    "destination",
    [
        "/topic/avro.a",
        "/topic/avro.*",
        "/topic/avro.#",
        "/exchange/amq.topic/avro.b",
        "/exchange/bytes",
        "/exchange/e/a.raw",
        "/queue/blobs",
        "/amq/queue/blobs",
    ],
)
def test_a_rule_holds_for_what_lies_within_it(destination: str) -> None:
    assert RULES.of(Destination.parse(destination)) == ALWAYS


@pytest.mark.parametrize("destination", ["/topic/#", "/topic/*.a", "/exchange/e/#", "/queue/all"])
@pytest.mark.parametrize(
    ("exchange", "key", "holds"),
    [
        ("amq.topic", "avro.a", True),
        ("amq.topic", "avro", True),
        ("amq.topic", "prices.a", False),
        ("e", "x.raw", True),
        ("e", "x.txt", False),
        ("other", "avro.a", False),
        ("", "blobs", False),
    ],
)
def test_a_wider_subscription_is_told_message_by_message(
    destination: str, exchange: str, key: str, holds: bool
) -> None:
    (binary,) = RULES.of(Destination.parse(destination))
    assert binary.holds(Message(b"x", exchange, key)) is holds


def test_what_nothing_is_said_of_costs_nothing() -> None:
    assert BinaryRules().of(TOPIC, TOPIC) == ()
    queues = BinaryRules([Destination.parse("/queue/blobs")])
    assert queues.of(TOPIC) == queues.of(Destination.parse("/queue/a")) == ()
    assert BinaryRules().of(TOPIC, TOPIC, always=True) == ALWAYS * 2


def test_several_destinations_have_their_own() -> None:
    both = RULES.of(TOPIC, Destination.parse("/topic/#"))
    encoding = SseEncoding(binary=both)
    vector = Vector([Mark("a", 0), Mark("b", 0)], (0, 1))
    entries = [
        Entry(0, 1, Message(b"1", "amq.topic", "x"), 0.0),
        Entry(1, 1, Message(b"2", "amq.topic", "x"), 0.0),
        Entry(1, 2, Message(b"3", "amq.topic", "avro.x"), 0.0),
    ]
    data = encoding.encode(entries, vector).decode()
    assert [block.startswith("event: binary") for block in data.split("\n\n")[:-1]] == [
        True,
        False,
        True,
    ]


def test_the_parameter() -> None:
    assert [parse_binary(text) for text in (None, "", "auto", "always")] == [False] * 3 + [True]
    for text in ("true", "Always", "x" * 100):
        with pytest.raises(BadRequest, match="binary") as caught:
            parse_binary(text)
        assert caught.value.hint == "allowed is always or auto"


# -- cohorts ------------------------------------------------------------------------------


def pages(house: House, count: int, **request: Any) -> list[FakeTransport]:
    """Open that many bare SSE sessions and as many bare WebSockets."""
    made = []
    for _ in range(count):
        asked = SubscribeRequest((TOPIC,), in_path=True, **request)
        for session in (
            SseSession(house.services, FakeTransport(), asked),
            WebSocketSession(
                house.services, FakeTransport(), asked, key="dGhlIHNhbXBsZSBub25jZQ=="
            ),
        ):
            session.start()
            house.runtime.settle()
            assert isinstance(session.transport, FakeTransport)
            made.append(session.transport)
    return made


def encodes(house: House, body: bytes = BODY) -> int:
    before = house.hub.stats.encodes
    house.append(str(TOPIC), body, key="avro.a")
    return house.hub.stats.encodes - before


def test_each_choice_is_one_cohort() -> None:
    house = House()
    auto, always = pages(house, 50), pages(house, 50, binary=True)
    assert encodes(house) == 4
    for transports in (auto[::2], auto[1::2], always[::2], always[1::2]):
        first = transports[0].writes[-1]
        assert all(each.writes[-1] is first for each in transports)
    assert b"event: binary" in always[0].writes[-1]
    assert always[1].writes[-1] == frame(2, BODY)
    assert auto[1].writes[-1] == frame(1, BODY)


def test_a_rule_and_the_parameter_are_the_same_cohort() -> None:
    house = House()
    house.services.binary = RULES
    transports = pages(house, 50) + pages(house, 50, binary=True)
    assert encodes(house) == 2
    assert len({id(each.writes[-1]) for each in transports}) == 2
    assert transports[1].writes[-1] == frame(2, BODY)


def test_a_rule_for_others_divides_no_cohort() -> None:
    house = House()
    house.services.binary = BinaryRules([Destination.parse("/topic/other.#")])
    transports = pages(house, 50)
    assert encodes(house) == 2
    assert len({id(each.writes[-1]) for each in transports}) == 2
    assert transports[1].writes[-1] == frame(1, BODY)


def test_stomp_sessions_share_it() -> None:
    house = House()
    clients: list[Client] = []
    login = b"CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n\0"
    for binary in (b"auto", b"always"):
        asked = b"SUBSCRIBE\nid:1\ndestination:/topic/avro.a\nbinary:%b\n\n\0" % binary
        for _ in range(20):
            client = house.websocket()
            for said in (login, asked):
                client.session.receive_data(masked(1, said))
                house.runtime.settle()
            clients.append(client)
    assert encodes(house) == 2
    opcodes = [client.transport.writes[-1][0] & 15 for client in clients]
    assert opcodes == [1] * 20 + [2] * 20


def test_stomp_refuses_another_value() -> None:
    house = House()
    client = house.fresh()
    (got,) = client.say("SUBSCRIBE", id="1", destination="/topic/a", binary="yes")
    assert (got.headers["message"], client.gone) == ("Processing error", False)
    assert b"allowed is always or auto" in got.body
