"""Heart-beats, versions, ack modes, ids and destinations, a row per rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.codecs.stomp_values import (
    AckMode,
    Beats,
    MessageId,
    StompError,
    ack_mode,
    boolean,
    message_destination,
    negotiate_heart_beat,
    negotiate_version,
    parse_message_id,
    stomp_destination,
    subscription_tag,
)
from queuecast.destination import Destination, Kind


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        (None, "0,0"),
        ("0,0", "0,0"),
        ("10000,5000", "5000,10000"),
        ("0,10000", "10000,0"),
        ("-1,-7", "0,0"),
        ("1,999", "1000,1000"),
        ("1999,2500", "2000,1000"),
        (" 4000 , 3000 ", "3000,4000"),
        ("999999999999999999,0", "0,2147483000"),
    ],
)
def test_heart_beats(header: str | None, answer: str) -> None:
    agreed = negotiate_heart_beat(header)
    assert str(agreed) == answer
    assert agreed == Beats(*map(int, answer.split(",")))


@pytest.mark.parametrize(
    "header", ["", "1", "1,2,3", "a,b", "1.5,2", "1,", ",", "٣,1", "1,9999999999999999999"]
)
def test_malformed_heart_beats(header: str) -> None:
    with pytest.raises(StompError) as caught:
        negotiate_heart_beat(header)
    assert caught.value.message == "Processing error"


@pytest.mark.parametrize(
    ("header", "version"),
    [
        (None, "1.0"),
        ("1.0", "1.0"),
        ("1.1,1.0", "1.1"),
        ("1.0,1.1,1.2", "1.2"),
        ("1.2,1.1,1.0", "1.2"),
        ("1.1, 1.2", "1.2"),
        ("1.1,2.0", "1.1"),
    ],
)
def test_versions(header: str | None, version: str) -> None:
    assert negotiate_version(header) == version


@pytest.mark.parametrize("header", ["", "1.3", "2.0,3.0", "1", "1.1.1"])
def test_no_common_version(header: str) -> None:
    with pytest.raises(StompError) as caught:
        negotiate_version(header)
    assert caught.value.message == "Version mismatch"
    assert caught.value.text == "Supported versions are 1.0,1.1,1.2\n"


@pytest.mark.parametrize(
    ("header", "mode"),
    [
        (None, AckMode.AUTO),
        ("auto", AckMode.AUTO),
        ("client", AckMode.CLIENT),
        ("client-individual", AckMode.INDIVIDUAL),
    ],
)
def test_ack_modes(header: str | None, mode: AckMode) -> None:
    assert ack_mode(header) is mode


@pytest.mark.parametrize("header", ["", "Auto", "none", " auto"])
def test_unknown_ack_modes(header: str) -> None:
    with pytest.raises(StompError) as caught:
        ack_mode(header)
    assert caught.value.message == "Processing error"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", True),
        ("True", True),
        ("false", False),
        ("False", False),
        ("TRUE", None),
        ("1", None),
        ("", None),
    ],
)
def test_booleans(value: str, expected: bool | None) -> None:
    assert boolean({"a": value}, "a") is expected
    assert boolean({"a": value}, "b") is None


def test_subscription_tags() -> None:
    assert subscription_tag("1", "/topic/a") == "T_1"
    assert subscription_tag("", "/topic/a") == "T_"
    assert subscription_tag(None, "/topic/a") == "Q_/topic/a"
    with pytest.raises(StompError) as caught:
        subscription_tag("/temp-queue/a", "/topic/a")
    assert caught.value.message == "Invalid id"


@given(st.text(), st.integers(0, 10**18 - 1))
def test_message_ids_round_trip(tag: str, delivery_tag: int) -> None:
    message_id = MessageId(tag, "session-abc", delivery_tag)
    assert parse_message_id(str(message_id)) == message_id


def test_message_id_text() -> None:
    assert str(MessageId("T_sub-0", "session-x", 7)) == "T_sub-0@@session-x@@7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "a@@1",
        "a@@b@@",
        "a@@b@@c",
        "a@@b@@-1",
        "a@@b@@1 ",
        "a@@b@@٣",
        "a@@b@@" + "9" * 5000,
    ],
)
def test_malformed_message_ids(text: str) -> None:
    with pytest.raises(StompError) as caught:
        parse_message_id(text)
    assert caught.value.message == "Invalid header"
    assert len(caught.value.text) < 400


@pytest.mark.parametrize(
    ("exchange", "key", "text"),
    [
        ("", "a", "/queue/a"),
        ("", "a/b", "/queue/a%2Fb"),
        ("amq.topic", "a.b", "/topic/a.b"),
        ("rabbitmq", "zjj", "/exchange/rabbitmq/zjj"),
        ("rabbitmq", "", "/exchange/rabbitmq"),
        ("e/x", "100%", "/exchange/e%2Fx/100%25"),
        ("", "a\tb\n", "/queue/a%09b%0A"),
        ("amq.topic", "磁盘", "/topic/%E7%A3%81%E7%9B%98"),
        ("", "a b:c\x7f", "/queue/a b:c\x7f"),
    ],
)
def test_destinations_of_messages(exchange: str, key: str, text: str) -> None:
    assert message_destination(exchange, key) == text


def test_reply_queues_keep_their_slashes() -> None:
    assert (
        stomp_destination(Destination(Kind.REPLY_QUEUE, "a/b%磁")) == "/reply-queue/a/b%25%E7%A3%81"
    )


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(st.sampled_from(list(Kind)), NAMES, st.none() | NAMES)
def test_destinations_round_trip(kind: Kind, name: str, key: str | None) -> None:
    destination = Destination(kind, name, key if kind is Kind.EXCHANGE else None)
    text = stomp_destination(destination)
    assert text.isascii()
    assert Destination.parse(text) == destination
