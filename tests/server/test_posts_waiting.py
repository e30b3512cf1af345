"""Small publishes that wait, clients that do not read, limits of time, and the end."""

import asyncio
import gc
import logging
import socket

import pytest

from queuecast.server.poster import State
from tests.server.house import request, running
from tests.server.posts_rig import Ear, Wire, aiohttps, post, posts_of, reset

pytestmark = pytest.mark.both_loops


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
