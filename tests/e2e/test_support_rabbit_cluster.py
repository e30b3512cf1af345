"""The RabbitMQ cluster that other tests stand on: nodes die, stand still and return."""

from __future__ import annotations

import asyncio

import pika
import pika.exceptions
import pytest

from tests.support.processes import wait_until
from tests.support.proxy import FailoverProxy
from tests.support.rabbit import through
from tests.support.rabbit_cluster import SIZE, RabbitCluster
from tests.support.servers import unique

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]


def connect(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


def declared(url: str, name: str) -> bool:
    connection = connect(url)
    try:
        connection.channel().queue_declare(name, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    finally:
        connection.close()
    return True


def test_three_nodes_are_one_cluster(rabbit_cluster: RabbitCluster) -> None:
    name = unique("queue")
    first, *others = rabbit_cluster.urls
    connection = connect(first)
    connection.channel().queue_declare(name, durable=True)
    connection.close()
    assert [declared(url, name) for url in others] == [True, True]
    assert [node.running_nodes() for node in rabbit_cluster.nodes] == [SIZE] * SIZE


def test_a_killed_node_returns_with_its_queue(rabbit_cluster: RabbitCluster) -> None:
    name = unique("queue")
    connection = connect(rabbit_cluster.urls[1])
    connection.channel().queue_declare(name, durable=True)
    connection.close()
    rabbit_cluster.nodes[1].flush()
    rabbit_cluster.kill(1)
    rabbit_cluster.until_whole()
    assert rabbit_cluster.nodes[0].running_nodes() == SIZE - 1
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(rabbit_cluster.urls[1])
    rabbit_cluster.start_node(1)
    assert declared(rabbit_cluster.urls[0], name)


def test_the_last_node_alone_takes_no_client(rabbit_cluster: RabbitCluster) -> None:
    rabbit_cluster.kill(0)
    rabbit_cluster.kill(1)
    last = rabbit_cluster.nodes[2]
    wait_until(lambda: not last.speaks_amqp(), what="the minority's pause")
    rabbit_cluster.start_node(0, 1)
    assert all(node.speaks_amqp() for node in rabbit_cluster.nodes)


def test_a_frozen_node_is_given_up(rabbit_cluster: RabbitCluster) -> None:
    one, two, _ = rabbit_cluster.nodes
    rabbit_cluster.freeze(2)
    wait_until(lambda: one.running_nodes() == two.running_nodes() == SIZE - 1, what="the tick")
    rabbit_cluster.thaw(2)
    # However RabbitMQ deals with a node that slept, the next test has all of them.
    rabbit_cluster.start()
    assert [node.running_nodes() for node in rabbit_cluster.nodes] == [SIZE] * SIZE


async def test_a_proxy_passes_to_the_first_node_that_accepts(
    rabbit_cluster: RabbitCluster,
) -> None:
    async with FailoverProxy(rabbit_cluster.ports, preferred=1) as proxy:
        url = through(proxy, rabbit_cluster.urls[0])

        def at_node() -> int:
            connection = connect(url)
            try:
                alive = rabbit_cluster.alive[0]
                (pid,) = rabbit_cluster.ctl(alive, "list_connections", "pid").split()
            finally:
                connection.close()
            names = [node.name in pid for node in rabbit_cluster.nodes]
            return names.index(True)

        assert await asyncio.to_thread(at_node) == 1
        await asyncio.to_thread(rabbit_cluster.kill, 1)
        assert await asyncio.to_thread(at_node) == 2
