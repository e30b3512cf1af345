"""Listening: ports, addresses, file descriptors."""

import asyncio
import resource
import socket

import pytest

from queuecast.server.listener import Listener, raise_open_files

pytestmark = pytest.mark.both_loops


async def test_a_taken_port_is_the_callers_to_explain() -> None:
    first = Listener(asyncio.Protocol, "127.0.0.1", 0)
    host, port = await first.start()
    assert host == "127.0.0.1"
    with pytest.raises(OSError, match="in use"):
        await Listener(asyncio.Protocol, "127.0.0.1", port).start()
    first.close()
    again = Listener(asyncio.Protocol, "127.0.0.1", port)
    assert await again.start() == (host, port)
    again.close()


async def test_every_address_of_a_name_has_the_same_port() -> None:
    listener = Listener(asyncio.Protocol, "localhost", 0)
    _, port = await listener.start()
    addresses = {str(info[4][0]) for info in socket.getaddrinfo("localhost", port)}
    reached = 0
    for address in addresses:
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            continue  # a machine without IPv6
        writer.close()
        reached += 1
    assert reached >= 1
    listener.close()


async def test_processes_may_share_a_port() -> None:
    first = Listener(asyncio.Protocol, "127.0.0.1", 0, reuse=True)
    _, port = await first.start()
    second = Listener(asyncio.Protocol, "127.0.0.1", port, reuse=True)
    assert (await second.start())[1] == port
    first.close()
    second.close()


async def test_no_such_host() -> None:
    with pytest.raises(OSError, match=r".+"):
        await Listener(asyncio.Protocol, "256.256.256.256", 0).start()


async def test_open_files_are_raised_to_the_hard_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        allowed = raise_open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard
        assert allowed > 0
        assert hard == resource.RLIM_INFINITY or allowed < hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
