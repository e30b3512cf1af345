"""Questions and answers over STOMP: between two clients, and with a back end that uses pika."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from tests.conftest import RABBITS, Rabbits
from tests.e2e.stomp_house import BROKERS, House, error, house, subscribe
from tests.e2e.test_stomp import PATIENCE, connected
from tests.support.servers import unique


@pytest.fixture(scope="module", params=BROKERS)
def behind(request: pytest.FixtureRequest, rabbits: Rabbits) -> Iterator[House]:
    with house(request.param, rabbits) as made:
        yield made


def test_a_question_from_one_client_to_another(behind: House) -> None:
    name = unique("rpc")
    with (
        connected(behind, "tcp-1.2") as (responder, asked),
        connected(behind, "ws-1.2") as (client, listener),
    ):
        subscribe(responder, asked, f"/queue/{name}", "jobs")
        for number in range(3):
            headers = {"reply-to": "/temp-queue/answers", "correlation-id": str(number)}
            client.send(f"/queue/{name}", f"question {number}", headers=headers)
            got, body = asked.next("MESSAGE")
            assert body == f"question {number}"
            assert got["reply-to"].startswith("/reply-queue/")
            reply = {"correlation-id": got["correlation-id"], "receipt": "r"}
            responder.send(got["reply-to"], f"answer {number}", headers=reply)
            asked.next("RECEIPT")
            answer, body = listener.next("MESSAGE")
            assert body == f"answer {number}"
            assert answer["subscription"] == "/temp-queue/answers"
            assert answer["correlation-id"] == str(number)
        queue = got["reply-to"].removeprefix("/reply-queue/")
        info = behind.queue(queue)
        assert info is not None
        assert info.consumers == 1, "one queue for all its questions"
        client.send_frame("UNSUBSCRIBE", {"id": "/temp-queue/answers"})
        assert error(listener)["message"] == "Invalid id"
    behind.gone(queue)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("version", RABBITS)
def test_a_question_to_a_back_end(rabbits: Rabbits, version: str) -> None:
    """pika answers by the default exchange; and pika asks, by RabbitMQ's direct reply-to."""
    rabbit = rabbits.shared(version)
    name = unique("rpc")
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel = connection.channel()
    channel.queue_declare(name, durable=True, arguments={"x-expires": 60_000})
    with (
        house(version, rabbits) as behind,
        connected(behind, "tcp-1.2") as (client, listener),
    ):
        headers = {"reply-to": "/temp-queue/a", "correlation-id": "7"}
        client.send(f"/amq/queue/{name}", "question", headers=headers)
        method, properties, body = _get(channel, name)
        assert body == b"question"
        answer = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish("", properties.reply_to, b"answer", answer)
        channel.basic_ack(method.delivery_tag)
        got, text = listener.next("MESSAGE")
        assert (text, got["subscription"], got["correlation-id"]) == (
            "answer",
            "/temp-queue/a",
            "7",
        )

        subscribe(client, listener, f"/amq/queue/{name}", "jobs")
        answers: list[bytes] = []

        def on_answer(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
            answers.append(body)

        channel.basic_consume("amq.rabbitmq.reply-to", on_answer, auto_ack=True)
        asking = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="8")
        channel.basic_publish("", name, b"question", asking)
        got, text = listener.next("MESSAGE")
        assert text == "question"
        client.send(got["reply-to"], "from the page", headers={"correlation-id": "8"})
        _process(connection, lambda: bool(answers))
        assert answers == [b"from the page"]
    connection.close()


def _get(channel: Any, queue: str) -> tuple[Any, Any, bytes]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        method, properties, body = channel.basic_get(queue)
        if method is not None:
            return method, properties, body
        time.sleep(0.02)
    raise TimeoutError(f"nothing in {queue}")


def _process(connection: Any, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < deadline:
        connection.process_data_events(time_limit=0.1)
