"""Binding keys that can match, and those that never do, by the type of their exchange."""

import pytest

from queuecast.brokers.base import ExchangeSpec
from queuecast.brokers.binding import check_binding, routing_type
from queuecast.errors import BadDestination


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("direct", "a"),
        ("direct", ""),
        # `*` within a word is an ordinary character on every exchange.
        ("direct", "a*.b#"),
        ("topic", "a.*"),
        ("topic", "#"),
        # They ignore keys.
        ("fanout", "a.#"),
        ("headers", "#"),
        ("x-random", "a.*"),
        ("x-local-random", "#"),
        ("x-modulus-hash", "#"),
        ("x-recent-history", "#"),
        ("x-consistent-hash", "1"),
        ("x-consistent-hash", "+020"),
        # What it wraps is not known.
        ("x-delayed-message", "a.*"),
        ("opaque", "#"),
        ("", "#"),
    ],
)
def test_keys_that_can_match(kind: str, key: str) -> None:
    check_binding("e", kind, key)


@pytest.mark.parametrize(
    ("kind", "key", "hint"),
    [
        ("direct", "a.*", "make it a topic exchange"),
        ("direct", "#", "name each key"),
        ("direct", "*.b", "topic"),
        ("x-consistent-hash", "a", "whole number"),
        ("x-consistent-hash", "", "weight"),
        ("x-consistent-hash", "#", "weight"),
        ("x-consistent-hash", "0", "from 1"),
        ("x-consistent-hash", "-1", "from 1"),
        ("x-consistent-hash", "1.5", "whole"),
    ],
)
def test_keys_that_never_match(kind: str, key: str, hint: str) -> None:
    with pytest.raises(BadDestination) as caught:
        check_binding("e", kind, key)
    assert "'e'" in caught.value.text
    assert repr(key) in caught.value.text
    assert hint in caught.value.hint


def test_a_delayed_exchange_routes_as_what_it_wraps() -> None:
    assert routing_type(ExchangeSpec("e", "direct")) == "direct"
    wrapped = ExchangeSpec("e", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    assert routing_type(wrapped) == "fanout"
    assert routing_type(ExchangeSpec("e", "x-delayed-message")) == "x-delayed-message"
