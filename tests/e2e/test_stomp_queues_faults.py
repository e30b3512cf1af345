"""STOMP subscriptions with queues of their own while RabbitMQ restarts."""

from __future__ import annotations

import contextlib
import queue
import time

import pika
import pytest

from tests.e2e.stomp_house import bodies, subscribe
from tests.e2e.test_stomp import Behind, connected
from tests.e2e.test_stomp_faults import gateway
from tests.support.processes import wait_until
from tests.support.servers import RabbitServer, unique

pytestmark = pytest.mark.rabbitmq


def publish(behind: Behind, exchange: str, key: str, body: str) -> bool:
    """Publish a persistent message as a back end; False while RabbitMQ is away."""
    assert behind.rabbit is not None
    with contextlib.suppress(pika.exceptions.AMQPError):
        connection = pika.BlockingConnection(pika.URLParameters(behind.rabbit.url))
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish(exchange, key, body.encode(), properties)
        connection.close()
        return True
    return False


def test_a_restart_under_durable_and_transient_subscriptions(rabbit_fresh: RabbitServer) -> None:
    name, key = unique("restart"), unique("k")
    options = {"x_queue_name": name, "durable": "true", "auto_delete": "false"}
    with (
        gateway(rabbit_fresh) as behind,
        connected(behind, "tcp-1.2") as (client, listener),
        connected(behind, "ws-1.2") as (other, told),
    ):
        subscribe(client, listener, f"/topic/{key}", "durable", ack="client-individual", **options)
        subscribe(other, told, f"/topic/{key}", "transient", ack="client")
        assert publish(behind, "amq.topic", key, "acked")
        assert publish(behind, "amq.topic", key, "unacked")
        first, second = (listener.next("MESSAGE") for _ in range(2))
        assert (first[1], second[1]) == ("acked", "unacked")
        assert bodies(told, 2) == ["acked", "unacked"]
        client.ack(first[0]["ack"], receipt="a")
        listener.next("RECEIPT")
        wait_until(lambda: rabbit_fresh.list_queues()[name].messages == 1, what="the ack arrived")

        rabbit_fresh.restart()

        wait_until(lambda: publish(behind, "amq.topic", key, "after"), what="RabbitMQ is back")
        headers, body = listener.next("MESSAGE")
        assert (body, headers["redelivered"]) == ("unacked", "true")
        headers, body = listener.next("MESSAGE")
        assert (body, headers["redelivered"]) == ("after", "false")
        # The other one's queue went with its connection: it is told, and goes on.
        headers, body = told.next("MESSAGE")
        assert "queue was lost" in headers["gap"]
        assert (headers["subscription"], body) == ("transient", "")
        deadline = time.monotonic() + 60
        while body != "again" and time.monotonic() < deadline:
            # Until the queue is bound again what is published is nobody's.
            publish(behind, "amq.topic", key, "again")
            with contextlib.suppress(queue.Empty):
                kind, headers, body = told.frames.get(timeout=1)
                assert (kind, headers["redelivered"]) == ("MESSAGE", "false")
        assert body == "again"
        client.unsubscribe("durable", headers={"durable": "true"})


def test_an_answer_after_a_restart(rabbit_fresh: RabbitServer) -> None:
    """The reply queue comes back by its name: what was asked before is still answered."""
    name = unique("rpc")
    with (
        gateway(rabbit_fresh) as behind,
        connected(behind, "tcp-1.2") as (client, listener),
    ):
        question = {"reply-to": "/temp-queue/a", "persistent": "true", "receipt": "1"}
        client.send(f"/queue/{name}", "question", headers=question)
        listener.next("RECEIPT")
        rabbit_fresh.restart()
        headers, _ = listener.next("MESSAGE")
        assert "queue was lost" in headers["gap"]
        assert headers["subscription"] == "/temp-queue/a"
        with connected(behind, "tcp-1.2") as (responder, asked):
            subscribe(responder, asked, f"/queue/{name}", "jobs")
            got, _ = asked.next("MESSAGE")
            responder.send(got["reply-to"], "answer", headers={"receipt": "2"})
            asked.next("RECEIPT")
        headers, body = listener.next("MESSAGE")
        assert (headers["subscription"], body) == ("/temp-queue/a", "answer")
