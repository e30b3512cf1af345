"""Enveloped WebSockets from outside: every command, its answer, and who gets what back."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from websockets.asyncio.client import ClientConnection, connect

from queuecast.sessions.base import Session
from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, publish, until
from tests.e2e.test_websocket import closed
from tests.e2e.test_websocket_protocol import raw
from tests.support.proxy import TcpProxy

Name = Callable[[], str]


async def hear(ws: ClientConnection) -> Any:
    text = await asyncio.wait_for(ws.recv(), PATIENCE)
    assert isinstance(text, str)
    return json.loads(text)


async def say(ws: ClientConnection, **command: Any) -> None:
    await ws.send(json.dumps(command))


async def ask(ws: ClientConnection, **command: Any) -> Any:
    await say(ws, **command)
    return await hear(ws)


async def test_every_command(gw: RunningGateway, name: Name) -> None:
    one, two = f"/topic/{name()}", f"/topic/{name()}"
    async with connect(f"{gw.ws_url}/ws{one}?envelope=json") as ws:
        answer = await hear(ws)
        assert answer["subscribed"] == one
        assert answer["position"]
        assert (await ask(ws, subscribe=two))["subscribed"] == two
        await say(ws, publish=two, body="hello", headers={"trace": "1"}, id="a")
        heard = [await hear(ws), await hear(ws)]
        heard.sort(key=lambda each: "published" in each)
        message, answer = heard
        assert answer == {"published": "a"}
        assert message["body"] == "hello"
        assert message["subscription"] == message["destination"] == two
        assert message["headers"]["trace"] == "1"
        assert (await ask(ws, unsubscribe=two)) == {"unsubscribed": two}
        assert (await ask(ws, publish=two, body="unheard")) == {"published": 2}
        resumed = await ask(ws, subscribe=two, since=message["position"])
        assert resumed == {"subscribed": two, "position": message["position"]}
        assert (await hear(ws))["body"] == "unheard"


async def test_bodies_of_every_kind(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with (
        connect(f"{gw.ws_url}/ws{topic}") as bare,
        connect(f"{gw.ws_url}/ws?destination={topic}&envelope=json") as ws,
    ):
        await hear(ws)
        for command, wire in (
            ({"body": "文本"}, "文本"),
            ({"body": {"a": [1, None]}}, '{"a":[1,null]}'),
            ({"base64": base64.b64encode(b"\xff\x00").decode()}, b"\xff\x00"),
            ({}, ""),
        ):
            await say(ws, publish=topic, **command)
            assert await asyncio.wait_for(bare.recv(), PATIENCE) == wire
        bodies = [each for each in [await hear(ws) for _ in range(8)] if "subscription" in each]
        assert bodies[1]["headers"]["content-type"] == "application/json"
        assert base64.b64decode(bodies[2]["base64"]) == b"\xff\x00"


async def test_errors_are_answered_and_the_connection_goes_on(
    gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    async with connect(f"{gw.ws_url}/ws{topic}?envelope=json") as ws:
        await hear(ws)
        for command, code in (
            ({"publish": "/exchange/missing/x", "body": ""}, "not_found"),
            ({"publish": "/topic/a.*", "body": ""}, "bad_request"),
            ({"publish": "/nowhere", "body": ""}, "bad_destination"),
            ({"publish": "/topic/a", "base64": "?"}, "bad_request"),
            ({"publish": "/topic/a", "headers": []}, "bad_request"),
            ({"publish": "/topic/a", "boby": "typo"}, "bad_request"),
            ({"publish": "/topic/a", "body": "x" * (65 << 10)}, "too_large"),
            ({"publish": "/amq/queue/missing", "body": ""}, "unroutable"),
            ({"subscribe": topic}, "bad_request"),
            ({"subscribe": "/exchange/missing/x"}, "not_found"),
            ({"subscribe": "/topic/other", "since": "what"}, "bad_position"),
            ({"subscribe": "/topic/other", "ack": "client"}, "bad_request"),
            ({"unsubscribe": "/topic/other"}, "bad_request"),
            ({"ack": "7.7"}, "bad_request"),
            ({"ack": "x"}, "bad_request"),
            ({"nack": "1.1"}, "bad_request"),
        ):
            verb = next(iter(command))
            answer = await ask(ws, **command)
            assert answer["error"]["code"] == code, answer
            assert set(answer["error"]) == {"code", "text", "hint", "retry"}
            assert answer[verb] == command[verb]
        assert (await ask(ws, publish="/topic/elsewhere", body="ok"))["published"] == 9


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "{}", '{"publish":"/topic/a","ack":"1.1"}', "[" * 5000]
)
async def test_what_is_no_command_closes(gw: RunningGateway, name: Name, text: str) -> None:
    async with connect(f"{gw.ws_url}/ws/topic/{name()}?envelope=json") as ws:
        await hear(ws)
        await ws.send(text)
        code, reason = await closed(ws)
    assert code == 4400
    assert "envelope" in reason


async def test_every_publish_is_answered_and_order_kept(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with (
        connect(f"{gw.ws_url}/ws{topic}") as reader,
        connect(f"{gw.ws_url}/ws?destination=/topic/{name()}") as ws,
    ):
        await hear(ws)
        for n in range(1000):
            await say(ws, publish=topic, body=str(n), id=n)
        answers = [(await hear(ws))["published"] for _ in range(1000)]
        assert sorted(answers) == list(range(1000))
        bodies = [await asyncio.wait_for(reader.recv(), PATIENCE) for _ in range(1000)]
        assert bodies == [str(n) for n in range(1000)]


async def test_ack_nack_and_prefetch(gw: RunningGateway, name: Name) -> None:
    queue = f"/queue/{name()}"
    for n in range(4):
        await publish(gw, queue, str(n))
    url = f"{gw.ws_url}/ws{queue}?envelope=json&ack=client&prefetch=2"
    async with connect(url) as ws:
        assert await hear(ws) == {"subscribed": queue}
        first, second = await hear(ws), await hear(ws)
        assert [first["body"], second["body"]] == ["0", "1"]
        assert "position" not in first
        # Two are unacked, so nothing more comes: the next thing heard is the answer.
        assert (await ask(ws, publish=f"/topic/{name()}", body="", id="fence")) == {
            "published": "fence"
        }
        await say(ws, ack=first["ack"])
        assert (await hear(ws))["body"] == "2"
        await say(ws, nack=second["ack"])
        again = await hear(ws)
        assert (again["body"], again["redelivered"]) == ("1", True)
        await say(ws, nack=again["ack"], requeue=False)
        assert (await hear(ws))["body"] == "3"
        late = await ask(ws, ack=first["ack"])
        assert late["error"]["code"] == "settled"
        assert late["ack"] == first["ack"]


@pytest.mark.parametrize("end", ["reset", "close", "unsubscribe"])
async def test_unacked_messages_go_back_and_to_another(
    gw: RunningGateway, name: Name, end: str
) -> None:
    queue = f"/queue/{name()}"
    for n in range(3):
        await publish(gw, queue, str(n))
    query = f"/ws{queue}?envelope=json&ack=client"
    async with TcpProxy("127.0.0.1", int(gw.url.rsplit(":", 1)[1])) as proxy:
        ws = await connect(f"ws://127.0.0.1:{proxy.port}{query}")
        await hear(ws)
        taken = [await hear(ws) for _ in range(3)]
        await say(ws, ack=taken[0]["ack"])
        # What comes after an ack has been understood is answered after it.
        await ask(ws, publish=f"/topic/{name()}", body="")
        async with connect(f"{gw.ws_url}{query}") as other:
            await hear(other)
            if end == "reset":
                proxy.cut()
            elif end == "close":
                await ws.close()
            else:
                assert await ask(ws, unsubscribe=queue) == {"unsubscribed": queue}
            back = [await hear(other) for _ in range(2)]
            assert [each["body"] for each in back] == ["1", "2"]
            assert all(each["redelivered"] for each in back)
            for each in back:
                await say(other, ack=each["ack"])
            await publish(gw, queue, "3")
            assert (await hear(other))["body"] == "3"
        await ws.close()


async def test_several_destinations_resume_each_on_its_own(gw: RunningGateway, name: Name) -> None:
    one, two = f"/topic/{name()}", f"/topic/{name()}"
    url = f"{gw.ws_url}/ws?destination={one}&destination={two}"
    async with connect(url) as ws:
        marks = [(await hear(ws))["position"] for _ in range(2)]
    await publish(gw, one, "1")
    await publish(gw, two, "2")
    async with connect(f"{url}&since={','.join(marks)}") as ws:
        heard = [await hear(ws) for _ in range(4)]
    assert [each["subscribed"] for each in heard[:2]] == [one, two]
    assert sorted((each["subscription"], each["body"]) for each in heard[2:]) == sorted(
        [(one, "1"), (two, "2")]
    )


async def test_a_client_that_does_not_read_gives_everything_back(
    gw: RunningGateway, name: Name
) -> None:
    queue = name()
    total = 600
    body = "x" * 20_000
    for n in range(total):
        await publish(gw, f"/queue/{queue}", f"{n}:{body}")
    query = f"/ws/queue/{queue}?envelope=json&ack=client"
    counts = gw.gateway.broker.counts  # type: ignore[attr-defined]
    # A small receive buffer: else the kernel would take megabytes for a client that reads nothing.
    async with raw(gw, query, receive_buffer=4096) as ws:
        assert json.loads((await ws.frame())[1]) == {"subscribed": f"/queue/{queue}"}
        # 12 MB do not fit into what the gateway holds for it: the rest stays in the queue.
        await until(lambda: counts().queues[queue].ready > 0, "messages that stay")
        await until(lambda: 0 < counts().queues[queue].unacked < total, "messages held")
        ws.reset()
        await until(lambda: counts().queues[queue].ready == total, "everything back")
    got: list[int] = []
    async with connect(f"{gw.ws_url}{query}", max_size=None) as other:
        await hear(other)
        while len(got) < total:
            message = await hear(other)
            got.append(int(message["body"].partition(":")[0]))
            await say(other, ack=message["ack"])
    assert got == list(range(total))


async def test_a_client_that_only_talks_is_not_listened_to(gw: RunningGateway, name: Name) -> None:
    total = 50_000
    async with raw(gw, f"/ws/topic/{name()}?envelope=json") as ws:
        await ws.frame()
        command = b'{"ack":"1.1"}'
        # A mask of zeros leaves the payload as it is.
        frame = bytes([0x81, 0x80 | len(command), 0, 0, 0, 0]) + command
        ws.writer.write(frame * total)
        connections = gw.gateway.server.connections

        def paused() -> list[Any]:
            return [each for each in connections if cast(Session, each.session).paused]

        await until(paused, "a full connection")
        (talker,) = paused()
        for _ in range(20):
            # The buffer's high mark, and the answer that passed it.
            assert talker.transport.get_write_buffer_size() < (64 << 10) + 4096
            await asyncio.sleep(0.01)
        for _ in range(total):
            opcode, answer = await ws.frame()
            assert (opcode, json.loads(answer)["ack"]) == (1, "1.1")
