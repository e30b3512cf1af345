"""Work queues of a RabbitMQ cluster whose node goes: away, not gone, on every transport."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pika
import pytest
import websockets

from queuecast.brokers.rabbitmq import RabbitBroker, away
from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.destination import Destination
from queuecast.errors import PublishFailed, Unavailable
from queuecast.retention import RetainRule
from queuecast.testing import RunningGateway
from tests.support.proxy import FailoverProxy
from tests.support.rabbit import started, through
from tests.support.rabbit_cluster import RabbitCluster
from tests.support.servers import unique
from tests.support.sinks import DeliveryList, eventually
from tests.support.stomp import StompClient
from tests.support.streams import Enveloped, aiohttp_socket, running, sse

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(300)]

LOGGER = "queuecast.brokers.rabbitmq.away"
D = Destination.parse


def declare(url: str, *names: str, **arguments: object) -> None:
    """Declare durable queues at the node of this URL."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        for name in names:
            channel.queue_declare(name, durable=True, arguments=dict(arguments) or None)


def put(url: str, queue: str, *bodies: str) -> None:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for body in bodies:
            persistent = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", queue, body, persistent, mandatory=True)


async def consumer(broker: RabbitBroker, destination: str, prefetch: int = 10) -> DeliveryList:
    sink = DeliveryList()
    sink.acks_at_once = True
    sink.consumer = await broker.consume(D(destination), sink, prefetch=prefetch)
    return sink


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        each.getMessage()
        for each in caplog.records
        if each.name == LOGGER and each.levelno == level
    ]


def address(gw: RunningGateway) -> tuple[str, int]:
    parts = urlsplit(gw.gateway.stomp_url)
    return str(parts.hostname), int(parts.port or 0)


class Audience:
    """A client of each transport, each with a queue of its own; what came, by transport."""

    def __init__(self, gw: Any, prefix: str, stack: contextlib.AsyncExitStack) -> None:
        self._gw = gw
        self._stack = stack
        self.queue = {name: f"{prefix}.{name}" for name in self.NAMES}
        self.got: dict[str, list[str]] = {name: [] for name in self.NAMES}
        self.ends: list[str] = []

    NAMES = ("sse", "bare", "enveloped", "poll", "stomp", "stomp-ws", "bridge")

    async def open(self) -> None:
        gw, url, stack = self._gw, self._gw.url, self._stack
        session = await stack.enter_async_context(aiohttp.ClientSession())
        stream = await sse(session, url, f"/queue/{self.queue['sse']}")
        stack.push_async_callback(stream.close)
        bare = await aiohttp_socket(session, url, f"/queue/{self.queue['bare']}")
        stack.push_async_callback(bare.close)
        bridged = await sse(session, url, f"/topic/{self.queue['bridge']}")
        stack.push_async_callback(bridged.close)
        self.got |= {"sse": stream.events, "bare": bare.events, "bridge": bridged.events}
        self._streams = [stream, bare, bridged]
        self._enveloped = await Enveloped.open(
            url, f"/queue/{self.queue['enveloped']}?envelope=json"
        )
        stack.push_async_callback(self._enveloped.close)
        await self._enveloped.notice("subscribed")
        polling = asyncio.create_task(self._poll(session, url))
        stack.callback(polling.cancel)
        self._stomp = await StompClient.connect(address(gw))
        stack.push_async_callback(self._stomp.close)
        await self._stomp.subscribe(f"/queue/{self.queue['stomp']}")
        socket = await websockets.connect(f"ws{url.removeprefix('http')}/ws", ping_interval=None)
        stack.push_async_callback(socket.close)
        await socket.send("CONNECT\naccept-version:1.2\n\n\0")
        await socket.recv()
        queue = self.queue["stomp-ws"]
        await socket.send(f"SUBSCRIBE\nid:1\nreceipt:1\ndestination:/queue/{queue}\n\n\0")
        assert "RECEIPT" in str(await socket.recv())
        reading = asyncio.create_task(self._read(socket))
        stack.callback(reading.cancel)

    async def _poll(self, session: aiohttp.ClientSession, url: str) -> None:
        session_id = ""
        while True:
            query = {"timeout": "1s", **({"since": session_id} if session_id else {})}
            address = f"{url}/poll/queue/{self.queue['poll']}"
            async with session.get(address, params=query) as answer:
                text = await answer.text()
                if answer.status == 503:
                    assert json.loads(text)["retry"]
                    await asyncio.sleep(0.2)
                    continue
                if answer.status != 200:
                    self.ends.append(f"poll: {answer.status} {text}")
                    return
                found = json.loads(text)
            session_id = found.get("next", "")
            self.got["poll"] += [each["body"] for each in found["messages"]]

    async def _read(self, socket: websockets.ClientConnection) -> None:
        async for frame in socket:
            text = frame if isinstance(frame, str) else frame.decode()
            if text.startswith("MESSAGE"):
                self.got["stomp-ws"].append(text.partition("\n\n")[2].rstrip("\0\n"))
            elif text.strip():
                self.ends.append(text)

    def have(self, body: str) -> bool:
        self.got["enveloped"] = self._enveloped.bodies
        self.got["stomp"] = self._stomp.bodies()
        assert not [each.ended for each in self._streams if each.ended]
        assert not self.ends
        assert not self._stomp.errors
        return all(body in each for each in self.got.values())

    def lacking(self, body: str) -> list[str]:
        return [name for name, each in self.got.items() if body not in each]


