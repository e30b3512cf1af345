"""A Last-Event-ID of another server, or for other destinations: no error, but live with a gap.

A page that was open on another event stream at this URL comes with that server's id, and a status
other than 200 would stop its EventSource for good.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from queuecast.codecs.sse import EventStreamParser
from tests.server.house import Client, House, request, running, upgrade

FOREIGN = [
    "urn:uuid:c2b0e1f6-7f1e-4c3e-9d57-0f2d5c1f4a10",
    "abc",
    "42",
    "0",
    "1700000000000",
    "1526919030474-0",
    "first",
    "2026-01-31T12:00:00Z",
    "2026-01-31",
    "x" * 3000,
    "n1234567890abc-1~n1234567890abc-2",
    "n1234567890abc-1,n1234567890abd-2",
    "übergröße",
    "$",
    "-1",
]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with running() as house:
        yield house


class Stream:
    """The events of an SSE answer."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._parser = EventStreamParser(1 << 20)

    async def next(self) -> tuple[str, str]:
        """Return type and data of the next event, passing over positions."""
        while True:
            block = await self.client.until(b"\n\n")
            for event in self._parser.receive_data(block):
                if event.event != "position":
                    return event.event, event.data


async def stream(house: House, target: str, *headers: str) -> Stream:
    client = await house.connect(request("GET", target, *headers))
    head = (await client.until(b"\r\n\r\n")).decode("latin-1")
    assert head.startswith("HTTP/1.1 200 "), head
    return Stream(client)


async def told(events: Stream) -> dict[str, Any]:
    kind, data = await events.next()
    assert kind == "gap"
    gap: dict[str, Any] = json.loads(data)
    assert (gap["reason"], gap["last"]) == ("epoch", "")
    return gap


@pytest.mark.parametrize("id", FOREIGN)
async def test_an_event_stream_is_live_and_told_of_a_gap(house: House, id: str) -> None:
    await house.publish("/topic/a", b"before")
    events = await stream(house, "/sse/topic/a", f"Last-Event-ID: {id}")
    gap = await told(events)
    await house.publish("/topic/a", b"after")
    assert await events.next() == ("message", "after")
    # The position behind the gap is a good one.
    again = await stream(house, f"/sse/topic/a?since={gap['first']}")
    assert await again.next() == ("message", "after")


@pytest.mark.parametrize("name", ["lastEventId", "Last-Event-ID", "last-event-id", "lastEventID"])
@pytest.mark.parametrize("id", ["abc", "42", "first"])
async def test_a_query_means_the_same(house: House, name: str, id: str) -> None:
    await house.publish("/topic/a", b"before")
    events = await stream(house, f"/sse/topic/a?{name}={quote(id)}")
    await told(events)
    await house.publish("/topic/a", b"after")
    assert await events.next() == ("message", "after")


@pytest.mark.parametrize("name", ["lastEventId", "Last-Event-ID", "last-event-id", "lastEventID"])
async def test_a_query_resumes(house: House, name: str) -> None:
    """As event-source-polyfill does: the first URL, and the id appended to its query."""
    first = await house.connect(request("GET", "/sse/topic/a?envelope=json&last=1"))
    await first.until(b"event: position\nid: ")
    position = (await first.until(b"\n")).decode().strip()
    for body in (b"1", b"2"):
        await house.publish("/topic/a", body)
    for url in (
        f"/sse/topic/a?last=1&{name}={position}",
        f"/sse/topic/a?since=first&{name}=&{name}={position}",
        f"/sse/topic/a?{name}=abc&{name}={position}",
    ):
        events = await stream(house, url)
        assert await events.next() == ("message", "1"), url
        assert await events.next() == ("message", "2"), url
    # A header wins over the query, and both win over `since`.
    events = await stream(house, f"/sse/topic/a?{name}={position}", "Last-Event-ID: abc")
    await told(events)
    events = await stream(house, f"/sse/topic/a?since=first&{name}=abc", "Accept: */*")
    await told(events)
    assert await events.next() == ("message", "1"), "the URL's own start holds"


