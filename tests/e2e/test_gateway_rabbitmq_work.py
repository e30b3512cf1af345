"""Work queues of RabbitMQ in browsers: prefetch, acks, competition, clients that go or stand still.

What is where is asked of the broker, which counts ready and unacked messages and consumers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import pika
import psutil
import pytest

from tests.support.proxy import TcpProxy
from tests.support.rabbit import proxied, through
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import eventually
from tests.support.streams import Enveloped, audience, ready, running, settled, sse

pytestmark = pytest.mark.rabbitmq


class Counts(NamedTuple):
    """A queue as the broker counts it."""

    ready: int
    unacked: int
    consumers: int


def counts(rabbit: RabbitMQ, queue: str) -> Counts:
    columns = ("name", "messages_ready", "messages_unacknowledged", "consumers")
    rows = rabbit.rows("list_queues", *columns)
    (row,) = [row for row in rows if row["name"] == queue]
    return Counts(row["messages_ready"], row["messages_unacknowledged"], row["consumers"])


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


@pytest.fixture
def queue(raw: Any) -> Iterator[str]:
    name = unique("工作")
    raw.queue_declare(name, durable=True)
    yield name
    raw.queue_delete(name)


def fill(raw: Any, queue: str, count: int, size: int = 0) -> None:
    """Publish count numbers, padded to size bytes, and return once the broker has them."""
    raw.confirm_delivery()
    for number in range(count):
        raw.basic_publish("", queue, (b"%d" % number).ljust(size))


async def test_prefetch_is_held_at_the_broker_and_a_cut_gives_everything_back(
    rabbit: RabbitMQ, raw: Any, queue: str
) -> None:
    fill(raw, queue, 20)
    async with running(broker={"url": rabbit.url}) as gw:
        parts = urlsplit(gw.url)
        async with TcpProxy("127.0.0.1", parts.port or 0) as proxy:
            client = await Enveloped.open(
                f"http://127.0.0.1:{proxy.port}",
                f"/amq/queue/{queue}?envelope=json&ack=client&prefetch=5",
            )
            await client.until(5)
            await settled(lambda: counts(rabbit, queue), Counts(15, 5, 1))
            assert client.bodies == ["0", "1", "2", "3", "4"]
            assert not [each for each in client.deliveries if "redelivered" in each]
            await client.say(ack=client.deliveries[0]["ack"])
            await client.say(nack=client.deliveries[1]["ack"], requeue=False)
            await client.until(7)
            await settled(lambda: counts(rabbit, queue), Counts(13, 5, 1))
            # The tab crashed: its TCP connection is reset.
            proxy.cut()
            await settled(lambda: counts(rabbit, queue), Counts(18, 0, 0))
            await client.close()
        again = await Enveloped.open(gw.url, f"/queue/{queue}?envelope=json&ack=client&prefetch=18")
        await again.until(18)
        assert again.bodies == [str(number) for number in range(2, 20)]
        marked = [each["body"] for each in again.deliveries if each.get("redelivered")]
        assert marked == ["2", "3", "4", "5", "6"]
        for each in again.deliveries:
            await again.say(ack=each["ack"])
        await settled(lambda: counts(rabbit, queue), Counts(0, 0, 1))
        await again.say(unsubscribe=f"/queue/{queue}")
        await again.notice("unsubscribed")
        await settled(lambda: counts(rabbit, queue), Counts(0, 0, 0))
        await again.close()


async def test_competing_browsers_share_a_queue(rabbit: RabbitMQ, raw: Any, queue: str) -> None:
    async with running(broker={"url": rabbit.url}) as gw:
        clients = [
            await Enveloped.open(gw.url, f"/queue/{queue}?envelope=json&ack=client&prefetch=1")
            for _ in range(4)
        ]
        for client in clients:
            await client.notice("subscribed")
        await settled(lambda: counts(rabbit, queue), Counts(0, 0, 4))
        fill(raw, queue, 40)
        done = 0
        settled_by = dict.fromkeys(range(4), 0)
        while done < 40:
            for at, client in enumerate(clients):
                while settled_by[at] < len(client.deliveries):
                    await client.say(ack=client.deliveries[settled_by[at]]["ack"])
                    settled_by[at] += 1
                    done += 1
            await asyncio.sleep(0)
        assert sorted(int(body) for client in clients for body in client.bodies) == list(range(40))
        # One at a time each: nobody gets a second one while the others have none.
        assert all(client.deliveries for client in clients)
        assert not [each for client in clients for each in client.deliveries if "error" in each]
        await settled(lambda: counts(rabbit, queue), Counts(0, 0, 4))
        await asyncio.gather(*(client.close() for client in clients))
        await settled(lambda: counts(rabbit, queue), Counts(0, 0, 0))


async def test_deliveries_come_again_marked_after_the_broker_connection_was_cut(
    rabbit: RabbitMQ, raw: Any, queue: str
) -> None:
    fill(raw, queue, 10)
    async with (
        proxied(rabbit) as proxy,
        running(broker={"url": through(proxy, rabbit.url)}) as gw,
    ):
        client = await Enveloped.open(gw.url, f"/queue/{queue}?envelope=json&ack=client&prefetch=4")
        await client.until(4)
        await client.say(ack=client.deliveries[0]["ack"])
        await client.until(5)
        old = client.deliveries[1]["ack"]
        taken = proxy.accepted
        proxy.cut()
        await eventually(lambda: proxy.accepted >= taken + 2, "two new connections")
        await ready(gw)
        await client.until(9)
        again = client.deliveries[5:]
        assert [each["body"] for each in again] == ["1", "2", "3", "4"]
        assert all(each["redelivered"] for each in again)
        # An ack of before the cut means nothing now, and hurts nobody.
        await client.say(ack=old)
        refused = await client.notice("error")
        assert refused["ack"] == old
        for each in again:
            await client.say(ack=each["ack"])
        await client.until(13)
        await client.say(ack=client.deliveries[9]["ack"])
        await client.until(14)
        for each in client.deliveries[10:]:
            await client.say(ack=each["ack"])
        assert [each["body"] for each in client.deliveries[9:]] == ["5", "6", "7", "8", "9"]
        await settled(lambda: counts(rabbit, queue), Counts(0, 0, 1))
        await client.close()


async def test_configured_exchange_queue_and_bridge(rabbit: RabbitMQ, raw: Any) -> None:
    exchange, orders, dead = unique("events"), unique("orders"), unique("dead")
    async with (
        running(
            broker={"url": rabbit.url},
            exchange=[{"name": exchange, "type": "direct"}],
            queue=[
                {"name": dead},
                {
                    "name": orders,
                    "arguments": {
                        "x-dead-letter-exchange": "",
                        "x-dead-letter-routing-key": dead,
                    },
                    "bindings": [{"exchange": exchange, "key": "订单"}],
                },
            ],
            bridge=[{"from": f"/queue/{orders}", "to": f"/topic/{orders}.all"}],
        ) as gw,
        audience(gw.url, f"/topic/{orders}.*?envelope=json", 1) as (stream,),
        aiohttp.ClientSession() as session,
    ):
        # The broker agrees with what was configured, or it would close the channel.
        raw.exchange_declare(exchange, "direct", durable=True)
        await settled(lambda: counts(rabbit, orders), Counts(0, 0, 1))
        async with session.post(
            f"{gw.url}/publish/exchange/{exchange}/订单?header.color=red", data="一号".encode()
        ) as answer:
            assert answer.status == 200
        raw.basic_publish(exchange, "订单", "二号".encode())
        await eventually(lambda: len(stream.bodies) >= 2, "both")
        messages = [json.loads(body) for body in stream.bodies]
        assert [each["body"] for each in messages] == ["一号", "二号"]
        assert messages[0]["headers"]["color"] == "red"
        assert "redelivered" not in messages[0]["headers"]
        assert messages[0]["destination"] == f"/topic/{orders}.all"
        await settled(lambda: counts(rabbit, orders), Counts(0, 0, 1))
        assert (await asyncio.to_thread(counts, rabbit, dead)) == Counts(0, 0, 0)
    # A gateway that stopped left the broker as configured, without its consumer.
    await settled(lambda: counts(rabbit, orders), Counts(0, 0, 0))
    for name in (orders, dead):
        raw.queue_delete(name)
    raw.exchange_delete(exchange)


# -- a client that stands still -----------------------------------------------------------

# What one such client may cost: a socket's buffers, the bytes that are held for it, a write.
_COST = 24 << 20
_SIZE = 100_000
_COUNT = 1500


def standstill(url: str, target: str) -> socket.socket:
    """Open a WebSocket, read its handshake's answer and never again."""
    parts = urlsplit(url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(30)
    made.connect((parts.hostname, parts.port))
    made.sendall(
        f"GET /ws{target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert made.recv(12) == b"HTTP/1.1 101"
    return made


@pytest.mark.slow
@pytest.mark.parametrize("ack", ["client", "auto"])
async def test_the_messages_of_a_client_that_does_not_read_stay_in_the_broker(
    rabbit: RabbitMQ, raw: Any, queue: str, ack: str
) -> None:
    await asyncio.to_thread(fill, raw, queue, _COUNT, _SIZE)
    async with running(broker={"url": rabbit.url}) as gw:
        process = psutil.Process()
        before = process.memory_info().rss
        peak = 0
        query = "?envelope=json&ack=client" if ack == "client" else ""
        slow = await asyncio.to_thread(standstill, gw.url, f"/amq/queue/{quote(queue)}{query}")
        kept = Counts(0, 0, 0)
        for _ in range(8):
            kept = await asyncio.to_thread(counts, rabbit, queue)
            peak = max(peak, process.memory_info().rss)
        if ack == "client":
            assert kept.ready + kept.unacked == _COUNT
        else:
            # Written is acked; beyond what sockets buffer nothing was written.
            assert kept.ready + kept.unacked >= _COUNT - _COST // _SIZE
        assert peak - before < _COST, f"{(peak - before) >> 20} MB"
        slow.close()
        await settled(lambda: counts(rabbit, queue)[1:], (0, 0))
        left = await asyncio.to_thread(counts, rabbit, queue)
        client = await Enveloped.open(gw.url, f"/queue/{queue}?envelope=json")
        await client.until(left.ready, 60)
        numbers = [int(body) for body in client.bodies]
        # In order, and nothing that was not written is missing.
        assert numbers == list(range(_COUNT - left.ready, _COUNT))
        assert (left.ready == _COUNT) == (ack == "client")
        await client.close()


async def test_a_client_that_stood_still_gets_the_rest_in_order(
    rabbit: RabbitMQ, raw: Any, queue: str
) -> None:
    async with running(broker={"url": rabbit.url}) as gw:
        parts = urlsplit(gw.url)
        async with TcpProxy("127.0.0.1", parts.port or 0) as proxy:
            client = await Enveloped.open(
                f"http://127.0.0.1:{proxy.port}", f"/queue/{queue}?envelope=json"
            )
            await client.notice("subscribed")
            proxy.stall()
            await asyncio.to_thread(fill, raw, queue, 300, _SIZE)
            # The consumer stands still too, and what it could not hold went back.
            await settled(lambda: counts(rabbit, queue).consumers, 0)
            await settled(lambda: counts(rabbit, queue).ready > 0, True)
            proxy.unstall()
            await client.until(300, 60)
            assert [int(body) for body in client.bodies] == list(range(300))
            await settled(lambda: counts(rabbit, queue), Counts(0, 0, 1))
            await client.close()


@pytest.mark.slow
async def test_work_queues_leave_channels_for_everybody_s_feeds(
    rabbit: RabbitMQ, raw: Any, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer has a channel, and RabbitMQ allows 2047 of them on a connection."""
    monkeypatch.setattr("queuecast.brokers.rabbitmq.pool.MAX_CONNECTIONS", 1)
    queues = [f"{queue}.{step}" for step in range(99)]
    async with (
        proxied(rabbit) as proxy,
        running(broker={"url": through(proxy, rabbit.url)}) as gw,
        aiohttp.ClientSession() as session,
    ):
        clients = await asyncio.gather(
            *(Enveloped.open(gw.url, "?envelope=json&destination=/topic/x") for _ in range(21))
        )
        for client in clients:
            for name in queues:
                await client.say(subscribe=f"/queue/{name}", prefetch=1)
        for client in clients:
            await eventually(lambda client=client: len(client.notices) >= 100, "answers", 60)  # type: ignore[misc]
        refused = [each for client in clients for each in client.notices if "error" in each]
        assert refused
        assert [each for each in refused if each["error"]["code"] != "limit"] == []
        for _ in range(2):
            stream = await sse(session, gw.url, f"/topic/{unique('new')}")
            await stream.close()
            exchange = await sse(session, gw.url, "/exchange/amq.fanout")
            raw.basic_publish("amq.fanout", "", b"there")
            await exchange.until("there")
            await exchange.close()
            # The same after a reconnect, when all consumers and feeds come back at once.
            taken = proxy.accepted
            proxy.cut()
            await eventually(lambda taken=taken: proxy.accepted >= taken + 2, "reconnected")  # type: ignore[misc]
            await ready(gw)
        await asyncio.gather(*(client.close() for client in clients))
    for name in queues:
        raw.queue_delete(name)