@contextlib.asynccontextmanager
async def audience(gw: Any, prefix: str) -> AsyncIterator[Audience]:
    async with contextlib.AsyncExitStack() as stack:
        made = Audience(gw, prefix, stack)
        await made.open()
        yield made


async def test_a_queue_whose_node_was_down_is_consumed_again_on_every_transport(
    rabbit_cluster: RabbitCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, prefix = rabbit_cluster, unique("away")
    queues = {name: f"{prefix}.{name}" for name in Audience.NAMES}
    declare(cluster.urls[1], *queues.values())
    caplog.set_level(logging.INFO, LOGGER)
    async with (
        running(
            server={"stomp_tcp": "127.0.0.1:0"},
            broker={"url": cluster.urls[0]},
            queue=[{"name": queues["sse"]}],
            bridge=[{"from": f"/queue/{queues['bridge']}", "to": f"/topic/{queues['bridge']}"}],
        ) as gw,
        audience(gw, prefix) as clients,
        aiohttp.ClientSession() as session,
    ):
        for queue in queues.values():
            put(cluster.urls[0], queue, "before")
        await eventually(lambda: clients.have("before"), "all had the first")
        await asyncio.to_thread(cluster.kill, 1)
        # All are noted as away, each once.
        await eventually(lambda: len(said(caplog, logging.WARNING)) == len(queues), "said", 60)
        for path in (f"/queue/{queues['sse']}", f"/amq/queue/{queues['bare']}"):
            async with session.post(f"{gw.url}/publish{path}", data=b"x") as answer:
                assert answer.status == 503
                refusal = await answer.json()
                assert (refusal["code"], refusal["retry"]) == ("unavailable", True)
                assert "away" in refusal["text"]
        await asyncio.to_thread(cluster.start_node, 1)
        for queue in queues.values():
            put(cluster.urls[0], queue, "after")
        await eventually(lambda: clients.have("after"), "all go on", 60)
        assert len(said(caplog, logging.INFO)) == len(queues)
        assert len(said(caplog, logging.WARNING)) == len(queues)
        async with session.post(f"{gw.url}/publish/queue/{queues['sse']}", data=b"x") as answer:
            assert answer.status == 202 or answer.status == 200


async def test_a_thousand_consumers_of_an_away_queue_cost_one_question_at_a_time(
    rabbit_cluster: RabbitCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, queue = rabbit_cluster, unique("many")
    declare(cluster.urls[1], queue)
    asking, most, find = 0, 0, away._find

    async def counted(*args: Any) -> None:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        try:
            await find(*args)
        finally:
            asking -= 1

    monkeypatch.setattr(away, "_find", counted)
    async with started(cluster.urls[0]) as broker:
        sinks = await asyncio.gather(
            *(consumer(broker, f"/queue/{queue}", prefetch=1) for _ in range(1000))
        )
        await asyncio.to_thread(cluster.kill, 1)
        await eventually(lambda: most > 0, "it is away", 60)
        with pytest.raises(Unavailable):
            await consumer(broker, f"/queue/{queue}")
        await asyncio.to_thread(cluster.start_node, 1)
        for sink in sinks:
            assert sink.error is None
        await eventually(
            lambda: cluster.nodes[0].list_queues()[queue].consumers == 1000, "all are back", 120
        )
        assert most == 1
        put(cluster.urls[0], queue, *map(str, range(2000)))
        await eventually(lambda: sum(len(sink.bodies) for sink in sinks) == 2000, "all came")


async def test_a_quorum_queue_without_a_majority_costs_others_nothing(
    rabbit_cluster: RabbitCluster,
) -> None:
    cluster, queue, other = rabbit_cluster, unique("minority"), unique("other")
    arguments = {
        "x-queue-type": "quorum",
        "x-quorum-initial-group-size": 2,
        "x-queue-leader-locator": "client-local",
    }
    declare(cluster.urls[1], queue, **arguments)
    declare(cluster.urls[0], other)
    async with started(cluster.urls[0], confirm_timeout=20.0) as broker:
        sink = await consumer(broker, f"/queue/{queue}")
        healthy = await consumer(broker, f"/queue/{other}")
        await broker.publish(D(f"/queue/{queue}"), b"1")
        await eventually(lambda: sink.bodies == [b"1"], "the first")
        await asyncio.to_thread(cluster.kill, 1)
        waiting = asyncio.create_task(broker.publish(D(f"/queue/{queue}"), b"2"))
        if cluster.version == "3.10":
            # RabbitMQ refuses what is published there, as to a full queue, and the first new
            # consumer ends its connection.
            with pytest.raises(PublishFailed):
                await waiting
            with pytest.raises(Unavailable):
                await consumer(broker, f"/queue/{queue}")
            await eventually(lambda: broker._consuming.reconnects == 1, "connected again", 60)
        # It is noted as away, and what follows is refused at once.
        await eventually(lambda: queue in broker._away._watches, "noted", 60)
        reconnects = [each.reconnects for each in broker._supervisors]
        assert sum(reconnects) == (cluster.version == "3.10")
        for _ in range(5):
            with pytest.raises(Unavailable):
                await broker.publish(D(f"/queue/{queue}"), b"3")
            with pytest.raises(Unavailable):
                await consumer(broker, f"/queue/{queue}")
        for number in range(20):
            await broker.publish(D(f"/queue/{other}"), b"%d" % number)
        await eventually(lambda: len(healthy.bodies) == 20, "others go on")
        assert [each.reconnects for each in broker._supervisors] == reconnects
        await asyncio.to_thread(cluster.start_node, 1)
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: queue not in broker._away._watches, "back", 60)
        await broker.publish(D(f"/queue/{queue}"), b"4")
        await eventually(lambda: b"4" in sink.bodies, "goes on", 60)
        assert b"3" not in sink.bodies
        assert [each.reconnects for each in broker._supervisors] == reconnects


async def test_a_stream_without_a_replica_here_is_unavailable(
    rabbit_cluster: RabbitCluster,
) -> None:
    cluster, queue = rabbit_cluster, unique("replica")
    arguments = {"x-queue-type": "stream", "x-initial-cluster-size": 1}
    declare(cluster.urls[1], queue, **arguments, **{"x-queue-leader-locator": "client-local"})
    async with started(cluster.urls[0]) as broker:
        with pytest.raises(Unavailable, match="add_replica"):
            await consumer(broker, f"/amq/queue/{queue}")
        put(cluster.urls[1], queue, "1")
        # What `rabbitmq-streams add_replica` does.
        call = f'rabbit_stream_queue:add_replica(<<"/">>, <<"{queue}">>, node())'
        add = f"case {call} of ok -> ok; {{ok, _}} -> ok end"
        await asyncio.to_thread(cluster.nodes[0].run, add)
        sink = DeliveryList()

        for attempt in range(300):
            try:
                sink.consumer = await broker.consume(D(f"/amq/queue/{queue}"), sink, prefetch=10)
            except Unavailable:
                assert attempt < 299
                await asyncio.sleep(0.2)
            else:
                break
        put(cluster.urls[1], queue, "2")
        await eventually(lambda: b"2" in sink.bodies, "it is read here")


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "publishing"])
async def test_a_node_that_stands_still_is_noticed(
    rabbit_cluster: RabbitCluster, idle: bool
) -> None:
    cluster, queue = rabbit_cluster, unique("frozen")
    declare(cluster.urls[0], queue)
    async with started(cluster.urls[0]) as broker:
        sink = await consumer(broker, f"/queue/{queue}")
        await broker.publish(D(f"/queue/{queue}"), b"1")
        await asyncio.to_thread(cluster.freeze, 0)
        if not idle:
            with pytest.raises(Exception, match=r"may or may not|not answered|away"):
                await broker.publish(D(f"/queue/{queue}"), b"2")
        # Heartbeats alone would take 25 to 30 seconds.
        await eventually(lambda: not broker.ready and "not answered" in broker.status, "seen", 18)
        await asyncio.to_thread(cluster.thaw, 0)
        assert sink.error is None


