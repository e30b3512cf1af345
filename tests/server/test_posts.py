"""Small publishes without aiohttp: the same as with it, one after the other, within limits."""

import asyncio
import copy
import gc
import json
import logging
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from queuecast.errors import OutcomeUnknown, PublishFailed, Refused, Unavailable
from queuecast.server.answers import Answer
from queuecast.server.poster import State
from queuecast.server.posts import Posts
from tests.server.house import Client, House, request, running
from tests.server.posts_rig import Ear, Wire

pytestmark = pytest.mark.both_loops

ORIGIN = "Origin: http://localhost:3000"


def post(target: str = "/topic/a", *lines: str, body: bytes = b"x") -> bytes:
    return request("POST", f"/publish{target}", *lines, body=body)


def posts_of(house: House) -> Posts:
    posts = house.server._posts
    assert posts is not None
    return posts


def aiohttps(house: House) -> int:
    """Count the connections that aiohttp has."""
    assert house.server._http is not None
    return len(house.server._http.connections)


async def reset(client: Client) -> None:
    """End a connection the hard way."""
    linger = struct.pack("ii", 1, 0)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.writer.transport.abort()


# -- the same as the long way -----------------------------------------------------------------

OUTCOMES: dict[bytes, Exception] = {
    b"down": Unavailable("RabbitMQ is away: refused", "it is tried again"),
    b"nack": PublishFailed("the broker said no"),
    b"unknown": OutcomeUnknown("the connection went"),
    b"denied": Refused("access to exchange 'x' refused"),
    b"mistake": ZeroDivisionError("secret"),
}

REQUESTS = {
    "plain": post(),
    "text": post("/topic/a", "Content-Type: text/plain; charset=utf-8"),
    "empty": post(body=b""),
    "binary": post(body=b"\x00\xff\r\n\r\nPOST / HTTP/1.1\r\n\r\n"),
    "longest": post(body=b"x" * 2000),
    "too long": post(body=b"x" * 2001),
    "encoded key": post("/exchange/events/%E9%94%AE"),
    "alias": post("/events/42"),
    "alias with a pattern": post("/events/%23"),
    "alias that is refused": post("/hidden/42"),
    "all properties": post(
        "/topic/a?persistent=false&expiration=60000&priority=3&correlation-id=c&reply-to=r"
        "&message-id=m&timestamp=1700000000&type=t&app-id=a&mandatory=false&header.trace=7"
        "&header.type=own&token=secret",
        "Content-Type: text/x-own",
        "Content-Encoding: gzip",
    ),
    "content type twice": post("/topic/a", "Content-Type: a/b", "Content-Type: c/d"),
    "encoding twice": post("/topic/a", "Content-Encoding: gzip", "Content-Encoding: br"),
    "encodings": post("/topic/a", "Content-Encoding: gzip, br"),
    "empty content type": post("/topic/a", "Content-Type:"),
    "long content type": post("/topic/a", f"Content-Type: text/{'x' * 300}"),
    "content type in UTF-8": post("/topic/a", "Content-Type: text/é"),
    "content type in Latin-1": post().replace(b"\r\n\r\n", b"\r\nContent-Type: \xe9\r\n\r\n", 1),
    "wildcard": post("/topic/a.%23"),
    "star": post("/exchange/events/*"),
    "no such kind": post("/nowhere"),
    "no such exchange": post("/exchange/nix/a"),
    "cut key": post("/topic/a."),
    "empty key": post("/topic/"),
    "bad escape": post("/topic/%zz"),
    "too many segments": post("/topic/a/b"),
    "refused by the rules": post("/topic/secret"),
    "unroutable": post("/amq/queue/nix"),
    "mandatory, unroutable": post("/topic/a?mandatory=true"),
    "queue": post("/queue/q"),
    "unknown parameter": post("/topic/a?nix=1"),
    "parameter twice": post("/topic/a?priority=1&priority=2"),
    "bad parameter": post("/topic/a?priority=300"),
    "bad flag": post("/topic/a?mandatory=yes"),
    "bad query": post("/topic/a?header.a=%ff"),
    "origin": post("/topic/a", ORIGIN),
    "foreign origin": post("/topic/a", "Origin: http://evil.example"),
    "origin null": post("/topic/a", "Origin: null"),
    "origin and a mistake": post("/topic/a?nix=1", ORIGIN),
    "origin and a refusal": post("/topic/secret", ORIGIN),
    "cross-site": post("/topic/a", "Sec-Fetch-Site: cross-site"),
    "foreign host": post("/topic/a", "Host: evil.example"),
    "host with a port": post("/topic/a", "Host: localhost:8080"),
    "absolute form": request("POST", "http://localhost/publish/topic/a", body=b"x"),
    "absolute form of another": request("POST", "http://evil.example/publish/topic/a", body=b"x"),
    "key": post("/topic/a", "Idempotency-Key: k1"),
    "quoted key": post("/topic/a", 'Idempotency-Key: "k2"'),
    "bad key": post("/topic/a", f"Idempotency-Key: {'k' * 300}"),
    "empty key header": post("/topic/a", "Idempotency-Key:"),
    "key twice": post("/topic/a", "Idempotency-Key: a", "Idempotency-Key: b"),
    "cookie and login": post("/topic/a", "Cookie: a=b", "Authorization: Bearer x"),
    "keep-alive": post("/topic/a", "Connection: keep-alive"),
    "keep-alive, shouted": post("/topic/a", "Connection: Keep-Alive"),
    "close": post("/topic/a", "Connection: close"),
    "close and a refusal": post("/topic/a?nix=1", "Connection: close"),
    "close and a failure": post("/topic/a", "Connection: close", body=b"nack"),
    "padded length": request("POST", "/publish/topic/a", "Content-Length: 001") + b"x",
    "verb alone": request("POST", "/publish", body=b'{"messages": []}'),
    **{name.decode(): post(body=name) for name in OUTCOMES},
    "alias and the broker's refusal": post("/events/42", body=b"denied"),
}

