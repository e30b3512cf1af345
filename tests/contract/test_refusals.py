"""What a broker cannot do it refuses by name, and says what is allowed instead."""

import pytest

from queuecast.brokers.base import Broker, ExchangeSpec, QueueSpec
from queuecast.destination import Destination
from queuecast.errors import BadDestination, Unroutable, Unsupported
from tests.support.sinks import DeliveryList, FeedList

D = Destination.parse

KAFKA = pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.timeout(400)])
pytestmark = pytest.mark.parametrize("kind", [KAFKA], indirect=True)


async def test_no_exchanges_and_queues_are_declared(broker: Broker, name: str) -> None:
    with pytest.raises(Unsupported) as caught:
        await broker.declare([ExchangeSpec(name, "fanout")])
    assert name in caught.value.text
    assert "/exchange/TOPIC/PATTERN" in caught.value.hint
    with pytest.raises(Unsupported) as caught:
        await broker.declare(queues=[QueueSpec(name)])
    assert name in caught.value.text
    assert "/queue/TOPIC" in caught.value.hint
    assert "[[topic]]" in caught.value.hint


@pytest.mark.parametrize("pattern", ["{}.*", "{}.#", "#"])
async def test_no_patterns_of_topics(broker: Broker, name: str, pattern: str) -> None:
    with pytest.raises(Unsupported) as caught:
        await broker.open_feed(D(f"/topic/{pattern.format(name)}"), FeedList())
    assert pattern.format(name) in caught.value.text
    assert "/exchange/TOPIC/PATTERN" in caught.value.hint


@pytest.mark.parametrize("prefix", ["/temp-queue/", "/reply-queue/"])
async def test_no_temporary_queues(broker: Broker, name: str, prefix: str) -> None:
    for call in (
        broker.consume(D(prefix + name), DeliveryList()),
        broker.publish(D(prefix + name), b"1"),
    ):
        with pytest.raises(Unsupported) as caught:
            await call
        assert prefix.strip("/") in caught.value.text
        assert "/queue/TOPIC" in caught.value.hint


@pytest.mark.parametrize("bad", ["消息", "a b", "a%2Fb", ".", "..", "x" * 250])
async def test_names_that_no_topic_can_have(broker: Broker, bad: str) -> None:
    for call in (
        broker.open_feed(D(f"/topic/{bad}"), FeedList()),
        broker.publish(D(f"/queue/{bad}"), b"1"),
        broker.consume(D(f"/queue/{bad}"), DeliveryList()),
    ):
        with pytest.raises(BadDestination) as caught:
            await call
        assert "letters, digits" in caught.value.hint


async def test_kafkas_own_topics_are_not_for_clients(broker: Broker) -> None:
    await broker.consume(D("/queue/some-topic"), DeliveryList())  # makes Kafka create them
    for call in (
        broker.open_feed(D("/topic/__consumer_offsets"), FeedList()),
        broker.consume(D("/queue/__consumer_offsets"), DeliveryList()),
        broker.publish(D("/topic/__consumer_offsets"), b"1"),
    ):
        with pytest.raises(BadDestination):
            await call


async def test_a_topic_that_is_missing_is_not_created_by_amq_queue(
    broker: Broker, name: str
) -> None:
    with pytest.raises(Unroutable) as caught:
        await broker.publish(D(f"/amq/queue/{name}"), b"1")
    assert name in caught.value.text
    assert "[[topic]]" in caught.value.hint


async def test_a_publish_to_a_queue_needs_nobody(broker: Broker, name: str) -> None:
    await broker.publish(D(f"/topic/{name}"), b"1", mandatory=True)
    await broker.publish(D(f"/amq/queue/{name}"), b"2")
    sink = DeliveryList()
    sink.consumer = await broker.consume(D(f"/queue/{name}"), sink)
    assert await sink.got(2) == [b"1", b"2"]
    await sink.consumer.close()
