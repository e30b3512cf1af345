"""Three Kafka nodes under faults: what the loss of one costs a gateway and its clients."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.confluent import create, produce, read_all
from tests.support.kafka_cluster import KafkaCluster

# A busy machine takes a minute to start the nodes.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


async def test_the_cluster_goes_on_without_one_node(kafka_cluster: KafkaCluster) -> None:
    topic = await asyncio.to_thread(create, kafka_cluster, 3)
    await asyncio.to_thread(produce, kafka_cluster, topic, [b"%d" % n for n in range(30)])
    led = await asyncio.to_thread(kafka_cluster.leader, topic)
    await asyncio.to_thread(kafka_cluster.kill, led)
    await asyncio.to_thread(produce, kafka_cluster, topic, [b"%d" % n for n in range(30, 60)])
    await asyncio.to_thread(kafka_cluster.start, led)
    kafka_cluster.freeze(led)
    await asyncio.to_thread(produce, kafka_cluster, topic, [b"%d" % n for n in range(60, 90)])
    kafka_cluster.thaw(led)
    records = await asyncio.to_thread(read_all, kafka_cluster, topic, 90)
    assert sorted(int(record.value()) for record in records) == list(range(90))
