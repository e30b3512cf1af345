"""The embedded broker's exchanges, queues and bindings: made, refused, and gone again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from queuecast.brokers.base import BindingSpec, ExchangeSpec, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.errors import (
    BadRequest,
    Conflict,
    LimitExceeded,
    NotFound,
    Refused,
    Unavailable,
    Unsupported,
)
from tests.support.sinks import FeedList
from tests.unit.brokers.embedded_rig import D, Q, consume, declare, drain, running
from tests.unit.brokers.hand_clock import HandClock


@pytest.fixture
async def broker(clock: HandClock) -> AsyncIterator[EmbeddedBroker]:
    async with running(clock, max_queues=10) as made:
        yield made


async def test_auto_delete(broker: EmbeddedBroker, clock: HandClock) -> None:
    await broker.declare(
        [ExchangeSpec("e", "direct", auto_delete=True)],
        [QueueSpec("q", auto_delete=True, bindings=(BindingSpec("e", "k"),))],
    )
    first = await consume(broker, clock)
    second = await consume(broker, clock)
    for sink in (first, second):
        assert "q" in broker.counts().queues
        assert sink.consumer is not None
        await sink.consumer.close()
    assert broker.counts().queues == {}
    with pytest.raises(NotFound):
        await broker.publish(D("/exchange/e/k"), b"1")


async def test_count_of_queues_is_bounded(broker: EmbeddedBroker) -> None:
    for number in range(10):
        await broker.publish(D(f"/queue/{number}"), b"1")
    with pytest.raises(LimitExceeded):
        await broker.publish(D("/queue/more"), b"1")


async def test_deleting_a_queue_cancels_its_consumers(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await broker.declare(queues=[QueueSpec("q", bindings=(BindingSpec("amq.topic", "k"),))])
    for _ in range(3):
        await broker.publish(Q, b"1")
    sink = await consume(broker, clock, prefetch=2)
    await broker.delete_queue("q")
    assert isinstance(sink.error, NotFound)
    assert sink.ack() is False
    assert broker.counts().queues == {}
    assert broker.counts().queue_bytes == 0
    with pytest.raises(NotFound):
        await broker.delete_queue("q")
    await broker.publish(D("/topic/k"), b"the binding is gone too")


async def test_deleting_an_exchange_fails_its_feeds(broker: EmbeddedBroker) -> None:
    await broker.declare([ExchangeSpec("e")])
    sink, again = FeedList(), FeedList()
    await broker.open_feed(D("/exchange/e/k"), sink)
    await broker.publish(D("/exchange/e/k"), b"1")
    await broker.delete_exchange("e")
    assert isinstance(sink.error, NotFound)
    await broker.declare([ExchangeSpec("e", "fanout")])
    await broker.open_feed(D("/exchange/e/k"), again)
    assert again.backlog == []
    assert again.start is not None
    assert again.start[0].offset == sink.messages[0].offset
    with pytest.raises(Refused):
        await broker.delete_exchange("amq.topic")


async def test_alternate_exchange(broker: EmbeddedBroker, clock: HandClock) -> None:
    await broker.declare(
        [
            ExchangeSpec("main", "direct", arguments={"alternate-exchange": "rest"}),
            # A ring, which must not hang.
            ExchangeSpec("rest", "direct", arguments={"alternate-exchange": "main"}),
        ],
        [QueueSpec("q", bindings=(BindingSpec("rest", "k"),))],
    )
    await broker.publish(D("/exchange/main/k"), b"1", mandatory=True)
    await broker.publish(D("/exchange/main/nobody"), b"2")
    assert [d.message.exchange for d in await drain(broker, clock, "q")] == ["main"]


async def test_conflicts_name_both(broker: EmbeddedBroker) -> None:
    await declare(broker, "q", {"x-max-length": 1})
    with pytest.raises(Conflict) as caught:
        await declare(broker, "q", {"x-max-length": 2})
    assert "x-max-length=1" in str(caught.value)
    assert "x-max-length=2" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"x-max-length": -1}, BadRequest),
        ({"x-max-length": "5"}, BadRequest),
        ({"x-message-ttl": True}, BadRequest),
        ({"x-expires": 0}, BadRequest),
        ({"x-overflow": "explode"}, BadRequest),
        ({"x-max-priority": 256}, BadRequest),
        ({"x-dead-letter-routing-key": "k"}, BadRequest),
        ({"x-dead-letter-exchange": 5}, BadRequest),
        ({"x-queue-type": "heap"}, Unsupported),
    ],
)
async def test_bad_arguments(
    broker: EmbeddedBroker, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="'q'"):
        await declare(broker, "q", arguments)
    assert broker.counts().queues == {}


async def test_reserved_names(broker: EmbeddedBroker) -> None:
    with pytest.raises(Refused):
        await broker.publish(D("/queue/amq.mine"), b"1")
    with pytest.raises(Refused):
        await broker.declare([ExchangeSpec("amq.mine")])
    with pytest.raises(Refused):
        await broker.declare(queues=[QueueSpec("q", bindings=(BindingSpec("", "q"),))])
    assert broker.counts().queues == {}
    await broker.declare([ExchangeSpec("amq.topic", "topic")])


async def test_close_of_the_broker(clock: HandClock, caplog: pytest.LogCaptureFixture) -> None:
    broker = EmbeddedBroker(clock)
    with pytest.raises(Unavailable):
        await broker.publish(Q, b"1")
    await broker.start()
    assert (broker.name, broker.status) == ("embedded (memory)", "in memory")
    await broker.publish(Q, b"1")
    consumer = await consume(broker, clock)
    await broker.close()
    assert isinstance(consumer.error, Unavailable)
    assert consumer.consumer is not None
    await consumer.consumer.close()
    with pytest.raises(Unavailable):
        await broker.declare()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