async def test_on_a_connection_that_was_used_before(house: House) -> None:
    client = await house.connect(request("GET", "/healthz"))
    assert (await client.response())[0] == 200
    await client.send(request("GET", "/sse/topic/a", "Last-Event-ID: übergröße"))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    await told(Stream(client))


async def test_what_the_url_asks_for_still_holds(house: House) -> None:
    for body in (b"1", b"2"):
        await house.publish("/topic/a", body)
    events = await stream(house, "/sse/topic/a?last=1", "Last-Event-ID: abc")
    await told(events)
    assert await events.next() == ("message", "2")


async def test_several_destinations(house: House) -> None:
    url = "/sse?destination=/topic/a&destination=/topic/b&envelope=json"
    single = await house.connect(request("GET", "/sse/topic/a"))
    await single.until(b"event: position\nid: ")
    position = (await single.until(b"\n")).decode().strip()
    for id in ("abc", "42", position):
        events = await stream(house, url, f"Last-Event-ID: {id}")
        await told(events)
        await house.publish("/topic/b", b"after")
        kind, data = await events.next()
        assert (kind, json.loads(data)["body"]) == ("message", "after")


async def test_queues_have_no_positions(house: House) -> None:
    events = await stream(house, "/sse/queue/q?envelope=json", "Last-Event-ID: abc")
    await house.publish("/queue/q", b"1")
    kind, data = await events.next()
    assert (kind, json.loads(data)["body"]) == ("message", "1")


async def test_a_poll(house: House) -> None:
    for target, header in (
        ("/poll/topic/a?wait=1", "Last-Event-ID: 42"),
        ("/poll/topic/a?wait=1", "Last-Event-ID: übergröße"),
        ("/poll/topic/a?wait=1&lastEventId=42", "Accept: */*"),
    ):
        client = await house.connect(request("GET", target, header))
        status, _, body = await client.response()
        answer = json.loads(body)
        assert status == 200, answer
        assert [each["gap"]["reason"] for each in answer["messages"]] == ["epoch"]
        assert answer["messages"][0]["gap"]["first"] == answer["next"]


async def frames(client: Client) -> AsyncIterator[dict[str, Any]]:
    while True:
        head = await client.reader.readexactly(2)
        length = head[1] & 127
        if length == 126:
            length = int.from_bytes(await client.reader.readexactly(2))
        yield json.loads(await client.reader.readexactly(length))


@pytest.mark.parametrize(
    "target",
    [
        "/ws/topic/a?",
        "/ws/topic/a?envelope=json&",
        "/ws?destination=/topic/a&destination=/topic/b&",
    ],
)
@pytest.mark.parametrize("id", ["abc", "42", "n1234567890abc-1~7~9"])
@pytest.mark.parametrize("place", ["header", "query"])
async def test_a_websocket(house: House, target: str, id: str, place: str) -> None:
    if place == "header":
        opening = upgrade(target.rstrip("?&"), f"Last-Event-ID: {id}")
    else:
        opening = upgrade(f"{target}lastEventId={id}")
    client = await house.connect(opening)
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    wanted = 2 if "destination" in target else 1
    async for said in frames(client):
        if "gap" in said:
            assert said["gap"]["reason"] == "epoch"
            wanted -= 1
        if not wanted:
            break


@pytest.mark.parametrize("since", ["abc", "x" * 3000, "n1234567890abc-1~n1234567890abc-2"])
async def test_since_alone_is_an_error_where_it_is_none(house: House, since: str) -> None:
    client = await house.connect(request("GET", f"/sse/topic/a?since={since}"))
    status, problem = await client.problem()
    assert (status, problem["code"]) == (400, "bad_position")


async def test_since_alone_takes_first_and_times(house: House) -> None:
    await house.publish("/topic/a", b"1")
    for since in ("first", "42", "2026-01-31T12:00:00Z"):
        events = await stream(house, f"/sse/topic/a?since={since}")
        kind, data = await events.next()
        assert (kind, data) == ("message", "1") or json.loads(data)["reason"] == "unretained"
