"""RabbitMQ's own STOMP plugin beside the gateway: either finds the other's queues, and makes alike.

The servers are started for this file, with the plugin that the others do without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import stomp

import queuecast.testing
from tests.conftest import Rabbits
from tests.e2e.stomp_house import bodies, subscribe
from tests.e2e.test_stomp import PATIENCE, Behind, Listener, connected
from tests.support.processes import free_port, wait_until
from tests.support.servers import RabbitServer

pytestmark = pytest.mark.rabbitmq

DURABLE = {"durable": "true", "auto_delete": "false"}


class Beside(Behind):
    """The gateway, and RabbitMQ with a STOMP port of its own."""

    rabbit: RabbitServer

    def __init__(self, gateway: Any, rabbit: RabbitServer, port: int) -> None:
        super().__init__(gateway, rabbit)
        self.port = port

    @contextlib.contextmanager
    def straight(self) -> Iterator[tuple[Any, Listener]]:
        """Connect to RabbitMQ's plugin."""
        client = stomp.Connection12([("127.0.0.1", self.port)], vhost="/")
        listener = Listener()
        client.set_listener("", listener)
        client.connect("guest", "guest", wait=True)
        listener.next("CONNECTED")
        try:
            yield client, listener
        finally:
            # After an ERROR the broker closes the connection, perhaps just now.
            with contextlib.suppress(stomp.exception.NotConnectedException, OSError):
                if client.is_connected():
                    client.disconnect()
            assert listener.ended.wait(PATIENCE)

    def queues(self) -> dict[str, dict[str, Any]]:
        columns = ("name", "durable", "auto_delete", "exclusive", "arguments")
        rows = self.rabbit.rows("list_queues", *columns)
        return {row["name"]: row for row in rows if not row["name"].startswith("queuecast.")}

    def only_queue(self) -> dict[str, Any]:
        (queue,) = self.queues().values()
        return queue

    def delete_all(self) -> None:
        self.rabbit.delete_queues(*self.queues())
        wait_until(lambda: not self.queues(), what="all queues are gone")


@pytest.fixture(scope="module")
def beside(rabbits: Rabbits, rabbit_name: str) -> Iterator[Beside]:
    rabbit = rabbits.make(rabbit_name)
    port = free_port()
    (rabbit.directory / "enabled_plugins").write_text("[rabbitmq_stomp].\n")
    with (rabbit.directory / "rabbitmq.conf").open("a") as file:
        file.write(f"stomp.listeners.tcp.1 = 127.0.0.1:{port}\n")
    try:
        rabbit.start()
        with queuecast.testing.gateway(
            server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"},
            broker={"url": rabbit.url, "start": "exit"},
        ) as running:
            yield Beside(running, rabbit, port)
    finally:
        rabbit.close()


@pytest.mark.parametrize(
    ("destination", "id"),
    [
        ("/topic/prices.*", "sub-1"),
        ("/topic/a.#", "0"),
        ("/topic/磁盘.信息", "订阅"),
        ("/topic/a%2Fb", "x" * 300),
    ],
)
def test_durable_subscriptions_are_found_again(beside: Beside, destination: str, id: str) -> None:
    key = destination.removeprefix("/topic/").replace("%2F", "/").replace("*", "x")
    key = key.replace("#", "y.z")
    with beside.straight() as (client, listener):
        subscribe(client, listener, destination, id, **DURABLE)
    made = beside.only_queue()
    beside.publish("amq.topic", key, "for the gateway")
    with connected(beside, "tcp-1.2") as (client, listener):
        subscribe(client, listener, destination, id, **DURABLE)
        assert bodies(listener, 1) == ["for the gateway"]
        assert beside.only_queue() == made
        client.unsubscribe(id, headers={"durable": "true", "receipt": "u"})
        listener.next("RECEIPT")
        assert beside.queues() == {}
        subscribe(client, listener, destination, id, **DURABLE)
    assert beside.only_queue() == made
    beside.publish("amq.topic", key, "for RabbitMQ")
    with beside.straight() as (client, listener):
        subscribe(client, listener, destination, id, **DURABLE)
        assert bodies(listener, 1) == ["for RabbitMQ"]
    beside.delete_all()


TYPED = {
    "x_expires": "60000",
    "x_max_length": "10",
    "x_max_length_bytes": " 100000 ",
    "x_max_priority": "5",
    "x_message_ttl": "5000",
    "x_dead_letter_exchange": "amq.fanout",
    "x_dead_letter_routing_key": "dead",
    "x_unknown": "1",
}


# Destination, headers, and the only version whose plugin does so, if not both do.
ROWS: list[tuple[str, dict[str, str], str]] = [
    ("/queue/plain", {}, ""),
    ("/queue/args", TYPED, ""),
    ("/queue/auto", {"auto_delete": "true"}, ""),
    ("/queue/excl", {"exclusive": "true"}, ""),
    ("/queue/transient", {"durable": "false"}, ""),
    ("/queue/transient-2", {"persistent": "False"}, ""),
    ("/queue/quorum", {"x_queue_type": "quorum"}, ""),
    ("/topic/derived", {"durable": "true"}, ""),
    ("/topic/t", {"persistent": "True", "x_queue_name": "named"}, ""),
    ("/topic/t", {**DURABLE, **TYPED, "x_queue_name": "topic-args"}, ""),
    ("/topic/t", {**DURABLE, "x_queue_type": "quorum", "x_queue_name": "topic-quorum"}, ""),
    ("/exchange/amq.direct/derived", {**DURABLE, "exclusive": "false"}, ""),
    ("/exchange/amq.direct", {"durable": "true", "exclusive": "false"}, ""),
    ("/exchange/amq.direct/k", {**DURABLE, "x_queue_name": "exchange-shared"}, "3.10"),
    ("/exchange/amq.direct/k", {"ack": "client", "x_queue_name": "exchange-own"}, "4.0"),
]


def test_the_same_headers_make_the_same_queues(beside: Beside) -> None:
    rows = [row for row in ROWS if row[2] in ("", beside.rabbit.version)]
    made = []
    for side in (beside.straight, lambda: connected(beside, "tcp-1.2")):
        with side() as (client, listener):
            for number, (destination, headers, _) in enumerate(rows):
                subscribe(client, listener, destination, f"{number}", **headers)
            made.append(beside.queues())
        beside.delete_all()
    straight, ours = made
    assert len(straight) == len(rows)
    assert sorted(ours) == sorted(straight)
    for name, queue in straight.items():
        assert ours[name] == queue


@pytest.mark.parametrize(
    ("destination", "headers", "message"),
    [
        ("/topic/t", {"x_queue_type": "nonsense"}, "precondition_failed"),
        ("/queue/s", {"x_queue_type": "stream", "ack": "client"}, "precondition_failed"),
        ("/topic/t", {"durable": "true", "x_queue_name": "amq.mine"}, "access_refused"),
        ("/exchange/none/k", {"ack": "client"}, "not_found"),
        ("/temp-queue/x", {}, "Invalid destination"),
        ("/topic/t", {"x_max_length": "many"}, "Processing error"),
    ],
    ids=str,
)
def test_the_same_refusals(
    beside: Beside, destination: str, headers: dict[str, str], message: str
) -> None:
    options = {name.replace("_", "-"): value for name, value in headers.items()}
    ack = options.pop("ack", "auto")
    told = []
    for side in (beside.straight, lambda: connected(beside, "tcp-1.2")):
        with side() as (client, listener):
            client.subscribe(destination, id="1", ack=ack, headers=options)
            told.append(listener.next("ERROR")[0]["message"])
    beside.delete_all()
    assert told == [message, message]
