"""Feeds on a RabbitMQ cluster: what the loss of a node costs publishers, and feeds."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from queuecast.destination import Destination
from tests.support.confirmed import ConfirmedPublisher
from tests.support.processes import free_port, wait_until
from tests.support.proxy import FailoverProxy
from tests.support.rabbit import started, through
from tests.support.rabbit_cluster import TICK, RabbitCluster
from tests.support.rabbit_installation import NEWEST, VERSIONS
from tests.support.servers import unique
from tests.support.sinks import ListFeed, eventually

pytestmark = [
    pytest.mark.rabbitmq,
    pytest.mark.slow,
    pytest.mark.parametrize(
        "rabbit_cluster_of_module",
        [*dict.fromkeys((*VERSIONS, NEWEST))],
        indirect=True,
        scope="module",
    ),
]

D = Destination.parse
# RabbitMQ 3 does not let a gateway see that there is a cluster behind one name.
QUORUM = "?feed_queues=quorum"


def assert_nothing_silent(sink: ListFeed, publisher: ConfirmedPublisher) -> None:
    """Every confirmed number was appended in order, or a gap stands in its place."""
    told = False
    last = 0
    for event in sink.events:
        if isinstance(event, str):
            told = True
            continue
        number = int(event)
        assert number > last, f"{number} after {last}"
        assert told or number == last + 1, f"{last + 1} to {number - 1} are missing without a gap"
        told, last = False, number
    assert max(publisher.acked) <= last


async def connected(port: int) -> asyncio.StreamWriter:
    """Return a connection to a gateway that is starting."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                return (await asyncio.open_connection("127.0.0.1", port))[1]
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("back", [False, True], ids=["stays-down", "comes-back"])
async def test_a_dead_node_costs_publishers_nothing(
    rabbit_cluster: RabbitCluster, back: bool
) -> None:
    key = unique("dead")
    async with (
        FailoverProxy(rabbit_cluster.ports, preferred=1) as proxy,
        started(through(proxy, rabbit_cluster.urls[0]) + QUORUM) as broker,
    ):
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await asyncio.to_thread(rabbit_cluster.nodes[1].flush)
        with ConfirmedPublisher(rabbit_cluster.urls[0], "amq.topic", key) as publisher:
            await sink.until(50)
            await asyncio.to_thread(rabbit_cluster.kill, 1)
            await eventually(lambda: not broker.ready, "noticed")
            await eventually(lambda: broker.ready, "ready again")
            seen = len(sink.bodies)
            await sink.until(seen + 50)
            if back:
                await asyncio.to_thread(rabbit_cluster.start_node, 1)
                await sink.until(len(sink.bodies) + 100)
            await asyncio.to_thread(publisher.stop)
        assert publisher.error is None
        assert not publisher.nacked
        assert len(publisher.acked) == publisher.sent
        last = b"%d" % max(publisher.acked)
        await eventually(lambda: last in sink.bodies, "the last")
        assert_nothing_silent(sink, publisher)
        assert not sink.gaps


async def test_a_node_that_stands_still_costs_publishers_nothing(
    rabbit_cluster: RabbitCluster,
) -> None:
    key = unique("frozen")
    async with (
        FailoverProxy(rabbit_cluster.ports, preferred=1) as proxy,
        started(through(proxy, rabbit_cluster.urls[0]) + QUORUM) as broker,
    ):
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await asyncio.to_thread(rabbit_cluster.nodes[1].flush)
        with ConfirmedPublisher(rabbit_cluster.urls[0], "amq.topic", key) as publisher:
            await sink.until(50)
            await asyncio.to_thread(rabbit_cluster.freeze, 1)
            # As a balancer does that checks the health of its servers.
            proxy.order = rabbit_cluster.ports
            proxy.cut()
            await asyncio.sleep(2.5 * TICK)
            await eventually(lambda: broker.ready, "ready again", 60)
            await sink.until(len(sink.bodies) + 50, 60)
            await asyncio.to_thread(publisher.stop)
        assert publisher.error is None
        assert not publisher.nacked
        last = b"%d" % max(publisher.acked)
        await eventually(lambda: last in sink.bodies, "the last")
        assert_nothing_silent(sink, publisher)


async def test_a_gateway_that_dies_with_a_node_leaves_nothing_that_harms_publishers(
    rabbit_cluster: RabbitCluster, tmp_path: Path
) -> None:
    key = unique("both")
    port = free_port()
    gateway = subprocess.Popen(  # noqa: ASYNC220
        [
            *(sys.executable, "-m", "queuecast", "serve", "--port", str(port)),
            *("--broker", rabbit_cluster.urls[2] + QUORUM),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        watching = await connected(port)
        watching.write(f"GET /sse/topic/{key} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        node = rabbit_cluster.nodes[2]

        def is_bound() -> bool:
            return any(row["routing_key"] == key for row in node.list_bindings())

        await asyncio.to_thread(wait_until, is_bound, what="the feed's binding", timeout=60)
        await asyncio.to_thread(node.flush)
        with ConfirmedPublisher(rabbit_cluster.urls[0], "amq.topic", key) as publisher:
            await eventually(lambda: len(publisher.acked) > 50, "confirms")
            gateway.send_signal(signal.SIGKILL)
            await asyncio.to_thread(rabbit_cluster.kill, 2)
            count = publisher.sent
            await eventually(lambda: publisher.sent > count + 300, "more")
            await asyncio.to_thread(publisher.stop)
        assert publisher.error is None
        assert not publisher.nacked
        assert len(publisher.acked) == publisher.sent
    finally:
        gateway.kill()
        gateway.wait()
