"""Small publishes are answered as aiohttp answers them, the very same requests."""

from typing import Any

import pytest

from queuecast.errors import OutcomeUnknown, PublishFailed, Refused, Unavailable
from tests.server.house import House, request, running
from tests.server.posts_rig import Ear, post, posts_of

pytestmark = pytest.mark.both_loops

ORIGIN = "Origin: http://localhost:3000"

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
