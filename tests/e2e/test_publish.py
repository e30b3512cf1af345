"""Publishing over HTTP from outside: one body, batches, and everything that is refused."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect

from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, Answer, gateway, get, request, sse, until
from tests.e2e.test_websocket import closed

Name = Callable[[], str]


async def post(gw: RunningGateway, path: str, **options: Any) -> Answer:
    return await request("POST", gw.url + path, **options)


async def test_query_parameters_and_headers(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with sse(f"{gw.url}/sse{topic}?envelope=json") as stream:
        answer = await post(
            gw,
            f"/publish{topic}?persistent=false&expiration=60000&priority=4&correlation-id=c"
            "&reply-to=r&message-id=m&type=t&app-id=a&timestamp=1700000000"
            "&header.trace-id=7&header.%E9%94%AE=%E5%80%BC",
            data=b"{}",
            headers={"Content-Type": "application/json"},
        )
        assert (answer.status, answer.json) == (200, {"published": topic})
        headers = (await stream.next()).json["headers"]
    assert headers == {
        "content-type": "application/json",
        "expiration": "60000",
        "priority": 4,
        "correlation-id": "c",
        "reply-to": "r",
        "message-id": "m",
        "type": "t",
        "app-id": "a",
        "timestamp": 1700000000,
        "trace-id": "7",
        "键": "值",
    }


async def test_a_chinese_key_and_body_through_every_transport(
    gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}.股票.上证指数"
    path = quote(topic)
    async with (
        sse(f"{gw.url}/sse{path}") as stream,
        connect(f"{gw.ws_url}/ws{path}") as ws,
        connect(f"{gw.ws_url}/ws{path}?envelope=json") as enveloped,
    ):
        await enveloped.recv()
        position = (await stream.any()).id
        bodies = ["经 HTTP", "经批量", "经 WebSocket", "经信封"]
        assert (await post(gw, f"/publish{path}", data=bodies[0].encode())).status == 200
        batch = {"messages": [{"destination": topic, "body": bodies[1]}]}
        answer = await post(gw, "/publish", json=batch)
        assert (answer.status, answer.json) == (200, {"published": [topic]})
        await ws.send(bodies[2])
        assert [await asyncio.wait_for(ws.recv(), PATIENCE) for _ in range(3)] == bodies[:3]
        await enveloped.send(json.dumps({"publish": topic, "body": bodies[3]}))
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == bodies[3]
        assert await stream.data(4) == bodies
        heard = [json.loads(await asyncio.wait_for(enveloped.recv(), PATIENCE)) for _ in range(5)]
        messages = [each for each in heard if "body" in each]
        assert [each["body"] for each in messages] == bodies
        assert {each["destination"] for each in messages} == {topic}
    polled = (await get(f"{gw.url}/poll{path}?since={position}")).json
    assert [each["body"] for each in polled["messages"]] == bodies
    queue = quote(f"/queue/{name()}-队列")
    assert (await post(gw, f"/publish{queue}", data="任务".encode())).status == 200
    polled = (await get(f"{gw.url}/poll{queue}")).json
    assert [each["body"] for each in polled["messages"]] == ["任务"]


async def test_a_batch_keeps_its_order(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with sse(f"{gw.url}/sse{topic}?envelope=json") as stream:
        messages: list[dict[str, Any]] = [
            {"destination": topic, "body": str(n)} for n in range(500)
        ]
        messages.append({"destination": topic, "base64": "/wA="})
        messages.append({"destination": topic, "body": {"a": 1}, "headers": {"type": "t"}})
        answer = await post(gw, "/publish", json={"messages": messages})
        assert answer.status == 200, answer.text
        assert len(answer.json["published"]) == 502
        got = [(await stream.next()).json for _ in range(502)]
    assert [each["body"] for each in got[:500]] == [str(n) for n in range(500)]
    assert got[500]["base64"] == "/wA="
    assert got[501]["body"] == '{"a":1}'
    assert got[501]["headers"]["content-type"] == "application/json"


@pytest.mark.parametrize(
    "bad",
    [
        {"destination": "/nowhere/x", "body": ""},
        {"destination": "/topic/a.*", "body": ""},
        {"destination": "/topic/a", "base64": "?"},
        {"destination": "/topic/a", "body": "x", "base64": "eA=="},
        {"destination": "/topic/a", "body": "x", "headers": 7},
        {"destination": "/topic/a", "boby": "x"},
        {"destination": "/topic/a", "headers": {"priority": "high"}},
        {"body": "x"},
        "x",
    ],
)
async def test_one_bad_entry_and_nothing_is_published(
    gw: RunningGateway, name: Name, bad: Any
) -> None:
    topic = f"/topic/{name()}"
    good = {"destination": topic, "body": "good"}
    async with sse(f"{gw.url}/sse{topic}") as stream:
        answer = await post(gw, "/publish", json={"messages": [good, good, bad, good]})
        assert answer.status == 400
        assert "messages[2]" in answer.json["text"]
        assert (await post(gw, f"/publish{topic}", data=b"fence")).status == 200
        assert await stream.data(1) == ["fence"]


async def test_a_batch_that_the_broker_takes_in_part_says_which(
    gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    answer = await post(
        gw,
        "/publish",
        json={
            "messages": [
                {"destination": topic, "body": "taken"},
                {"destination": "/amq/queue/missing", "body": "not"},
            ]
        },
    )
    assert answer.status >= 400
    assert "1" in json.dumps(answer.json), answer.text
    polled = (await get(f"{gw.url}/poll{topic}?last=1")).json
    assert [each["body"] for each in polled["messages"]] == ["taken"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/publish/exchange/missing/x", 404, "not_found"),
        ("/publish/amq/queue/missing", 404, "unroutable"),
        ("/publish/topic/nobody.listens?mandatory=true", 404, "unroutable"),
        ("/publish/topic/a%zz", 400, "bad_destination"),
        ("/publish/topic/%ff", 400, "bad_destination"),
        ("/publish/topic/job.%23", 400, "bad_request"),
        ("/publish/nowhere/x", 400, "bad_destination"),
        ("/publish/topic/x?colour=red", 400, "bad_request"),
        ("/publish/topic/x?priority=high", 400, "bad_request"),
        ("/publish/topic/x?expiration=-1", 400, "bad_request"),
        ("/publish/topic/x?user-id=me", 400, "bad_request"),
        ("/publish", 400, "bad_request"),
        ("/publish/temp-queue/x", 501, "unsupported"),
    ],
)
async def test_refusals(gw: RunningGateway, path: str, status: int, code: str) -> None:
    answer = await post(gw, path, data=b"body")
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    assert answer.json["text"]


async def test_wrong_method(gw: RunningGateway) -> None:
    answer = await get(f"{gw.url}/publish/topic/x")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_too_large(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    fits = await post(gw, f"/publish{topic}", data=b"x" * (64 << 10))
    assert fits.status == 200
    announced = await post(gw, f"/publish{topic}", data=b"x" * ((64 << 10) + 1))
    assert (announced.status, announced.json["code"]) == (413, "too_large")

    async def chunks() -> Any:
        for _ in range(70):
            yield b"x" * 1024

    chunked = await post(gw, f"/publish{topic}", data=chunks())
    assert (chunked.status, chunked.json["code"]) == (413, "too_large")


async def test_a_missing_exchange_names_the_setting(gw: RunningGateway) -> None:
    answer = await post(gw, "/publish/exchange/missing/x", data=b"")
    assert "[[exchange]]" in answer.json["hint"]
    assert "missing" in answer.json["text"]


async def test_cors_preflight(gw: RunningGateway) -> None:
    origin = "http://localhost:5173"
    answer = await request(
        "OPTIONS",
        f"{gw.url}/publish/topic/x",
        headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
    )
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]


async def test_publishes_under_way_are_answered_at_shutdown(name: Name) -> None:
    topic = f"/topic/{name()}"
    async with gateway(server={"grace": "10s"}) as gw:
        services = gw.gateway.services
        confirm = services.publish
        waiting: list[str] = []
        may_confirm = threading.Event()

        async def slow(destination: Any, body: bytes, properties: Any, **options: Any) -> None:
            waiting.append(body.decode())
            await asyncio.to_thread(may_confirm.wait, 30)
            await confirm(destination, body, properties, **options)

        services.publish = slow
        services.at_once = None
        posting = asyncio.create_task(post(gw, f"/publish{topic}", data=b"by HTTP"))
        bare = await connect(f"{gw.ws_url}/ws{topic}")
        await bare.send("bare")
        enveloped = await connect(f"{gw.ws_url}/ws?destination={topic}")
        await enveloped.recv()
        await enveloped.send(json.dumps({"publish": topic, "body": "enveloped", "id": 7}))
        await until(lambda: len(waiting) == 3, "three publishes under way")
        stopping = asyncio.create_task(
            asyncio.to_thread(
                lambda: asyncio.run_coroutine_threadsafe(gw.gateway.stop(), gw.loop).result(60)
            )
        )
        await until(lambda: gw.gateway.server._push.draining, "the shutdown")
        await asyncio.sleep(0.2)
        may_confirm.set()
        assert (await posting).status == 200
        answer = await asyncio.wait_for(enveloped.recv(), PATIENCE)
        assert json.loads(answer) == {"published": 7}
        for ws in (bare, enveloped):
            code, _ = await closed(ws)
            assert code == 1012
        await stopping


async def test_unconfirmed_publishes_of_one_client_are_bounded_in_bytes(name: Name) -> None:
    topic = f"/topic/{name()}"
    body = b"x" * (1 << 20)
    async with gateway(server={"grace": "10s"}) as gw:
        confirm = gw.gateway.services.publish
        held = [0, 0]  # bytes under way now, and at most
        may_confirm = asyncio.Event()
        total = 20

        async def slow(destination: Any, body: bytes, properties: Any, **options: Any) -> None:
            held[0] += len(body)
            held[1] = max(held)
            await may_confirm.wait()
            await confirm(destination, body, properties, **options)
            held[0] -= len(body)

        gw.gateway.services.publish = slow
        async with connect(f"{gw.ws_url}/ws{topic}") as ws:
            sending = asyncio.create_task(_send_all(ws, [body] * total))
            await until(lambda: held[0] >= gw.gateway.services.limits.publishing_bytes, "the bound")
            gw.loop.call_soon_threadsafe(may_confirm.set)
            got = [await asyncio.wait_for(ws.recv(), PATIENCE) for _ in range(total)]
            await sending
        assert [len(each) for each in got] == [len(body)] * total
        # One more may have been in the read that reached the bound.
        assert held[1] <= gw.gateway.services.limits.publishing_bytes + len(body)


async def _send_all(ws: Any, bodies: list[bytes]) -> None:
    for body in bodies:
        await ws.send(body)
