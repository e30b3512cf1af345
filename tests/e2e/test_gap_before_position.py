"""A client that is cut off before it was told of a gap has no position from behind it."""

from __future__ import annotations

import json

from websockets.asyncio.client import connect

from queuecast.testing import RunningGateway
from tests.e2e.clients import sse
from tests.support.servers import unique
from tests.support.stomp import StompFrame, _parse

FOREIGN = "nabcdef1111-7"


async def test_sse(gw: RunningGateway) -> None:
    url = f"{gw.url}/sse/topic/{unique('t')}"
    for query in ("", "?envelope=json"):
        async with sse(url + query, {"Last-Event-ID": FOREIGN}) as stream:
            event = await stream.any()
            if query:
                assert (event.type, event.id, event.json["positions"]) == ("position", "", [])
                event = await stream.any()
            assert event.type == "gap"
            assert event.id == event.json["first"] != FOREIGN
            assert event.json["reason"] == "epoch"


async def test_websocket(gw: RunningGateway) -> None:
    destination = f"/topic/{unique('t')}"
    async with connect(f"{gw.ws_url}/ws{destination}?envelope=json&since={FOREIGN}") as ws:
        said = json.loads(await ws.recv())
        assert said == {"subscribed": destination}
        said = json.loads(await ws.recv())
        assert said["gap"]["reason"] == "epoch"
        assert said["position"]


async def test_stomp(gw: RunningGateway) -> None:
    async with connect(f"{gw.ws_url}/ws") as ws:

        async def frame() -> StompFrame:
            text = await ws.recv()
            assert isinstance(text, str)
            return _parse(text.encode())

        await ws.send("CONNECT\naccept-version:1.2\nhost:/\n\n\0")
        assert (await frame()).command == "CONNECTED"
        lines = f"id:0\nreceipt:r\nsince:{FOREIGN}\ndestination:/topic/{unique('t')}"
        await ws.send(f"SUBSCRIBE\n{lines}\n\n\0")
        receipt = await frame()
        assert receipt.command == "RECEIPT"
        assert "position" not in receipt.headers
        gap = await frame()
        assert gap.headers["gap"] == "epoch"
        assert gap.headers["message-id"]
