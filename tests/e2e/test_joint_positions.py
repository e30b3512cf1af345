"""A position of several destinations together, given to a subscription that has only one of them.

Where the broker has it both destinations are of one numbering (one retain rule), so that such a
position could be one of a single destination with two lanes; on Kafka one has more of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from queuecast.destination import Destination
from queuecast.retention import RetainRule
from queuecast.testing import RunningGateway
from tests.conftest import RABBITS, Rabbits
from tests.e2e.clients import gateway, get, publish, sse
from tests.support.confluent import create
from tests.support.kafka import Kafkas
from tests.support.retained import delete
from tests.support.servers import unique

BROKERS = [
    "embedded",
    "durable",
    *(
        pytest.param(name, marks=[pytest.mark.rabbitmq, pytest.mark.timeout(200)])
        for name in RABBITS
    ),
    pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.timeout(400)]),
]


class Place(NamedTuple):
    """A gateway and two destinations; `other` has one lane on every broker."""

    gw: RunningGateway
    one: str
    other: str


@pytest.fixture(params=BROKERS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    key = unique("joint")
    if request.param == "kafka":
        kafkas: Kafkas = request.getfixturevalue("kafkas")
        kafka = kafkas.shared()
        one, other = [await asyncio.to_thread(create, kafka, count) for count in (3, 1)]
        async with gateway(broker={"url": kafka.url}) as gw:
            yield Place(gw, f"/topic/{one}", f"/topic/{other}")
        return
    retain = [{"destination": f"/topic/{key}.#", "age": "1h", "bytes": "64MB"}]
    one, other = f"/topic/{key}.a", f"/topic/{key}.b"
    if request.param in ("embedded", "durable"):
        broker = {"data": str(tmp_path / "data")} if request.param == "durable" else {}
        async with gateway(broker=broker, retain=retain) as gw:
            yield Place(gw, one, other)
        return
    rabbits: Rabbits = request.getfixturevalue("rabbits")
    rabbit = rabbits.shared(request.param)
    async with gateway(broker={"url": rabbit.url, "start": "exit"}, retain=retain) as gw:
        yield Place(gw, one, other)
    kept = RetainRule(Destination.parse(f"/topic/{key}.#"), 1)
    await asyncio.to_thread(delete, rabbit, kept)


async def test_since_is_refused_for_good(place: Place) -> None:
    gw, one, other = place
    both = f"{gw.url}/sse?destination={one}&destination={other}"
    async with sse(both) as stream:
        first = (await stream.any()).id
        await publish(gw, one, "1")
        assert await stream.data(1) == ["1"]
        second = stream.last_event_id
    assert first != second
    for position in (first, second):
        # An EventSource would stop for good: it is told of a gap.
        async with sse(f"{gw.url}/sse{one}", {"Last-Event-ID": position}) as stream:
            assert (await stream.next("gap")).json["reason"] == "epoch"
        for answer in (
            await get(f"{gw.url}/sse{one}?since={position}"),
            await get(f"{gw.url}/poll{one}?since={position}"),
        ):
            refusal = answer.json
            assert (answer.status, refusal["code"]) == (400, "bad_position"), refusal
            assert "is of 2 destinations, this subscription has 1" in refusal["text"]
            assert "same list of destinations" in refusal["hint"]
            assert not refusal.get("retry")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{gw.url}/ws{one}?since={position}") as socket,
        ):
            closed = await socket.receive(timeout=20)
            assert closed.type is aiohttp.WSMsgType.CLOSE
            assert "is of 2 destinations, this subscription has 1" in (closed.extra or "")
    # To the same two it is what it always was.
    async with sse(both, {"Last-Event-ID": first}) as stream:
        assert await stream.data(1) == ["1"]
        assert stream.last_event_id == second
