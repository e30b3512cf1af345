"""Both ways through the door: straight to a session, and by aiohttp, on both loops."""

import asyncio
import socket
import struct

import aiohttp
import pytest

from queuecast.auth.identity import Identity
from queuecast.auth.policy import Verb
from queuecast.destination import Destination
from queuecast.errors import Refused
from queuecast.server.door import Doors
from tests.server.house import House, request, running, upgrade

pytestmark = pytest.mark.both_loops

ORIGIN = "Origin: http://localhost:3000"


async def receives(house: House, client: object, body: bytes) -> None:
    await house.publish("/topic/a", body)
    await client.until(b"data: " + body + b"\n")  # type: ignore[attr-defined]


async def test_a_push_request_opens_a_session() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/sse/topic/a"))
        head = await client.opened()
        assert "text/event-stream" in head
        assert len(house.server.connections) == 1
        await receives(house, client, b"one")


async def test_a_head_may_come_byte_by_byte() -> None:
    async with running() as house:
        client = await house.connect()
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request("GET", "/sse/topic/a"):
            await client.send(bytes((byte,)))
        await client.opened()
        await receives(house, client, b"one")


async def test_equal_requests_are_read_once_and_allowed_each_time() -> None:
    async with running() as house:
        services = house.gateway.services
        denied: list[str] = []
        allow = services.allow

        def ask(identity: Identity, verb: Verb, destination: Destination) -> None:
            if str(destination) in denied:
                raise Refused("not any more")
            allow(identity, verb, destination)

        services.allow = ask
        gate, openings = house.server._gate, house.server._push._openings
        for number in range(3):
            # The heads are not equal, what they ask for is the same.
            client = await house.connect(request("GET", "/sse/topic/a", f"X-Number: {number}"))
            await client.opened()
            assert gate._kept_subscription.cache_info()[:2] == (number, 1)
        assert len(openings) == 0
        for _ in range(2):
            client = await house.connect(request("GET", "/sse/topic/a", "X-Number: 1"))
            await client.opened()
        assert (len(openings), gate._kept_subscription.cache_info()[:2]) == (1, (3, 1))
        denied.append("/topic/a")
        client = await house.connect(request("GET", "/sse/topic/a", "X-Number: 1"))
        assert (await client.problem())[0] == 403
        # What no page asks for fills no memory, and what is wrong is not kept.
        for path in ("/sse/topic/" + "a" * 250 + "?" + "x=1&" * 300, "/sse/topic/a?last=x"):
            client = await house.connect(request("GET", path))
            await client.until(b"\r\n\r\n")
        assert gate._kept_subscription.cache_info().currsize == 1


async def test_other_requests_reach_aiohttp_with_every_byte() -> None:
    async with running() as house:
        body = "关于".encode() * 30_000
        whole = request("POST", "/publish/topic/a", body=body)
        # The head and the body's first bytes come together, the rest later; then another request.
        client = await house.connect(whole[:200])
        await client.send(whole[200:] + request("GET", "/healthz"))
        status, _, answer = await client.response()
        assert (status, answer) == (200, b'{"published":"/topic/a"}\n')
        assert (await client.response())[0] == 200


async def test_an_event_stream_may_follow_on_a_connection_of_aiohttp() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/healthz"))
        assert (await client.response())[0] == 200
        await client.send(request("POST", "/publish/topic/a", body=b"zero"))
        assert (await client.response())[0] == 200
        await client.send(request("GET", "/sse/topic/a?last=1", ORIGIN))
        head = await client.opened()
        assert "access-control-allow-origin: http://localhost:3000" in head.lower()
        await client.until(b"data: zero\n")
        await receives(house, client, b"one")
        assert len(house.server.connections) == 1
        client.writer.close()
        await house.eventually(lambda: len(house.server.connections) == 0)
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_a_pipelined_event_stream_comes_after_the_answers_before_it() -> None:
    async with running() as house:
        client = await house.connect(
            request("GET", "/healthz")
            + request("POST", "/publish/topic/a", body=b"zero")
            + request("GET", "/sse/topic/a?last=1")
            + request("GET", "/healthz")
        )
        assert (await client.response())[0] == 200
        assert (await client.response())[0] == 200
        await client.opened()
        await client.until(b"data: zero\n")
        await receives(house, client, b"one")


