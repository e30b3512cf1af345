"""Feeds, and what people do to a broker: exchanges, queues and bindings deleted, policies set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pika
import pytest

from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.destination import Destination
from tests.support.proxy import TcpProxy
from tests.support.rabbit import cuttable, started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    """A channel of the operator's own."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def node() -> str:
    return unique("op")


@pytest.fixture
async def gateway(rabbit: RabbitMQ, node: str) -> AsyncIterator[tuple[RabbitBroker, TcpProxy]]:
    async with cuttable(rabbit, node=node) as both:
        yield both


async def until_gap(sink: ListFeed, count: int = 1) -> str:
    await eventually(lambda: len(sink.gaps) >= count, "the gap", 10)
    return sink.gaps[-1]


async def go_on(sink: ListFeed, publish: Any, body: bytes = b"after") -> None:
    """Publish until the feed has it: the exchange may be bound a moment later."""
    publish(body)
    await eventually(lambda: body in sink.bodies, "what was published after the gap", 10)


@pytest.mark.parametrize("kind", ["topic", "direct", "fanout", "headers"])
@pytest.mark.parametrize("pause", [0.0, 3.0])
async def test_an_exchange_that_is_recreated_is_a_gap(
    gateway: tuple[RabbitBroker, TcpProxy], raw: Any, kind: str, pause: float
) -> None:
    broker, _proxy = gateway
    name = unique("x")
    raw.exchange_declare(name, kind, durable=True)
    key = "a" if kind != "headers" else ""
    sink, other = ListFeed(), ListFeed()
    await broker.open_feed(D(f"/exchange/{name}/{key}".rstrip("/")), sink)
    untouched = unique("untouched")
    await broker.open_feed(D(f"/topic/{untouched}"), other)
    raw.basic_publish(name, key, b"before")
    await sink.until(1)
    raw.exchange_delete(name)
    await asyncio.sleep(pause)
    raw.exchange_declare(name, kind, durable=True)
    why = await until_gap(sink)
    assert repr(name) in why
    await go_on(sink, lambda body: raw.basic_publish(name, key, body))
    assert sink.events == [b"before", why, b"after"]
    assert not other.gaps
    raw.exchange_delete(name)


async def test_an_exchange_that_is_recreated_while_the_connection_is_away(
    gateway: tuple[RabbitBroker, TcpProxy], raw: Any
) -> None:
    broker, proxy = gateway
    name = unique("x")
    raw.exchange_declare(name, "topic", durable=True)
    sink = ListFeed()
    await broker.open_feed(D(f"/exchange/{name}/a"), sink)
    raw.basic_publish(name, "a", b"before")
    await sink.until(1)
    await proxy.refuse()
    proxy.cut()
    raw.exchange_delete(name)
    raw.exchange_declare(name, "topic", durable=True)
    raw.basic_publish(name, "a", b"missed")
    await proxy.accept()
    why = await until_gap(sink)
    assert "was deleted and declared again" in why
    await go_on(sink, lambda body: raw.basic_publish(name, "a", body))
    assert sink.events == [b"before", why, b"after"]
    raw.exchange_delete(name)


async def test_a_plain_unbind_does_not_reach_our_binding(
    gateway: tuple[RabbitBroker, TcpProxy], rabbit: RabbitMQ, raw: Any, node: str
) -> None:
    broker, _proxy = gateway
    key = unique("bound")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    bindings = await asyncio.to_thread(rabbit.list_bindings)
    (queue,) = [each["destination_name"] for each in bindings if each["routing_key"] == key]
    raw.queue_unbind(queue, "amq.topic", key)
    raw.basic_publish("amq.topic", key, b"after")
    await sink.until(1)
    assert not sink.gaps


