"""Message properties on the wire: ours, and pika's as the independent judge."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pika.data
import pika.exceptions
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.brokers.rabbitmq.content import to_amqp
from queuecast.brokers.rabbitmq.wire import decode_properties, decode_table
from queuecast.errors import BadRequest
from queuecast.message import NO_PROPERTIES, Properties

short = st.text(max_size=20)
field = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | short
    | st.binary(max_size=20).map(lambda raw: b"\xff" + raw),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
    max_leaves=8,
)
properties = st.builds(
    Properties,
    content_type=st.none() | short,
    content_encoding=st.none() | short,
    persistent=st.booleans(),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | short,
    reply_to=st.none() | short,
    expiration=st.none() | st.integers(0, 2**32 - 1).map(str),
    message_id=st.none() | short,
    timestamp=st.none() | st.integers(0, 2**63),
    type=st.none() | short,
    user_id=st.none() | short,
    app_id=st.none() | short,
    headers=st.dictionaries(
        short.filter(lambda name: name not in ("CC", "BCC")), field, max_size=4
    ),
)


@given(properties)
def test_properties_survive_the_wire(sent: Properties) -> None:
    got = decode_properties(b"".join(to_amqp(sent).encode()))
    assert got == sent
    assert repr(got.headers) == repr(dict(sent.headers))  # True is not 1


@given(properties)
def test_pika_reads_what_we_write(sent: Properties) -> None:
    found = pika.spec.BasicProperties()
    found.decode(b"".join(to_amqp(sent).encode()))
    assert found.message_id == sent.message_id
    assert found.app_id == sent.app_id
    assert set(found.headers or {}) == set(sent.headers)


def test_what_pika_writes_of_foreign_types_becomes_plain_values() -> None:
    pieces: list[bytes] = []
    when = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    pika.data.encode_table(
        pieces, {"time": when, "decimal": Decimal("1.25"), "deep": [{"t": when}]}
    )
    got, end = decode_table(b"".join(pieces), 0)
    assert end == len(b"".join(pieces))
    assert got == {"time": 1_700_000_000, "decimal": 1.25, "deep": [{"t": 1_700_000_000}]}


def test_none_of_them_is_cheap_and_transient() -> None:
    assert to_amqp(NO_PROPERTIES).delivery_mode == 1
    assert decode_properties(b"".join(to_amqp(NO_PROPERTIES).encode())) == Properties()


@given(st.binary(max_size=60))
def test_malformed_headers_raise_what_ends_the_connection(data: bytes) -> None:
    try:
        decode_properties(data)
    except pika.exceptions.AMQPError:
        pass
    except RecursionError as error:
        raise AssertionError("no bound on depth") from error


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_headers_that_route_past_the_policy_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=name):
        to_amqp(Properties(headers={name: ["elsewhere"]}))


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_what_is_nested_too_deeply_is_nothing_not_an_error(kind: bytes) -> None:
    """An error would end the connection, and the message would come again at once."""
    raw = b"V"
    for _ in range(5000):
        inner = b"\x01k" + raw if kind == b"F" else raw
        raw = kind + len(inner).to_bytes(4, "big") + inner
    pairs = b"\x04deep" + raw + b"\x05after" + b"t\x01"
    table, end = decode_table(len(pairs).to_bytes(4, "big") + pairs, 0)
    assert end == 4 + len(pairs)
    assert table["after"] is True
    depth, value = 0, table["deep"]
    while value is not None:
        value = value["k"] if kind == b"F" else value[0]
        depth += 1
    assert 10 < depth < 100