async def test_a_websocket_may_follow_on_a_connection_of_aiohttp() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/healthz"))
        assert (await client.response())[0] == 200
        # A frame that comes with the handshake must not be lost: "hi", masked with zeros.
        await client.send(upgrade("/ws/topic/a") + b"\x81\x82\0\0\0\0hi")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await client.until(b"hi") == b"\x81\x02hi"


async def test_a_websocket_and_its_first_frame_in_one_packet() -> None:
    async with running() as house:
        client = await house.connect(upgrade("/ws/topic/a") + b"\x81\x82\0\0\0\0hi")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await client.until(b"hi") == b"\x81\x02hi"


async def test_the_aiohttp_client_on_one_kept_connection() -> None:
    connector = aiohttp.TCPConnector(limit=1)
    async with running() as house, aiohttp.ClientSession(connector=connector) as http:
        async with http.post(f"{house.url}/publish/topic/a", data=b"zero") as posted:
            assert posted.status == 200
            await posted.read()
        async with http.ws_connect(f"{house.url}/ws/topic/a?last=1") as websocket:
            assert await websocket.receive_str() == "zero"
            await websocket.send_str("one")
            assert await websocket.receive_str() == "one"
            # It came on the connection that the POST had opened.
            assert house.server.sockets.open == 1


async def test_aliases_and_the_prefix_lead_to_events() -> None:
    aliases = {"/events/{id}": "/topic/events.{id}", "/sse": "/topic/news"}
    async with running(aliases=aliases, server={"prefix": "/push"}) as house:
        for target, destination in (
            ("/events/42", "/topic/events.42"),
            ("/push/events/42", "/topic/events.42"),
            ("/push/sse", "/topic/news"),
            ("/sse?destination=/topic/other", "/topic/other"),
            ("/sse/events/42", "/topic/events.42"),
        ):
            client = await house.connect(request("GET", target))
            await client.opened()
            await house.publish(destination, target.encode())
            await client.until(b"data: " + target.encode())


async def test_a_destination_that_is_none_is_explained() -> None:
    async with running() as house:
        for target in ("/sse/nowhere", "/sse", "/sse/topic/a%2", "/sse/topic/a?since=never"):
            client = await house.connect(request("GET", target, ORIGIN))
            status, headers, body = await client.response()
            assert (status, headers["access-control-allow-origin"]) == (400, ORIGIN[8:])
            assert b'"code":"bad_' in body
            assert await client.rest() == b""


async def test_a_websocket_is_accepted_and_closed_with_the_reason() -> None:
    async with running() as house, aiohttp.ClientSession() as http:
        for target, code in (("/ws/nowhere", 4400), ("/ws/queue/", 4400)):
            async with http.ws_connect(house.url + target) as websocket:
                message = await websocket.receive()
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code), target


