"""A Kafka client of the gateway that fetches no more, as aiokafka's may: it is made anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from queuecast.brokers.base import HistoryReader
from queuecast.brokers.kafka import KafkaBroker, records, silence
from queuecast.destination import Destination
from queuecast.errors import Unavailable
from queuecast.position import Start
from tests.support.confluent import create, produce
from tests.support.kafka import Kafka
from tests.support.sinks import DeliveryList, FeedList, until

pytestmark = [pytest.mark.kafka]

D = Destination.parse


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PATIENCE", 3.0)
    monkeypatch.setattr(records, "_ANSWER", 3.0)


def break_off(consumer: Any) -> None:
    """End its fetching without a word, as in aiokafka's issue 983."""
    consumer._fetcher._fetch_task.cancel()


async def test_a_feed_whose_reader_fell_silent_goes_on(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka)
    broker = KafkaBroker(kafka.url, ping=0.2)
    await broker.start()
    sink = FeedList()
    reader = await broker.open_feed(D(f"/topic/{topic}"), sink)
    await broker.publish(D(f"/topic/{topic}"), b"before")
    assert await sink.got(1) == [b"before"]
    silent = broker._live._consumer
    break_off(silent)
    await broker.publish(D(f"/topic/{topic}"), b"unheard")
    await until(lambda: len(sink.messages) >= 2, "what was not heard", 60)
    await broker.publish(D(f"/topic/{topic}"), b"after")
    assert await sink.got(3) == [b"before", b"unheard", b"after"]
    assert sink.gaps == []
    assert broker._live._consumer is not silent
    # A reader that is answered, if with nothing, is left alone.
    second = broker._live._consumer
    await asyncio.sleep(2 * silence.PATIENCE)
    assert broker._live._consumer is second
    await reader.close()
    await broker.close()


async def test_a_work_queue_whose_member_fell_silent_goes_on(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka)
    broker = KafkaBroker(kafka.url, ping=0.2)
    await broker.start()
    work = DeliveryList()
    consumer = await broker.consume(D(f"/queue/{topic}"), work, prefetch=100)
    await broker.publish(D(f"/queue/{topic}"), b"before")
    await until(lambda: len(work.deliveries) >= 1, "the first", 60)
    [group] = broker._queues._groups.values()
    break_off(group._consumer)
    await broker.publish(D(f"/queue/{topic}"), b"unheard")
    await until(lambda: b"unheard" in work.bodies, "what was not heard", 60)
    await consumer.close()
    await broker.close()


async def test_a_history_whose_reader_fell_silent_is_read_by_another(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka)
    await asyncio.to_thread(produce, kafka, topic, [b"one", b"two"])
    broker = KafkaBroker(kafka.url, ping=0.2)
    await broker.start()
    reader = await broker.open_feed(D(f"/topic/{topic}"), FeedList())
    assert isinstance(reader, HistoryReader)
    first = await reader.locate(Start("first"))
    break_off(broker._records._consumer)
    with pytest.raises(Unavailable):
        await reader.history(first, 1000)
    page = await reader.history(first, 1000)
    assert [message.body for message in page.messages] == [b"one", b"two"]
    await reader.close()
    await broker.close()
