"""Two workers in one process, each with a port of its own: requests come to either of them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from queuecast.config import from_tables
from queuecast.gateway import Gateway
from queuecast.server.gate import Route
from queuecast.server.peer import HANDED, peer_address
from queuecast.server.siblings import Place
from tests.server.house import House, request
from tests.server.sockjs_rig import LOGIN, PAGE, ask, head, patient, place, poll, send, waiting

__all__ = ["patient"]  # the fixture
pytestmark = pytest.mark.both_loops

SUBSCRIBE = "SUBSCRIBE\nid:0\ndestination:/topic/t\nreceipt:r\n\n\0"


@asynccontextmanager
async def workers(count: int = 2, **tables: Any) -> AsyncIterator[list[House]]:
    """Run workers, each with a broker of its own."""
    server = {"port": 0, **tables.pop("server", {})}
    # Not pytest's: its paths are too long for Unix sockets.
    with TemporaryDirectory(prefix="queuecast-") as directory:
        async with AsyncExitStack() as stack:
            houses = []
            for number in range(count):
                at = Place(number, count, "node", Path(directory))
                gateway = Gateway(from_tables({"server": server, **tables}), at)
                await gateway.start()
                houses.append(House(gateway))
                stack.push_async_callback(houses[-1].close)
            yield houses


def owner_of(where: str) -> int:
    """Return which of two workers has the session at an address."""
    at = Place(2, 2, "node", Path())  # none of them, so that the answer is never "ours"
    number = at.owner(Route("sockjs", where.removeprefix("/stomp") + "/xhr"), "POST", "", {})
    assert number is not None
    return number


def places() -> list[str]:
    """Return a new session's address for each of two workers."""
    found: dict[int, str] = {}
    while len(found) < 2:
        where = place()
        found[owner_of(where)] = where
    return [found[0], found[1]]


def sessions(house: House) -> int:
    return len(house.server._sockjs.sessions)


@pytest.mark.parametrize("turn", [0, 1])
async def test_a_sockjs_session_goes_on_wherever_its_requests_come(turn: int) -> None:
    async with workers() as houses:
        for owner, where in enumerate(places()):
            # Every request to another worker than the one before.
            one, other = houses[turn], houses[1 - turn]
            assert await poll(one, where) == "o\n"
            await send(other, where, LOGIN)
            assert (await poll(one, where)).startswith('a["CONNECTED')
            await send(other, where, SUBSCRIBE)
            assert "RECEIPT" in await poll(one, where)
            waiting_poll = asyncio.create_task(poll(other, where))
            await houses[owner].eventually(lambda owner=owner: waiting(houses[owner]))
            await houses[owner].publish("/topic/t", b"for everybody")
            assert "for everybody" in await waiting_poll
            assert (sessions(houses[owner]), sessions(houses[1 - owner])) == (1, owner)
            status, headers, _ = await ask(
                other, "POST", where + "/xhr_send", PAGE, body=b'["\\n"]'
            )
            assert status == 204
            # Once, although two workers answered.
            assert headers["access-control-allow-origin"] == PAGE.removeprefix("Origin: ")


@pytest.mark.parametrize("way", ["door", "aiohttp"])
async def test_a_stream_comes_through_and_its_end_is_seen(way: str) -> None:
    async with workers() as houses:
        owner, other = houses
        where = places()[0]
        asked = request("POST", where + "/xhr_streaming", body=b"")
        stream = await other.connect(b"" if way == "aiohttp" else asked)
        if way == "aiohttp":
            await stream.send(request("GET", "/stomp/info"))
            assert (await stream.response())[0] == 200
            await stream.send(asked)
        status, headers = await head(stream)
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        await stream.until(b"o\n")
        await send(owner, where, LOGIN)
        await stream.until(b"CONNECTED")
        await send(other, where, SUBSCRIBE)
        await stream.until(b"RECEIPT")
        for number in range(3):
            await owner.publish("/topic/t", b"message %d" % number)
            await stream.until(b"message %d" % number)
        assert sessions(other) == 0
        [session] = owner.server._sockjs.sessions
        # The client is cut off: the owner must not go on behind a hole.
        stream.writer.transport.abort()
        await owner.eventually(lambda: session.over)


