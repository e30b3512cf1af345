"""Publishing at once: the embedded broker in memory can, and means the same by it."""

import pytest

from queuecast.brokers.base import PromptBroker, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.kafka.broker import KafkaBroker
from queuecast.brokers.rabbitmq.broker import RabbitBroker
from queuecast.destination import Destination
from queuecast.errors import (
    BadRequest,
    NotFound,
    PublishFailed,
    QueuecastError,
    Unavailable,
    Unroutable,
    Unsupported,
)
from queuecast.message import Properties
from tests.support.sinks import FeedList

D = Destination.parse


def test_who_can() -> None:
    assert issubclass(EmbeddedBroker, PromptBroker)
    assert not issubclass(RabbitBroker, PromptBroker)
    assert not issubclass(KafkaBroker, PromptBroker)


async def test_both_ways_keep_one_order() -> None:
    broker = EmbeddedBroker()
    await broker.start()
    sink = FeedList()
    await broker.open_feed(D("/topic/a"), sink)
    for number in range(0, 200, 2):
        assert broker.publish_at_once(D("/topic/a"), b"%d" % number)
        await broker.publish(D("/topic/a"), b"%d" % (number + 1))
    assert [message.body for message in sink.messages] == [b"%d" % n for n in range(200)]
    await broker.close()


@pytest.mark.parametrize(
    ("destination", "properties", "mandatory", "error"),
    [
        ("/exchange/nix/a", Properties(), None, NotFound),
        ("/amq/queue/nix", Properties(), None, Unroutable),
        ("/topic/a", Properties(), True, Unroutable),
        ("/amq/queue/full", Properties(), None, PublishFailed),
        ("/temp-queue/a", Properties(), None, Unsupported),
        ("/topic/a", Properties(expiration="soon"), None, BadRequest),
    ],
)
async def test_both_ways_fail_alike(
    destination: str, properties: Properties, mandatory: bool | None, error: type[QueuecastError]
) -> None:
    broker = EmbeddedBroker()
    await broker.start()
    full = {"x-max-length": 0, "x-overflow": "reject-publish"}
    await broker.declare(queues=[QueueSpec("full", arguments=full)])
    with pytest.raises(error) as late:
        await broker.publish(D(destination), b"x", properties, mandatory=mandatory)
    with pytest.raises(error) as prompt:
        broker.publish_at_once(D(destination), b"x", properties, mandatory=mandatory)
    assert str(prompt.value) == str(late.value)
    await broker.close()
    with pytest.raises(Unavailable):
        broker.publish_at_once(D(destination), b"x", properties, mandatory=mandatory)


async def test_with_a_disk_behind_it_has_to_wait(broker: EmbeddedBroker) -> None:
    sink = FeedList()
    await broker.open_feed(D("/topic/a"), sink)
    assert not broker.publish_at_once(D("/topic/a"), b"1")
    await broker.publish(D("/topic/a"), b"2")
    assert await sink.got(1) == [b"2"]