TABLES: dict[str, Any] = {
    "limits": {"message": 2000},
    "exchange": [{"name": "events"}],
    "aliases": {"/events/{id}": "/exchange/events/{id}", "/hidden/{id}": "/topic/hidden.{id}"},
    "allow": [
        {
            "who": "anonymous",
            "publish": ["/topic/a", "/exchange/*/#", "/queue/q", "/amq/queue/nix"],
        }
    ],
}


async def told(house: House, data: bytes, *, long: bool) -> Any:
    """Return the answer to a request, and what the broker was given, by one of the two ways."""
    ear = Ear(house)
    ear.outcomes = OUTCOMES
    client = await house.connect(request("GET", "/healthz") if long else b"")
    if long:
        assert (await client.response())[0] == 200
    await client.send(data)
    status, headers, body = await client.response()
    headers.pop("date")
    # What aiohttp cannot parse it answers by itself.
    ends = headers.get("connection") == "close" or headers["server"] != "queuecast"
    if ends:
        assert await client.rest() == b""
    else:
        # It goes on as if nothing had been.
        await client.send(post(body=b"next"))
        assert (await client.response())[0] == 200
        assert ear.seen.pop()[1] == b"next"
    client.writer.close()
    house.gateway.services.publish, house.gateway.services.at_once = ear._publish, ear._at_once
    return status, headers, body, ear.seen


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_give_the_same_answer(name: str) -> None:
    found = []
    for long in (False, True):
        # Each with a house of its own: keys and queues are remembered.
        async with running(**TABLES) as house:
            found.append(await told(house, REQUESTS[name], long=long))
    assert found[0] == found[1]


async def test_each_refusal_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    data = post("/topic/secret")
    async with running(**TABLES) as house:
        client = await house.connect(data + data)
        for _ in range(2):
            assert (await client.response())[0] == 403
        house.gateway._refusals._next = 0.0
        await client.send(data)
        assert (await client.response())[0] == 403
        assert len(posts_of(house)) == 1
    logged = [each.getMessage() for each in caplog.records if "/topic/secret" in each.getMessage()]
    assert len(logged) == 2
    assert "[[allow]]" in logged[0]
    assert logged[1].endswith("(and 1 more since the last such line)")


async def test_plans_are_kept_within_a_bound_and_for_equal_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("queuecast.server.plan._KEPT", 3)
    async with running() as house:
        ear = Ear(house)
        kept = house.server._plans._kept
        first, second = Wire(house), Wire(house)
        first.feed(post("/topic/1") + post("/topic/2") + post("/topic/3") + post("/topic/1"))
        second.feed(post("/topic/1", body=b"of another length"))
        requests = (first.poster._request, second.poster._request)
        assert len({each.plan for each in requests if each is not None}) == 1
        assert None not in requests
        # Another key each time, a refusal, and what aiohttp has are nobody else's.
        first.feed(post("/topic/1", "Idempotency-Key: 1") + post("/topic/4?nix=1"))
        await house.eventually(lambda: first.said.count(b"HTTP/1.1") == 6)
        assert len(kept) == 3
        first.feed(post("/topic/5") + post("/topic/1"))
        assert [raw.split()[1] for raw in kept] == [b"/publish/topic/%d" % n for n in (3, 5, 1)]
        assert len(ear.seen) == 8
        first.lose()
        second.lose()


