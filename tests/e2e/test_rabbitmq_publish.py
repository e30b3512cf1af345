"""Publishing to RabbitMQ: an error concerns its own message and no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pika
import pytest

from queuecast.brokers.base import QueueSpec
from queuecast.brokers.rabbitmq import RabbitBroker, feeds
from queuecast.brokers.rabbitmq.canary import Canary
from queuecast.destination import Destination
from queuecast.errors import (
    BadRequest,
    Conflict,
    NotFound,
    QueuecastError,
    Refused,
    Unavailable,
)
from queuecast.message import Properties
from tests.support.rabbit import proxied, started, through
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import ListDeliveries, ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@pytest.fixture
async def broker(rabbit: RabbitMQ) -> AsyncIterator[RabbitBroker]:
    async with started(rabbit.url) as broker:
        yield broker


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


async def test_missing_exchanges_among_thousands_of_publishes(broker: RabbitBroker) -> None:
    key = unique("isolated")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    await broker.publish(D(f"/topic/{key}"), b"first")
    calls = []
    for number in range(1000):
        calls.append(broker.publish(D(f"/topic/{key}"), b"%d" % number))
        if number % 20 == 0:
            calls.append(broker.publish(D(f"/exchange/{key}-{number}/a"), b"no"))
    results = await asyncio.gather(*calls, return_exceptions=True)
    failed = [result for result in results if result is not None]
    assert [type(result) for result in failed] == [NotFound] * 50
    await sink.until(1001)
    assert sink.bodies[1:] == [b"%d" % number for number in range(1000)]


async def test_an_exchange_deleted_under_the_publisher(broker: RabbitBroker, raw: Any) -> None:
    key, exchange = unique("still"), unique("gone")
    raw.exchange_declare(exchange, "fanout")
    sink = ListFeed()
    await broker.open_feed(D(f"/topic/{key}"), sink)
    await broker.publish(D(f"/exchange/{exchange}/a"), b"verified")
    await broker.publish(D(f"/topic/{key}"), b"verified")
    raw.exchange_delete(exchange)
    # Nothing before it is unconfirmed; what follows was ignored by the broker and is sent again.
    results = await asyncio.gather(
        broker.publish(D(f"/exchange/{exchange}/a"), b"no"),
        *(broker.publish(D(f"/topic/{key}"), b"%d" % number) for number in range(100)),
        return_exceptions=True,
    )
    assert isinstance(results[0], NotFound)
    assert results[1:] == [None] * 100
    await sink.until(101)
    assert sink.bodies[1:] == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize(
    "properties",
    [
        Properties(expiration="soon"),
        Properties(expiration="-1"),
        Properties(expiration="99999999999"),
        Properties(priority=256),
        Properties(timestamp=-1),
        Properties(message_id="x" * 256),
        Properties(headers={"CC": ["elsewhere"]}),
        Properties(headers={"BCC": "elsewhere"}),
        Properties(headers={"number": 2**63}),
        Properties(headers={"k" * 256: "v"}),
        Properties(headers={"object": object()}),
    ],
)
async def test_properties_that_would_close_the_channel(
    broker: RabbitBroker, properties: Properties
) -> None:
    with pytest.raises(BadRequest):
        await broker.publish(D("/topic/x"), b"no", properties)
    await broker.publish(D("/topic/x"), b"yes")


async def test_somebody_else_s_user_id_is_refused_alone(broker: RabbitBroker) -> None:
    key = unique("user")
    await broker.publish(D(f"/topic/{key}"), b"verified")
    results = await asyncio.gather(
        *(broker.publish(D(f"/topic/{key}"), b"before") for _ in range(20)),
        broker.publish(D(f"/topic/{key}"), b"no", Properties(user_id="somebody")),
        *(broker.publish(D(f"/topic/{key}"), b"after") for _ in range(20)),
        return_exceptions=True,
    )
    assert isinstance(results[20], Refused)
    assert results[:20] + results[21:] == [None] * 40


async def test_a_queue_of_any_kind_is_used_as_it_is(broker: RabbitBroker, raw: Any) -> None:
    name = unique("quorum")
    raw.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    try:
        await broker.publish(D(f"/queue/{name}"), b"1")
        sink = ListDeliveries()
        consumer = await broker.consume(D(f"/queue/{name}"), sink)
        await sink.until(1)
        assert consumer.ack(sink.deliveries[0].tag)
        await consumer.close()
    finally:
        raw.queue_delete(name)


async def test_a_queue_deleted_after_its_first_use_is_made_again(
    broker: RabbitBroker, raw: Any
) -> None:
    name = unique("again")
    await broker.publish(D(f"/queue/{name}"), b"1")
    raw.queue_delete(name)
    await broker.publish(D(f"/queue/{name}"), b"2")
    assert raw.basic_get(name, auto_ack=True)[2] == b"2"
    raw.queue_delete(name)


async def test_a_reply_to_somebody_s_exclusive_queue(broker: RabbitBroker, raw: Any) -> None:
    name = raw.queue_declare("", exclusive=True).method.queue
    await broker.publish(D(f"/reply-queue/{name}"), b"reply")
    await broker.publish(D(f"/queue/{name}"), b"queue")
    assert [raw.basic_get(name, auto_ack=True)[2] for _ in range(2)] == [b"reply", b"queue"]
    with pytest.raises(Conflict):
        await broker.consume(D(f"/queue/{name}"), ListDeliveries())


async def test_a_flood_stays_within_the_unconfirmed_bound(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url, max_unconfirmed=50, max_unconfirmed_bytes=10_000) as broker:
        key = unique("flood")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await broker.publish(D(f"/topic/{key}"), b"first")
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, broker._publisher._unconfirmed)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        bodies = [b"%d" % number + b"." * 1000 for number in range(500)]
        await asyncio.gather(*(broker.publish(D(f"/topic/{key}"), body) for body in bodies))
        watching.cancel()
        await sink.until(501)
        assert sink.bodies[1:] == bodies
        assert 0 < most <= 10


@contextlib.asynccontextmanager
async def low_on_memory(rabbit: RabbitServer) -> AsyncIterator[None]:
    """RabbitMQ believes to have no memory left, and blocks connections that publish."""
    await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.4")


async def until_blocked(broker: RabbitBroker, destination: str) -> list[asyncio.Task[None]]:
    """Publish numbers until RabbitMQ says that it takes none; returns the publishes.

    One is not enough: a connection hears of the alarm some time after ctl has returned, and
    RabbitMQ blocks it with the first publish after that.
    """
    publishes: list[asyncio.Task[None]] = []

    def blocked() -> bool:
        if "no publishes" in broker.status:
            return True
        body = b"%d" % len(publishes)
        publishes.append(asyncio.create_task(broker.publish(D(destination), body)))
        return False

    await eventually(blocked, "blocked", 60)
    return publishes


# However slow the machine, what RabbitMQ has not read while blocked is not given up.
_BLOCKED = {"patience": 0.5, "confirm_timeout": 600.0}


@pytest.mark.slow
async def test_a_blocked_broker_is_unavailable_and_says_why(rabbit_own: RabbitServer) -> None:
    async with started(rabbit_own.url, **_BLOCKED) as broker:
        key = unique("blocked")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await broker.publish(D(f"/topic/{key}"), b"first")
        async with low_on_memory(rabbit_own):
            publishes = await until_blocked(broker, f"/topic/{key}")
            for destination in (f"/topic/{key}", f"/queue/{key}"):
                with pytest.raises(Unavailable) as caught:
                    await broker.publish(D(destination), b"no")
                assert "memory" in str(caught.value)
        results = await asyncio.gather(*publishes, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), Unavailable}
        taken = [b"%d" % number for number, result in enumerate(results) if result is None]
        assert taken
        await eventually(lambda: broker.status == "connected", "unblocked")
        await broker.publish(D(f"/topic/{key}"), b"last")
        await sink.until(len(taken) + 2)
        assert sink.bodies == [b"first", *taken, b"last"]


@pytest.mark.slow
async def test_a_blocked_broker_still_delivers_and_opens_feeds(
    rabbit_own: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_CANARY_PATIENCE", 0.5)
    async with started(rabbit_own.url, **_BLOCKED) as full:
        queue = f"/queue/{unique('backlog')}"
        for number in range(3):
            await full.publish(D(queue), b"%d" % number)
        async with low_on_memory(rabbit_own):
            publishes = await until_blocked(full, f"/topic/{unique('filler')}")
            # A gateway that starts now cannot have a canary; its consumers must not pay for it.
            async with started(rabbit_own.url, **_BLOCKED) as broker:
                sink = ListFeed()
                await broker.open_feed(D("/topic/any"), sink)
                deliveries = ListDeliveries()
                consumer = await broker.consume(D(queue), deliveries, prefetch=1)
                for count in range(3):
                    await deliveries.until(count + 1)
                    assert consumer.ack(deliveries.deliveries[count].tag)
                (feed,) = broker._feeds._queues.values()
                assert feed.canary is None
                await consumer.close()
        await asyncio.gather(*publishes, return_exceptions=True)
        await eventually(lambda: full.status == "connected", "unblocked")


async def test_a_canary_that_could_not_be_put_is_put_later(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_TOUCH", 0.05)

    async def unavailable(*_args: object) -> Canary:
        raise Unavailable("not now")

    async with proxied(rabbit) as proxy, started(through(proxy, rabbit.url)) as broker:
        with monkeypatch.context() as patched:
            patched.setattr(Canary, "put", unavailable)
            sink = ListFeed()
            key = unique("later")
            await broker.open_feed(D(f"/topic/{key}"), sink)
            (feed,) = broker._feeds._queues.values()
            assert feed.canary is None
        await eventually(lambda: feed.canary is not None, "the canary")
        await broker.publish(D(f"/topic/{key}"), b"1")
        await sink.until(1)
        proxy.cut()
        await eventually(lambda: not broker.ready, "noticed")
        await eventually(lambda: broker.ready, "reconnected")
        await broker.publish(D(f"/topic/{key}"), b"2")
        await sink.until(2)
        assert sink.events == [b"1", b"2"]


async def test_a_conflict_names_both(broker: RabbitBroker, raw: Any) -> None:
    name = unique("conflict")
    raw.queue_declare(name, durable=True, arguments={"x-max-length": 7})
    with pytest.raises(Conflict) as caught:
        await broker.declare(queues=[QueueSpec(name, arguments={"x-max-length": 9})])
    assert "7" in str(caught.value)
    assert "9" in str(caught.value)
    raw.queue_delete(name)


async def test_a_cancelled_publish_disturbs_nobody(broker: RabbitBroker) -> None:
    key = unique("cancel")
    task = asyncio.create_task(broker.publish(D(f"/topic/{key}"), b"1"))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, QueuecastError):
        await task
    await broker.publish(D(f"/topic/{key}"), b"2")
