"""Headers in an envelope: nothing that a browser would read as something else."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from queuecast.message import Message, Properties
from queuecast.sessions.envelope import encode_json, message_envelope

SAFE = (1 << 53) - 1


def headers(properties: Properties) -> dict[str, Any]:
    data = encode_json(
        message_envelope(Message(b"", properties=properties), subscription="/s", alias=False)
    )
    found: dict[str, Any] = msgspec.json.decode(data)["headers"]
    return found


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, 0),
        (-1, -1),
        (SAFE, SAFE),
        (-SAFE, -SAFE),
        (SAFE + 1, "9007199254740992"),
        (SAFE + 2, "9007199254740993"),
        (-SAFE - 1, "-9007199254740992"),
        ((1 << 63) - 1, "9223372036854775807"),
        (-(1 << 63), "-9223372036854775808"),
        ((1 << 64) - 1, "18446744073709551615"),
        (10**38, "1" + "0" * 38),
        (True, True),
        (1.5, 1.5),
        (2.0**60, 2.0**60),
    ],
)
def test_numbers_that_a_browser_would_round_are_text(number: float, shown: object) -> None:
    found = headers(
        Properties(headers={"a": number, "b": [1, {"c": number}], "d": {"e": [number]}})
    )
    assert found == {"a": shown, "b": [1, {"c": shown}], "d": {"e": [shown]}}
    assert type(found["a"]) is type(shown)


def test_a_property_too() -> None:
    assert headers(Properties(timestamp=1 << 60, priority=4)) == {
        "timestamp": str(1 << 60),
        "priority": 4,
    }
    assert headers(Properties(timestamp=1_800_000_000)) == {"timestamp": 1_800_000_000}


@pytest.mark.parametrize("value", [b"\xff\x00", b"text", b"", bytearray(b"\x01")])
def test_bytes_are_marked(value: bytes) -> None:
    mark = {"base64": base64.b64encode(value).decode()}
    found = headers(Properties(headers={"a": value, "b": [value], "c": {"d": value}}))
    assert found == {"a": mark, "b": [mark], "c": {"d": mark}}


def test_text_that_looks_like_base64_is_text() -> None:
    assert headers(Properties(headers={"a": "/wA="})) == {"a": "/wA="}
