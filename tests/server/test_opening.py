"""Push requests whose heads are alike: read once, and answered as if each had been read."""

import random
from unittest import mock

import pytest

from queuecast.codecs.http1 import HeadError, HeadParser
from queuecast.codecs.websocket_handshake import HandshakeError, accept_key, check_upgrade
from queuecast.server import opening
from queuecast.server.opening import Opening, Openings
from tests.server.house import House, request, running, upgrade

pytestmark = pytest.mark.both_loops

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
OTHER = b"x3JJHMbDL1EzLkh9GBhXDw=="


def openings(house: House) -> Openings:
    return house.server._push._openings


async def accepted(house: House, data: bytes) -> str:
    """Return the Sec-WebSocket-Accept that answers a handshake."""
    client = await house.connect(data)
    head = (await client.until(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101 ")
    return head.partition("Sec-WebSocket-Accept: ")[2].partition("\r\n")[0]


@pytest.mark.parametrize("path", ["/ws/topic/a", "/ws", "/ws?envelope=json"])
async def test_heads_that_differ_in_the_key_are_read_once_and_each_key_is_answered(
    path: str,
) -> None:
    async with running() as house:
        head = upgrade(path)
        with mock.patch("queuecast.server.door.HeadParser", wraps=HeadParser) as parsers:
            for key in (KEY, OTHER, KEY, OTHER):
                sent = head.replace(KEY, key)
                assert await accepted(house, sent) == accept_key(key.decode())
        # The second one is read too: most heads that come once never come again.
        assert (parsers.call_count, len(openings(house))) == (2, 1)


async def test_what_a_known_head_opens_has_messages_and_takes_them() -> None:
    async with running() as house:
        clients = [await house.connect(upgrade("/ws/topic/a")) for _ in range(3)]
        for client in clients:
            await client.until(b"\r\n\r\n")
        # A client's frame: its mask is zero.
        await clients[2].send(b"\x81\x83\0\0\0\0one")
        for client in clients:
            assert await client.until(b"one") == b"\x81\x03one"
        assert len(openings(house)) == 1
        assert len(house.server.connections) == 3


async def test_a_frame_behind_a_known_head_is_not_lost() -> None:
    async with running() as house:
        first = await house.connect(upgrade("/ws/topic/a"))
        await first.until(b"\r\n\r\n")
        await accepted(house, upgrade("/ws/topic/a"))
        assert len(openings(house)) == 1
        second = await house.connect(upgrade("/ws/topic/a") + b"\x81\x83\0\0\0\0one")
        assert (await second.until(b"one")).endswith(b"\r\n\r\n\x81\x03one")
        assert await first.until(b"one") == b"\x81\x03one"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Sec-WebSocket-Key: ", 400),
        (b"Sec-WebSocket-Key: " + KEY[:-1], 400),
        (b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Key: " + OTHER, 400),
        (b"Sec-WebSocket-Key: \0", 400),
        (b"X: y", 400),
        (b"sec-websocket-key: " + OTHER, 101),
    ],
)
async def test_a_head_without_one_good_key_is_read_though_another_is_known(
    line: bytes, status: int
) -> None:
    async with running() as house:
        head = upgrade("/ws/topic/a")
        for _ in range(2):
            assert await accepted(house, head) == accept_key(KEY.decode())
        assert len(openings(house)) == 1
        client = await house.connect(head.replace(b"Sec-WebSocket-Key: " + KEY, line))
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("first", [KEY, b""])
async def test_a_stream_whose_head_has_a_key_is_a_stream_each_time(first: bytes) -> None:
    async with running() as house:
        for key in (first, first, KEY, OTHER):
            line = f"Sec-WebSocket-Key: {key.decode()}"
            await (await house.connect(request("GET", "/sse/topic/a", line))).opened()
        assert len(openings(house)) == 1


async def test_refusals_are_made_each_time() -> None:
    async with running() as house:
        for _ in range(3):
            client = await house.connect(request("GET", "/sse/topic/a", "Origin: http://x.example"))
            assert (await client.problem())[0] == 403
            client = await house.connect(request("GET", "/sse/topic/a?last=x"))
            assert (await client.problem())[0] == 400
        assert len(openings(house)) == 0


async def test_a_drain_refuses_what_is_known() -> None:
    async with running() as house:
        for _ in range(2):
            assert await accepted(house, upgrade("/ws/topic/a"))
        assert len(openings(house)) == 1
        house.server._push.draining = True
        client = await house.connect(upgrade("/ws/topic/a"))
        answer = await client.rest()
        assert b"\x88" in answer  # a close frame
        assert b"restarting" in answer


async def test_nothing_is_kept_where_a_peers_address_decides_what_headers_mean() -> None:
    async with running(server={"trusted_proxies": ["127.0.0.1"], "allow_anyone": True}) as house:
        for _ in range(2):
            assert await accepted(house, upgrade("/ws/topic/a"))
        assert len(openings(house)) == 0


async def test_a_mistake_of_ours_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as house:
        for _ in range(2):
            assert await accepted(house, upgrade("/ws/topic/a"))
        with mock.patch("queuecast.server.push.WebSocketSession", side_effect=ZeroDivisionError):
            client = await house.connect(upgrade("/ws/topic/a"))
            assert (await client.problem())[0] == 500
        assert "beginning a connection failed" in caplog.text
        await house.eventually(lambda: house.server.sockets.open == 2)


@pytest.mark.parametrize(
    "lines",
    [
        ("authorization: Basic c2VjcmV0",),
        ("cookie: a=c2VjcmV0",),
        ("Cookie: a=1", "Cookie: a=c2VjcmV0"),
        ("Cookie: a=1", "cookie: a=c2VjcmV0"),
        ("Cookie:  a=\tc2VjcmV0",),
        ("Cookie: a=c2VjcmV0é",),
    ],
)
async def test_no_clients_secret_is_kept(lines: tuple[str, ...]) -> None:
    async with running(server={"stomp_http_auth": True}) as house:
        for path in ("/ws", "/ws/topic/a") * 3:
            assert await accepted(house, upgrade(path, *lines)) == accept_key(KEY.decode())
        assert len(openings(house)) == 0


async def test_heads_that_differ_in_the_cookie_are_read_once_and_none_is_kept() -> None:
    async with running() as house:
        for value in ("a=c2VjcmV0", "", " a=b; c=d ", "x" * 3000):
            head = upgrade("/ws/topic/a", f"Cookie: {value}")
            assert await accepted(house, head) == accept_key(KEY.decode())
        assert len(openings(house)) == 1
        ((head, kept),) = openings(house)._kept.items()
        assert b"c2VjcmV0" not in head
        assert "cookie" not in kept.headers
        # A line more is another head: there is a limit on lines.
        for _ in range(2):
            assert await accepted(house, upgrade("/ws/topic/a")) == accept_key(KEY.decode())
        assert len(openings(house)) == 2


async def test_a_known_head_is_refused_where_a_cookie_makes_it_too_long() -> None:
    async with running(limits={"head": 1024}) as house:
        for _ in range(2):
            assert await accepted(house, upgrade("/ws/topic/a", "Cookie: a=b"))
        assert len(openings(house)) == 1
        client = await house.connect(upgrade("/ws/topic/a", f"Cookie: {'x' * 1024}"))
        assert (await client.problem())[0] == 431


async def test_strangers_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_KEPT", 3)
    monkeypatch.setattr(opening, "_SEEN", 4)
    async with running() as house:
        paths = [f"/sse/topic/{number}" for number in range(5)]
        lines = {"/sse/topic/a": ("X: " + "y" * 3000,)}
        for path in (*paths, *lines):
            for _ in range(2):
                client = await house.connect(request("GET", path, *lines.get(path, ())))
                await client.opened()
        assert len(openings(house)) == 3
        assert len(openings(house)._seen) <= 4
        kept = b"".join(openings(house)._kept)
        assert b"/topic/4" in kept
        assert b"/topic/1" not in kept


def _opening(data: bytes) -> Opening | None:
    """Return what a head's reader understands; None where it refuses."""
    parser = HeadParser(16384, 100)
    try:
        head = parser.receive_data(data)
    except HeadError:
        return None
    if head is None or head.rest:
        return None
    headers = {**head.headers, ":": f"{head.method} {head.target} {head.version}"}
    is_websocket = "sec-websocket-key" in headers
    if is_websocket:
        try:
            check_upgrade(head.method, head.version, head.headers)
        except HandshakeError:
            return None
    headers.pop("sec-websocket-key", "")
    return Opening(headers, (), is_websocket, None, None, None)


def test_whatever_is_known_means_what_its_reader_understands() -> None:
    random.seed(6)
    heads = [
        upgrade("/ws/topic/a"),
        upgrade("/ws", "X: a=b", "Cookie: a=b; c=d"),
        request("GET", "/sse/a", "Cookie: a=b"),
    ]
    pieces = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"=",
        KEY,
        b"Sec-WebSocket-Key: ",
        b"\t",
        b"A",
    ]
    kept = Openings()
    for head in heads:
        found = _opening(head)
        assert found is not None
        for _ in range(2):
            kept.keep(head, found)
    known = 0
    for _ in range(20_000):
        data = random.choice(heads)
        for _ in range(random.randint(1, 3)):
            if random.random() < 0.7:  # within the key, by what may stand there
                place = max(0, data.find(b"Key: ")) + 5 + random.randrange(22)
                piece = random.choice(b"ABgwxyz0189+/").to_bytes(1, "big")
                data = data[:place] + piece + data[place + 1 :]
                continue
            place = random.randrange(len(data))
            cut = place + random.randint(0, 2)
            data = data[:place] + random.choice(pieces) + data[cut:]
        hit = kept.find(data)
        understood = _opening(data)
        if understood is not None and random.random() < 0.01:
            for _ in range(2):
                kept.keep(data, understood)
        if hit is None:
            continue
        known += 1
        opened, key = hit
        assert understood is not None
        headers = dict(understood.headers)
        assert (headers.pop("cookie", None) is None) == (b"\r\nCookie: " not in data)
        assert (opened.headers, opened.is_websocket) == (headers, understood.is_websocket)
        if opened.is_websocket:
            assert key is not None
            assert b"\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n" in data
    assert known > 500
