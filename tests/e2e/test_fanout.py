"""A thousand subscribers of one topic: one encode per batch, one write per connection and tick."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from queuecast.hub.feed import Feed
from queuecast.hub.ticker import Stats
from queuecast.testing import RunningGateway
from tests.e2e.clients import gateway, request, until

Name = Callable[[], str]

CLIENTS = 1000


class Reader(asyncio.Protocol):
    """Keeps what it reads; a WebSocket's frames are told apart by their lengths alone."""

    def __init__(self, request: str) -> None:
        self._request = request
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        self.data += data

    @property
    def messages(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("verb", ["ws", "sse"])
async def test_one_encode_and_one_write_per_connection(name: Name, verb: str) -> None:
    topic = f"/topic/{name()}"
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    async with gateway(server={"grace": "5s"}) as gw:
        host, port = gw.url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        head = (
            f"GET /{verb}{topic} HTTP/1.1\r\nHost: localhost\r\n"
            f"{upgrade if verb == 'ws' else ''}\r\n"
        )
        readers: list[Reader] = []
        for _ in range(CLIENTS):
            _, reader = await loop.create_connection(lambda: Reader(head), host, int(port))
            readers.append(reader)
        feed = await _feed(gw, topic)
        await until(
            lambda: sum(each.live for each in feed.subscribers) == CLIENTS, "live subscribers"
        )
        assert len(feed.cohorts) == 1
        before: Stats = replace(gw.gateway.hub.stats)
        batch = {"messages": [{"destination": topic, "body": f"m{n}"} for n in range(50)]}
        answer = await request("POST", f"{gw.url}/publish", json=batch)
        assert answer.status == 200
        await until(lambda: all(b"m49" in each.data for each in readers), "everybody's messages")
        after = gw.gateway.hub.stats
        assert after.appended - before.appended == 50
        assert after.encoded - before.encoded == 50
        # However many ticks the batch took: as many encodes, and so many writes each.
        batches = after.encodes - before.encodes
        assert 1 <= batches <= 3
        assert after.writes - before.writes == batches * CLIENTS
        assert after.deliveries - before.deliveries == 50 * CLIENTS
        # SSE positions given at the start may differ, the messages may not.
        tails = {each.messages[each.messages.index(b"m0") :] for each in readers}
        assert len(tails) == 1
        for each in readers:
            each.transport.abort()


async def _feed(gw: RunningGateway, topic: str) -> Feed:
    await until(
        lambda: any(feed.name == topic for feed in gw.gateway.hub.feeds), f"the feed of {topic}"
    )
    return next(feed for feed in gw.gateway.hub.feeds if feed.name == topic)