async def test_heads_that_differ_in_length_share_a_plan() -> None:
    async with running(limits={"message": 100_000}) as house:
        ear = Ear(house)
        bodies = [bytes((65 + size % 26,)) * size for size in (*range(300), 65_536)]
        client = await house.connect(b"".join(post(body=body) for body in bodies))
        for _ in bodies:
            assert (await client.response())[0] == 200
        assert ear.bodies == bodies
        assert len(house.server._plans._kept) == 1
        # However well the rest is known: too large for us, and too large for anybody.
        for size, status in ((65_537, 200), (100_001, 413)):
            client = await house.connect(post() + post(body=b"x" * size))
            assert (await client.response())[0] == 200
            assert (await client.response())[0] == status
            assert len(posts_of(house)) == 1
        assert len(house.server._plans._kept) == 1


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: \r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: ",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 1\r\ncontent-length: 5",
        "Content-Length: \r\nContent-Length: \r\nContent-Length: 5",
        "Content-Length: +1",
        "Content-Length:  ",
        "Content-Length: 1 5",
        "Content-Length: ",
    ],
)
async def test_a_plan_is_of_one_length_only(lines: str) -> None:
    async with running() as house:
        ear = Ear(house)
        good = post()
        client = await house.connect(good)
        assert (await client.response())[0] == 200
        assert len(house.server._plans._kept) == 1
        for first in (b"", good):
            client = await house.connect(first + good.replace(b"Content-Length: 1", lines.encode()))
            if first:
                assert (await client.response())[0] == 200
            assert (await client.rest()).startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
        assert ear.bodies == [b"x", b"x"]
        assert len(house.server._plans._kept) == 1


async def test_a_proxys_clients_share_no_plan() -> None:
    server = {"trusted_proxies": ["10.0.0.0/8"], "origins": ["http://shop.example"]}
    async with running(server=server, allow=TABLES["allow"]) as house:
        forwarded = ("X-Forwarded-Host: shop.example", "Origin: http://shop.example")
        data = post("/topic/a", "Host: inner.example", *forwarded)
        trusted, stranger = Wire(house, "10.0.0.1"), Wire(house, "192.0.2.1")
        for _ in range(2):
            trusted.feed(data)
            stranger.feed(data)
        assert trusted.said.count(b"HTTP/1.1 200 OK") == 2
        assert stranger.said.count(b"HTTP/1.1 403 Forbidden") == 2
        trusted.lose()
        stranger.lose()


async def test_a_key_is_published_once_on_one_connection() -> None:
    async with running() as house:
        ear = Ear(house)
        key = "Idempotency-Key: k"
        client = await house.connect(post("/topic/a", key) * 2 + post("/topic/a", key, body=b"y"))
        assert (await client.response())[0] == (await client.response())[0] == 200
        status, problem = await client.problem()
        assert (status, problem["code"]) == (409, "conflict")
        assert ear.bodies == [b"x"]
        assert len(posts_of(house)) == 1


async def test_a_mistake_of_ours_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as house:
        ear = Ear(house)
        ear.outcomes = OUTCOMES
        for hold in (None, asyncio.Event()):
            ear.hold = hold
            client = await house.connect(post(body=b"mistake") + post())
            status, problem = await client.problem()
            assert (status, problem["code"]) == (500, "internal")
            assert "secret" not in str(problem)
            if hold is not None:
                hold.set()
            assert (await client.response())[0] == 200
        assert caplog.text.count("ZeroDivisionError: secret") == 2


@pytest.mark.parametrize("durable", [False, True])
async def test_what_messages_share_stays_as_it_was(durable: bool, tmp_path: Path) -> None:
    arguments = {
        "x-max-length": 1,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
    }
    queues: list[dict[str, Any]] = [
        {"name": "short", "arguments": arguments},
        {"name": "dead"},
    ]
    async with running(
        broker={"data": str(tmp_path / "data")} if durable else {},
        queue=queues,
        retain=[{"destination": "/topic/#", "age": "1h"}],
    ) as house:
        targets = ("/queue/short", "/topic/a")
        for target in targets:
            data = post(f"{target}?expiration=60000&header.trace=7&header.x-first-death-queue=own")
            client = await house.connect(data)
            assert (await client.response())[0] == 200
            posters = [each for every in posts_of(house)._waiting for each in every]
            (plan,) = {each._request.plan for each in posters if each._request is not None}
            assert not isinstance(plan.wanted, Answer)
            before = copy.deepcopy(plan.wanted.properties)
            await client.send(data * 3)
            for _ in range(3):
                assert (await client.response())[0] == 200
            # Dead letters, a feed that replays, and STOMP and an envelope that name headers.
            source = target if target != "/queue/short" else "/queue/dead"
            wanted = "&last=4" if source == target else ""
            stream = await house.connect(
                request("GET", f"/sse{source}?envelope=json{wanted}", "Accept: text/event-stream")
            )
            for number in range(4 if source == target else 3):
                event = await stream.until(b'"body":"x"')
                assert b'"trace":"7"' in event, number
                assert b'"x-first-death-queue":"own"' in event
                assert event.count(b'"count":1') == (source != target)
            assert plan.wanted.properties == before
            stream.writer.close()
            client.writer.close()
            await house.eventually(lambda: len(posts_of(house)) == 0)


