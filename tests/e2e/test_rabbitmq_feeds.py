"""Feeds on RabbitMQ: one queue per exchange, all types of exchange, refusals, lost exchanges."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest

from queuecast.brokers.base import ExchangeSpec
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.destination import Destination
from queuecast.errors import BadDestination, NotFound, Refused
from queuecast.message import Properties
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@pytest.fixture
async def broker(rabbit: RabbitMQ) -> AsyncIterator[RabbitBroker]:
    async with started(rabbit.url) as broker:
        yield broker


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    """A back end's own channel."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


@pytest.fixture
def exchange(raw: Any) -> Iterator[str]:
    """A name for an exchange, which is deleted after the test."""
    name = unique("交易所")
    yield name
    raw.exchange_delete(name)


@pytest.mark.both_loops
async def test_a_feed_gets_what_is_published_after_it_was_opened(broker: RabbitBroker) -> None:
    key = unique("频道")
    sink = ListFeed()
    reader = await broker.open_feed(D(f"/topic/{key}.*"), sink)
    for number in range(100):
        await broker.publish(D(f"/topic/{key}.{number}"), f"第{number}条".encode())
    await sink.until(100)
    assert sink.bodies == [f"第{number}条".encode() for number in range(100)]
    assert sink.messages[3].routing_key == f"{key}.3"
    assert sink.messages[3].exchange == "amq.topic"
    assert not sink.gaps
    await reader.close()


# RabbitMQ binds a thousand a second; ten thousand go through the whole gateway in another test.
_MANY = 2000


async def test_thousands_of_destinations_are_one_queue(rabbit: RabbitMQ) -> None:
    node = unique("many")
    async with started(rabbit.url, node=node) as broker:
        base = unique("job")
        sinks = [ListFeed() for _ in range(_MANY)]
        readers = await asyncio.gather(
            *(broker.open_feed(D(f"/topic/{base}.{at}"), sink) for at, sink in enumerate(sinks))
        )
        queues = await asyncio.to_thread(rabbit.list_queues)
        ours = [name for name in queues if name.startswith(f"queuecast.{node}.")]
        feeds = [name for name in ours if ".canary." not in name and ".letters." not in name]
        assert len(feeds) == 1
        assert len(ours) == 3
        for at in (0, _MANY // 2, _MANY - 1):
            await broker.publish(D(f"/topic/{base}.{at}"), b"%d" % at)
            await sinks[at].until(1)
        assert sum(len(sink.messages) for sink in sinks) == 3
        for reader in readers[:50]:
            await reader.close()
    queues = await asyncio.to_thread(rabbit.list_queues)
    assert not [name for name in queues if name.startswith(f"queuecast.{node}.")]


async def test_opening_and_closing_one_destination_over_and_over(broker: RabbitBroker) -> None:
    key = unique("race")
    for turn in range(30):
        first, second = ListFeed(), ListFeed()
        one = await broker.open_feed(D(f"/topic/{key}"), first)
        closing = asyncio.create_task(one.close())
        two = await broker.open_feed(D(f"/topic/{key}"), second)
        await closing
        await broker.publish(D(f"/topic/{key}"), b"%d" % turn)
        await second.until(1)
        assert second.bodies == [b"%d" % turn]
        assert first.bodies == []
        await two.close()


async def test_an_opening_that_is_cancelled_leaves_nothing(broker: RabbitBroker) -> None:
    key = unique("cancelled")
    sink = ListFeed()
    task = asyncio.create_task(broker.open_feed(D(f"/topic/{key}"), sink))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    other = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), other)
    await broker.publish(D(f"/topic/{key}"), b"1")
    await other.until(1)
    assert sink.messages == []


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
@pytest.mark.parametrize("durable", [True, False])
async def test_the_type_of_somebody_else_s_exchange_is_learned(
    broker: RabbitBroker, raw: Any, exchange: str, kind: str, durable: bool
) -> None:
    raw.exchange_declare(exchange, kind, durable=durable)
    name = quote(exchange)
    wild, exact = ListFeed(), ListFeed()
    pattern = D(f"/exchange/{name}/a.*")
    if kind == "direct":
        with pytest.raises(BadDestination, match="direct"):
            await broker.open_feed(pattern, wild)
    else:
        await broker.open_feed(pattern, wild)
    await broker.open_feed(D(f"/exchange/{name}/a.b"), exact)
    for key in ("a.b", "a.c", "x"):
        await broker.publish(D(f"/exchange/{name}/{key}"), key.encode())
    everything = [b"a.b", b"a.c", b"x"]
    expected = {
        "direct": ([], [b"a.b"]),
        "topic": ([b"a.b", b"a.c"], [b"a.b"]),
        "fanout": (everything, everything),
        "headers": (everything, everything),
    }[kind]
    await exact.until(len(expected[1]))
    await wild.until(len(expected[0]))
    assert (wild.bodies, exact.bodies) == expected


async def test_a_missing_exchange_names_the_setting(broker: RabbitBroker) -> None:
    name = unique("nowhere")
    with pytest.raises(NotFound) as caught:
        await broker.open_feed(D(f"/exchange/{name}/key"), ListFeed())
    assert f'[[exchange]] name = "{name}"' in str(caught.value)


