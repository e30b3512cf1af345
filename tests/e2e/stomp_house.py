"""A gateway for STOMP's queue tests, what the broker says of its queues, and short words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import queuecast.testing
from queuecast.brokers.embedded.broker import EmbeddedBroker
from tests.conftest import RABBITS, Rabbits
from tests.e2e.test_stomp import Behind, Listener
from tests.support.processes import wait_until
from tests.support.servers import QueueInfo, RabbitMQ

BROKERS: list[Any] = [
    "embedded",
    *(pytest.param(name, marks=pytest.mark.rabbitmq) for name in RABBITS),
]


class House(Behind):
    """A gateway, and what the broker itself says of a queue."""

    def queue(self, name: str) -> QueueInfo | None:
        """Return a queue's ready messages and consumers, None when there is none."""
        if self.rabbit is not None:
            # Not with a passive declare: that is refused for another connection's exclusive queue.
            return self.rabbit.list_queues().get(name)
        broker = self.gateway.gateway.broker
        assert isinstance(broker, EmbeddedBroker)
        found = broker.counts().queues.get(name)
        if found is None:
            return None
        return QueueInfo(name, found.ready + found.unacked, found.consumers)

    def queues(self, prefix: str) -> list[str]:
        if self.rabbit is not None:
            return [name for name in self.rabbit.list_queues() if name.startswith(prefix)]
        broker = self.gateway.gateway.broker
        assert isinstance(broker, EmbeddedBroker)
        return [name for name in broker.counts().queues if name.startswith(prefix)]

    def gone(self, name: str) -> None:
        wait_until(lambda: self.queue(name) is None, what=f"queue {name} is gone")


@contextmanager
def house(kind: str, rabbits: Rabbits) -> Iterator[House]:
    """Run a gateway on one of BROKERS."""
    tables: dict[str, Any] = {"server": {"stomp_tcp": "127.0.0.1:0", "grace": "2s"}}
    rabbit: RabbitMQ | None = None
    if kind != "embedded":
        rabbit = rabbits.shared(kind)
        tables["broker"] = {"url": rabbit.url, "start": "exit"}
    with queuecast.testing.gateway(**tables) as running:
        yield House(running, rabbit)


def subscribe(
    client: Any, listener: Listener, destination: str, id: str, ack: str = "auto", **headers: str
) -> None:
    """Subscribe and wait for the RECEIPT; a header's name has its hyphens as underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.subscribe(destination, id=id, ack=ack, headers={**named, "receipt": f"sub-{id}"})
    receipt, _ = listener.next("RECEIPT")
    assert receipt["receipt-id"] == f"sub-{id}"


def send(client: Any, listener: Listener, destination: str, *bodies: str, **headers: str) -> None:
    """Send, and wait for each RECEIPT."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for number, body in enumerate(bodies):
        client.send(destination, body, headers={**named, "receipt": f"send-{number}"})
        assert listener.next("RECEIPT")[0]["receipt-id"] == f"send-{number}"


def error(listener: Listener) -> dict[str, str]:
    return listener.next("ERROR")[0]


def bodies(listener: Listener, count: int) -> list[str]:
    return [listener.next("MESSAGE")[1] for _ in range(count)]