async def test_after_a_refusal_the_next_is_read_like_any_other() -> None:
    for following in (b"\0", b"\0\0", b"\0" + post()):
        async with running() as house:
            ear = Ear(house)
            client = await house.connect(post("/topic/a?nix=1") + following)
            assert (await client.response())[0] == 400
            client.writer.write_eof()
            assert b" 500 " not in await client.rest()
            assert ear.bodies == []
            await house.eventually(lambda house=house: house.server.sockets.open == 0)


# -- who serves what --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "ours"),
    [
        (post(), True),
        (b"\r\n\r\n" + post(), True),
        (post("/topic/a", "Cookie: " + "x" * 3000), True),
        (post("/topic/a", "Cookie: " + "x" * 5000), False),
        (post(body=b"x" * 65536), True),
        (post(body=b"x" * 65537), False),
        (post("/topic/a", "Connection: keep-alive, te"), False),
        (post().replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (request("POST", "/publish/topic/a"), False),
        (request("POST", "/publish/topic/a", "Transfer-Encoding: chunked") + b"0\r\n\r\n", False),
        (request("POST", "/publish?destination=/topic/a", body=b"{}"), False),
        (request("PUT", "/publish/topic/a", body=b"x"), False),
        (request("OPTIONS", "/publish/topic/a"), False),
        (request("POST", "/ack", body=b"{}"), False),
    ],
)
async def test_who_serves_a_connection(data: bytes, ours: bool) -> None:
    async with running() as house:
        client = await house.connect(data)
        await client.response()
        assert (len(posts_of(house)) == 1) is ours
        if b"HTTP/1.0" not in data:
            # Whoever has it now, it is counted once, and the next request is answered.
            assert house.server.sockets.open == 1
            await client.send(post())
            await client.until(b'{"published":"/topic/a"}\n')
        client.writer.close()
        await house.eventually(lambda: house.server.sockets.open == 0)
        assert len(posts_of(house)) == 0


async def test_what_is_not_ours_goes_to_aiohttp_for_good() -> None:
    async with running() as house:
        ear = Ear(house)
        batch = json.dumps({"messages": [{"destination": "/topic/a", "body": "3"}]}).encode()
        client = await house.connect(
            post(body=b"1")
            + post(body=b"2")
            + request("POST", "/publish", body=batch)
            + post(body=b"4")
            + request("GET", "/healthz")
        )
        answers = [(await client.response())[2] for _ in range(5)]
        assert answers[0] == answers[1] == answers[3] == b'{"published":"/topic/a"}\n'
        assert answers[2] == b'{"published":["/topic/a"]}\n'
        assert answers[4] == b'{"status":"ok"}\n'
        assert ear.bodies == [b"1", b"2", b"3", b"4"]
        assert (len(posts_of(house)), aiohttps(house)) == (0, 1)
        await client.send(post(body=b"5") + request("GET", "/sse/topic/a?last=5"))
        assert (await client.response())[0] == 200
        await client.opened()
        for number in (b"1", b"2", b"3", b"4", b"5"):
            await client.until(b"data: " + number + b"\n")
        assert house.server.sockets.open == 1
        client.writer.close()
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_an_event_stream_follows_at_once() -> None:
    async with running() as house:
        client = await house.connect(post(body=b"1") + request("GET", "/sse/topic/a?last=1"))
        assert (await client.response())[0] == 200
        await client.opened()
        await client.until(b"data: 1\n")
        assert len(house.server.connections) == 1


# -- pipelining, and what comes in pieces -----------------------------------------------------


async def test_a_thousand_pipelined_requests_keep_their_order() -> None:
    async with running() as house:
        ear = Ear(house)
        numbers = range(1000)
        client = await house.connect()
        data = b"".join(post(f"/topic/n{each}", body=b"%d" % each) for each in numbers)
        sending = asyncio.create_task(client.send(data))
        for number in numbers:
            assert (await client.response())[2] == b'{"published":"/topic/n%d"}\n' % number
        await sending
        assert ear.bodies == [b"%d" % number for number in numbers]
        assert len(posts_of(house)) == 1
        assert house.gateway.services.counts.publishes == {"confirmed": 1000}