async def test_a_foreign_page_gets_403(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as house:
        foreign = "Origin: https://evil.example"
        for data in (
            upgrade("/ws/topic/a", foreign),
            request("GET", "/sse/topic/a", foreign),
            request("POST", "/publish/topic/a", foreign, body=b"x"),
            request("GET", "/poll/topic/a", foreign),
            request("OPTIONS", "/publish/topic/a", foreign),
            request("GET", "/sse/topic/a", "Host: evil.example"),
            request("GET", "/", "Host: evil.example"),
        ):
            client = await house.connect(data)
            status, headers, body = await client.response()
            assert status == 403
            assert "access-control-allow-origin" not in headers
            assert b'"code":"refused"' in body
        assert 'origins = ["https://evil.example"]' in caplog.text
        # Rate limited: each line once, however often it was provoked.
        assert caplog.text.count("pages of 'https://evil.example'") == 1
        assert caplog.text.count("Host 'evil.example'") == 1


async def test_a_websocket_route_without_upgrade_says_so() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/ws/topic/a", ORIGIN))
        status, headers, body = await client.response()
        assert (status, headers["upgrade"]) == (426, "websocket")
        assert b'"code":"upgrade_required"' in body
        bad_key = upgrade("/ws/topic/a").replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short")
        client = await house.connect(bad_key)
        assert (await client.problem())[0] == 400


async def test_a_push_request_with_a_body_is_refused() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/sse/topic/a", body=b"surprise"))
        assert (await client.problem())[0] == 400


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 2000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2000, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20 + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    ],
)
async def test_a_head_that_cannot_be_served(data: bytes, status: int) -> None:
    async with running(limits={"head": 1024, "headers": 10}) as house:
        client = await house.connect(data)
        got, problem = await client.problem()
        assert got == status
        if status in (414, 431):
            assert problem["hint"] in ("limits.head raises it", "limits.headers raises it")
        client.writer.close()
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_the_answer_to_a_flood_is_not_destroyed_by_what_still_comes() -> None:
    async with running(limits={"head": 1024}) as house:
        client = await house.connect(b"GET / HTTP/1.1\r\nX: ")
        try:
            for _ in range(50):
                await client.send(b"a" * 4096)
        except ConnectionError:
            pytest.fail("reset while sending")
        assert (await client.problem())[0] == 431


async def test_a_head_that_never_ends_is_cut_off() -> None:
    async with running(limits={"head_timeout": 0.05}) as house:
        silent = await house.connect()
        slow = await house.connect(b"GET / HTTP/1.1\r\n")
        assert (await slow.problem())[0] == 408
        # One that never said anything is closed without a word.
        assert await silent.rest() == b""
        await house.eventually(lambda: house.server.sockets.open <= 1)


async def test_garbage_behind_a_good_request() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/healthz"))
        assert (await client.response())[0] == 200
        await client.send(b"\x00\x01garbage\r\n\r\n")
        assert (await client.problem())[0] == 400
        assert await client.rest() == b""
        # Behind a push request it goes to the session, which has no use for it.
        client = await house.connect(request("GET", "/sse/topic/a") + b"\x00\x01garbage\r\n\r\n")
        await client.opened()
        await receives(house, client, b"one")


async def test_the_limit_of_connections(caplog: pytest.LogCaptureFixture) -> None:
    async with running(limits={"connections": 2}) as house:
        first = await house.connect(request("GET", "/sse/topic/a"))
        await first.opened()
        second = await house.connect(request("GET", "/healthz"))
        assert (await second.response())[0] == 200
        wanted = (request("GET", "/sse/topic/a"), upgrade("/ws/topic/a"), request("GET", "/"))
        for data in wanted:
            third = await house.connect(data)
            status, headers, body = await third.response()
            assert (status, headers["retry-after"]) == (503, "5")
            assert b'"code":"limit"' in body
            third.writer.close()
        assert caplog.text.count("turned away") == 1
        await house.eventually(lambda: house.server.sockets.open == 2)
        second.writer.close()
        await house.eventually(lambda: house.server.sockets.open == 1)
        await house.publish("/topic/a", b"one")


async def test_probes_are_answered_beyond_the_limit() -> None:
    async with running(limits={"connections": 1}) as house:
        first = await house.connect(request("GET", "/sse/topic/a"))
        await first.opened()
        for path, found in (("/healthz", b'{"status":"ok"}'), ("/readyz", b'"ready":true')):
            probe = await house.connect(request("GET", path))
            status, headers, body = await probe.response()
            assert (status, headers["connection"], found in body) == (200, "close", True)
            # It has the place for this one answer.
            await probe.send(request("GET", "/sse/topic/a"))
            assert await probe.rest() == b""
            whole = await house.connect(request("HEAD", path))
            assert (await whole.rest()).endswith(b"\r\n\r\n")
        # Its true status, and the rules for hosts and methods.
        house.gateway._draining = True
        probe = await house.connect(request("GET", "/readyz"))
        assert await probe.response_json() == (503, {"ready": False, "status": "draining"})
        probe = await house.connect(request("GET", "/healthz", "Host: evil.example"))
        assert (await probe.problem())[0] == 403
        probe = await house.connect(request("POST", "/healthz", body=b""))
        assert (await probe.problem())[0] == 503
        await house.eventually(lambda: len(_doors(house)) == 0 and not _doors(house)._reserved)


