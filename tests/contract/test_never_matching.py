"""A subscription that no message can match is refused, and says what to write instead."""

import pytest

from queuecast.brokers.base import Broker, ConsumeSpec, ExchangeSpec, Owner, QueueSpec
from queuecast.destination import Destination
from queuecast.errors import BadDestination, ConfigError
from queuecast.queuespec import BindingSpec
from tests.support.sinks import DeliveryList, FeedList, eventually

D = Destination.parse

pytestmark = pytest.mark.needs("exchanges")


@pytest.mark.parametrize("pattern", ["a.*", "%23", "*"])
@pytest.mark.parametrize("predeclared", [True, False])
async def test_a_pattern_on_a_direct_exchange(
    broker: Broker, name: str, pattern: str, predeclared: bool
) -> None:
    exchange = "amq.direct"
    if not predeclared:
        exchange = name
        await broker.declare([ExchangeSpec(name, "direct")])
    destination = D(f"/exchange/{exchange}/{pattern}")
    with pytest.raises(BadDestination) as caught:
        await broker.open_feed(destination, FeedList())
    assert exchange in caught.value.text
    assert "name each key, or make it a topic exchange" in caught.value.hint
    # And for a queue of a session's own.
    queue = QueueSpec(
        f"{name}-own", exclusive=True, bindings=(BindingSpec(exchange, destination.pattern),)
    )
    owner = Owner()
    with pytest.raises(BadDestination):
        await broker.consume(destination, DeliveryList(), spec=ConsumeSpec(queue, owner=owner))
    with pytest.raises(BadDestination):
        await broker.declare_own(queue, owner)
    await broker.release(owner)
    with pytest.raises((ConfigError, BadDestination)):
        await broker.declare(queues=[QueueSpec(f"{name}-configured", bindings=queue.bindings)])


async def test_a_key_on_a_fanout_exchange_is_ignored(broker: Broker, name: str) -> None:
    await broker.declare([ExchangeSpec(name, "fanout")])
    sink = FeedList()
    reader = await broker.open_feed(D(f"/exchange/{name}/a.*"), sink)
    await broker.publish(D(f"/exchange/{name}/b"), b"1")
    await eventually(lambda: len(sink.messages) == 1, "the message")
    await reader.close()