async def test_one_read_is_answered_with_one_write_and_leaves_the_loop_its_turns() -> None:
    async with running() as house:
        wire = Wire(house)
        wire.feed(post() * 64)
        assert len(wire.written) == 1
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if wire.said.count(b"200 OK") < 64 + 200:
                asyncio.get_running_loop().call_soon(turn)

        wire.feed(post() * 200)
        asyncio.get_running_loop().call_soon(turn)
        await house.eventually(lambda: wire.said.count(b"200 OK") == 64 + 200)
        assert len(wire.written) == 1 + 4
        assert turns >= 3
        wire.lose()


async def test_the_more_have_more_to_say_the_less_each_says_at_a_time() -> None:
    async with running() as house:
        wires = [Wire(house) for _ in range(150)]
        for wire in wires:
            wire.feed(post() * 100)
        assert [wires[at].said.count(b"200 OK") for at in (0, 15, 31, 149)] == [64, 64, 32, 8]
        await house.eventually(
            lambda: all(wire.said.count(b"200 OK") == 100 for wire in wires),
        )
        assert len(wires[149].written) > 3
        # Nobody else has anything to say now.
        wires[0].feed(post() * 64)
        assert wires[0].said.count(b"200 OK") == 164
        for wire in wires:
            wire.lose()


async def test_requests_may_be_cut_anywhere() -> None:
    async with running() as house:
        ear = Ear(house)
        data = (
            post("/topic/a", body=b"1" * 30)
            + post("/topic/b", "Content-Type: a/b", body=b"\r\n\r\n")
            + post("/topic/a?nix=1", body=b"no")
            + post("/topic/a", body=b"")
        )
        whole = Wire(house)
        whole.feed(data)
        expected = whole.said
        assert expected.count(b"HTTP/1.1 200") == 3
        whole.lose()
        bodies, ear.seen = ear.bodies, []
        for cut in range(1, len(data)):
            wire = Wire(house)
            wire.feed(data[:cut])
            wire.feed(data[cut:])
            assert (wire.said, ear.bodies) == (expected, bodies)
            wire.lose()
            ear.seen = []
        wire = Wire(house)
        for byte in data:
            wire.feed(bytes((byte,)))
        assert (wire.said, ear.bodies) == (expected, bodies)
        wire.lose()
        assert house.server._uploads._uploading == 0
        assert house.server.sockets.open == 0


async def test_cuts_while_publishes_wait() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        ear.hold.set()
        data = b"".join(post(f"/topic/n{n}", body=b"%d" % n) for n in range(4))
        for cut in range(1, len(data), 7):
            wire = Wire(house)
            wire.feed(data[:cut])
            if cut % 2:
                await asyncio.sleep(0)
            wire.feed(data[cut:])
            await house.eventually(lambda wire=wire: wire.said.count(b"200 OK") == 4)
            places = [wire.said.index(b"/topic/n%d" % n) for n in range(4)]
            assert places == sorted(places)
            assert ear.bodies == [b"0", b"1", b"2", b"3"]
            ear.seen = []
            wire.lose()


# -- what waits -------------------------------------------------------------------------------


async def test_one_publish_after_the_other() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        client = await house.connect(post(body=b"1") + post(body=b"2") + request("GET", "/healthz"))
        await house.eventually(lambda: ear.bodies == [b"1"])
        await asyncio.sleep(0.02)
        assert ear.bodies == [b"1"]
        ear.hold.set()
        assert [(await client.response())[0] for _ in range(3)] == [200, 200, 200]
        assert ear.bodies == [b"1", b"2"]


async def test_a_client_that_is_far_ahead_is_read_no_more() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        wire = Wire(house)
        wire.feed(post(body=b"first"))
        wire.feed(post(body=b"y" * 60_000))
        assert wire.reading
        wire.feed(post(body=b"z" * 60_000))
        assert not wire.reading
        assert house.server._uploads._uploading > 120_000
        ear.hold.set()
        await house.eventually(lambda: wire.said.count(b"200 OK") == 3)
        assert wire.reading
        assert house.server._uploads._uploading == 0
        wire.lose()


async def test_what_is_held_counts_among_the_uploads() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        uploads = house.server._uploads
        wire = Wire(house)
        wire.feed(post())
        uploads.hold(uploads._limits.uploads - 1000)
        wire.feed(post(body=b"x" * 2000))
        assert not wire.reading
        wire.lose()
        assert uploads._uploading == uploads._limits.uploads - 1000
        ear.hold.set()


