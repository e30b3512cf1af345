"""A hundred STOMP sessions while RabbitMQ is killed, and one client that wants far too much."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from functools import partial
from urllib.parse import urlsplit

import pika
import pytest

from queuecast.testing import RunningGateway
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import eventually
from tests.support.stomp import StompClient, StompFrame
from tests.support.streams import GAP, Stream, check_honest, numbers, running, settled

pytestmark = pytest.mark.rabbitmq

SESSIONS = 100
QUEUES = 4
KEPT = 2  # deliveries that each session has unacked when the broker is killed


def address(gw: RunningGateway) -> tuple[str, int]:
    parts = urlsplit(gw.gateway.stomp_url)
    return str(parts.hostname), int(parts.port or 0)


def in_queues(rabbit: RabbitMQ, prefix: str) -> tuple[int, int]:
    """Return the messages and the consumers of all queues with this prefix."""
    rows = rabbit.rows("list_queues", "name", "messages", "consumers")
    mine = [row for row in rows if row["name"].startswith(prefix)]
    return sum(int(row["messages"]) for row in mine), sum(int(row["consumers"]) for row in mine)


class Worker:
    """One session's work subscription: acks all but the first few, until told to ack these too."""

    def __init__(self, client: StompClient, log: dict[str, list[str]], acked: set[str]) -> None:
        self._client = client
        self._log = log
        self._acked = acked
        self.kept: list[StompFrame] = []
        self.keeping = True

    def take(self, message: StompFrame) -> None:
        self._log[message.body].append(message.headers["redelivered"])
        if self.keeping and len(self.kept) < KEPT:
            self.kept.append(message)
        else:
            self._client.send("ACK", {"id": message.headers["ack"]})
            self._acked.add(message.body)


def feed_of(client: StompClient) -> Stream:
    """Return what a feed subscription got, as check_honest wants it."""
    stream = Stream("feed", client.close)
    stream.events = [
        GAP if "gap" in message.headers else message.body for message in client.messages["feed"]
    ]
    return stream


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_sessions_outlive_a_kill_of_the_broker(rabbit_own: RabbitServer) -> None:
    name = unique("crowd")
    queues = [f"{name}.{number}" for number in range(QUEUES)]
    async with running(
        server={"stomp_tcp": "127.0.0.1:0", "grace": "5s"},
        broker={"url": rabbit_own.url, "start": "exit"},
    ) as gw:
        clients = [await StompClient.connect(address(gw)) for _ in range(SESSIONS)]
        # By queue: what was delivered, each time with its `redelivered`; what was acked.
        logs: list[dict[str, list[str]]] = [defaultdict(list) for _ in queues]
        acked: list[set[str]] = [set() for _ in queues]
        workers = []
        for number, client in enumerate(clients):
            at = number % QUEUES
            worker = Worker(client, logs[at], acked[at])
            client.on_message["work"] = worker.take
            workers.append(worker)
            await client.subscribe(f"/topic/{name}", "feed")
            await client.subscribe(
                f"/queue/{queues[at]}", "work", ack="client-individual", prefetch_count="5"
            )
        async with contextlib.AsyncExitStack() as stack:
            publish = partial(numbers, rabbit_own.url)
            topic = await stack.enter_async_context(publish("amq.topic", name, pause=0.02))
            jobs = [
                await stack.enter_async_context(publish("", queue, persistent=True, pause=0.02))
                for queue in queues
            ]
            await eventually(
                lambda: all(len(worker.kept) == KEPT for worker in workers), "all have some", 120
            )
            await topic.more(50)
            await asyncio.to_thread(rabbit_own.flush)

            await asyncio.to_thread(rabbit_own.kill)
            unacked = [
                (worker.kept, logs[number % QUEUES]) for number, worker in enumerate(workers)
            ]
            for worker in workers:
                worker.keeping = False
            await asyncio.to_thread(rabbit_own.start)

            await settled(lambda: in_queues(rabbit_own, name)[1], SESSIONS, 120)
            for publisher in (topic, *jobs):
                await publisher.more(50)

            # What was published until the feed was bound again may be missing.
            forgets = rabbit_own.version in ("3.10", "4.0")

            # Once all feeds have told of the gap and go on, the last number reaches everybody.
            def go_on() -> bool:
                events = [feed_of(client).events for client in clients]
                return all(GAP in each and each[-1] != GAP for each in events)

            if forgets:
                await eventually(go_on, "every feed goes on after a gap", 120)
            await topic.more(10)
            last = str(await topic.stop())
            for job in jobs:
                await job.stop()
            for client in clients:
                await client.until(last, "feed")
            for log, job in zip(logs, jobs, strict=True):
                await eventually(
                    lambda log=log, job=job: {str(each) for each in job.confirmed} <= set(log),  # type: ignore[misc]
                    "every confirmed job was delivered",
                    120,
                )
        await settled(lambda: in_queues(rabbit_own, name), (0, SESSIONS))

        for client in clients:
            assert not client.ended
            assert not client.errors
            stream = feed_of(client)
            check_honest(stream, topic.confirmed)
            gaps = stream.events.count(GAP)
            if forgets:
                # One kill is one gap; a node that starts may take connections and drop them once.
                assert 1 <= gaps <= 2
            else:
                assert not gaps
                assert set(topic.confirmed) <= set(stream.numbers)
        for kept, log in unacked:
            for message in kept:
                # Whoever has it next is told.
                assert log[message.body][1:], f"{message.body} was lost"
        for log, settled_ in zip(logs, acked, strict=True):
            assert settled_ == set(log)
            for body, deliveries in log.items():
                assert set(deliveries[1:]) <= {"true"}, (body, deliveries)
        await asyncio.gather(*(client.close() for client in clients))
    with contextlib.closing(
        pika.BlockingConnection(pika.URLParameters(rabbit_own.url))
    ) as connection:
        for queue in queues:
            connection.channel().queue_delete(queue)