async def test_a_retained_stream_without_a_replica_here_is_read_elsewhere(
    rabbit_cluster: RabbitCluster,
) -> None:
    cluster, key = rabbit_cluster, unique("retained")
    rule = RetainRule(D(f"/topic/{key}"), age=3600)
    stream = stream_name(rule)
    async with started(cluster.urls[1], retain=[rule]) as other:
        await other.declare()
        await other.publish(D(f"/topic/{key}"), b"1")
    lost = f'rabbit_stream_queue:delete_replica(<<"/">>, <<"{stream}">>, node())'
    run = cluster.nodes[0].run
    await asyncio.to_thread(run, f"case {lost} of ok -> ok; {{ok, _}} -> ok end")
    async with (
        FailoverProxy(cluster.ports) as proxy,
        started(through(proxy, cluster.urls[0]), retain=[rule]) as broker,
    ):
        with pytest.raises(Unavailable, match="add_replica"):
            await broker.declare()
        assert not broker.ready
        assert f"rabbitmq-streams add_replica {stream} NODE" in broker.status
        with pytest.raises(Unavailable):
            await broker.publish(D(f"/topic/{key}"), b"2")
        # The balancer brings new connections to another node: nobody cuts the old ones.
        proxy.order = (cluster.ports[1],)
        await eventually(lambda: broker.ready, "read at another node", 60)
        await broker.publish(D(f"/topic/{key}"), b"3")