@pytest.mark.parametrize("more", [b"", post(body=b"2")])
async def test_a_client_that_is_reset_while_its_publish_waits(
    more: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        client = await house.connect(post(body=b"1") + more)
        await house.eventually(lambda: ear.bodies == [b"1"])
        await reset(client)
        await house.eventually(lambda: house.server.sockets.open == 0)
        assert len(posts_of(house)) == 0
        ear.hold.set()
        await house.eventually(lambda: house.gateway.services.counts.publishes["confirmed"] == 1)
        assert ear.bodies == [b"1"]
        assert house.server._uploads._uploading == 0
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("first", [b"", post()], ids=["first", "second"])
async def test_a_client_that_is_gone_when_aiohttp_begins(
    first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as house:
        wire = Wire(house)
        wire.feed(first + request("GET", "/healthz"))
        assert aiohttps(house) == 1
        wire.lose()
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        # Nor is it begun for who is known to be gone.
        wire = Wire(house)
        wire.feed(post())
        wire.closed = True
        wire.feed(request("GET", "/healthz"))
        assert aiohttps(house) == 0
        wire.lose()
        assert house.server.sockets.open == len(posts_of(house)) == 0
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_client_that_goes_when_aiohttp_has_its_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as house:
        for target in ("/publish", "/publish/topic/a"):
            for turns in range(4):
                wire = Wire(house)
                wire.feed(request("GET", "/healthz"))
                await house.eventually(lambda wire=wire: b"200 OK" in wire.said)
                wire.feed(request("POST", target, "Transfer-Encoding: chunked") + b"5\r\nab")
                for _ in range(turns):
                    await asyncio.sleep(0)
                wire.lose()
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        assert house.server._uploads._uploading == 0
        await house.eventually(lambda: house.server.sockets.open == 0)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_client_that_says_its_last_still_gets_its_answers() -> None:
    async with running() as house:
        ear = Ear(house)
        for hold in (None, asyncio.Event()):
            ear.seen, ear.hold = [], hold
            client = await house.connect(post(body=b"1") + post(body=b"2"))
            client.writer.write_eof()
            await house.eventually(lambda: ear.bodies[:1] == [b"1"])
            await asyncio.sleep(0.02)
            if hold is not None:
                hold.set()
            assert (await client.rest()).count(b"HTTP/1.1 200 OK") == 2
            assert ear.bodies == [b"1", b"2"]
            await house.eventually(lambda: house.server.sockets.open == 0)


async def test_the_last_that_a_client_says_may_be_aiohttps() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        client = await house.connect(post() + request("GET", "/healthz", "Connection: close"))
        client.writer.write_eof()
        await house.eventually(lambda: ear.bodies == [b"x"])
        await asyncio.sleep(0.02)
        ear.hold.set()
        assert (await client.rest()).count(b"HTTP/1.1 200 OK") == 2
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_half_a_request_and_the_end() -> None:
    async with running() as house:
        client = await house.connect(post() + post()[:-1])
        client.writer.write_eof()
        assert (await client.rest()).count(b"HTTP/1.1") == 1
        await house.eventually(lambda: house.server.sockets.open == 0)
        assert house.server._uploads._uploading == 0


async def test_a_client_that_does_not_read_is_not_served() -> None:
    async with running() as house:
        ear = Ear(house)
        wire = Wire(house)
        wire.feed(post(body=b"1"))
        wire.poster.pause_writing()
        wire.feed(post(body=b"2") + request("GET", "/healthz"))
        assert ear.bodies == [b"1"]
        assert wire.reading
        wire.feed(post(body=b"x" * 65_536))
        assert not wire.reading
        wire.poster.resume_writing()
        assert ear.bodies == [b"1", b"2"]
        # aiohttp has the rest, and may read.
        assert wire.reading
        await house.eventually(lambda: wire.said.count(b"HTTP/1.1 200 OK") == 4)
        wire.close()
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_a_client_that_reads_late_over_a_real_socket() -> None:
    async with running() as house:
        ear = Ear(house)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", house.port))
            total = 60_000
            sending = asyncio.create_task(loop.sock_sendall(client, post() * total))
            posts = posts_of(house)
            await house.eventually(lambda: any(each._paused for each in posts._waiting[0]))
            (poster,) = posts._waiting[State.IDLE]
            seen = len(ear.seen)
            await house.eventually(lambda: poster._stopped)
            assert len(ear.seen) == seen < total
            # What it may have sent ahead, and one read.
            assert len(poster._data) + len(poster._more) <= (64 + 256) * 1024
            answer = len(b"".join(Wire.answers(house, post())))
            left = total * answer
            while left:
                left -= len(await asyncio.wait_for(loop.sock_recv(client, 1 << 18), 10))
            await sending
        assert len(ear.seen) == total + 1


# -- what could be taken for something else ---------------------------------------------------

EVIL = post("/topic/evil", body=b"evil")


@pytest.mark.parametrize(
    "lines",
    [
        (f"Content-Length: {len(EVIL)}", "Content-Length: 0"),
        ("Content-Length: 0", f"Content-Length: {len(EVIL)}"),
        (f"Content-Length: 0, {len(EVIL)}",),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 0"),
        ("Transfer-Encoding: xchunked", "Content-Length: 0"),
        ("Transfer-Encoding : chunked", "Content-Length: 0"),
        ("Content-Length: -1",),
        ("Content-Length: +0",),
        ("Content-Length: 0x0",),
        ("Content-Length: 1_0",),
        ("Content-Length: ٣",),
        ("Content-Length: 99999999999999999999",),
        ("Content-Length:",),
        ("Content-Length : 0",),
        (" Content-Length: 0",),
        ("X: a\r\n Content-Length: 3", "Content-Length: 0"),
        ("X: a\nTransfer-Encoding: chunked", "Content-Length: 0"),
        ("X: a\rTransfer-Encoding: chunked", "Content-Length: 0"),
        ("X: a\n\r\nfoo", "Content-Length: 0"),
        ("X: \0", "Content-Length: 0"),
        ("Host: localhost", "Host: evil.example", "Content-Length: 0"),
    ],
)
@pytest.mark.parametrize("first", [b"", post(body=b"good")], ids=["first", "second"])
async def test_requests_that_two_would_read_differently(
    lines: tuple[str, ...], first: bytes
) -> None:
    async with running() as house:
        ear = Ear(house)
        data = request("POST", "/publish/topic/a", *lines)
        client = await house.connect(first + data + EVIL)
        answers = await client.rest()
        if first:
            good, _, answers = answers.partition(b'{"published":"/topic/a"}\n')
            assert good.startswith(b"HTTP/1.1 200 ")
        assert answers.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ", b"HTTP/1.1 413 "))
        assert answers.count(b"HTTP/1.") == 1
        assert ear.bodies == ([b"good"] if first else [])


async def test_garbage_behind_a_good_request() -> None:
    for garbage in (b"\x16\x03\x01\x02\x00", b"POSTER / HTTP/1.1\r\n\r\n", b"PO\0T", b"\0" * 99):
        async with running() as house:
            client = await house.connect(post() + garbage)
            assert (await client.response())[0] == 200
            client.writer.write_eof()
            assert b"200 OK" not in await client.rest()
            await house.eventually(lambda house=house: house.server.sockets.open == 0)


async def test_lines_without_cr_are_refused_at_once() -> None:
    data = post()
    for bad in (
        data.replace(b"\r\n", b"\n"),
        data.replace(b"\r\n\r\n", b"\n\r\n"),
        data.replace(b"\r\n\r\n", b"\r\n\n"),
        b"POST \n",
    ):
        async with running() as house:
            ear = Ear(house)
            client = await house.connect(data)
            assert (await client.response())[0] == 200
            await client.send(bad)
            assert b" 400 " in await client.until(b"\r\n")
            assert ear.bodies == [b"x"]


async def test_a_head_that_never_ends_behind_a_good_request() -> None:
    async with running() as house:
        client = await house.connect(post() + b"POST /publish/topic/a HTTP/1.1\r\nHost: localhost")
        assert (await client.response())[0] == 200
        await client.send(b"\r\nX: " + b"x" * 20_000)
        assert (await client.rest()).startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_a_head_of_aiohttps_has_its_time_too() -> None:
    async with running(limits={"head_timeout": 0.3}) as house:
        for rest in (b"G", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"\r\n"):
            client = await house.connect(post() + rest)
            assert (await client.response())[0] == 200
            assert await client.rest() == b""
        # Who was in time stays.
        client = await house.connect(post() + request("GET", "/healthz"))
        assert (await client.response())[0] == (await client.response())[0] == 200
        await asyncio.sleep(0.5)
        await client.send(post())
        assert (await client.response())[0] == 200


# -- time, and the end ------------------------------------------------------------------------


async def test_limits_of_time() -> None:
    async with running() as house:
        posts = posts_of(house)
        loop = asyncio.get_running_loop()
        limits = house.server.limits
        idle, head, body = Wire(house), Wire(house), Wire(house)
        for wire, rest in ((idle, b""), (head, b"POST "), (body, post(body=b"12")[:-1])):
            wire.feed(post() + rest)
        assert [len(each) for each in posts._waiting] == [1, 1, 1, 0, 0]
        # A byte now and then gains no time.
        posts.sweep(loop.time() + limits.head_seconds / 2)
        head.feed(b"/publish/topic/a")
        posts.sweep(loop.time() + limits.head_seconds + 0.1)
        assert [wire.closed for wire in (idle, head, body)] == [False, True, False]
        assert b"HTTP/1.1 408 Request Timeout" in head.said
        posts.sweep(loop.time() + limits.body_seconds + 0.1)
        assert [wire.closed for wire in (idle, head, body)] == [False, True, True]
        assert b"HTTP/1.1 400 Bad Request" in body.said
        assert b"the body was not complete after 30 s" in body.said
        posts.sweep(loop.time() + limits.keepalive - 1)
        assert not idle.closed
        idle.feed(post())
        posts.sweep(loop.time() + limits.keepalive + 0.1)
        assert idle.closed
        assert idle.said.count(b"HTTP/1.1") == 2
        await house.eventually(lambda: house.server.sockets.open == 0)
        assert len(posts) == 0


async def test_a_publish_has_the_time_that_the_broker_gives_it() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        wire = Wire(house)
        wire.feed(post())
        posts_of(house).sweep(asyncio.get_running_loop().time() + 1e6)
        ear.hold.set()
        await house.eventually(lambda: b"200 OK" in wire.said)
        assert not wire.closed
        wire.lose()


async def test_a_client_that_never_reads_is_cut_off() -> None:
    async with running() as house:
        wire = Wire(house)
        wire.feed(post())
        wire.poster.pause_writing()
        posts_of(house).sweep(asyncio.get_running_loop().time() + 76)
        assert wire.closed
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_a_shutdown_answers_what_is_under_way_and_closes_the_rest() -> None:
    async with running() as house:
        ear = Ear(house)
        hold = ear.hold = asyncio.Event()
        waiting = await house.connect(post(body=b"1") + post(body=b"2"))
        await house.eventually(lambda: ear.bodies == [b"1"])
        ear.hold = None
        idle = await house.connect(post(body=b"3"))
        assert (await idle.response())[0] == 200
        half = await house.connect(post(body=b"4") + post(body=b"56")[:-1])
        assert (await half.response())[0] == 200
        head = await house.connect(post(body=b"7") + post()[:20])
        assert (await head.response())[0] == 200
        stopping = asyncio.create_task(house.gateway.stop(grace=8.0))
        assert await idle.rest() == await head.rest() == b""
        await half.send(b"6")
        status, headers, _ = await half.response()
        assert (status, headers["connection"]) == (200, "close")
        assert await half.rest() == b""
        assert not stopping.done()
        hold.set()
        status, headers, _ = await waiting.response()
        assert (status, headers["connection"]) == (200, "close")
        # What was behind it was not taken, and is not answered.
        assert await waiting.rest() == b""
        await stopping
        assert ear.bodies == [b"1", b"3", b"4", b"7", b"56"]


async def test_a_shutdown_takes_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuecast.server.server._LAST_CALL", 30.0)
    async with running() as house:
        ear = Ear(house)
        idle = await house.connect(post(body=b"1"))
        head = await house.connect(post(body=b"2") + post(body=b"3")[:20])
        for client in (idle, head):
            assert (await client.response())[0] == 200
        stopping = asyncio.create_task(house.gateway.stop(grace=20.0))
        await house.eventually(lambda: posts_of(house).closed)
        await head.send(post(body=b"3")[20:])
        await idle.send(post(body=b"4") + post(body=b"5"))
        for client in (idle, head):
            status, headers, _ = await client.response()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""
        # Nobody is left to wait for.
        await asyncio.wait_for(stopping, 5)
        assert sorted(ear.bodies) == [b"1", b"2", b"3", b"4"]


async def test_a_shutdown_waits_no_longer_than_its_grace() -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        client = await house.connect(post())
        await house.eventually(lambda: ear.bodies == [b"x"])
        await house.gateway.stop(grace=0.3)
        assert await client.rest() == b""
        assert house.server.sockets.open == 0


async def test_the_limit_of_connections_holds() -> None:
    async with running(limits={"connections": 2}) as house:
        first = await house.connect(post())
        assert (await first.response())[0] == 200
        second = await house.connect(post() + request("GET", "/healthz"))
        assert (await second.response())[0] == (await second.response())[0] == 200
        third = await house.connect(post())
        assert (await third.problem())[0] == 503
        second.writer.close()
        third.writer.close()
        await house.eventually(lambda: house.server.sockets.open == 1)
        assert (await (await house.connect(post())).response())[0] == 200


async def test_the_date_is_of_this_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as house:
        wire = Wire(house)
        for second, text in ((784111777, b"06 Nov 1994 08:49:37"), (784111778, b"08:49:38 GMT")):
            monkeypatch.setattr("queuecast.server.posts.time.time", lambda at=second: at + 0.5)
            wire.feed(post())
            wire.feed(post())
            assert text in wire.written[-1]
            assert text in wire.written[-2]
        monkeypatch.undo()
        wire.lose()
