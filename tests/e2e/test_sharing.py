"""Feeds that RabbitMQ's users share: what the broker counts, and whom it lets in.

Who may what is set with rabbitmqctl; what is where is asked of the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest

from queuecast.testing import RunningGateway
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import eventually
from tests.support.stomp import StompClient, StompRefused
from tests.support.streams import running

pytestmark = pytest.mark.rabbitmq


def address(gw: RunningGateway) -> tuple[str, int]:
    parts = urlsplit(gw.gateway.stomp_url)
    return str(parts.hostname), int(parts.port or 0)


@contextlib.asynccontextmanager
async def gateway(url: str, **tables: Any) -> AsyncIterator[RunningGateway]:
    server = {"stomp_tcp": "127.0.0.1:0", "grace": "2s"}
    async with running(server=server, broker={"url": url, "start": "exit"}, **tables) as gw:
        yield gw


class Users:
    """Users of a test's own, all with the password "pass"."""

    def __init__(self, rabbit: RabbitMQ) -> None:
        self._rabbit = rabbit
        self._names: list[str] = []

    def add(self, read: str = ".*", write: str = ".*", configure: str = ".*") -> tuple[str, str]:
        name = unique("user")
        self._rabbit.add_user(name, "pass", configure=configure, write=write, read=read)
        self._names.append(name)
        return name, "pass"

    def crowd(self, count: int) -> list[tuple[str, str]]:
        """Add many at once."""
        names = [unique("user") for _ in range(count)]
        self._names += names
        self._rabbit.add_users(names, "pass")
        return [(name, "pass") for name in names]

    def close(self) -> None:
        self._rabbit.delete_users(*self._names)


@pytest.fixture
def users(rabbit: RabbitMQ) -> Iterator[Users]:
    made = Users(rabbit)
    yield made
    made.close()


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


def bindings(rabbit: RabbitMQ, key: str) -> list[str]:
    return [row["destination_name"] for row in rabbit.list_bindings() if row["routing_key"] == key]


async def open_all(
    gw: RunningGateway, logins: list[tuple[str, str]], host: str | None = None
) -> list[StompClient]:
    """Log in, some at a time: the gateway bounds how many logins are being checked."""
    clients: list[StompClient] = []
    for at in range(0, len(logins), 8):
        batch = logins[at : at + 8]
        clients += await asyncio.gather(
            *(StompClient.connect(address(gw), login, host) for login in batch)
        )
    return clients


async def test_fifty_users_on_one_topic_are_one_queue_and_one_encoding(
    rabbit: RabbitMQ, users: Users, raw: Any
) -> None:
    key = unique("shared")
    logins = await asyncio.to_thread(users.crowd, 50)
    async with gateway(rabbit.url) as gw:
        clients = await open_all(gw, logins)
        await asyncio.gather(*(client.subscribe(f"/topic/{key}") for client in clients))
        found = await asyncio.to_thread(bindings, rabbit, key)
        assert len(found) == 1, found
        queues = await asyncio.to_thread(rabbit.list_queues)
        # A quorum queue counts its consumers now and then.
        while queues[found[0]].consumers != 1:
            await asyncio.sleep(0.1)
            queues = await asyncio.to_thread(rabbit.list_queues)
        assert not [name for name in queues if ".probe." in name], "they are gone at once"
        before = gw.gateway.hub.stats.encodes
        for number in range(10):
            raw.basic_publish("amq.topic", key, b"%d" % number)
            await asyncio.gather(*(client.until(str(number)) for client in clients))
        assert gw.gateway.hub.stats.encodes - before == 10
        assert all(client.bodies() == [str(n) for n in range(10)] for client in clients)
        assert len({client.messages["1"][0].headers["message-id"] for client in clients}) == 1
        await asyncio.gather(*(client.close() for client in clients))


