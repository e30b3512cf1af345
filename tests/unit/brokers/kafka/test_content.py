"""Records to messages and back: every property and value, and what strangers write."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.brokers.kafka.content import key_of, to_headers, to_message
from queuecast.message import Message, Properties


def record(**fields: Any) -> Any:
    found: dict[str, Any] = {
        "topic": "t",
        "partition": 2,
        "offset": 41,
        "timestamp": 1_700_000_000_999,
        "key": None,
        "value": b"body",
        "headers": (),
    }
    return SimpleNamespace(**found | fields)


def through(properties: Properties) -> Properties:
    return to_message(record(headers=tuple(to_headers(properties)))).properties


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.binary(),
    st.floats(allow_nan=False), st.lists(st.one_of(st.text(), st.integers(), st.none())),
    st.dictionaries(st.text(), st.integers()),
)  # fmt: skip
NAMES = st.text(min_size=1).filter(lambda name: name.startswith("x"))


@given(st.dictionaries(NAMES, VALUES))
def test_application_headers_come_back_as_they_were(headers: dict[str, Any]) -> None:
    got = through(Properties(headers=headers)).headers
    assert got == headers
    assert [type(value) for value in got.values()] == [type(value) for value in headers.values()]


def test_address_offset_and_lane() -> None:
    message = to_message(record())
    assert (message.exchange, message.routing_key) == ("amq.topic", "t")
    assert (message.offset, message.lane) == (42, 2)
    assert message.properties.timestamp == 1_700_000_000
    assert message.properties.persistent
    assert to_message(record(), queue=True).exchange == ""
    keyed = to_message(record(key=b"user.7"), queue=True)
    assert (keyed.exchange, keyed.routing_key) == ("t", "user.7")
    assert key_of(keyed) == "user.7"
    assert key_of(message) == ""


def test_what_other_programs_write() -> None:
    headers = (
        ("content-type", b"text/plain"),
        ("type", b"\xff"),  # no text: not a property, but not lost either
        ("priority", b"high"),
        ("twice", b"1"),
        ("twice", b"2"),
        ("queuecast-types", b'{"n": "int", "b": "bool", "j": "json", "x": 7}'),
        ("n", b"not a number"),
        ("b", b"perhaps"),
        ("j", b"{"),
    )
    properties = to_message(record(headers=headers)).properties
    assert properties.content_type == "text/plain"
    assert properties.type is None
    assert properties.priority is None
    assert properties.headers == {
        "type": b"\xff",
        "priority": "high",
        "twice": "2",
        "n": "not a number",
        "b": "perhaps",
        "j": "{",
    }


@pytest.mark.parametrize("types", [b"", b"\xff", b"[]", b"7", b"{" * 10_000, None])
def test_a_header_of_types_that_is_none(types: bytes | None) -> None:
    message = to_message(record(headers=(("queuecast-types", types), ("a", b"1"))))
    assert message.properties.headers == {"a": "1"}


def test_keys_and_values_that_are_no_text_or_not_there() -> None:
    message = to_message(record(key=b"\xff", value=None))
    assert message.body == b""
    assert message.properties.headers == {"kafka-key": b"\xff", "kafka-tombstone": True}
    assert key_of(message) == ""
    # They are not sent on as if they were headers.
    assert to_headers(message.properties) == []


def test_a_message_without_anything_is_a_record_without_headers() -> None:
    assert to_headers(Message(b"").properties) == []
