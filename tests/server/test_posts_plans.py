"""Plans: shared where heads say the same, and nothing else taken for one."""

import pytest

from tests.server.house import request, running
from tests.server.posts_rig import Ear, Wire, post, posts_of

pytestmark = pytest.mark.both_loops


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
    async with running(
        server=server, allow=[{"who": "anonymous", "publish": ["/topic/a"]}]
    ) as house:
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