async def test_rights_are_the_broker_s_verdict_on_each_user(
    rabbit: RabbitMQ, users: Users, raw: Any
) -> None:
    open_key, own_key = unique("open"), unique("own")
    full, no_read, no_queue, narrow = await asyncio.gather(
        asyncio.to_thread(users.add),
        asyncio.to_thread(users.add, read="^queuecast"),
        asyncio.to_thread(users.add, configure="^$"),
        asyncio.to_thread(users.add),
    )
    await asyncio.to_thread(
        rabbit.ctl,
        *("set_topic_permissions", "--vhost", rabbit.virtual_host),
        *(narrow[0], "amq.topic", ".*", f"^{own_key}$"),
    )
    async with gateway(rabbit.url) as gw:
        entitled = await StompClient.connect(address(gw), full)
        await entitled.subscribe(f"/topic/{open_key}", "open")
        await entitled.subscribe(f"/topic/{own_key}", "own")
        for login in (no_read, no_queue, narrow):
            async with await StompClient.connect(address(gw), login) as client:
                with pytest.raises(StompRefused) as refused:
                    await client.subscribe(f"/topic/{open_key}")
                headers = refused.value.frame.headers
                assert headers["message"] == "access_refused"
                assert headers["receipt-id"]
                await eventually(lambda client=client: client.ended, "AMQP's errors close")  # type: ignore[misc]
        with pytest.raises(StompRefused, match="Access refused"):
            await StompClient.connect(address(gw), (full[0], "wrong"))
        async with await StompClient.connect(address(gw), narrow) as client:
            await client.subscribe(f"/topic/{own_key}")
            raw.basic_publish("amq.topic", own_key, b"for both")
            raw.basic_publish("amq.topic", open_key, b"not for everybody")
            await client.until("for both")
            await entitled.until("not for everybody", "open")
            assert client.bodies() == ["for both"]
        assert entitled.bodies("own") == ["for both"]
        queues = await asyncio.to_thread(rabbit.list_queues)
        assert not [name for name in queues if ".probe." in name]
        await entitled.close()


async def test_what_the_gateway_s_user_may_not_read_logins_share_among_themselves(
    rabbit: RabbitMQ, users: Users, raw: Any
) -> None:
    key = unique("private")
    own, *logins = await asyncio.gather(
        asyncio.to_thread(users.add, read="^queuecast"),
        *(asyncio.to_thread(users.add) for _ in range(2)),
    )
    parts = urlsplit(rabbit.url)
    place = parts.netloc.rpartition("@")[2]
    url = parts._replace(netloc=f"{own[0]}:{own[1]}@{place}").geturl()
    async with gateway(url) as gw:
        first, second = await open_all(gw, logins)
        await first.subscribe(f"/topic/{key}")
        await second.subscribe(f"/topic/{key}")
        assert len(await asyncio.to_thread(bindings, rabbit, key)) == 1
        raw.basic_publish("amq.topic", key, b"1")
        await first.until("1")
        await second.until("1")
        # Whoever has no login is the URL's user, open feed or not.
        answer = await asyncio.to_thread(_verdict, gw.url, f"/sse/topic/{key}")
        assert answer == 403
        # Its first user goes; the account stays while the feed is read with it.
        await first.close()
        await eventually(lambda: len(gw.gateway.server.connections) == 1, "the first is gone")
        raw.basic_publish("amq.topic", key, b"2")
        await second.until("2")
        assert [each.headers.get("gap") for each in second.messages["1"]] == [None, None]
        await second.close()


def _verdict(url: str, path: str) -> int:
    import http.client

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


async def test_virtual_hosts_share_nothing_and_a_lost_login_hands_on(
    rabbit: RabbitMQ, users: Users, raw: Any
) -> None:
    key, host = unique("vhost"), unique("host")
    logins = [await asyncio.to_thread(users.add) for _ in range(2)]
    await asyncio.to_thread(rabbit.ctl, "add_vhost", host)
    try:
        other = copy.copy(rabbit)
        other.virtual_host = host
        other.url = urlsplit(rabbit.url)._replace(path="/" + quote(host, safe="")).geturl()
        await asyncio.to_thread(other.permit, [name for name, _ in logins] + ["guest"])
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(other.url))) as there:
            async with gateway(rabbit.url) as gw:
                here = await StompClient.connect(address(gw), logins[0])
                await here.subscribe(f"/topic/{key}")
                first, second = [
                    await StompClient.connect(address(gw), login, host) for login in logins
                ]
                await first.subscribe(f"/topic/{key}")
                await second.subscribe(f"/topic/{key}")
                (queue,) = await asyncio.to_thread(bindings, other, key)
                there.channel().basic_publish("amq.topic", key, b"there")
                raw.basic_publish("amq.topic", key, b"here")
                await here.until("here")
                await first.until("there")
                await second.until("there")
                assert here.bodies() == ["here"]
                # RabbitMQ closes the connections of a user that is deleted.
                await asyncio.to_thread(rabbit.delete_users, logins[0][0])
                await eventually(lambda: bool(first.errors), "its own subscription ends", 60)
                assert first.errors[0].headers["message"] == "Server cancelled subscription"

                def told() -> bool:
                    return any("gap" in each.headers for each in second.messages["1"])

                await eventually(told, "the gap", 60)
                # The old one's queue is there until it expires: nobody may delete it any more.
                found = await asyncio.to_thread(bindings, other, key)
                assert len(set(found) - {queue}) == 1, found
                there.channel().basic_publish("amq.topic", key, b"after")
                await second.until("after")
                assert "after" not in first.bodies()
                for client in (here, first, second):
                    await client.close()
    finally:
        await asyncio.to_thread(rabbit.ctl, "delete_vhost", host)
