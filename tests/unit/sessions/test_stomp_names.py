"""Names of queues, as RabbitMQ's STOMP plugin makes them."""

from __future__ import annotations

import re

import pytest

from queuecast.sessions.stomp_names import TEMPORARY, durable_name, random_name

# Printed by rabbit_stomp_util:subscription_queue_name/3 of RabbitMQ 3.10.8, with lists of bytes.
VECTORS = [
    ("prices.*", "sub-1", "seH3-JSMFB6tm5mj0wnY6A"),
    ("", "", "F5AIJl-Inmm3V-UVm8kWNA"),
    ("x" * 255, "a" * 300, "m82SHQfbOPrH5csqCR45mQ"),
    ("磁盘.#", "订阅", "GkrdEyklK9l5ejX6k2RXKQ"),
    # Over 65,535 characters Erlang writes a list of integers instead of a string.
    ("a.b", "b" * 70_000, "MWvZ8X3cRC6xTlffU9X_BA"),
]


@pytest.mark.parametrize(("key", "id", "digest"), VECTORS, ids=range(len(VECTORS)))
def test_durable_names(key: str, id: str, digest: str) -> None:
    assert durable_name(key, id) == f"stomp-subscription-{digest}"


def test_random_names() -> None:
    names = {random_name() for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(r"stomp-subscription-[\w-]{22}", name) for name in names)
    assert re.fullmatch(r"stomp\.gen-[\w-]{22}", random_name(TEMPORARY))
