"""The embedded broker's queues with time turned by hand: expiry, limits, dead letters, turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from queuecast.brokers.base import Delivery, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.counts import QueueCounts
from queuecast.errors import BadRequest, PublishFailed
from queuecast.message import Properties
from tests.support.sinks import DeliveryList, FeedList
from tests.unit.brokers.embedded_rig import D, Q, consume, declare, drain, ready, running
from tests.unit.brokers.hand_clock import HandClock

DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}


@pytest.fixture
async def broker(clock: HandClock) -> AsyncIterator[EmbeddedBroker]:
    async with running(clock, max_bytes=100_000) as made:
        yield made


async def test_no_delivery_before_consume_has_returned(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await broker.publish(Q, b"1")
    sink = DeliveryList()
    await broker.consume(Q, sink)
    assert sink.deliveries == []
    clock.turn()
    assert sink.bodies == [b"1"]


async def test_round_robin(broker: EmbeddedBroker, clock: HandClock) -> None:
    await declare(broker)
    sinks = [await consume(broker, clock) for _ in range(3)]
    for number in range(6):
        await broker.publish(Q, b"%d" % number)
    assert [sink.bodies for sink in sinks] == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]


async def test_message_ttl_with_dead_letters(broker: EmbeddedBroker, clock: HandClock) -> None:
    await declare(broker, "dead")
    await declare(broker, "q", {"x-message-ttl": 1000, **DEAD})
    await broker.publish(Q, b"a")
    clock.turn(0.5)
    await broker.publish(Q, b"b", Properties(expiration="100"))  # the smaller one counts
    await broker.publish(Q, b"c", Properties(expiration="9999"))
    clock.turn(0.499)
    assert (ready(broker), ready(broker, "dead")) == (3, 0)
    clock.turn(0.001)
    # "b" had expired behind "a" and goes as soon as it is the head.
    assert (ready(broker), ready(broker, "dead")) == (1, 2)
    clock.turn(0.5)
    dead = [delivery.message for delivery in await drain(broker, clock, "dead")]
    assert [message.body for message in dead] == [b"a", b"b", b"c"]
    deaths = [message.properties.headers["x-death"][0] for message in dead]
    assert {death["reason"] for death in deaths} == {"expired"}
    assert [death.get("original-expiration") for death in deaths] == [None, "100", "9999"]
    assert all(message.properties.expiration is None for message in dead)


async def test_ttl_of_zero_needs_a_waiting_consumer(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await declare(broker, "q", {"x-message-ttl": 0})
    await broker.publish(Q, b"nobody")
    assert ready(broker) == 0
    sink = await consume(broker, clock)
    await broker.publish(Q, b"somebody")
    assert sink.bodies == [b"somebody"]


async def test_unacked_messages_do_not_expire_but_returned_ones_do(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await declare(broker, "q", {"x-message-ttl": 1000})
    await broker.publish(Q, b"1")
    sink = await consume(broker, clock)
    clock.turn(5)
    assert broker.counts().queues["q"] == QueueCounts(0, 1, 1)
    assert sink.nack(requeue=True)
    assert broker.counts().queues["q"] == QueueCounts(0, 0, 1)
    assert sink.bodies == [b"1"]


async def test_queue_expires_when_unused(broker: EmbeddedBroker, clock: HandClock) -> None:
    await declare(broker, "q", {"x-expires": 1000})
    clock.turn(0.9)
    await declare(broker, "q", {"x-expires": 1000})  # a declare is use
    clock.turn(0.9)
    sink = await consume(broker, clock)
    clock.turn(10)
    assert "q" in broker.counts().queues
    assert sink.consumer is not None
    await sink.consumer.close()
    clock.turn(0.9)
    assert "q" in broker.counts().queues
    clock.turn(0.1)
    assert "q" not in broker.counts().queues


async def test_max_length_bytes_and_its_dead_letters(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await declare(broker, "dead")
    await declare(broker, "q", {"x-max-length-bytes": 10, **DEAD})
    for body in (b"aaaa", b"bbbb", b"cccc", b"ddddddddddd"):
        await broker.publish(Q, body)
    assert ready(broker) == 0
    dead = await drain(broker, clock, "dead")
    assert [delivery.message.body for delivery in dead] == [
        b"aaaa",
        b"bbbb",
        b"cccc",
        b"ddddddddddd",
    ]
    assert dead[0].message.properties.headers["x-death"][0]["reason"] == "maxlen"


async def test_reject_publish_dlx(broker: EmbeddedBroker, clock: HandClock) -> None:
    await declare(broker, "dead")
    await declare(broker, "q", {"x-max-length": 1, "x-overflow": "reject-publish-dlx", **DEAD})
    await broker.publish(Q, b"1")
    with pytest.raises(PublishFailed, match="full"):
        await broker.publish(Q, b"2")
    assert ready(broker) == 1
    assert [d.message.body for d in await drain(broker, clock, "dead")] == [b"2"]


async def test_priorities(broker: EmbeddedBroker, clock: HandClock) -> None:
    await declare(broker, "q", {"x-max-priority": 3})
    for number, priority in enumerate([None, 1, 3, 1, 200]):
        await broker.publish(Q, b"%d" % number, Properties(priority=priority))
    sink = await consume(broker, clock, prefetch=1)
    sink.nack(requeue=True)
    while sink.outstanding:
        sink.ack()
    assert sink.bodies == [b"2", b"2", b"4", b"1", b"3", b"0"]


async def test_returned_messages_keep_their_places(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    for number in range(5):
        await broker.publish(Q, b"%d" % number)
    sink = await consume(broker, clock, prefetch=4)
    assert sink.consumer is not None
    sink.consumer.pause()
    for delivery in (sink.deliveries[at] for at in (2, 0, 3, 1)):
        sink.consumer.nack(delivery.tag)
    sink.consumer.resume()
    assert sink.bodies[4:] == [b"0", b"1", b"2", b"3"]
    assert all(delivery.message.redelivered for delivery in sink.deliveries[4:])


async def test_dead_letters_count_and_stop_going_round(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    # Two queues that expire into each other: nobody rejects, so it ends at the second visit.
    for name, other in (("q", "p"), ("p", "q")):
        await declare(
            broker,
            name,
            {
                "x-message-ttl": 10,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": other,
            },
        )
    await broker.publish(Q, b"1")
    clock.turn(0.01)
    assert (ready(broker), ready(broker, "p")) == (0, 1)
    clock.turn(0.01)
    assert (ready(broker), ready(broker, "p")) == (0, 0)


async def test_rejected_messages_may_go_round(broker: EmbeddedBroker, clock: HandClock) -> None:
    await declare(broker, "q", {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"})
    await broker.publish(Q, b"1")
    sink = await consume(broker, clock)
    for _ in range(3):
        assert sink.nack(requeue=False)
    assert len(sink.deliveries) == 4
    deaths = sink.deliveries[-1].message.properties.headers["x-death"]
    assert [(death["reason"], death["queue"], death["count"]) for death in deaths] == [
        ("rejected", "q", 3)
    ]


async def test_dead_letter_exchange_that_is_missing_is_logged(
    broker: EmbeddedBroker, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    await declare(broker, "q", {"x-dead-letter-exchange": "gone"})
    await broker.publish(Q, b"1")
    sink = await consume(broker, clock)
    sink.nack(requeue=False)
    assert "gone" in caplog.text
    assert broker.counts().queue_bytes == 0


async def test_memory_bound(broker: EmbeddedBroker, clock: HandClock) -> None:
    feed = FeedList()
    await broker.open_feed(D("/topic/k"), feed)
    taken = 0

    async def fill() -> None:
        nonlocal taken
        for _ in range(1000):
            await broker.publish(Q, b"x" * 1000)
            taken += 1

    with pytest.raises(PublishFailed, match="100000") as caught:
        await fill()
    assert "x-max-length" in caught.value.hint
    assert caught.value.retry
    assert 50 < taken < 100
    assert ready(broker) == taken
    await broker.publish(D("/topic/k"), b"feeds need no queue memory")
    assert feed.bodies == [b"feeds need no queue memory"]
    await drain(broker, clock, "q")
    await broker.publish(Q, b"room again")
    assert ready(broker) == 1


@pytest.mark.parametrize("expiration", ["soon", "-1", "", "1.5", "99999999999"])
async def test_bad_expiration(broker: EmbeddedBroker, expiration: str) -> None:
    with pytest.raises(BadRequest):
        await broker.publish(Q, b"1", Properties(expiration=expiration))


async def test_a_consumer_that_raises_is_cancelled_and_loses_nothing(
    broker: EmbeddedBroker, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(DeliveryList):
        def deliver(self, delivery: Delivery) -> None:
            raise ZeroDivisionError("this consumer is broken")

    await broker.publish(Q, b"1")
    broken = Raises()
    await broker.consume(Q, broken)
    clock.turn()
    assert broken.error is not None
    assert "this consumer is broken" in caplog.text
    assert broker.counts().queues["q"] == QueueCounts(1, 0, 0)
    good = await consume(broker, clock)
    assert good.bodies == [b"1"]
    assert good.deliveries[0].message.redelivered


async def test_a_consumer_that_gives_all_back_does_not_stop_the_loop(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    class Returns(DeliveryList):
        def deliver(self, delivery: Delivery) -> None:
            super().deliver(delivery)
            if self.consumer is not None:
                self.nack(requeue=True)

    feed = FeedList()
    await broker.open_feed(D("/topic/k"), feed)
    sink = Returns()
    sink.consumer = await broker.consume(Q, sink)
    clock.call_later(0, sink.consumer.pause)  # the consumer starts, then this is due
    await broker.publish(Q, b"1")
    clock.turn()
    assert len(sink.deliveries) <= 20_000
    await broker.publish(D("/topic/k"), b"others go on")
    assert feed.bodies == [b"others go on"]
    assert broker.counts().queues["q"].ready == 1


async def test_a_sink_that_acks_within_deliver_takes_everything(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await declare(broker)
    broker._memory.limit = 10_000_000
    for number in range(5000):
        await broker.publish(Q, b"%d" % number)
    sink = DeliveryList()
    sink.acks_at_once = True
    sink.consumer = await broker.consume(Q, sink, prefetch=1)
    clock.turn()
    assert sink.bodies == [b"%d" % number for number in range(5000)]
    assert sink.most == 1
    assert ready(broker) == 0


async def test_dead_letter_that_a_feed_causes_comes_after_its_message_everywhere(
    broker: EmbeddedBroker, clock: HandClock
) -> None:
    await broker.declare(
        queues=[
            QueueSpec(
                "q",
                arguments={
                    "x-dead-letter-exchange": "amq.topic",
                    "x-dead-letter-routing-key": "k",
                },
            )
        ]
    )
    await broker.publish(Q, b"dead")
    consumer = await consume(broker, clock)

    class Rejects(FeedList):
        def append(self, messages: Any) -> None:
            super().append(messages)
            if consumer.outstanding:
                consumer.nack(requeue=False)

    first, second = Rejects(), FeedList()
    await broker.open_feed(D("/topic/k"), first)
    await broker.open_feed(D("/topic/#"), second)
    await broker.publish(D("/topic/k"), b"cause")
    assert first.bodies == second.bodies == [b"cause", b"dead"]
