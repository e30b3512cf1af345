"""The web application: publishing, long poll, health, preflight and readable refusals."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from queuecast.destination import Destination
from queuecast.errors import OutcomeUnknown, PublishFailed
from queuecast.message import Properties
from tests.server.house import House, request, running

ORIGIN = "Origin: http://localhost:3000"


async def ask(house: House, data: bytes) -> tuple[int, dict[str, str], Any]:
    client = await house.connect(data)
    status, headers, body = await client.response()
    client.writer.close()
    is_json = headers.get("content-type") == "application/json"
    return status, headers, json.loads(body) if is_json else body


class Publishes:
    """Stands in the way of the broker and notes what it is given."""

    def __init__(self, house: House) -> None:
        self.seen: list[tuple[str, bytes, Properties, bool | None]] = []
        self.outcomes: dict[bytes, Exception] = {}
        self.hold: asyncio.Event | None = None
        house.gateway.services.publish = self
        house.gateway.services.at_once = None

    async def __call__(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> None:
        self.seen.append((str(destination), body, properties, mandatory))
        if self.hold is not None:
            await self.hold.wait()
        if body in self.outcomes:
            raise self.outcomes[body]


async def test_a_body_is_published_as_it_came() -> None:
    async with running() as house:
        publishes = Publishes(house)
        target = (
            "/publish/exchange/events/%E9%94%AE?persistent=false&expiration=60000&priority=3"
            "&correlation-id=c&reply-to=r&message-id=m&timestamp=1700000000&type=t&app-id=a"
            "&mandatory=true&header.trace=7&header.type=own&token=secret"
        )
        body = "磁盘".encode() + b"\x00\xff"
        lines = ("Content-Type: text/x-own", "Content-Encoding: gzip")
        status, _, answer = await ask(house, request("POST", target, *lines, body=body))
        assert (status, answer) == (200, {"published": "/exchange/events/键"})
        assert publishes.seen == [
            (
                "/exchange/events/键",
                body,
                Properties(
                    content_type="text/x-own",
                    content_encoding="gzip",
                    persistent=False,
                    priority=3,
                    correlation_id="c",
                    reply_to="r",
                    expiration="60000",
                    message_id="m",
                    timestamp=1700000000,
                    type="t",
                    app_id="a",
                    headers={"trace": "7", "type": "own"},
                ),
                True,
            )
        ]


async def test_the_answer_waits_for_the_broker() -> None:
    async with running() as house:
        publishes = Publishes(house)
        publishes.hold = asyncio.Event()
        client = await house.connect(request("POST", "/publish/topic/a", body=b"x"))
        await house.eventually(lambda: len(publishes.seen) == 1)
        answer = asyncio.create_task(client.response())
        await asyncio.sleep(0)
        assert not answer.done()
        publishes.hold.set()
        assert (await answer)[0] == 200
        assert publishes.seen[0][2].persistent


@pytest.mark.parametrize(
    ("target", "status", "word"),
    [
        ("/publish/topic/a.%23", 400, "pattern"),
        ("/publish/topic/*", 400, "pattern"),
        ("/publish/nowhere", 400, "nowhere"),
        ("/publish/topic/a%2", 400, "percent"),
        ("/publish/topic/a?persistent=maybe", 400, "persistent"),
        ("/publish/topic/a?expiration=-1", 400, "expiration"),
        ("/publish/topic/a?expiration=5s", 400, "expiration"),
        ("/publish/topic/a?priority=256", 400, "priority"),
        ("/publish/topic/a?timestamp=now", 400, "timestamp"),
        ("/publish/topic/a?priority=1&priority=2", 400, "priority"),
        ("/publish/topic/a?persistant=true", 400, "persistant"),
        ("/publish/topic/a?user-id=root", 400, "user-id"),
        ("/publish/topic/a?header.=x", 400, "name"),
        ("/publish/topic/a?app-id=" + "a" * 256, 400, "app-id"),
        ("/publish/exchange/missing/a", 404, "missing"),
    ],
)
async def test_a_publish_that_cannot_be(target: str, status: int, word: str) -> None:
    async with running() as house:
        got, headers, problem = await ask(house, request("POST", target, ORIGIN, body=b"x"))
        assert got == status
        assert word in problem["text"]
        assert headers["access-control-allow-origin"] == ORIGIN[8:]
        assert headers["cache-control"] == "no-store"


async def test_a_body_over_its_limit() -> None:
    async with running(limits={"message": 1000}) as house:
        status, _, problem = await ask(house, request("POST", "/publish/topic/a", body=b"x" * 1001))
        assert (status, problem["code"]) == (413, "too_large")
        assert "limits.message" in problem["hint"]
        # Unannounced, it is noticed on the way.
        chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
        head = request("POST", "/publish/topic/a", "Transfer-Encoding: chunked")
        status, _, problem = await ask(house, head + chunk * 11)
        assert (status, problem["code"]) == (413, "too_large")
        status, _, _ = await ask(house, head + chunk * 10 + b"0\r\n\r\n")
        assert status == 200


async def test_a_batch() -> None:
    async with running() as house:
        publishes = Publishes(house)
        batch = {
            "messages": [
                {"destination": "/topic/a", "body": "一"},
                {"destination": "/topic/a", "base64": base64.b64encode(b"\x00\xff").decode()},
                {
                    "destination": "/queue/q",
                    "body": {"n": 1},
                    "headers": {"persistent": False, "priority": "5", "trace": [1, {"x": None}]},
                    "mandatory": False,
                },
                {"destination": "/topic/b"},
            ]
        }
        data = request("POST", "/publish", body=json.dumps(batch).encode())
        status, _, answer = await ask(house, data)
        assert status == 200
        assert answer == {"published": ["/topic/a", "/topic/a", "/queue/q", "/topic/b"]}
        assert [(name, body) for name, body, _, _ in publishes.seen] == [
            ("/topic/a", "一".encode()),
            ("/topic/a", b"\x00\xff"),
            ("/queue/q", b'{"n":1}'),
            ("/topic/b", b""),
        ]
        _, _, properties, mandatory = publishes.seen[2]
        assert mandatory is False
        assert properties == Properties(
            content_type="application/json", priority=5, headers={"trace": [1, {"x": None}]}
        )


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"destination": "/nowhere"}, "nowhere"),
        ({"destination": "/topic/#"}, "pattern"),
        ({"body": "x"}, "destination"),
        ({"destination": "/topic/a", "body": "x", "base64": "eA=="}, "base64"),
        ({"destination": "/topic/a", "base64": "?"}, "base64"),
        ({"destination": "/topic/a", "header": {}}, "header"),
        ({"destination": "/topic/a", "headers": {"priority": "high"}}, "priority"),
        ({"destination": "/topic/a", "headers": {"x": 1 << 64}}, "64 bits"),
        ({"destination": "/topic/a", "headers": {"x": "y" * 70_000}}, "bytes"),
        ({"destination": "/topic/forbidden"}, "may not publish"),
        ("text", "object"),
    ],
)
async def test_of_a_batch_with_one_bad_entry_nothing_is_published(bad: Any, word: str) -> None:
    allow = [{"who": "*", "publish": ["/topic/a", "/topic/b.#"]}]
    async with running(allow=allow) as house:
        publishes = Publishes(house)
        good = {"destination": "/topic/a", "body": "x"}
        batch = json.dumps({"messages": [good, good, bad, good]}).encode()
        status, _, problem = await ask(house, request("POST", "/publish", body=batch))
        assert status in (400, 403)
        assert problem["text"].startswith("messages[2]: ")
        assert word in problem["text"]
        assert publishes.seen == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"messages": 1}', b'{"messages": [], "x": 1}', b"[" * 100_000]
)
async def test_what_is_no_batch(body: bytes) -> None:
    async with running() as house:
        status, _, problem = await ask(house, request("POST", "/publish", body=body))
        assert (status, problem["code"]) == (400, "bad_request")
        assert '"messages"' in problem["hint"]


async def test_a_batch_over_its_limits() -> None:
    async with running(limits={"batch": 2, "batch_bytes": 200}) as house:
        three = json.dumps({"messages": [{"destination": "/topic/a"}] * 3}).encode()
        assert (await ask(house, request("POST", "/publish", body=three)))[0] == 413
        large = json.dumps({"messages": [{"destination": "/topic/a", "body": "x" * 200}]}).encode()
        assert (await ask(house, request("POST", "/publish", body=large)))[0] == 413


async def test_a_batch_that_fails_in_part() -> None:
    async with running() as house:
        publishes = Publishes(house)
        publishes.outcomes = {b"1": PublishFailed("no room"), b"2": OutcomeUnknown("cut")}
        messages = [{"destination": "/topic/a", "body": str(n)} for n in range(4)]
        data = request("POST", "/publish", body=json.dumps({"messages": messages}).encode())
        status, _, problem = await ask(house, data)
        assert (status, problem["code"]) == (502, "publish_failed")
        assert [(each["index"], each["code"]) for each in problem["failed"]] == [
            (1, "publish_failed")
        ]
        assert [each["index"] for each in problem["unknown"]] == [2]
        assert len(publishes.seen) == 4


async def test_a_mistake_of_ours_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as house:
        Publishes(house).outcomes = {b"x": ZeroDivisionError("secret")}
        status, _, problem = await ask(house, request("POST", "/publish/topic/a", body=b"x"))
        assert (status, problem["code"]) == (500, "internal")
        assert "secret" not in str(problem)
        assert "ZeroDivisionError: secret" in caplog.text


async def test_a_long_poll() -> None:
    async with running() as house:
        await house.publish("/topic/a", b"one")
        status, headers, answer = await ask(house, request("GET", "/poll/topic/a?last=1", ORIGIN))
        assert (status, headers["access-control-allow-origin"]) == (200, ORIGIN[8:])
        assert [each["body"] for each in answer["messages"]] == ["one"]
        waiting = asyncio.create_task(
            ask(house, request("GET", f"/poll/topic/a?since={answer['next']}"))
        )
        (feed,) = house.gateway.hub.feeds
        await house.eventually(lambda: feed.subscribers)
        await house.publish("/topic/a", b"two")
        assert [each["body"] for each in (await waiting)[2]["messages"]] == ["two"]


async def test_a_poll_whose_client_leaves_ends() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/poll/topic/a"))
        await house.eventually(lambda: any(f.subscribers for f in house.gateway.hub.feeds))
        client.writer.close()
        await house.eventually(lambda: not any(f.subscribers for f in house.gateway.hub.feeds))
        await house.eventually(lambda: house.server.sockets.open == 0)


async def test_a_shutdown_answers_the_polls_that_wait() -> None:
    async with running() as house:
        client = await house.connect(request("GET", "/poll/topic/a"))
        await house.eventually(lambda: any(f.subscribers for f in house.gateway.hub.feeds))
        stopping = asyncio.create_task(house.gateway.stop(grace=5.0))
        status, problem = await client.problem()
        assert (status, problem["code"], problem["retry"]) == (503, "unavailable", True)
        await stopping


async def test_a_client_that_waits_to_send_its_body() -> None:
    async with running(limits={"message": 10}) as house:
        expect = "Expect: 100-continue"
        head = request("POST", "/publish/topic/a", expect, "Content-Length: 3")
        client = await house.connect(head)
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.response())[0] == 200
        # It need not send what would be refused.
        await client.send(request("POST", "/publish/topic/a", expect, "Content-Length: 11"))
        assert (await client.problem())[0] == 413


async def test_a_body_that_never_ends() -> None:
    async with running() as house:
        house.server.limits = limits = replace(house.server.limits, body_seconds=0.05)
        uploads = house.server._web._uploads
        uploads._limits = limits
        # One that is small enough to be read without aiohttp is in test_posts_waiting.py.
        client = await house.connect(request("POST", "/publish/topic/a", "Content-Length: 99999"))
        status, problem = await client.problem()
        assert (status, problem["code"]) == (400, "bad_request")
        assert "not complete" in problem["text"]
        assert uploads._uploading == 0


async def test_uploads_are_bounded_together() -> None:
    async with running() as house:
        uploads = house.server._web._uploads
        uploads._limits = replace(uploads._limits, uploads=100_000)
        # One for aiohttp, and one that is small enough for us.
        slow = await house.connect(request("POST", "/publish/topic/a", "Content-Length: 80000"))
        head = request("POST", "/publish/topic/a", "Content-Length: 10000")
        small = await house.connect(head)
        await house.eventually(lambda: uploads._uploading == len(head))
        # What is only announced keeps nobody else out.
        body = b"x" * 21_000
        assert (await ask(house, request("POST", "/publish/topic/a", body=body)))[0] == 200
        await slow.send(b"x" * 79_999)
        await small.send(b"x" * 1)
        await house.eventually(lambda: uploads._uploading == 80_000 + len(head))
        for each in (body, b"x" * 70_000):
            data = request("POST", "/publish/topic/a", body=each)
            status, _, problem = await ask(house, data)
            assert (status, problem["code"], problem["retry"]) == (429, "limit", True)
        await slow.send(b"x")
        assert (await slow.response())[0] == 200
        await small.send(b"x" * 9_999)
        assert (await small.response())[0] == 200
        await house.eventually(lambda: uploads._uploading == 0)
        assert (await ask(house, request("POST", "/publish/topic/a", body=body)))[0] == 200


async def test_a_refusal_by_the_rules_logs_the_line_to_add(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(allow=[{"who": "*", "publish": ["/topic/b"]}]) as house:
        status, _, problem = await ask(house, request("POST", "/publish/topic/a", body=b"x"))
        assert (status, problem["code"]) == (403, "refused")
        assert 'publish = ["/topic/a"]' in caplog.text


async def test_odd_targets_are_answered() -> None:
    async with running() as house:
        for line, expected in (
            ("OPTIONS *", 404),
            ("CONNECT localhost:80", 404),
            ("GET http://localhost", 200),
            ("GET http://evil.example/", 403),
            ("GET /%", 404),
            ("GET /?%", 200),
            ("GET /poll/topic/a?%ff", 400),
        ):
            data = f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            assert (await ask(house, data))[0] == expected, line


async def test_wrong_methods_and_addresses() -> None:
    async with running() as house:
        for method, target, allowed in (
            ("GET", "/publish/topic/a", "POST"),
            ("POST", "/sse/topic/a", "GET"),
            ("PUT", "/ws/topic/a", "GET"),
            ("DELETE", "/poll/topic/a", "GET"),
            ("HEAD", "/sse/topic/a", "GET"),
            ("POST", "/healthz", "GET, HEAD"),
            ("POST", "/", "GET, HEAD"),
        ):
            client = await house.connect(request(method, target, ORIGIN, "Connection: close"))
            head = (await client.until(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 405 "), target
            assert f"\r\nAllow: {allowed}\r\n" in head
            assert f"Access-Control-Allow-Origin: {ORIGIN[8:]}" in head
        for target in ("/nothing", "/ssee", "/topic/a", "//sse/topic/a", "/publish.html"):
            for method in ("GET", "POST"):
                status, _, problem = await ask(house, request(method, target))
                assert (status, problem["code"]) == (404, "not_found"), (method, target)


async def test_health_and_the_plain_page() -> None:
    async with running(server={"prefix": "/push"}) as house:
        assert (await ask(house, request("GET", "/healthz")))[::2] == (200, {"status": "ok"})
        status, _, ready = await ask(house, request("GET", "/push/readyz"))
        assert (status, ready["ready"]) == (200, True)
        status, _, page = await ask(house, request("GET", "/push"))
        assert (status, page) == (200, b"Queuecast is running.\n")
        # The absolute form is a request for the same.
        status, _, _ = await ask(house, request("GET", "http://localhost/push/healthz"))
        assert status == 200


async def test_a_link_from_another_site_may_lead_to_a_page_but_not_to_data() -> None:
    async with running() as house:
        foreign = "Sec-Fetch-Site: cross-site"
        assert (await ask(house, request("GET", "/", foreign)))[0] == 200
        assert (await ask(house, request("GET", "/poll/topic/a", foreign)))[0] == 403


async def test_a_preflight_is_answered() -> None:
    async with running() as house:
        for target, method in (("/publish/topic/a", "POST"), ("/sse/topic/a", "GET")):
            status, headers, _ = await ask(house, request("OPTIONS", target, ORIGIN))
            assert status == 204
            assert headers["access-control-allow-methods"] == method
            assert headers["access-control-allow-origin"] == ORIGIN[8:]
            assert headers["access-control-allow-credentials"] == "true"
            assert "Last-Event-ID" in headers["access-control-allow-headers"]
        assert (await ask(house, request("OPTIONS", "/healthz", ORIGIN)))[0] == 405


async def test_the_verdict_of_an_event_stream() -> None:
    async with running() as house:
        json_only = "Accept: application/json"
        for first in (b"", request("GET", "/healthz")):
            client = await house.connect(first)
            if first:
                await client.response()
            await client.send(request("GET", "/sse/exchange/missing/a", json_only))
            status, problem = await client.problem()
            assert (status, problem["code"]) == (404, "not_found")
        status, _, verdict = await ask(house, request("GET", "/sse/topic/a", json_only))
        assert (status, verdict["code"]) == (200, "ok")


async def test_pages_are_served_where_there_are_some() -> None:
    async with running() as house:
        pages = {"/": ("text/html; charset=utf-8", "<h1>示例</h1>".encode())}
        house.server._web._page = pages.get
        status, headers, body = await ask(house, request("GET", "/"))
        assert (status, headers["content-type"], body) == (200, *pages["/"])
        assert (await ask(house, request("GET", "/other")))[0] == 404


async def test_only_a_trusted_proxy_says_under_which_name_it_was_asked() -> None:
    # A page's own name is trusted: https is configured, http is trusted only as the very Host.
    lines = ("Origin: http://app.example", "X-Forwarded-Host: app.example")
    data = request("POST", "/publish/topic/a", *lines, body=b"x")
    rules = [{"who": "*", "publish": ["/topic/a"]}]
    for proxy, expected in (("192.0.2.0/24", 403), ("127.0.0.0/8", 200)):
        server = {"trusted_proxies": [proxy], "origins": ["https://app.example"]}
        async with running(allow=rules, server=server) as house:
            assert (await ask(house, data))[0] == expected


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Content-Type: text/\xff", 400),
        (b"Content-Encoding: \xff", 400),
        (b"Origin: http://\xff", 403),
        (b"Sec-Fetch-Site: \xff", 403),
    ],
)
async def test_a_header_that_is_not_utf8_is_the_clients_fault(
    line: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as house:
        head = b"POST /publish/topic/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        client = await house.connect(head + line + b"\r\n\r\nx")
        assert (await client.problem())[0] == status
        # On a connection that aiohttp serves the same bytes reach the push routes too.
        client = await house.connect(
            request("GET", "/healthz")
            + b"GET /sse/topic/a HTTP/1.1\r\nHost: localhost\r\nOrigin: http://\xff\r\n\r\n"
        )
        assert (await client.response())[0] == 200
        assert (await client.problem())[0] == 403
    assert not [record for record in caplog.records if record.exc_info]