async def test_a_stream_ends_with_its_owner_and_its_session_is_gone() -> None:
    async with workers() as houses:
        owner, other = houses
        where = places()[0]
        stream = await other.connect(request("POST", where + "/xhr_streaming", body=b""))
        await stream.until(b"o\n")
        for connection in owner.server.connections:
            connection.transport.abort()
        await stream.rest()
        await owner.close()
        for suffix in ("/xhr", "/xhr_send"):
            status, _, body = await ask(other, "POST", where + suffix, body=b'["x"]')
            problem = json.loads(body)
            assert (status, problem["code"], problem["retry"]) == (503, "unavailable", True)
            assert "worker 0" in problem["text"]


async def test_a_client_that_goes_ends_the_poll_that_was_handed_over() -> None:
    async with workers() as houses:
        owner, other = houses
        where = places()[0]
        assert await poll(other, where) == "o\n"
        client = await other.connect(request("POST", where + "/xhr", body=b""))
        await owner.eventually(lambda: waiting(owner))
        client.writer.transport.abort()
        [session] = owner.server._sockjs.sessions
        await owner.eventually(lambda: session.over)


async def work(house: House, count: int) -> tuple[Any, list[str]]:
    """Publish to a worker's queue, and take the messages over SSE; returns stream and ack ids."""
    for number in range(count):
        await house.publish("/queue/jobs", b"job %d" % number)
    stream = await house.connect(request("GET", "/sse/queue/jobs?ack=client&envelope=json"))
    acks: list[str] = []
    while len(acks) < count:
        line = await stream.until(b"\n")
        if b'"ack"' in line:
            acks.append(json.loads(line.removeprefix(b"data: "))["ack"])
    return stream, acks


async def settle(house: House, **said: Any) -> tuple[int, dict[str, Any]]:
    client = await house.connect(request("POST", "/ack", body=json.dumps(said).encode()))
    status, _, body = await client.response()
    return status, json.loads(body)


async def test_acks_are_taken_anywhere() -> None:
    async with workers() as houses:
        one, other = houses
        _, first = await work(one, 3)
        _, second = await work(other, 2)
        assert first[0].startswith("node-0.")
        assert second[0].startswith("node-1.")
        assert await settle(other, ack=first[0]) == (200, {"settled": 1})
        # Of both workers in one request.
        assert await settle(one, ack=[first[1], second[0]]) == (200, {"settled": 2})
        status, said = await settle(
            one, nack=[second[0], "nonsense", first[0], second[1]], requeue=False
        )
        assert status == 409
        assert said["settled"] == 1
        assert [each["nack"] for each in said["failed"]] == [second[0], "nonsense", first[0]]
        assert [each["code"] for each in said["failed"]] == ["settled", "bad_request", "settled"]
        # Rejected, not requeued: nothing is left there.
        broker = cast(Any, other.gateway.broker)
        queue = broker.counts().queues["jobs"]
        assert (queue.ready, queue.unacked) == (0, 0)
        await one.close()
        status, said = await settle(other, ack=first[2])
        assert (status, said["code"]) == (404, "not_found")
        assert "went back" in said["failed"][0]["hint"]
        foreign = first[2].replace("node-0", "other-0")
        status, said = await settle(other, ack=foreign)
        assert (status, said["code"]) == (409, "elsewhere")


async def test_a_poll_goes_on_at_another_worker() -> None:
    async with workers() as houses:
        one, other = houses
        await one.publish("/queue/jobs", b"first")
        _, _, body = await ask(one, "GET", "/poll/queue/jobs?ack=client")
        said = json.loads(body)
        assert [each["body"] for each in said["messages"]] == ["first"]
        assert (await settle(other, ack=said["messages"][0]["ack"]))[0] == 200
        polling = asyncio.create_task(
            ask(other, "GET", f"/poll/queue/jobs?ack=client&session={said['session']}")
        )
        [session] = one.gateway.services.polls
        await one.eventually(lambda: not session.paused)
        await one.publish("/queue/jobs", b"second")
        status, _, body = await polling
        assert status == 200
        assert [each["body"] for each in json.loads(body)["messages"]] == ["second"]


