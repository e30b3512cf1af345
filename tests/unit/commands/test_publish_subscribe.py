"""`queuecast publish` and `subscribe` against a gateway that the test plays."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from aiohttp import web

from queuecast.cli import main
from queuecast.commands import subscribe as subscribe_module
from queuecast.commands.publish import PROPERTIES
from queuecast.sessions.publishing import NAMES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Capture = pytest.CaptureFixture[bytes]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(main, arguments)


def refusal(status: int, *, retry: bool = False) -> web.Response:
    return web.json_response(
        {"code": "refused", "text": "no", "hint": "ask", "retry": retry}, status=status
    )


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe_module, "_FIRST_WAIT", 0.0)
    monkeypatch.setattr(subscribe_module, "_LAST_WAIT", 0.0)


class Publishing:
    """Takes publishes and remembers what came."""

    def __init__(self, answer: web.Response | None = None) -> None:
        self.answer = answer
        self.path = ""
        self.body = b""
        self.headers: dict[str, str] = {}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.path = request.raw_path
        self.body = await request.read()
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        return self.answer or web.json_response({"published": "x"})


async def test_publish_sends_the_body_and_encodes_the_destination() -> None:
    gateway = Publishing()
    async with served(gateway) as url:
        code = await run("publish", "/exchange/a%2Fb/价", "第一", "--url", url + "/")
    assert code == 0
    assert gateway.path == "/publish/exchange/a%2Fb/%E4%BB%B7"
    assert gateway.body.decode() == "第一"
    assert "content-type" not in gateway.headers


async def test_publish_headers_properties_and_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Publishing()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\xff\n")))
    async with served(gateway) as url:
        code = await run(
            *("publish", "/topic/a", "--url", url, "--content-type", "image/png"),
            *("--header", "trace=a b&c", "--header", "priority=3", "--no-persistent"),
        )
    assert code == 0
    path, _, query = gateway.path.partition("?")
    assert path == "/publish/topic/a"
    assert query.split("&") == ["header.trace=a+b%26c", "priority=3", "persistent=false"]
    assert gateway.body == b"a\xff\n"
    assert gateway.headers["content-type"] == "image/png"


async def test_a_destination_that_is_an_alias_is_left_to_the_gateway() -> None:
    gateway = Publishing()
    async with served(gateway) as url:
        assert await run("publish", "/events/42", "x", "--url", url) == 0
    assert gateway.path == "/publish/events/42"


async def test_a_refused_publish_is_one_line(capsysbinary: Capture) -> None:
    async with served(Publishing(refusal(403))) as url:
        assert await run("publish", "/topic/a", "x", "--url", url) == 1
    assert capsysbinary.readouterr() == (b"", b"queuecast: no: ask\n")


async def test_a_strangers_answer_gives_its_status(capsysbinary: Capture) -> None:
    async with served(Publishing(web.Response(status=500, text="<html>"))) as url:
        assert await run("publish", "/topic/a", "x", "--url", url) == 1
    assert capsysbinary.readouterr().err == b"queuecast: 500 Internal Server Error\n"


def test_property_names_are_the_gateways() -> None:
    assert NAMES - {"content-type"} == PROPERTIES


@pytest.mark.parametrize("command", ["publish", "subscribe"])
def test_nobody_listening_and_wrong_urls(
    capsysbinary: Capture, command: str, unused_tcp_port: int
) -> None:
    url = f"http://u:secret@127.0.0.1:{unused_tcp_port}"
    body = ["x"] if command == "publish" else []
    assert main([command, "/topic/a", *body, "--url", url]) == 1
    err = capsysbinary.readouterr().err.decode()
    assert err.startswith("queuecast: cannot reach http://u:***@127.0.0.1")
    assert "Connection refused" in err
    assert err.count("\n") == 1
    assert main([command, "/topic/a", *body, "--url", "localhost:1"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "/topic/a", "x", "--header", "novalue"],
        ["publish", "/topic/a", "x", "--header", "content-type=text/plain"],
    ],
)
def test_wrong_headers_are_usage_errors(capsysbinary: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert capsysbinary.readouterr().err.startswith(b"queuecast: --header")


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "/topic/\udcff", "x"],
        ["publish", "/topic/a", "x", "--header", "a=\udcff"],
        ["publish", "/topic/a", "x", "--content-type", "a\r\nb: c"],
        ["subscribe", "/topic/a", "--since", "\udcff"],
    ],
)
def test_what_no_request_can_carry_is_one_line_and_2(
    capsysbinary: Capture, arguments: list[str]
) -> None:
    assert main(arguments) == 2
    assert capsysbinary.readouterr().err.count(b"\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["subscribe"], ["subscribe", "/topic/a", "--last", "-1"]]
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


class Streams:
    """Answers each subscription with the next script, and remembers what was asked."""

    def __init__(self, *scripts: str | web.Response) -> None:
        self.scripts = list(scripts)
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.raw_path, request.headers.get("Last-Event-ID", "")))
        script = self.scripts.pop(0)
        if isinstance(script, web.Response):
            return script
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(script.encode())
        return response


def message(body: str, position: str, **more: str) -> str:
    envelope = {"position": position, "destination": "/topic/a", "headers": {}, "body": body}
    return f"id: {position}\ndata: {json.dumps(envelope | more)}\n\n"


async def test_prints_bodies_and_stops_after_count(capsysbinary: Capture) -> None:
    binary = 'id: e-3\ndata: {"base64": "/wA="}\n\n'
    gateway = Streams(
        "retry: 100\n\nevent: position\nid: e-0\ndata:\n\n"
        + message("first", "e-1")
        + ": heartbeat\n\n"
        + message("第二", "e-2")
        + binary
        + message("never", "e-4")
    )
    async with served(gateway) as url:
        assert (
            await run("subscribe", "/topic/a.#", "--url", url, *["--last", "5", "--count", "3"])
            == 0
        )
    assert gateway.asked == [("/sse/topic/a.%23?envelope=json&last=5", "")]
    assert capsysbinary.readouterr() == ("first\n第二\n".encode() + b"\xff\x00\n", b"")


async def test_envelope_prints_json_lines(capsysbinary: Capture) -> None:
    async with served(Streams(message("x", "e-1"))) as url:
        assert await run("subscribe", "/topic/a", "--url", url, "--envelope", "--count", "1") == 0
    assert json.loads(capsysbinary.readouterr().out)["position"] == "e-1"


@pytest.mark.usefixtures("no_waiting")
async def test_resumes_after_what_it_printed(capsysbinary: Capture) -> None:
    gateway = Streams(
        "event: position\nid: e-0\ndata:\n\n" + message("1", "e-1") + "id: e-2\ndata: {",
        'event: gap\nid: f-1\ndata: {"reason": "restart"}\n\n' + message("2", "f-2"),
        'event: disconnect\ndata: {"code": "shutdown", "text": "bye", "retry": true}\n\n',
        refusal(503, retry=True),
        web.Response(status=502),
        message("3", "f-3"),
    )
    async with served(gateway) as url:
        code = await run("subscribe", "/topic/a", "--url", url, "--since", "first", "--count", "3")
    assert code == 0
    first, *others = gateway.asked
    assert first == ("/sse/topic/a?envelope=json&since=first", "")
    assert others == [
        ("/sse/topic/a?envelope=json", position) for position in ("e-1", "f-2", "f-2", "f-2", "f-2")
    ]
    out, err = capsysbinary.readouterr()
    assert out == b"1\n2\n3\n"
    assert b"queuecast: gap: messages are missing here (restart)\n" in err
    assert b"queuecast: bye; trying again\n" in err


@pytest.mark.usefixtures("no_waiting")
async def test_asks_again_as_first_while_there_is_no_position() -> None:
    gateway = Streams("retry: 1\n\n", 'data: {"body": "x"}\n\n')
    async with served(gateway) as url:
        assert await run("subscribe", "/queue/a", "--url", url, "--last", "1", "--count", "1") == 0
    assert gateway.asked == [("/sse/queue/a?envelope=json&last=1", "")] * 2


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (refusal(403), b"no: ask"),
        (refusal(503, retry=True), b"no: ask"),
        (web.Response(text="hello"), b"is no Queuecast"),
        ('event: disconnect\ndata: {"text": "expired", "retry": false}\n\n', b"expired"),
        ("data: bare\n\n", b"no envelope"),
    ],
)
async def test_what_ends_it_for_good(
    capsysbinary: Capture, script: str | web.Response, said: bytes
) -> None:
    async with served(Streams(script)) as url:
        assert await run("subscribe", "/topic/a", "--url", url) == 1
    err = capsysbinary.readouterr().err
    assert said in err
    assert err.count(b"\n") == 1
