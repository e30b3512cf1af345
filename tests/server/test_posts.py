"""Small publishes without aiohttp: who serves them, one after the other, cut anywhere."""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from queuecast.server.answers import Answer
from tests.server.house import request, running
from tests.server.posts_rig import Ear, Wire, aiohttps, post, posts_of

pytestmark = pytest.mark.both_loops


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
        ear.outcomes = {b"mistake": ZeroDivisionError("secret")}
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


async def test_a_mistake_of_ours_between_two_requests_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as house:
        ear = Ear(house)
        ear.hold = asyncio.Event()
        client = await house.connect(post() + post())
        await house.eventually(lambda: ear.bodies == [b"x"])
        monkeypatch.setattr(house.server._uploads, "has_room", None)
        ear.hold.set()
        assert (await client.rest()).count(b"HTTP/1.1") == 1
        await house.eventually(lambda: house.server.sockets.open == 0)
        assert "serving a publisher failed" in caplog.text
        monkeypatch.undo()
