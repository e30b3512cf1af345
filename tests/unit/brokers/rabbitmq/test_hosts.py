"""The order in which a cluster's hosts are tried."""

from __future__ import annotations

import asyncio
import socket

import pytest

from queuecast.brokers.rabbitmq import hosts as module
from queuecast.brokers.rabbitmq.address import Address
from queuecast.brokers.rabbitmq.connection import Link
from queuecast.brokers.rabbitmq.hosts import Hosts
from queuecast.brokers.url import Host
from queuecast.errors import Unavailable

A, B, C = ("a", 1), ("b", 1), ("c", 1)
ADDRESS = Address(hosts=(A, B, C))


def test_the_host_that_failed_goes_to_the_back() -> None:
    hosts = Hosts(ADDRESS)
    assert hosts.order == (A, B, C)
    hosts.failed(A)
    assert hosts.order == (B, C, A)
    # Another connection notices the same later.
    hosts.failed(A)
    assert hosts.order == (B, C, A)
    hosts.failed(B)
    hosts.failed(C)
    assert hosts.order == (A, B, C)


def test_one_host_is_tried_again_and_again() -> None:
    hosts = Hosts(Address(hosts=(A,)))
    hosts.failed(A)
    assert hosts.order == (A,)
    assert not hosts.several


async def test_all_connections_go_where_one_has_found_a_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[Host, ...]] = []

    class Opened:
        host = C

        @classmethod
        async def open(cls, address: Address, purpose: str) -> Opened:
            tried.append(address.hosts)
            return cls()

    monkeypatch.setattr(module, "Link", Opened)
    hosts = Hosts(ADDRESS)
    await hosts.open(ADDRESS, "one")
    await hosts.open(ADDRESS.for_login("bob", "secret", None), "two")
    assert tried == [(A, B, C), (C, A, B)]


async def test_every_host_is_tried_at_once_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = silent.getsockname()[1], closed.getsockname()[1]
        url = f"amqp://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}?connection_timeout=200ms"
        with pytest.raises(Unavailable) as caught:
            # Not the pauses of a supervisor.
            async with asyncio.timeout(30):
                await Link.open(Address.parse(url), "test")
    assert caught.value.text == (
        f"no answer from 127.0.0.1:{ports[0]}; connection refused by 127.0.0.1:{ports[1]}"
    )
