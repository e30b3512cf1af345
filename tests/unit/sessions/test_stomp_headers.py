"""STOMP headers to AMQP properties and back, a row per header."""

from __future__ import annotations

from typing import Any

import pytest

from queuecast.codecs.stomp_values import StompError
from queuecast.message import NO_PROPERTIES, Properties
from queuecast.sessions.stomp_headers import SERVER_HEADERS, message_headers, properties_of_send

BOTH_WAYS = [
    ("content-type", "text/plain", "content_type", "text/plain"),
    ("content-encoding", "gzip", "content_encoding", "gzip"),
    ("priority", "5", "priority", 5),
    ("correlation-id", "c1", "correlation_id", "c1"),
    ("reply-to", "/queue/answers", "reply_to", "/queue/answers"),
    ("expiration", "6000", "expiration", "6000"),
    ("amqp-message-id", "m1", "message_id", "m1"),
    ("timestamp", "1700000000", "timestamp", 1700000000),
    ("type", "order", "type", "order"),
    ("app-id", "磁盘", "app_id", "磁盘"),
    ("persistent", "true", "persistent", True),
    ("user-id", "guest", "user_id", "guest"),
]


@pytest.mark.parametrize(("name", "text", "attribute", "value"), BOTH_WAYS)
def test_properties_both_ways(name: str, text: str, attribute: str, value: object) -> None:
    properties = properties_of_send({"destination": "/queue/a", name: text}, login="guest")
    assert getattr(properties, attribute) == value
    assert properties.headers == {}
    assert message_headers(properties) == [(name, text)]


def test_every_other_header_of_a_send_travels_as_text() -> None:
    headers = {"receipt": "1", "transaction": "t", "x-a": "2", "content-length": "3", "own": "磁"}
    properties = properties_of_send({"destination": "/queue/a", **headers})
    assert properties.headers == headers
    assert properties.persistent is False


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("True", True), ("false", False), ("yes", False)]
)
def test_persistent(value: str, expected: bool) -> None:
    assert properties_of_send({"persistent": value}).persistent is expected


def test_numbers_may_stand_among_blanks() -> None:
    assert properties_of_send({"priority": " 7 "}).priority == 7


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"message-id": "1"}, "Invalid header"),
        ({"priority": "high"}, "Processing error"),
        ({"priority": "256"}, "Processing error"),
        ({"timestamp": "-1"}, "Processing error"),
        ({"expiration": "soon"}, "Processing error"),
        ({"content-type": "x" * 256}, "Processing error"),
        ({"headers": "y" * 70_000}, "Processing error"),
        ({"user-id": "somebody"}, "precondition_failed"),
    ],
)
def test_refused(headers: dict[str, str], message: str) -> None:
    with pytest.raises(StompError) as caught:
        properties_of_send(headers, login="guest")
    assert caught.value.message == message
    assert next(iter(headers)) in caught.value.text


def test_a_user_id_without_a_login_is_refused() -> None:
    with pytest.raises(StompError):
        properties_of_send({"user-id": "guest"})


def test_message_id_is_refused_in_the_words_clients_know() -> None:
    with pytest.raises(StompError) as caught:
        properties_of_send({"message-id": "1"})
    assert caught.value.text == "'message-id' is not allowed on 'SEND'.\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ("", ""),
        (7, "7"),
        (-(1 << 40), str(-(1 << 40))),
        (True, None),
        (1.5, None),
        (None, None),
        (b"bytes", None),
        ([1], None),
        ({"a": 1}, None),
    ],
)
def test_only_texts_and_whole_numbers_reach_a_message(value: Any, text: str | None) -> None:
    expected = [] if text is None else [("x", text)]
    assert message_headers(Properties(headers={"x": value})) == expected


@pytest.mark.parametrize("name", sorted(SERVER_HEADERS))
def test_server_headers_win(name: str) -> None:
    assert message_headers(Properties(headers={name: "forged", "x": "1"})) == [("x", "1")]


def test_a_property_wins_over_an_application_header_of_its_name() -> None:
    properties = Properties(content_type="text/plain", headers={"content-type": "x", "type": "y"})
    assert message_headers(properties) == [("content-type", "text/plain"), ("type", "y")]


@pytest.mark.parametrize(
    ("reply_to", "expected"),
    [
        ("amq.gen-X", "/reply-queue/amq.gen-X"),
        ("a/b", "/reply-queue/a/b"),
        ("/queuefoo", "/reply-queue//queuefoo"),
        ("50%", "/reply-queue/50%25"),
        ("/queue/a", "/queue/a"),
        ("/amq/queue/a", "/amq/queue/a"),
        ("/topic/a", "/topic/a"),
        ("/exchange/a/b", "/exchange/a/b"),
        ("/temp-queue/a", "/temp-queue/a"),
        ("/reply-queue/a", "/reply-queue/a"),
    ],
)
def test_reply_to_becomes_a_destination(reply_to: str, expected: str) -> None:
    assert message_headers(Properties(reply_to=reply_to)) == [("reply-to", expected)]


def test_a_bare_message_has_no_headers() -> None:
    assert message_headers(NO_PROPERTIES) == []
    assert message_headers(Properties()) == []