async def test_a_publish_that_is_tried_again_elsewhere_is_done_once() -> None:
    async with workers() as houses:
        keys = [f"key-{number}" for number in range(6)]
        for key in keys:
            for house in houses:
                line = f"Idempotency-Key: {key}"
                answer = await ask(house, "POST", "/publish/queue/once", line, body=key.encode())
                assert answer[0] == 200
        counts = [cast(Any, house.gateway.broker).counts().queues.get("once") for house in houses]
        assert sum(each.ready for each in counts if each) == len(keys)
        assert all(each and each.ready for each in counts), "each has some of the keys"


async def test_what_is_too_large_is_refused_before_it_is_handed_over() -> None:
    async with workers(limits={"message": 1000, "frame": 2000, "batch_bytes": 2000}) as houses:
        where = places()[0]
        assert await poll(houses[1], where) == "o\n"
        body = json.dumps(["x" * 5000]).encode()
        status, _, answer = await ask(houses[1], "POST", where + "/xhr_send", body=body)
        assert (status, json.loads(answer)["code"]) == (413, "too_large")


async def test_garbage_in_headers_hurts_nobody() -> None:
    async with workers() as houses:
        for house in houses:
            where = places()[0]
            client = await house.connect(
                f"POST {where}/xhr HTTP/1.1\r\nHost: localhost\r\nX-Odd: ".encode()
                + b"\xff\xfe\r\nContent-Length: 0\r\n\r\n"
            )
            status, _, body = await client.response()
            assert (status, body) == (200, b"o\n")


async def test_nobody_but_a_worker_says_whose_a_request_is() -> None:
    # The header counts on the workers' own socket alone: over TCP it is only a header.
    async with workers() as houses:
        spoofed = f"{HANDED}: 192.0.2.7"
        for house in houses:
            assert (await ask(house, "POST", places()[1] + "/xhr", spoofed))[0] == 200
        first, second = houses[1].server._sockjs.sessions
        assert (first._peer.loopback, second._peer.loopback) == (True, True)

    class Transport:
        def __init__(self, family: int, peer: object) -> None:
            self.socket = socket.socket(family)
            self._peer = peer

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return {"socket": self.socket, "peername": self._peer}.get(name, default)

    headers = {HANDED: "192.0.2.7"}
    # A Unix socket's peer is text; one that has been reset has none, of either kind.
    for family, peer, address in (
        (socket.AF_INET, ("10.0.0.1", 5), "10.0.0.1"),
        (socket.AF_INET, None, ""),
        (socket.AF_UNIX, "", "192.0.2.7"),
        (socket.AF_UNIX, None, "192.0.2.7"),
    ):
        transport = Transport(family, peer)
        assert peer_address(headers, cast(asyncio.BaseTransport, transport)) == address
        transport.socket.close()


def test_names_decide() -> None:
    at = Place(1, 3, "a-b", Path())
    assert at.name == "a-b-1"
    ack = "x" * 22 + ".1.1"
    assert at.by_owner([f"a-b-0.{ack}", f"a-b-1.{ack}", f"a-b-2.{ack}", f"a-b-3.{ack}", 5]) == {
        0: [f"a-b-0.{ack}"],
        None: [f"a-b-1.{ack}", f"a-b-3.{ack}", 5],
        2: [f"a-b-2.{ack}"],
    }
    poll = Route("poll", "/queue/q")
    for session, owner in (
        ("a-b-2.s.1", 2),
        ("a-b-1.s.1", None),
        ("a-b-7.s.1", None),
        ("c-0.s.1", None),
        ("", None),
    ):
        assert at.owner(poll, "GET", f"ack=client&session={session}", {}) == owner
    publish = Route("publish", "/topic/t")
    assert at.owner(publish, "POST", "", {}) is None
    plain = at.owner(publish, "POST", "", {"idempotency-key": "k"})
    assert plain == at.owner(publish, "POST", "", {"idempotency-key": '"k"'})
    assert at.owner(Route("sockjs", "/000/s/websocket"), "GET", "", {}) is None
    assert at.owner(Route("sockjs", "/info"), "GET", "", {}) is None
    assert at.owner(Route("sse", "/topic/t"), "GET", "", {}) is None