async def test_an_exchange_that_comes_back_is_bound_again(
    rabbit: RabbitMQ, raw: Any, exchange: str
) -> None:
    raw.exchange_declare(exchange, "direct")
    async with started(rabbit.url, rebind=0.2) as broker:
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}/k"), sink)
        await broker.publish(D(f"/exchange/{quote(exchange)}/k"), b"1")
        await sink.until(1)
        raw.exchange_delete(exchange)
        with pytest.raises(NotFound):
            await broker.publish(D(f"/exchange/{quote(exchange)}/k"), b"nobody")
        await asyncio.sleep(0.5)
        raw.exchange_declare(exchange, "direct")
        await eventually(lambda: bool(sink.gaps), "bound again, with a gap")
        raw.basic_publish(exchange, "k", b"2")
        await sink.until(2)
        assert sink.events == [b"1", sink.gaps[0], b"2"]


async def test_a_configured_exchange_is_declared_again(
    rabbit: RabbitMQ, raw: Any, exchange: str
) -> None:
    async with started(rabbit.url, rebind=0.2) as broker:
        await broker.declare([ExchangeSpec(exchange, "fanout")])
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}"), sink)
        raw.exchange_delete(exchange)
        await eventually(lambda: bool(sink.gaps), "declared and bound again")
        raw.basic_publish(exchange, "any", b"1")
        await sink.until(1)


async def test_an_exchange_made_anew_as_another_type_between_two_looks(
    rabbit: RabbitMQ, raw: Any, exchange: str
) -> None:
    raw.exchange_declare(exchange, "direct")
    async with started(rabbit.url) as broker:
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}/a.b"), sink)
        raw.exchange_delete(exchange)
        raw.exchange_declare(exchange, "topic")
        link = broker._consuming.link
        assert link is not None

        async def look() -> None:
            while sink.error is None:
                await broker._feeds._look(link)
                raw.basic_publish(exchange, "a.b", b"for nobody")
                await asyncio.sleep(0.05)

        async with asyncio.timeout(30):
            await look()
        again = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}/a.*"), again)
        raw.basic_publish(exchange, "a.b", b"1")
        await eventually(lambda: b"1" in again.bodies, "the message")


async def test_an_exchange_that_comes_back_as_another_type_ends_its_feeds(
    rabbit: RabbitMQ, raw: Any, exchange: str
) -> None:
    raw.exchange_declare(exchange, "direct")
    async with started(rabbit.url, rebind=0.2) as broker:
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}/a"), sink)
        raw.exchange_delete(exchange)
        await asyncio.sleep(0.5)
        raw.exchange_declare(exchange, "topic")
        await eventually(lambda: sink.error is not None, "the failure")
        again = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}/*"), again)
        raw.basic_publish(exchange, "a", b"1")
        await again.until(1)
        assert sink.messages == []


async def test_messages_that_come_through_another_exchange(
    broker: RabbitBroker, raw: Any, exchange: str
) -> None:
    raw.exchange_declare(exchange, "fanout")
    raw.exchange_bind("amq.topic", exchange, "")
    key = unique("key")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    raw.basic_publish(exchange, key, b"1", pika.BasicProperties(headers={"CC": ["elsewhere"]}))
    raw.basic_publish(exchange, "elsewhere", b"2", pika.BasicProperties(headers={"CC": [key]}))
    await sink.until(2)
    assert sink.bodies == [b"1", b"2"]
    assert sink.messages[0].exchange == exchange


async def test_a_limited_user_is_refused_alone(rabbit: RabbitMQ, raw: Any, exchange: str) -> None:
    raw.exchange_declare(exchange, "topic")
    user = unique("limited")
    url = await asyncio.to_thread(
        lambda: rabbit.add_user(
            user,
            "secret",
            configure="^queuecast",
            write=r"^(queuecast|amq\.topic)",
            read=r"^(queuecast|amq\.topic)",
        )
    )
    async with started(url) as broker:
        key = unique("allowed")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await broker.publish(D(f"/topic/{key}"), b"1")
        results = await asyncio.gather(
            broker.open_feed(D(f"/exchange/{quote(exchange)}/a"), ListFeed()),
            broker.publish(D(f"/exchange/{quote(exchange)}/a"), b"no"),
            broker.publish(D(f"/queue/{unique('q')}"), b"no"),
            *(broker.publish(D(f"/topic/{key}"), b"2") for _ in range(50)),
            return_exceptions=True,
        )
        assert [type(result) for result in results[:3]] == [Refused] * 3
        assert results[3:] == [None] * 50
        await sink.until(51)
        assert sink.gaps == []
    assert "secret" not in broker.name
    assert urlsplit(broker.name).username == user


async def test_a_feed_on_an_exchange_whose_type_cannot_be_learned(
    rabbit: RabbitMQ, raw: Any, exchange: str
) -> None:
    raw.exchange_declare(exchange, "topic")
    url = await asyncio.to_thread(
        lambda: rabbit.add_user(unique("reader"), "secret", configure="^queuecast")
    )
    async with started(url) as broker:
        sink = ListFeed()
        await broker.open_feed(D(f"/exchange/{quote(exchange)}/a.*"), sink)
        await broker.publish(D(f"/exchange/{quote(exchange)}/a.b"), b"1")
        await broker.publish(D(f"/exchange/{quote(exchange)}/x"), b"2")
        await broker.publish(D(f"/exchange/{quote(exchange)}/a.c"), b"3", Properties())
        await sink.until(2)
        assert sink.bodies == [b"1", b"3"]
