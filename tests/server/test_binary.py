"""`binary=always` and `[[binary]]` rules, on each transport of a running gateway."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.server.house import Client, House, request, running, upgrade

BODY = b"\x00\x00\x00\x00\x07\rtext"
ENCODED = base64.b64encode(BODY).decode()
RULES = [{"destination": each} for each in ("/topic/avro.#", "/queue/blobs")]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with running() as house:
        yield house


@pytest.fixture
async def ruled() -> AsyncIterator[House]:
    queue = {"name": "mixed", "bindings": [{"exchange": "amq.topic", "key": "#"}]}
    async with running(binary=RULES, queue=[queue]) as house:
        yield house


async def frame(client: Client) -> tuple[int, bytes]:
    """Read one WebSocket frame: opcode and payload."""
    head = await client.reader.readexactly(2)
    length = head[1] & 127
    if length == 126:
        length = int.from_bytes(await client.reader.readexactly(2))
    return head[0] & 15, await client.reader.readexactly(length)


async def websocket(house: House, target: str) -> Client:
    client = await house.connect(upgrade(target))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return client


async def envelope(client: Client) -> dict[str, Any]:
    """Read frames up to the first message."""
    while True:
        said: dict[str, Any] = json.loads((await frame(client))[1])
        if "headers" in said:
            return said


async def say(client: Client, said: object) -> None:
    data = json.dumps(said).encode()
    assert len(data) < 126
    await client.send(bytes((0x81, 0x80 | len(data))) + bytes(4) + data)


async def event(client: Client) -> dict[str, str]:
    """Read an event that is no position; the fields of its block."""
    while True:
        block = (await client.until(b"\n\n")).decode()
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields and fields.get("event") != "position":
            return fields


async def events(house: House, target: str) -> Client:
    client = await house.connect(request("GET", target))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    return client


async def polled(house: House, target: str) -> list[dict[str, Any]]:
    client = await house.connect(request("GET", target))
    status, _, body = await client.response()
    assert status == 200, body
    messages: list[dict[str, Any]] = json.loads(body)["messages"]
    return messages


async def test_bare(house: House) -> None:
    sse = await events(house, "/sse/topic/a?binary=always")
    ws = await websocket(house, "/ws/topic/a?binary=always")
    text = await websocket(house, "/ws/topic/a?binary=auto")
    work = await websocket(house, "/ws/queue/q?binary=always")
    for body in (BODY, b"{}"):
        await house.publish("/topic/a", body)
        await house.publish("/queue/q", body)
        got = await event(sse)
        assert (got["event"], base64.b64decode(got["data"])) == ("binary", body)
        assert await frame(ws) == await frame(work) == (2, body)
        assert await frame(text) == (1, body)


async def test_enveloped(house: House) -> None:
    sse = await events(house, "/sse/topic/a?binary=always&envelope=json")
    ws = await websocket(house, "/ws/topic/a?binary=always&envelope=json")
    later = await websocket(house, "/ws?envelope=json")
    await say(later, {"subscribe": "/topic/a", "binary": "always"})
    await say(later, {"subscribe": "/topic/b"})
    while json.loads((await frame(later))[1]).get("subscribed") != "/topic/b":
        pass
    await house.publish("/topic/a", BODY)
    await house.publish("/topic/b", BODY)
    for said in (json.loads((await event(sse))["data"]), await envelope(ws), await envelope(later)):
        assert said["base64"] == ENCODED
        assert "body" not in said
    assert (await envelope(later))["body"] == BODY.decode()


@pytest.mark.parametrize("target", ["/poll/topic/a?since=first", "/poll/queue/q?wait=5"])
@pytest.mark.parametrize("ack", ["", "&ack=client"])
async def test_polled(house: House, target: str, ack: str) -> None:
    if ack and "topic" in target:
        target = "/poll/amq/queue/q?wait=5"
    for destination in ("/topic/a", "/queue/q"):
        await house.publish(destination, BODY)
    (said,) = await polled(house, f"{target}{ack}&binary=always")
    assert said["base64"] == ENCODED


async def test_another_value_is_refused(house: House) -> None:
    for target in ("/sse/topic/a?binary=yes", "/poll/topic/a?binary=true"):
        client = await house.connect(request("GET", target))
        status, problem = await client.problem()
        assert (status, problem["hint"]) == (400, "allowed is always or auto")
    ws = await websocket(house, "/ws?envelope=json")
    await say(ws, {"subscribe": "/topic/a", "binary": True})
    said = json.loads((await frame(ws))[1])
    while "error" not in said:
        said = json.loads((await frame(ws))[1])
    assert said["error"]["code"] == "bad_request"


async def test_a_rule_holds_without_a_parameter(ruled: House) -> None:
    within = await websocket(ruled, "/ws/topic/avro.a")
    wider = await websocket(ruled, "/ws/topic/%23")
    several = await events(ruled, "/sse?destination=/topic/avro.a&destination=/topic/b")
    work = await websocket(ruled, "/ws/queue/blobs")
    mixed = await websocket(ruled, "/ws/queue/mixed")
    await ruled.publish("/topic/avro.a", BODY)
    await ruled.publish("/topic/b", BODY)
    await ruled.publish("/queue/blobs", BODY)
    assert await frame(within) == (2, BODY)
    assert [await frame(wider), await frame(wider)] == [(2, BODY), (1, BODY)]
    assert [await frame(mixed), await frame(mixed)] == [(2, BODY), (1, BODY)]
    assert await frame(work) == (2, BODY)
    assert [(await event(several)).get("event") for _ in range(2)] == ["binary", None]
    (said,) = await polled(ruled, "/poll/topic/avro.a?since=first")
    assert said["base64"] == ENCODED


async def test_large_numbers_are_text_wherever_envelopes_go(house: House) -> None:
    large = (1 << 60) + 1
    sse = await events(house, "/sse/topic/a?envelope=json")
    ws = await websocket(house, "/ws/topic/a?envelope=json")
    batch = {"messages": [{"destination": "/topic/a", "headers": {"n": large, "l": [large, 5]}}]}
    data = json.dumps(batch).encode()
    client = await house.connect(
        request("POST", "/publish", "Content-Type: application/json", body=data)
    )
    assert (await client.response())[0] == 200
    (last,) = await polled(house, "/poll/topic/a?since=first")
    for said in (last, json.loads((await event(sse))["data"]), await envelope(ws)):
        assert said["headers"]["n"] == str(large)
        assert said["headers"]["l"] == [str(large), 5]
