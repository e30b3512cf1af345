"""Several hosts in the broker URL: each connection goes on with the next when one fails.

The hosts are proxies before one broker, of which each can refuse, reset or freeze by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

import pytest

from queuecast.brokers.factory import login_broker
from queuecast.destination import Destination
from queuecast.errors import LoginRefused, Unavailable
from tests.e2e.clients import gateway, get, request
from tests.support.proxy import TcpProxy
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@contextlib.asynccontextmanager
async def nodes(rabbit: RabbitMQ, count: int = 2) -> AsyncIterator[list[TcpProxy]]:
    parts = urlsplit(rabbit.url)
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672)
            )
            for _ in range(count)
        ]


def url_of(rabbit: RabbitMQ, proxies: Sequence[TcpProxy], query: str = "") -> str:
    parts = urlsplit(rabbit.url)
    login = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in proxies)
    return parts._replace(netloc=f"{login}@{hosts}", query=query).geturl()


@pytest.mark.both_loops
async def test_all_connections_fail_over_and_stay_together(rabbit: RabbitMQ) -> None:
    key = unique("hosts")
    async with (
        nodes(rabbit) as (first, second),
        started(url_of(rabbit, (first, second))) as broker,
    ):
        assert (first.connections, second.connections) == (2, 0)
        assert broker.status == f"connected to 127.0.0.1:{first.port}"
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await broker.publish(D(f"/topic/{key}"), b"1")
        # The node dies.
        await first.refuse()
        first.cut()
        await eventually(lambda: broker.ready and second.connections == 2, "failed over")
        assert broker.status == f"connected to 127.0.0.1:{second.port}"
        await broker.publish(D(f"/topic/{key}"), b"2")
        await sink.until(2)
        assert sink.bodies == [b"1", b"2"]
        # It is back, and the other one dies.
        await first.accept()
        await second.refuse()
        second.cut()
        await eventually(lambda: broker.ready and first.connections == 2, "failed back")
        await broker.publish(D(f"/topic/{key}"), b"3")
        await sink.until(3)


async def test_a_frozen_host_costs_one_connection_its_patience_and_the_others_nothing(
    rabbit: RabbitMQ,
) -> None:
    async with nodes(rabbit, 3) as (frozen, second, third):
        frozen.stall()
        url = url_of(rabbit, (frozen, second, third), "connection_timeout=500ms")
        async with started(url) as broker:
            assert (second.connections, third.connections) == (2, 0)
            # The other connections, and other logins, did not try the frozen one again.
            parts = urlsplit(rabbit.url)
            other = login_broker(broker, parts.username or "", parts.password or "", None)
            await other.start()
            await other.check_login()
            assert frozen.connections <= 1
            assert second.connections >= 4
            await other.close()


async def test_a_connection_that_freezes_goes_on_elsewhere(rabbit: RabbitMQ) -> None:
    key = unique("hosts")
    async with nodes(rabbit) as (first, second):
        url = url_of(rabbit, (first, second), "connection_timeout=500ms&heartbeat=2")
        async with started(url) as broker:
            sink = ListFeed()
            await broker.open_feed(D(f"/topic/{key}"), sink)
            first.stall()
            await eventually(lambda: broker.ready and second.connections == 2, "noticed")
            await broker.publish(D(f"/topic/{key}"), b"1")
            await sink.until(1)


async def test_a_lost_connection_goes_on_by_itself(rabbit: RabbitMQ) -> None:
    """One connection of several: the others stay where they are."""
    async with (
        nodes(rabbit) as (first, second),
        started(url_of(rabbit, (first, second))) as broker,
    ):
        link = broker._publishing.link
        assert link is not None
        link.drop(ConnectionResetError())
        await eventually(lambda: broker.ready and second.connections == 1, "failed over")
        assert first.connections == 1
        assert broker.status == (
            f"connected to 127.0.0.1:{first.port} and connected to 127.0.0.1:{second.port}"
        )


async def test_no_host_and_what_is_said(rabbit: RabbitMQ) -> None:
    async with nodes(rabbit) as (first, second):
        url = url_of(rabbit, (first, second), "connection_timeout=500ms")
        await first.refuse()
        second.stall()
        with pytest.raises(Unavailable) as caught:
            async with started(url):
                raise AssertionError("there is no broker")
        assert caught.value.text == (
            f"connection refused by 127.0.0.1:{first.port}; no answer from 127.0.0.1:{second.port}"
        )
        async with gateway(broker={"url": url}) as gw:
            answer = await get(f"{gw.url}/readyz")
            assert answer.status == 503
            assert str(first.port) in answer.text
            assert str(second.port) in answer.text
            assert gw.gateway.broker.name == (
                f"amqp://guest:***@127.0.0.1:{first.port},127.0.0.1:{second.port}/"
            )
            second.unstall()
            await eventually(lambda: gw.gateway.broker.ready, "ready")
            answer = await request("POST", f"{gw.url}/publish/topic/{unique('hosts')}", data="1")
            assert answer.status == 200


async def test_a_login_that_one_host_refuses_is_refused(rabbit: RabbitMQ) -> None:
    async with nodes(rabbit) as (first, second):
        await first.refuse()
        url = url_of(rabbit, (first, second)).replace(":guest@", ":wrong@")
        with pytest.raises(LoginRefused) as caught:
            async with started(url):
                raise AssertionError("the password is wrong")
        assert "wrong" not in str(caught.value)
