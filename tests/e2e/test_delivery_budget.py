"""What work queues cost for clients that do not read: bounded memory, the rest stays in the broker.

What is where is asked of the broker, which counts ready and unacked messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pika
import psutil
import pytest

from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.destination import Destination
from queuecast.message import Properties
from queuecast.testing import RunningGateway
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListDeliveries
from tests.support.stomp import StompClient
from tests.support.streams import running, settled

COUNT = 20_000
BODY = 5000
SESSIONS, EACH = 4, 25
BUDGET = 4 << 20
# One message for each subscription that may be on its way to a socket when the budget is full.
OVERSHOOT = SESSIONS * EACH * BODY
# Of the gateway and this test together, with Python's slack. Without a bound these subscriptions
# hold all of the backlog, which takes over 100 MB.
RESIDENT = 80 << 20


class Counts(NamedTuple):
    ready: int
    unacked: int


def counts(rabbit: RabbitMQ, queue: str) -> Counts:
    rows = rabbit.rows("list_queues", "name", "messages_ready", "messages_unacknowledged")
    (row,) = [row for row in rows if row["name"] == queue]
    return Counts(int(row["messages_ready"]), int(row["messages_unacknowledged"]))


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


@pytest.fixture
def queue(raw: Any) -> Iterator[str]:
    name = unique("budget")
    raw.queue_declare(name, durable=True)
    yield name
    raw.queue_delete(name)


def body(number: int) -> str:
    return str(number).ljust(BODY)


def fill(raw: Any, queue: str) -> None:
    for number in range(COUNT):
        raw.basic_publish("", queue, body(number).encode())


async def stand_still(gw: RunningGateway, queue: str, ack: str) -> list[StompClient]:
    """Subscribe many times, for all of the backlog together, and read nothing from then on."""
    parts = urlsplit(gw.gateway.stomp_url)
    address = (str(parts.hostname), int(parts.port or 0))
    clients = []
    for _ in range(SESSIONS):
        client = await StompClient.connect(address)
        for number in range(EACH):
            await client.subscribe(f"/amq/queue/{queue}", str(number), ack=ack)
        client.pause()
        clients.append(client)
    return clients


class Watch:
    """The most that was held, and resident, while it ran."""

    def __init__(self, gw: RunningGateway) -> None:
        self._budget = gw.gateway.services.deliveries
        self._process = psutil.Process()
        self.before = self._process.memory_info().rss
        self.held = 0
        self.resident = 0
        self.users = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.users = max(self.users, self._budget.users)
            self.held = max(self.held, self._budget.used)
            self.resident = max(self.resident, self._process.memory_info().rss - self.before)
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def check(self, resident: int = RESIDENT) -> None:
        assert self.users == SESSIONS * EACH
        assert 0 < self.held <= BUDGET + OVERSHOOT, f"{self.held} bytes held"
        print(f"held {self.held}, resident {self.resident >> 20} MB")
        assert self.resident < resident, f"{self.resident >> 20} MB"


@pytest.mark.rabbitmq
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ack", ["auto", "client"])
async def test_a_backlog_stays_in_rabbitmq_while_nobody_reads(
    rabbit: RabbitMQ, raw: Any, queue: str, ack: str
) -> None:
    async with running(
        server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"},
        broker={"url": rabbit.url, "start": "exit"},
        limits={"deliveries": BUDGET},
    ) as gw:
        watch = Watch(gw)
        clients = await stand_still(gw, queue, ack)
        budget = gw.gateway.services.deliveries
        await asyncio.to_thread(fill, raw, queue)
        # It has come to rest when nothing moves at the broker from one look to the next.
        last, now = None, await asyncio.to_thread(counts, rabbit, queue)
        while now != last:
            await asyncio.sleep(1)
            last, now = now, await asyncio.to_thread(counts, rabbit, queue)
        await watch.stop()
        watch.check()
        # Sockets buffer some MB for each client; all else is where it was.
        assert now.ready > COUNT // 2, now
        if ack == "client":
            assert sum(now) == COUNT
        # They read again: everything comes, and once unless it says so.
        for client in clients:
            client.resume()
        seen: dict[str, int] = {}
        done = {id(client): dict.fromkeys(map(str, range(EACH)), 0) for client in clients}
        async with asyncio.timeout(600):
            while len(seen) < COUNT:
                await asyncio.sleep(0.05)
                for client in clients:
                    assert not client.errors
                    for number, messages in client.messages.items():
                        at = done[id(client)][number]
                        fresh = messages[at:]
                        done[id(client)][number] += len(fresh)
                        for message in fresh:
                            assert message.body not in seen or message.headers["redelivered"]
                            seen[message.body] = seen.get(message.body, 0) + 1
                        if fresh and ack == "client":
                            client.send("ACK", {"id": fresh[-1].headers["ack"]})
        assert set(seen) == {body(number) for number in range(COUNT)}
        assert set(seen.values()) == {1}, "what was written to a client does not come again"
        await settled(lambda: counts(rabbit, queue), Counts(0, 0))
        for client in clients:
            await client.close()
        await settled(lambda: budget.users, 0)
        assert budget.used == 0


@pytest.mark.parametrize("ack", ["auto", "client"])
async def test_a_backlog_stays_in_the_embedded_broker_while_nobody_reads(ack: str) -> None:
    queue = unique("budget")
    async with running(
        server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"},
        limits={"deliveries": BUDGET},
        queue=[{"name": queue}],
    ) as gw:

        async def publish() -> None:
            destination = Destination.parse(f"/queue/{queue}")
            for number in range(COUNT):
                await gw.gateway.broker.publish(destination, body(number).encode(), Properties())

        def on_loop(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, gw.loop).result(120)

        watch = Watch(gw)
        clients = await stand_still(gw, queue, ack)
        budget = gw.gateway.services.deliveries
        await asyncio.to_thread(on_loop, publish())

        async def state() -> tuple[int, int]:
            found = gw.gateway.broker._topology.queues[queue]  # type: ignore[attr-defined]
            return found.ready, found.unacked

        last, now = None, await asyncio.to_thread(on_loop, state())
        while now != last:
            await asyncio.sleep(1)
            last, now = now, await asyncio.to_thread(on_loop, state())
        await watch.stop()
        # The broker itself holds the backlog.
        watch.check(RESIDENT + 2 * COUNT * BODY)
        assert now[0] > COUNT // 2, now
        for client in clients:
            await client.close()
        await settled(lambda: budget.users, 0)
        assert budget.used == 0
        _, unacked = await asyncio.to_thread(on_loop, state())
        assert unacked == 0


@pytest.mark.rabbitmq
async def test_a_pause_does_not_lift_the_prefetch(rabbit: RabbitMQ, raw: Any, queue: str) -> None:
    """RabbitMQ counts for each consumer tag, and a consumer that goes on has a new one."""
    async with started(rabbit.url) as broker:
        sink = ListDeliveries()
        address = Destination.parse(f"/queue/{queue}")
        consumer = await broker.consume(address, sink, prefetch=10)
        for number in range(4):
            raw.basic_publish("", queue, b"%d" % number)
        await sink.until(4)
        consumer.pause()
        await settled(lambda: raw.queue_declare(queue, passive=True).method.consumer_count, 0)
        for number in range(4, 100):
            raw.basic_publish("", queue, b"%d" % number)
        consumer.resume()
        await sink.until(10)
        await settled(lambda: counts(rabbit, queue), Counts(90, 10))
        # A client that acks in lumps of its prefetch gets its prefetch each time.
        acked = 0
        while acked < 100:
            for delivery in sink.deliveries[acked:]:
                assert consumer.ack(delivery.tag)
                acked += 1
            await sink.until(min(100, acked + 10))
            await settled(
                lambda: counts(rabbit, queue), Counts(max(0, 90 - acked), min(10, 100 - acked))
            )
        assert sink.bodies == [b"%d" % number for number in range(100)]
        assert not any(delivery.message.redelivered for delivery in sink.deliveries)
        await consumer.close()


@pytest.mark.rabbitmq
async def test_old_deliveries_that_are_settled_make_room(
    rabbit: RabbitMQ, raw: Any, queue: str
) -> None:
    broker: RabbitBroker
    async with started(rabbit.url) as broker:
        sink = ListDeliveries()
        consumer = await broker.consume(Destination.parse(f"/queue/{queue}"), sink, prefetch=3)
        for number in range(10):
            raw.basic_publish("", queue, b"%d" % number)
        await sink.until(3)
        consumer.pause()
        await settled(lambda: raw.queue_declare(queue, passive=True).method.consumer_count, 0)
        consumer.resume()
        await settled(lambda: counts(rabbit, queue), Counts(7, 3))
        for at in range(3):
            assert consumer.ack(sink.deliveries[at].tag)
            await sink.until(4 + at)
            await settled(lambda: counts(rabbit, queue)[1], 3)
        await consumer.close()