async def test_a_slow_client_beyond_the_limit_is_turned_away() -> None:
    async with running(limits={"connections": 1, "head_timeout": 0.05}) as house:
        first = await house.connect(request("GET", "/sse/topic/a"))
        await first.opened()
        for data in (b"", b"GET /healthz HTTP/1.1\r\n"):
            slow = await house.connect(data)
            assert (await slow.problem())[1]["code"] == "limit"


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n", request("GET", "/sse/topic/a")])
async def test_a_flood_beyond_the_limit_keeps_no_probe_out(data: bytes) -> None:
    async with running(limits={"connections": 1}) as house:
        clients = [await house.connect(data) for _ in range(120)]
        await house.eventually(lambda: house.server.sockets.refused == 119)
        # Its places are bounded; the others hold no descriptor of ours.
        await house.eventually(lambda: house.server.sockets.open <= 65)
        assert len(clients) == 120
        probe = await house.connect(request("GET", "/healthz"))
        assert (await probe.response())[0] == 200


def _doors(house: House) -> Doors:
    assert house.server._doors is not None
    return house.server._doors


async def test_a_client_that_leaves_is_forgotten() -> None:
    async with running() as house:
        polite = await house.connect(request("GET", "/sse/topic/a"))
        await polite.opened()
        rude = await house.connect(request("GET", "/sse/topic/a"))
        await rude.opened()
        polite.writer.close()
        linger = struct.pack("ii", 1, 0)
        rude.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        rude.writer.transport.abort()
        await house.eventually(lambda: house.server.sockets.open == 0)
        assert len(house.server.connections) == 0


async def test_heartbeats_reach_everybody() -> None:
    async with running(server={"heartbeat": 0.02}) as house:
        direct = await house.connect(request("GET", "/sse/topic/a"))
        await direct.opened()
        taken = await house.connect(request("GET", "/healthz"))
        await taken.response()
        await taken.send(request("GET", "/sse/topic/a"))
        await taken.opened()
        for client in (direct, taken):
            for _ in range(3):
                await client.until(b"\n:")


async def test_accepted_sockets_send_at_once_and_notice_the_dead() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/sse/topic/a"))
        await client.opened()
        (connection,) = house.server.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.transport.get_write_buffer_limits()[1] == 64 * 1024


async def test_a_shutdown_tells_everybody_to_come_back() -> None:
    async with running() as house, aiohttp.ClientSession() as http:
        stream = await house.connect(request("GET", "/sse/topic/a"))
        await stream.opened()
        websocket = await http.ws_connect(f"{house.url}/ws/topic/a")
        kept = await house.connect(request("GET", "/readyz"))
        assert (await kept.response())[0] == 200
        unsaid = await house.connect(b"GET /")
        house.server.stop_accepting()
        await kept.send(request("GET", "/readyz"))
        status, _, body = await kept.response()
        assert (status, b"draining" in body) == (503, True)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", house.port)
        stopping = asyncio.create_task(house.gateway.stop(grace=2.0))
        message = await websocket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)
        assert b'"code":"shutdown"' in await stream.rest()
        assert await kept.rest() == b""
        assert await unsaid.rest() == b""
        await stopping
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_while_draining_an_event_stream_is_dropped_not_refused() -> None:
    async with running() as house, aiohttp.ClientSession() as http:
        kept = await house.connect(request("GET", "/healthz"))
        await kept.response()
        async with http.get(f"{house.url}/healthz") as response:
            await response.read()
        house.server.stop_accepting()
        await kept.send(request("GET", "/sse/topic/a"))
        assert await kept.rest() == b""
        async with http.ws_connect(f"{house.url}/ws/topic/a") as websocket:
            assert (await websocket.receive()).data == 4453
