"""What operators do to topics and offsets while work queues consume: told, or marked."""

from __future__ import annotations

import asyncio

import pytest

from queuecast.brokers.kafka.takeover import OFFSETS_SET
from tests.e2e.test_kafka_groups import node, worker
from tests.support.confluent import (
    committed,
    create,
    delete,
    delete_group,
    delete_records,
    grow,
    produce,
    set_offset,
)
from tests.support.kafka import Kafka
from tests.support.sinks import DeliveryList, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


async def settled(kafka: Kafka, topic: str, offset: int) -> None:
    """Wait until a group has committed so far."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(committed, kafka, f"queuecast.{topic}", topic) != [offset]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def consumed(kafka: Kafka, topic: str, sink: DeliveryList, count: int) -> None:
    """Ack everything so far, and leave the group."""
    sink.acks_at_once = True
    while sink.outstanding:
        sink.ack()
    await sink.got(count)
    await settled(kafka, topic, count)
    assert sink.consumer is not None
    await sink.consumer.close()


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_recreated_topic_is_a_gap_for_its_work_queue(kafka: Kafka, partitions: int) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, numbers(0, 5))
    async with node(kafka.url) as broker:
        sink = await worker(broker, topic)
        await sink.got(5)
        sink.ack()
        await asyncio.to_thread(delete, kafka, topic)
        await until(lambda: topic in broker.status, "the topic is known to be gone")
        await asyncio.to_thread(create, kafka, partitions, topic)
        # Acks of the old topic's records, which must not count for the new one's.
        while sink.outstanding:
            sink.ack()
        sink.acks_at_once = True
        await asyncio.to_thread(produce, kafka, topic, numbers(100, 120))
        await until(lambda: {*numbers(100, 120)} <= {*sink.bodies}, "the new records", 60)
        assert sink.gaps == [f"the topic {topic} was deleted and recreated"]
        assert sink.error is None


async def test_records_deleted_before_a_work_queue_has_them_are_a_gap(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, numbers(0, 5))
    async with node(kafka.url) as broker:
        await consumed(kafka, topic, await worker(broker, topic), 5)
    await asyncio.to_thread(produce, kafka, topic, numbers(5, 20))
    await asyncio.to_thread(delete_records, kafka, topic, 15)
    async with node(kafka.url) as broker:  # while no gateway was there
        sink = await worker(broker, topic)
        assert await sink.got(5) == numbers(15, 20)
        assert sink.gaps == ["evicted"]
        assert not any(each.message.redelivered for each in sink.deliveries)


@pytest.mark.parametrize("restart", [False, True])
async def test_offsets_that_are_set_forward_are_a_gap(kafka: Kafka, restart: bool) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, numbers(0, 5))
    async with node(kafka.url) as broker, node(kafka.url) as another:
        await consumed(kafka, topic, await worker(broker, topic), 5)
        await asyncio.to_thread(produce, kafka, topic, numbers(5, 20))
        await asyncio.to_thread(set_offset, kafka, f"queuecast.{topic}", topic, 15)
        sink = await worker(another if restart else broker, topic)
        assert await sink.got(5) == numbers(15, 20)
        assert sink.gaps == [OFFSETS_SET]


async def test_offsets_that_are_set_back_are_marked_as_redelivered(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, numbers(0, 10))
    async with node(kafka.url) as broker:
        await consumed(kafka, topic, await worker(broker, topic), 10)
        await asyncio.to_thread(set_offset, kafka, f"queuecast.{topic}", topic, 3)
        sink = await worker(broker, topic)
        await sink.got(7)
        await asyncio.to_thread(produce, kafka, topic, numbers(10, 12))
        assert await sink.got(9) == numbers(3, 12)
        marks = [each.message.redelivered for each in sink.deliveries]
        assert marks == [True] * 7 + [False] * 2
        assert sink.gaps == []


async def test_a_deleted_group_begins_again_with_marks(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, numbers(0, 5))
    async with node(kafka.url) as broker:
        await consumed(kafka, topic, await worker(broker, topic), 5)
        await asyncio.to_thread(delete_group, kafka, f"queuecast.{topic}")
        await asyncio.to_thread(produce, kafka, topic, numbers(5, 7))
        sink = await worker(broker, topic)
        assert await sink.got(7) == numbers(0, 7)
        assert [each.message.redelivered for each in sink.deliveries] == [True] * 5 + [False] * 2


async def test_partitions_that_are_added_are_consumed_soon(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    async with node(kafka.url) as broker:
        sink = await worker(broker, topic)
        sink.acks_at_once = True
        await asyncio.to_thread(grow, kafka, topic, 3)
        for partition in range(3):
            body = [b"%d" % partition]
            await asyncio.to_thread(produce, kafka, topic, body, partition=partition)
        # By itself a member would learn of them within five minutes.
        await until(lambda: len(sink.deliveries) >= 3, "all partitions", 60)
        assert sorted(sink.bodies) == numbers(0, 3)
        assert sink.gaps == []


async def test_an_orderly_handover_marks_what_was_held_and_nothing_else(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 1)
    await asyncio.to_thread(produce, kafka, topic, numbers(0, 10))
    async with node(kafka.url) as one:
        first = await worker(one, topic, prefetch=4)
        await first.got(4)
        first.ack()
        await first.got(5)
    async with node(kafka.url) as two:
        second = await worker(two, topic)
        assert await second.got(9) == numbers(1, 10)
        marks = [each.message.redelivered for each in second.deliveries]
        assert marks == [True] * 4 + [False] * 5
