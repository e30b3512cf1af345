"""Exchanges of plugins on RabbitMQ: declared, read by their rules, refused in clear words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pika
import pytest

from queuecast.brokers.base import ConsumeSpec, ExchangeSpec, Owner, QueueSpec
from queuecast.destination import Destination
from queuecast.errors import BadDestination, ConfigError
from queuecast.queuespec import BindingSpec
from tests.conftest import Rabbits
from tests.support.rabbit import started
from tests.support.servers import RabbitServer, unique
from tests.support.sinks import DeliveryList, FeedList, ListFeed

pytestmark = pytest.mark.rabbitmq

D = Destination.parse
HASH, RANDOM, RECENT = "x-consistent-hash", "x-random", "x-recent-history"


@pytest.fixture(scope="module")
def plugged(rabbits: Rabbits, rabbit_name: str) -> Iterator[RabbitServer]:
    """A server with the exchange types that come with RabbitMQ as plugins."""
    server = rabbits.make(rabbit_name)
    (server.directory / "enabled_plugins").write_text(
        "[rabbitmq_consistent_hash_exchange,rabbitmq_random_exchange,"
        "rabbitmq_recent_history_exchange].\n"
    )
    try:
        server.start()
        yield server
    finally:
        server.close()


def declare(server: RabbitServer, name: str, kind: str) -> None:
    """Declare an exchange as another program does."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(server.url))) as made:
        made.channel().exchange_declare(name, kind, durable=True)


@pytest.mark.parametrize("configured", [True, False])
async def test_a_consistent_hash_exchange_has_weights(
    plugged: RabbitServer, configured: bool
) -> None:
    name = unique("hash")
    async with started(plugged.url) as broker:
        if configured:
            await broker.declare([ExchangeSpec(name, HASH)])
        else:
            declare(plugged, name, HASH)
        for key in ("abc", "%23", "0"):
            with pytest.raises(BadDestination) as caught:
                await broker.open_feed(D(f"/exchange/{name}/{key}"), FeedList())
            assert "whole number" in caught.value.hint
        queue = QueueSpec(f"{name}-own", exclusive=True, bindings=(BindingSpec(name, "abc"),))
        owner = Owner()
        with pytest.raises(BadDestination) as caught:
            await broker.consume(
                D(f"/exchange/{name}/abc"), DeliveryList(), spec=ConsumeSpec(queue, owner=owner)
            )
        assert "whole number" in caught.value.hint
        # The key is no routing key: whatever the message's is, it comes.
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{name}/1"), sink)
        for number in range(20):
            await broker.publish(D(f"/exchange/{name}/k{number}"), b"%d" % number)
        await sink.until(20)


@pytest.mark.parametrize("kind", [RANDOM, RECENT])
@pytest.mark.parametrize("configured", [True, False])
async def test_exchanges_that_ignore_keys(
    plugged: RabbitServer, kind: str, configured: bool
) -> None:
    name = unique("plugged")
    async with started(plugged.url) as broker:
        if configured:
            await broker.declare([ExchangeSpec(name, kind)])
        else:
            declare(plugged, name, kind)
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{name}/a.*"), sink)
        for number in range(5):
            await broker.publish(D(f"/exchange/{name}/b"), b"%d" % number)
        await sink.until(5)


async def test_a_type_that_the_broker_does_not_have(plugged: RabbitServer) -> None:
    name = unique("unknown")
    async with started(plugged.url) as broker:
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{name}"), sink)
        delayed = ExchangeSpec(name, "x-delayed-message", arguments={"x-delayed-type": "topic"})
        with pytest.raises(ConfigError) as caught:
            await broker.declare([delayed])
        assert caught.value.text == (
            f"exchange '{name}': this RabbitMQ has no type 'x-delayed-message'"
        )
        assert "rabbitmq-plugins enable rabbitmq_delayed_message_exchange" in caught.value.hint
        # RabbitMQ 3 closes the connection over it: not the one that feeds are read on.
        assert broker.ready
        await broker.publish(D(f"/topic/{name}"), b"1")
        await sink.until(1)
        assert not sink.gaps


async def test_an_exchange_that_became_another_one(plugged: RabbitServer) -> None:
    name = unique("changing")
    declare(plugged, name, "direct")
    async with started(plugged.url) as broker:
        with pytest.raises(BadDestination):
            await broker.open_feed(D(f"/exchange/{name}/a.*"), FeedList())
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(plugged.url))) as made:
            made.channel().exchange_delete(name)
        declare(plugged, name, "topic")
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{name}/a.*"), sink)
        await broker.publish(D(f"/exchange/{name}/a.b"), b"1")
        await sink.until(1)


async def test_arguments_that_a_type_does_not_take(plugged: RabbitServer) -> None:
    name = unique("recent")
    async with started(plugged.url) as broker:
        with pytest.raises(ConfigError) as caught:
            await broker.declare(
                [ExchangeSpec(name, RECENT, arguments={"x-recent-history-length": -1})]
            )
        assert "x-recent-history-length" in str(caught.value)
        assert "exists" not in caught.value.text
