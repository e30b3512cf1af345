"""The short form of the chaos test (`make chaos` is the long one)."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.nodes import embedded_keeps
from tests.chaos.run import chaos
from tests.chaos.verdict import Verdict
from tests.support.kafka import Kafka, KafkaServer
from tests.support.processes import free_port
from tests.support.servers import RabbitServer

# Any seed must do; these are fixed so that a failure is not a matter of the day.
SEED = 20_240
CLIENTS = 40

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def check(verdict: Verdict, *kinds: str) -> None:
    assert not verdict.failures, "\n".join(verdict.failures[:30])
    counts = verdict.counts
    # It is a test of what was broken: all of it was, and messages came through it.
    assert all(counts[f"fault: {kind}"] for kind in kinds), counts
    assert counts["messages"] > 100, counts
    assert counts["deliveries"] > counts["messages"], counts
    assert counts["conversations"] > CLIENTS, counts


@pytest.mark.rabbitmq
async def test_nothing_is_lost_on_rabbitmq(rabbit_fresh: RabbitServer) -> None:
    verdict = await chaos(rabbit_fresh, seed=SEED, duration=25, clients=CLIENTS, say=print)
    check(verdict, "kill node", "kill broker", "cut clients", "cut broker", "stop reading")


@pytest.mark.kafka
async def test_nothing_is_lost_on_kafka() -> None:
    if Kafka.external() is not None:
        pytest.skip("Kafka: KAFKA_BOOTSTRAP names a Kafka that this test must not kill")
    server = KafkaServer(advertised=free_port())
    try:
        await asyncio.to_thread(server.start)
        verdict = await chaos(server, seed=SEED, duration=25, clients=CLIENTS, say=print)
    finally:
        server.close()
    check(verdict, "kill node", "kill broker", "cut clients", "cut broker", "stop reading")
    assert not verdict.counts["gaps"]
    assert not verdict.counts["gaps of retained"]


async def test_nothing_is_lost_on_the_embedded_broker() -> None:
    assert embedded_keeps()
    verdict = await chaos(None, seed=SEED, duration=25, clients=CLIENTS, say=print)
    check(verdict, "kill node", "cut clients", "fin clients", "stop reading")
