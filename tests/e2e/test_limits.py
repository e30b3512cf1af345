"""What a client may cost: connections, subscriptions, request heads and their time."""

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest
from websockets.asyncio.client import connect

import queuecast.testing
from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, Event, gateway, get, publish, request, sse, until
from tests.e2e.test_websocket import closed

Name = Callable[[], str]


@pytest.fixture(scope="module")
def tight() -> Iterator[RunningGateway]:
    with queuecast.testing.gateway(
        server={"grace": "1s"},
        limits={
            "head": "1KB",
            "headers": 20,
            "head_timeout": "300ms",
            "subscriptions": 3,
            "batch": 5,
            "batch_bytes": "2KB",
            "message": "1KB",
        },
    ) as running:
        yield running


async def raw(gw: RunningGateway, *parts: bytes) -> bytes:
    """Send bytes, and return all that the gateway answers until it closes."""
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.01)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


async def test_a_head_that_never_ends(tight: RunningGateway) -> None:
    answer = await raw(tight, b"GET /sse/topic/x HTTP/1.1\r\n", b"X-Long: " + b"x" * 2000)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"]


async def test_too_many_headers(tight: RunningGateway) -> None:
    lines = b"".join(b"X-%d: 1\r\n" % n for n in range(25))
    answer = await raw(tight, b"GET /sse/topic/x HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_head_that_is_too_slow(tight: RunningGateway) -> None:
    answer = await raw(tight, b"GET /sse/topic/x HT")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert await raw(tight) == b""  # nothing was asked: nothing is answered


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"hello\r\n\r\n"])
async def test_what_is_no_http(tight: RunningGateway, junk: bytes) -> None:
    assert (await raw(tight, junk + b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_subscriptions_of_one_connection(tight: RunningGateway) -> None:
    def query(count: int) -> str:
        return "?" + "&".join(f"destination=/topic/t{n}" for n in range(count))

    async with sse(f"{tight.url}/sse{query(3)}"):
        pass
    answer = await get(f"{tight.url}/sse{query(4)}")
    assert (answer.status, answer.json["code"]) == (429, "limit")
    async with connect(f"{tight.ws_url}/ws{query(4)}") as ws:
        assert (await closed(ws))[0] == 4429
    async with connect(f"{tight.ws_url}/ws{query(3)}") as ws:
        for _ in range(3):
            await ws.recv()
        await ws.send('{"subscribe": "/queue/q"}')
        answer_text = json.loads(await asyncio.wait_for(ws.recv(), PATIENCE))
        assert answer_text["error"]["code"] == "limit"
        await ws.send('{"unsubscribe": "/topic/t1"}')
        assert json.loads(await asyncio.wait_for(ws.recv(), PATIENCE))["unsubscribed"]
        await ws.send('{"subscribe": "/queue/q"}')
        assert json.loads(await asyncio.wait_for(ws.recv(), PATIENCE)) == {"subscribed": "/queue/q"}


async def test_batches(tight: RunningGateway) -> None:
    message = {"destination": "/topic/x", "body": "x"}
    many = await request("POST", f"{tight.url}/publish", json={"messages": [message] * 6})
    assert (many.status, many.json["code"]) == (413, "too_large")
    large = {"messages": [message | {"body": "x" * 3000}]}
    answer = await request("POST", f"{tight.url}/publish", json=large)
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    middle = {"messages": [message, message | {"body": "x" * 1100}]}
    answer = await request("POST", f"{tight.url}/publish", json=middle)
    assert answer.status == 413
    assert "messages[1]" in answer.json["text"]


async def test_connections(name: Name) -> None:
    topic = f"/topic/{name()}"
    async with gateway(server={"grace": "1s"}, limits={"connections": 3}) as gw:
        async with (
            sse(f"{gw.url}/sse{topic}") as first,
            sse(f"{gw.url}/sse{topic}"),
            connect(f"{gw.ws_url}/ws{topic}"),
        ):
            await first.any()
            refused = await get(f"{gw.url}/sse{topic}")
            assert (refused.status, refused.json["code"]) == (503, "limit")
            assert refused.json["retry"] is True
        # Whoever leaves makes room.
        await until(lambda: not len(gw.gateway.server.connections), "the connections' end")
        await publish(gw, topic, "there is room")
        async with sse(f"{gw.url}/sse{topic}?last=1") as stream:
            assert await stream.data(1) == ["there is room"]


async def test_evicted_messages_are_a_gap(name: Name) -> None:
    topic = f"/topic/{name()}"
    async with gateway(
        server={"grace": "1s"}, log={"messages": 10}, history={"messages": 10}
    ) as gw:
        async with sse(f"{gw.url}/sse{topic}") as stream:
            position = (await stream.any()).id
        for n in range(30):
            await publish(gw, topic, str(n))
        async with sse(f"{gw.url}/sse{topic}", {"Last-Event-ID": position}) as stream:
            gap: Event = await stream.next("gap")
            assert gap.json["last"] == position
            assert gap.id == gap.json["first"]
            assert await stream.data(10) == [str(n) for n in range(20, 30)]


async def test_a_message_larger_than_a_write(name: Name) -> None:
    topic = f"/topic/{name()}"
    body = "大" * 300_000
    async with (
        gateway(server={"grace": "1s"}) as gw,
        sse(f"{gw.url}/sse{topic}") as stream,
        connect(f"{gw.ws_url}/ws{topic}", max_size=None) as ws,
    ):
        await publish(gw, topic, body)
        await publish(gw, topic, "small")
        assert await stream.data(2) == [body, "small"]
        assert [await asyncio.wait_for(ws.recv(), PATIENCE) for _ in range(2)] == [
            body,
            "small",
        ]
