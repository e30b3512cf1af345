"""Several hosts at a real cluster of RabbitMQ: a node dies or freezes; replicas of streams."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.destination import Destination
from tests.support.rabbit import started
from tests.support.rabbit_cluster import RabbitCluster
from tests.support.retained import delete, retaining, rule
from tests.support.servers import unique
from tests.support.sinks import eventually

# A busy machine takes a minute to start three nodes.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(600)]

D = Destination.parse


def url_of(cluster: RabbitCluster) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in cluster.ports)
    return urlsplit(cluster.urls[0])._replace(netloc=f"guest:guest@{hosts}").geturl()


async def test_a_node_that_dies_is_left_for_the_next(rabbit_cluster: RabbitCluster) -> None:
    async with started(url_of(rabbit_cluster)) as broker:
        for number in range(2):
            assert broker.status == f"connected to 127.0.0.1:{rabbit_cluster.ports[number]}"
            await broker.publish(D(f"/topic/{unique('hosts')}"), b"1")
            await asyncio.to_thread(rabbit_cluster.kill, number)
            after = f"connected to 127.0.0.1:{rabbit_cluster.ports[number + 1]}"
            await eventually(lambda: broker.status == after, "failed over", 60)  # noqa: B023
            if number == 0:
                await broker.publish(D(f"/topic/{unique('hosts')}"), b"1")
                # Of three nodes the last one alone closes its port.
                await asyncio.to_thread(rabbit_cluster.start_node, number)


async def test_a_frozen_node_holds_up_no_start(rabbit_cluster: RabbitCluster) -> None:
    await asyncio.to_thread(rabbit_cluster.freeze, 0)
    async with started(url_of(rabbit_cluster)) as broker:
        assert broker.status == f"connected to 127.0.0.1:{rabbit_cluster.ports[1]}"


@pytest.mark.parametrize(("replicas", "expected"), [(0, 3), (2, 2), (1, 1), (9, 3)])
async def test_replicas_of_a_stream(
    rabbit_cluster: RabbitCluster, replicas: int, expected: int
) -> None:
    kept = replace(rule(f"/topic/{unique('replicas')}"), replicas=replicas)
    async with retaining(url_of(rabbit_cluster), kept):
        listed = await asyncio.to_thread(
            rabbit_cluster.ctl, 0, "list_queues", "--formatter", "json", "name", "members"
        )
        members = {row["name"]: row["members"] for row in json.loads(listed)}
        assert len(members[stream_name(kept)]) == expected
    delete(rabbit_cluster.nodes[0], kept)
