"""More consumers than a connection to RabbitMQ has channels: 3,000, and what RabbitMQ counts."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import pika
import pytest

from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.destination import Destination
from queuecast.errors import LimitExceeded
from tests.support.rabbit import proxied, started, through
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import ListDeliveries, eventually
from tests.support.stomp import StompClient, StompFrame
from tests.support.streams import running, settled

pytestmark = pytest.mark.rabbitmq

SESSIONS, EACH = 6, 500
COUNT = SESSIONS * EACH


def totals(rabbit: RabbitMQ, prefix: str) -> tuple[int, int, int]:
    """Return the consumers, ready and unacked messages of the queues with this prefix."""
    columns = ("name", "consumers", "messages_ready", "messages_unacknowledged")
    rows = rabbit.rows("list_queues", *columns)
    mine = [row for row in rows if row["name"].startswith(prefix)]
    sums = [sum(int(row[column]) for row in mine) for column in columns[1:]]
    return sums[0], sums[1], sums[2]


def publish(rabbit: RabbitMQ, queues: list[str], each: int) -> None:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number in range(each):
            for queue in queues:
                channel.basic_publish(
                    "", queue, b"%d" % number, pika.BasicProperties(delivery_mode=2)
                )


def _all(client: StompClient) -> list[StompFrame]:
    return [each for messages in client.messages.values() for each in messages]


def consuming(broker: RabbitBroker) -> list[int]:
    return [len(line.consumers) for line in broker._pool.lines]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_three_thousand_work_subscriptions_outlive_a_kill_of_the_broker(
    rabbit_own: RabbitServer,
) -> None:
    prefix = unique("pool")
    queues = [f"{prefix}.{number}" for number in range(25)]
    async with running(
        server={"stomp_tcp": "127.0.0.1:0", "grace": "5s"},
        broker={"url": rabbit_own.url, "start": "exit"},
        limits={"subscriptions": EACH},
    ) as gw:
        parts = urlsplit(gw.gateway.stomp_url)
        address = (str(parts.hostname), int(parts.port or 0))
        clients = [await StompClient.connect(address) for _ in range(SESSIONS)]

        async def subscribe(client: StompClient, first: int) -> None:
            for number in range(EACH):
                queue = queues[(first + number) % len(queues)]
                await client.subscribe(
                    f"/queue/{queue}", str(number), ack="client-individual", prefetch_count="1"
                )

        await asyncio.gather(*(subscribe(client, at * 7) for at, client in enumerate(clients)))
        await settled(lambda: totals(rabbit_own, prefix), (COUNT, 0, 0))

        acked: set[StompFrame] = set()

        async def one_each() -> None:
            """With one unacked message each, every subscription is at work."""
            for client in clients:
                client.messages.clear()
            await asyncio.to_thread(publish, rabbit_own, queues, COUNT // len(queues))

            def served() -> int:
                return sum(
                    len(messages) for client in clients for messages in client.messages.values()
                )

            await eventually(lambda: served() >= COUNT, "a message for each", 400)
            assert served() == COUNT
            assert all(len(client.messages) == EACH for client in clients)
            await settled(lambda: totals(rabbit_own, prefix), (COUNT, 0, COUNT))

        async def ack_all() -> None:
            for client in clients:
                for message in _all(client):
                    if message not in acked:
                        client.send("ACK", {"id": message.headers["ack"]})
                        acked.add(message)
            await settled(lambda: totals(rabbit_own, prefix), (COUNT, 0, 0))

        await one_each()
        await ack_all()
        known = {each for client in clients for each in _all(client)}
        await asyncio.to_thread(rabbit_own.kill)
        await asyncio.to_thread(rabbit_own.start)
        await settled(lambda: totals(rabbit_own, prefix)[0], COUNT, 400)
        for client in clients:
            assert not client.ended
            assert not client.errors
        await settled(lambda: totals(rabbit_own, prefix)[1], 0)
        # What was acked just before the kill may come again, and then it says so.
        again = [each for client in clients for each in _all(client) if each not in known]
        assert {each.headers["redelivered"] for each in again} <= {"true"}
        await ack_all()
        await one_each()
        await ack_all()
        await asyncio.gather(*(client.close() for client in clients))
    with contextlib.closing(
        pika.BlockingConnection(pika.URLParameters(rabbit_own.url))
    ) as connection:
        for queue in queues:
            connection.channel().queue_delete(queue)


async def test_a_further_connection_is_opened_kept_up_and_closed(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two consumers fit on the first connection, all others are on the second.
    monkeypatch.setattr("queuecast.brokers.rabbitmq.pool.RESERVED_CHANNELS", 2045)
    monkeypatch.setattr("queuecast.brokers.rabbitmq.pool.EMPTY", 0.2)
    async with (
        proxied(rabbit) as proxy,
        started(through(proxy, rabbit.url)) as broker,
        started(rabbit.url) as other,
    ):
        queues = [Destination.parse(f"/queue/{unique('pool')}") for _ in range(8)]
        sinks = [ListDeliveries() for _ in queues]
        before = proxy.connections
        consumers = await asyncio.gather(
            *(broker.consume(*each) for each in zip(queues, sinks, strict=True))
        )
        assert consuming(broker) == [2, 6]
        assert proxy.connections == before + 1
        proxy.cut()
        await eventually(lambda: all(sink.resets for sink in sinks), "every consumer was reset")
        for queue in queues:
            await other.publish(queue, b"x")
        for sink, consumer in zip(sinks, consumers, strict=True):
            await sink.until(1)
            assert consumer.ack(sink.deliveries[0].tag)
        for consumer in consumers[:7]:
            await consumer.close()
        left = [len(line.consumers) for line in broker._pool.lines]
        assert sum(left) == 1
        await consumers[7].close()
        await eventually(lambda: len(broker._pool.lines) == 1, "the empty one is closed")
        await eventually(lambda: proxy.connections == before, "its socket too")
        for queue in queues:
            with contextlib.closing(
                pika.BlockingConnection(pika.URLParameters(rabbit.url))
            ) as connection:
                connection.channel().queue_delete(queue.name)


async def test_the_number_of_connections_is_bounded(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuecast.brokers.rabbitmq.pool.RESERVED_CHANNELS", 2046)
    monkeypatch.setattr("queuecast.brokers.rabbitmq.pool._RESERVED_ELSEWHERE", 2045)
    monkeypatch.setattr("queuecast.brokers.rabbitmq.pool.MAX_CONNECTIONS", 3)
    async with started(rabbit.url) as broker:
        queue = Destination.parse(f"/queue/{unique('pool')}")
        consumers = [await broker.consume(queue, ListDeliveries()) for _ in range(5)]
        with pytest.raises(LimitExceeded, match="5 consumers on 3 connections"):
            await broker.consume(queue, ListDeliveries())
        await consumers[2].close()
        await broker.consume(queue, ListDeliveries())
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        connection.channel().queue_delete(queue.name)
