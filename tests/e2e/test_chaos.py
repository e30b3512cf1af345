"""The short form of the chaos test (`make chaos` is the long one)."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.chaos.nodes import embedded_keeps
from tests.chaos.rabbitmq import RabbitSite
from tests.chaos.run import chaos
from tests.chaos.schedule import GROUPS, choose_kinds
from tests.chaos.site import Site
from tests.chaos.sites import open_site
from tests.chaos.verdict import Verdict
from tests.support.kafka import Kafka
from tests.support.rabbit_installation import VERSIONS
from tests.support.servers import RabbitMQ, RabbitServer

# Any seed must do; these are fixed so that a failure is not a matter of the day.
SEED = 20_240
CLIENTS = 40

# What happens by itself, without an operator.
ACCIDENTS = [group for group in GROUPS if group != "operator"]

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(600)]


async def run(site: Site, faults: Iterable[str], *, duration: float = 25.0) -> Verdict:
    """Run faults of these groups, and check that all of them were done and nothing was lost."""
    verdict = await chaos(
        site, seed=SEED, duration=duration, clients=CLIENTS, faults=faults, say=print
    )
    counts = verdict.counts
    assert not verdict.failures, "\n".join(verdict.failures[:30])
    # It is a test of what was broken: all of it was, and messages came through it.
    missed = [kind for kind in choose_kinds(site.possible, faults) if not counts[f"fault: {kind}"]]
    assert not missed, counts
    assert counts["messages"] > 100, counts
    assert counts["deliveries"] > counts["messages"], counts
    assert counts["conversations"] > CLIENTS, counts
    return verdict


def may_kill(broker: str) -> None:
    """Skip where the tests' broker is one that this test must not kill."""
    if broker.startswith("kafka") and Kafka.external() is not None:
        pytest.skip("Kafka: KAFKA_BOOTSTRAP names a Kafka that this test must not kill")
    if broker.startswith("rabbitmq") and RabbitMQ.external() is not None:
        pytest.skip("RabbitMQ: QUEUECAST_TEST_AMQP names a broker that this test must not kill")


@pytest.mark.rabbitmq
async def test_nothing_is_lost_on_rabbitmq(rabbit_fresh: RabbitServer) -> None:
    await run(RabbitSite(rabbit_fresh), ACCIDENTS)


@pytest.mark.rabbitmq
async def test_what_operators_do_to_rabbitmq_is_told(rabbit_fresh: RabbitServer) -> None:
    await run(RabbitSite(rabbit_fresh), ["operator", "client"])


@pytest.mark.kafka
async def test_nothing_is_lost_on_kafka() -> None:
    may_kill("kafka")
    with open_site("kafka", 25) as site:
        verdict = await run(site, ACCIDENTS)
    assert not verdict.counts["gaps"]
    assert not verdict.counts["gaps of retained"]


@pytest.mark.kafka
async def test_what_operators_do_to_kafka_is_told() -> None:
    may_kill("kafka")
    with open_site("kafka", 25) as site:
        await run(site, ["operator", "client"])


async def test_nothing_is_lost_on_the_embedded_broker() -> None:
    assert embedded_keeps()
    await run(Site(), ACCIDENTS)


@pytest.mark.rabbitmq
# Not 3.10, which refuses a few publishes to a quorum queue while its leader changes. No run lost
# anything in silence, but the verdict counts refusals as failures. `make chaos` runs it.
@pytest.mark.parametrize("version", [each for each in VERSIONS if each != "3.10"])
async def test_nothing_is_lost_on_a_rabbitmq_cluster(version: str) -> None:
    may_kill("rabbitmq")
    with open_site(f"rabbitmq-cluster-{version}", 30) as site:
        await run(site, ACCIDENTS, duration=30)


@pytest.mark.kafka
async def test_nothing_is_lost_on_a_kafka_cluster() -> None:
    may_kill("kafka")
    with open_site("kafka-cluster", 30) as site:
        verdict = await run(site, ACCIDENTS, duration=30)
    assert not verdict.counts["gaps"]
    assert not verdict.counts["gaps of retained"]