async def test_ten_thousand_subscribes_of_one_client(rabbit: RabbitMQ) -> None:
    name = unique("greedy")
    async with running(
        server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"},
        broker={"url": rabbit.url, "start": "exit"},
    ) as gw:
        other = await StompClient.connect(address(gw))
        await other.subscribe(f"/topic/{name}")
        greedy = await StompClient.connect(address(gw))
        for number in range(10_000):
            destination = f"/topic/{name}.{number}" if number % 2 else f"/queue/{name}"
            greedy.send(
                "SUBSCRIBE",
                {"id": str(number), "destination": destination, "receipt": str(number)},
            )
        sent = 0
        while len(greedy.errors) < 9_900:
            # Others are served while it is refused.
            await other.ask("SEND", {"destination": f"/topic/{name}"}, str(sent))
            await other.until(str(sent))
            sent += 1
            assert not greedy.ended
        assert len(greedy.errors) == 9_900
        assert {each.headers["message"] for each in greedy.errors} == {"Limit exceeded"}
        assert {each.body for each in greedy.errors} == {
            "this connection has 100 subscriptions, that is the limit\n"
        }
        refused = {int(each.headers["receipt-id"]) for each in greedy.errors}
        assert refused == set(range(100, 10_000)), "each is answered by name"
        # What it got is as good as anybody's, and at the broker there is no more than that.
        keys = {row["routing_key"] for row in await asyncio.to_thread(rabbit.list_bindings)}
        assert len([key for key in keys if key.startswith(f"{name}.")]) == 50
        assert (await asyncio.to_thread(rabbit.list_queues))[name].consumers == 50
        await other.ask("SEND", {"destination": f"/topic/{name}.99"}, "for the last")
        await greedy.until("for the last", "99")
        await greedy.ask("UNSUBSCRIBE", {"id": "99"})
        await greedy.subscribe(f"/topic/{name}", "again")
        await greedy.close()
        await other.close()
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        connection.channel().queue_delete(name)