async def test_a_deleted_queue_is_a_gap_that_says_so(
    gateway: tuple[RabbitBroker, TcpProxy], rabbit: RabbitMQ, raw: Any, node: str
) -> None:
    broker, proxy = gateway
    key = unique("gone")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)

    async def queue() -> str:
        names = await asyncio.to_thread(rabbit.list_queues)
        (name,) = [each for each in names if each.startswith(f"queuecast.{node}.amq.topic.")]
        return name

    raw.queue_delete(await queue())
    assert "was deleted" in await until_gap(sink)
    await go_on(sink, lambda body: raw.basic_publish("amq.topic", key, body), b"1")
    await proxy.refuse()
    proxy.cut()
    raw.queue_delete(await queue())
    await proxy.accept()
    assert "was deleted" in await until_gap(sink, 2)
    await go_on(sink, lambda body: raw.basic_publish("amq.topic", key, body), b"2")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ('{"max-length": 5}', "policy"),
        ('{"max-length-bytes": 50}', "policy"),
        ('{"message-ttl": 200}', "policy"),
    ],
)
async def test_a_policy_that_drops_messages_while_the_connection_is_away_is_a_gap(
    gateway: tuple[RabbitBroker, TcpProxy],
    rabbit: RabbitMQ,
    raw: Any,
    node: str,
    policy: str,
    words: str,
) -> None:
    broker, proxy = gateway
    key = unique("capped")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    raw.confirm_delivery()
    raw.basic_publish("amq.topic", key, b"0")
    await sink.until(1)
    pattern = f"^queuecast\\.{node}\\."
    await asyncio.to_thread(rabbit.ctl, "set_policy", node, pattern, policy, "--apply-to", "queues")
    try:
        await proxy.refuse()
        proxy.cut()
        for number in range(1, 101):
            # A refused publish raises.
            raw.basic_publish("amq.topic", key, b"%d" % number)
        await asyncio.sleep(1)
        await proxy.accept()
        why = await until_gap(sink)
        assert words in why
        await go_on(sink, lambda body: raw.basic_publish("amq.topic", key, body))
        assert len(sink.gaps) == 1
        assert sink.events.index(why) == 1
    finally:
        await asyncio.to_thread(rabbit.ctl, "clear_policy", node)


async def test_an_expiration_of_the_publisher_s_own_is_no_gap(
    gateway: tuple[RabbitBroker, TcpProxy], rabbit: RabbitMQ, raw: Any
) -> None:
    broker, proxy = gateway
    key = unique("brief")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    await proxy.refuse()
    proxy.cut()
    raw.basic_publish("amq.topic", key, b"brief", pika.BasicProperties(expiration="100"))
    await asyncio.sleep(1)
    await proxy.accept()
    await eventually(lambda: broker.ready, "reconnected")
    await go_on(sink, lambda body: raw.basic_publish("amq.topic", key, body))
    assert sink.events == [b"after"]


async def test_not_ready_while_a_feed_is_not_read(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as broker:
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{unique('ready')}"), sink)
        assert broker.ready
        (queue,) = broker._feeds._queues.values()
        queue._lose_channel()
        assert not broker.ready
        assert "amq.topic" in broker.status
        await eventually(lambda: broker.ready, "ready again")


async def test_the_queue_of_what_was_dropped_is_deleted_too(
    gateway: tuple[RabbitBroker, TcpProxy], rabbit: RabbitMQ, raw: Any, node: str
) -> None:
    broker, proxy = gateway
    key = unique("letters")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    names = await asyncio.to_thread(rabbit.list_queues)
    (name,) = [each for each in names if each.startswith(f"queuecast.{node}.letters.")]
    raw.queue_delete(name)
    await eventually(lambda: rabbit.queue(name) is not None, "it is there again")
    assert not sink.gaps
    await proxy.refuse()
    proxy.cut()
    raw.queue_delete(name)
    raw.basic_publish("amq.topic", key, b"kept")
    await proxy.accept()
    await until_gap(sink)
    await go_on(sink, lambda body: raw.basic_publish("amq.topic", key, body))
    assert sink.events == [sink.gaps[0], b"kept", b"after"]
