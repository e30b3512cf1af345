"""Bare WebSockets from outside, with the `websockets` library."""

import asyncio
from collections.abc import Callable

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, gateway, publish, sse, until
from tests.support.proxy import TcpProxy

Name = Callable[[], str]


async def receive(ws: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(ws.recv(), PATIENCE)


async def closed(ws: ClientConnection) -> tuple[int, str]:
    """Wait for the close; returns the gateway's code and reason."""
    with pytest.raises(ConnectionClosed) as info:
        await receive(ws)
    assert info.value.rcvd is not None
    return info.value.rcvd.code, info.value.rcvd.reason


async def test_frames_in_are_published_messages_out_are_frames(
    gw: RunningGateway, name: Name
) -> None:
    url = f"{gw.ws_url}/ws/topic/{name()}"
    async with connect(url) as one, connect(url) as two:
        await one.send("你好")
        assert [await receive(one), await receive(two)] == ["你好", "你好"]
        await two.send(b"\x00\xff")
        assert [await receive(one), await receive(two)] == [b"\x00\xff", b"\x00\xff"]
        await one.send("")
        assert await receive(two) == ""


async def test_resume_and_replay(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with sse(f"{gw.url}/sse{topic}") as stream:
        position = (await stream.any()).id
    for n in range(3):
        await publish(gw, topic, f"m{n}")
    async with connect(f"{gw.ws_url}/ws{topic}?since={position}") as ws:
        assert [await receive(ws) for _ in range(3)] == ["m0", "m1", "m2"]
    async with connect(f"{gw.ws_url}/ws{topic}?last=1") as ws:
        assert await receive(ws) == "m2"


async def test_pipelined_frames_keep_their_order(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with connect(f"{gw.ws_url}/ws{topic}") as reader, connect(f"{gw.ws_url}/ws{topic}") as ws:
        sending = asyncio.gather(*(ws.send(str(n)) for n in range(1000)))
        assert [await receive(reader) for _ in range(1000)] == [str(n) for n in range(1000)]
        await sending
        assert [await receive(ws) for _ in range(1000)] == [str(n) for n in range(1000)]


async def test_what_was_sent_right_before_leaving_is_published(
    gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    async with connect(f"{gw.ws_url}/ws{topic}") as reader:
        # It takes its own echo: the library stops reading at 16 frames that nobody takes.
        ws = await connect(f"{gw.ws_url}/ws{topic}", max_queue=None)
        for n in range(500):
            await ws.send(str(n))
        await ws.close()
        assert ws.close_code == 1000
        assert [await receive(reader) for _ in range(500)] == [str(n) for n in range(500)]


async def test_fragments_and_pings(gw: RunningGateway, name: Name) -> None:
    async with connect(f"{gw.ws_url}/ws/topic/{name()}") as ws:
        text = "äöü你好" * 100
        data = text.encode()
        # The library cuts where we say, in the middle of characters too.
        await ws.send([text[:1], text[1:7], "", text[7:]])
        assert await receive(ws) == text
        await ws.send([data[:1], data[1:2], data[2:]])
        assert await receive(ws) == text
        await asyncio.wait_for(await ws.ping(b"are you there"), PATIENCE)


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_close_codes_are_answered(gw: RunningGateway, name: Name, code: int) -> None:
    ws = await connect(f"{gw.ws_url}/ws/topic/{name()}")
    await ws.close(code, "good bye")
    assert ws.close_code == code


@pytest.mark.parametrize(
    ("path", "code", "part"),
    [
        ("/ws/nowhere/x", 4400, "unknown destination"),
        ("/ws/topic/a%zz", 4400, "percent"),
        ("/ws/topic/%ff", 4400, "UTF-8"),
        ("/ws/topic/x?since=what", 4400, "not a position"),
        ("/ws/topic/x?ack=client", 4400, "envelope"),
        ("/ws/topic/x?envelope=json&ack=client", 4400, "queues"),
        ("/ws/exchange/missing/x", 4404, "missing"),
        ("/ws?destination=/topic/a&destination=/topic/a", 4400, "twice"),
    ],
)
async def test_a_refusal_is_accepted_and_closed_with_its_reason(
    gw: RunningGateway, path: str, code: int, part: str
) -> None:
    async with connect(gw.ws_url + path) as ws:
        got, reason = await closed(ws)
    assert got == code
    assert part in reason


async def test_a_bare_publish_that_fails_closes_with_its_reason(
    gw: RunningGateway, name: Name
) -> None:
    async with connect(f"{gw.ws_url}/ws/topic/{name()}.%23") as ws:
        await ws.send("to a pattern")
        code, reason = await closed(ws)
    assert code == 4400
    assert "pattern" in reason


async def test_messages_of_a_queue_go_to_one_each(gw: RunningGateway, name: Name) -> None:
    queue = f"/queue/{name()}"
    url = f"{gw.ws_url}/ws{queue}?prefetch=1"
    async with connect(url) as one, connect(url) as two:
        for n in range(10):
            await publish(gw, queue, str(n))
        got: list[str | bytes] = []

        async def read(ws: ClientConnection) -> None:
            while True:
                got.append(await ws.recv())

        readers = [asyncio.create_task(read(ws)) for ws in (one, two)]
        await until(lambda: len(got) >= 10, "ten messages")
        for reader in readers:
            reader.cancel()
    assert sorted(got) == [str(n) for n in range(10)]


async def test_heartbeats_are_pings(name: Name) -> None:
    async with (
        gateway(server={"heartbeat": "500ms", "grace": "1s"}) as gw,
        TcpProxy("127.0.0.1", int(gw.url.rsplit(":", 1)[1])) as proxy,
    ):
        topic = f"/topic/{name()}"
        async with (
            connect(f"{gw.ws_url}/ws{topic}") as alive,
            connect(f"ws://127.0.0.1:{proxy.port}/ws{topic}") as gone,
        ):
            # It answers pings for a while, then nothing comes back from it any more.
            await asyncio.sleep(1.7)
            assert len(gw.gateway.server.connections) == 2
            proxy.stall()
            await until(lambda: len(gw.gateway.server.connections) == 1, "the silent client's end")
            await publish(gw, topic, "still here")
            assert await receive(alive) == "still here"
            proxy.unstall()
            code, _ = await closed(gone)
            assert code == 4408


async def test_shutdown_closes_with_1012(name: Name) -> None:
    async with gateway(server={"grace": "3s"}) as gw:
        ws = await connect(f"{gw.ws_url}/ws/topic/{name()}")
        waiting = asyncio.create_task(closed(ws))
    code, reason = await waiting
    assert code == 1012
    assert "reconnect" in reason
