"""Queues and exchanges that others delete, and declare again, under work-queue subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pika
import pytest

from queuecast.brokers.rabbitmq.reopening import RECREATED
from queuecast.destination import Destination
from queuecast.errors import NotFound
from queuecast.queuespec import BindingSpec, ConsumeSpec, Owner, QueueSpec
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import DeliveryList, eventually
from tests.support.stomp import StompClient
from tests.support.streams import GAP, Enveloped, aiohttp_socket, running, sse

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


def recreate(raw: Any, queue: str) -> None:
    """Do what a deploy script does, and publish to the new queue."""
    raw.queue_delete(queue)
    raw.queue_declare(queue, durable=True)
    raw.basic_publish("", queue, b"after")


async def test_a_recreated_queue_is_consumed_again_behind_a_gap_on_every_transport(
    rabbit: RabbitMQ, raw: Any
) -> None:
    names = {name: unique(name) for name in ("sse", "bare", "enveloped", "acking", "stomp")}
    for queue in names.values():
        raw.queue_declare(queue, durable=True)
    async with (
        running(server={"stomp_tcp": "127.0.0.1:0"}, broker={"url": rabbit.url}) as gw,
        aiohttp.ClientSession() as session,
    ):
        stream = await sse(session, gw.url, f"/queue/{names['sse']}")
        bare = await aiohttp_socket(session, gw.url, f"/amq/queue/{names['bare']}")
        parts = urlsplit(gw.gateway.stomp_url)
        stomp = await StompClient.connect((str(parts.hostname), int(parts.port or 0)))
        await stomp.subscribe(f"/queue/{names['stomp']}", ack="client-individual")
        enveloped = await Enveloped.open(gw.url, f"/queue/{names['enveloped']}?envelope=json")
        await enveloped.notice("subscribed")
        poll = f"{gw.url}/poll/queue/{names['acking']}"
        async with session.get(poll, params={"ack": "client", "timeout": "1s"}) as answer:
            polled = await answer.json()
        for queue in names.values():
            await asyncio.to_thread(recreate, raw, queue)

        for each in (stream, bare):
            await each.until("after")
            assert each.events == [GAP, "after"]
            await each.close()
        await enveloped.until(1)
        told = await enveloped.notice("gap")
        assert told == {
            "gap": {"reason": RECREATED, "last": "", "first": ""},
            "subscription": f"/queue/{names['enveloped']}",
        }
        await enveloped.close()
        await stomp.until("after")
        gap, message = stomp.messages["1"]
        assert gap.headers["gap"] == RECREATED
        assert (gap.body, message.body) == ("", "after")
        await stomp.close()
        found: list[dict[str, Any]] = []
        while len(found) < 2:
            query = {"ack": "client", "timeout": "5s", "session": polled["session"]}
            async with session.get(poll, params=query) as answer:
                polled = await answer.json()
                assert answer.status == 200, polled
            found += polled["messages"]
        assert found[0]["gap"]["reason"] == RECREATED
        assert found[1]["body"] == "after"


async def test_a_deleted_queue_ends_its_consumers_on_every_transport(
    rabbit: RabbitMQ, raw: Any
) -> None:
    queue = unique("deleted")
    raw.queue_declare(queue, durable=True)
    async with (
        running(server={"stomp_tcp": "127.0.0.1:0"}, broker={"url": rabbit.url}) as gw,
        aiohttp.ClientSession() as session,
    ):
        bare = await aiohttp_socket(session, gw.url, f"/queue/{queue}")
        stream = await sse(session, gw.url, f"/queue/{queue}")
        parts = urlsplit(gw.gateway.stomp_url)
        stomp = await StompClient.connect((str(parts.hostname), int(parts.port or 0)))
        await stomp.subscribe(f"/queue/{queue}")
        await asyncio.to_thread(raw.queue_delete, queue)
        await eventually(lambda: bare.ended == "closed with 4404", "the close code")
        await eventually(lambda: "not_found" in str(stream.ended), "the disconnect event")
        await eventually(lambda: bool(stomp.errors), "the ERROR")
        assert "Server cancelled subscription" in stomp.errors[0].headers["message"]
        assert queue not in rabbit.list_queues()
        await stomp.close()


def own(name: str, exchange: str, **more: Any) -> ConsumeSpec:
    queue = QueueSpec(name, bindings=(BindingSpec(exchange, "#"),), **more)
    return ConsumeSpec(queue, owner=Owner())


@pytest.mark.parametrize("pause", [0.0, 3.0])
async def test_a_consumer_whose_exchange_was_recreated_is_bound_again_with_a_gap(
    rabbit: RabbitMQ, raw: Any, pause: float
) -> None:
    exchange, other = unique("exchange"), unique("other")
    for name in (exchange, other):
        raw.exchange_declare(name, "topic", durable=True)
    async with started(rabbit.url) as broker:
        sinks = {name: DeliveryList() for name in ("transient", "durable", "other")}
        await broker.consume(
            D(f"/exchange/{exchange}/#"),
            sinks["transient"],
            spec=own(unique("t"), exchange, durable=False, exclusive=True, auto_delete=True),
        )
        for name, source in (("durable", exchange), ("other", other)):
            await broker.consume(
                D(f"/exchange/{source}/#"), sinks[name], spec=own(unique(name), source)
            )
        assert broker._consumers.exchanges == {exchange, other}
        raw.exchange_delete(exchange)
        await asyncio.sleep(pause)
        raw.exchange_declare(exchange, "topic", durable=True)
        for name in ("transient", "durable"):
            await eventually(lambda n=name: bool(sinks[n].gaps), f"the gap of {name}")  # type: ignore[misc]
            (why,) = sinks[name].gaps
            assert repr(exchange) in why
        assert sinks["other"].gaps == []
        await broker.publish(D(f"/exchange/{exchange}/a"), b"after")
        for name in ("transient", "durable"):
            await eventually(lambda n=name: sinks[n].bodies == [b"after"], name)  # type: ignore[misc]


def deleted(raw: Any, name: str) -> None:
    raw.queue_delete(name)


def replaced(raw: Any, name: str) -> None:
    raw.queue_delete(name)
    raw.queue_declare(name, durable=True)


@pytest.mark.parametrize("how", [deleted, replaced])
async def test_an_own_queue_that_others_delete(
    rabbit: RabbitMQ, raw: Any, how: Callable[[Any, str], None]
) -> None:
    name, key = unique("own"), unique("key")
    spec = ConsumeSpec(QueueSpec(name, bindings=(BindingSpec("amq.topic", key),)), owner=Owner())
    async with started(rabbit.url) as broker:
        sink = DeliveryList()
        await broker.consume(D(f"/topic/{key}"), sink, spec=spec)
        await asyncio.to_thread(how, raw, name)
        if how is deleted:
            await eventually(lambda: isinstance(sink.error, NotFound), "it ends")
            assert name not in rabbit.list_queues()
            return
        # The script's queue has no binding: the gateway's is made again.
        await eventually(lambda: sink.gaps == [RECREATED], "the gap")
        await broker.publish(D(f"/topic/{key}"), b"after")
        await eventually(lambda: sink.bodies == [b"after"], "it goes on")
        await broker.delete_own(name, spec.owner or Owner())


async def test_a_queue_that_was_deleted_during_an_outage_is_declared_again_with_a_gap(
    rabbit: RabbitMQ, raw: Any
) -> None:
    queue = unique("outage")
    async with started(rabbit.url) as broker:
        sink = DeliveryList()
        sink.acks_at_once = True
        sink.consumer = await broker.consume(D(f"/queue/{queue}"), sink)
        link = broker._consuming.link
        assert link is not None
        link.drop(ConnectionResetError("cut"))
        await asyncio.to_thread(raw.queue_delete, queue)
        await eventually(lambda: bool(sink.gaps), "the gap")
        await broker.publish(D(f"/queue/{queue}"), b"after")
        await eventually(lambda: sink.bodies == [b"after"], "it goes on")
