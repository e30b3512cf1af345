"""STOMP over SockJS with the clients that people use: sockjs-client in Node.js and in Chromium."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from tests.conftest import Node
from tests.e2e.clients import PATIENCE, gateway, until
from tests.e2e.test_stomp import Behind, Page, behind
from tests.support.proxy import TcpProxy
from tests.support.servers import unique

if TYPE_CHECKING:
    from playwright.async_api import Page as BrowserPage

__all__ = ["behind"]  # the fixture

TRANSPORTS = ["websocket", "xhr-streaming", "xhr-polling", "eventsource"]


@contextmanager
def client(node: Node, *arguments: str) -> Iterator[Page]:
    """Run sockjs.mjs."""
    process = subprocess.Popen(
        [node.command, "sockjs.mjs", *arguments],
        cwd=node.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Page(process)
    finally:
        process.kill()
        process.wait()


@pytest.mark.node
@pytest.mark.parametrize("library", ["stompjs2", "stompjs7"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sockjs_client_in_node(behind: Behind, node: Node, transport: str, library: str) -> None:
    key = unique("zjj")
    url = behind.gateway.url + "/stomp"
    with client(node, library, url, transport, f"/exchange/rabbitmq/{key}") as opened:
        assert opened.next("connected")["transport"] == transport
        opened.next("receipt")
        behind.publish("rabbitmq", key, "[disk.info] Hello World!333")
        message = opened.next("message")
        assert message["body"] == "[disk.info] Hello World!333"
        assert message["headers"]["destination"] == f"/exchange/rabbitmq/{key}"
        # What SockJS escapes, JSON escapes, and decodeURI would trip over.
        for text in ("你好, from the page", '100% "\\"\u2028\u200d <b> %41 %', "last"):
            opened.say(text)
            assert opened.next("message")["body"] == text
        opened.say("bye")
        assert opened.process.wait(PATIENCE) == 0


@pytest.mark.node
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many_messages_arrive_once_and_in_order(behind: Behind, node: Node, transport: str) -> None:
    """More than one answer's worth: streams end at 128 KB and begin again."""
    key = unique("many")
    url = behind.gateway.url + "/stomp"
    with client(node, "stompjs7", url, transport, f"/exchange/rabbitmq/{key}") as opened:
        opened.next("connected")
        opened.next("receipt")
        for n in range(300):
            opened.say(f"{n:04} " + "x" * 2000)
        assert [opened.next("message")["body"][:4] for _ in range(300)] == [
            f"{n:04}" for n in range(300)
        ]


@pytest.mark.node
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cut_connections(node: Node, transport: str) -> None:
    """A page behind a broken wire is told, comes back, and subscribes again."""
    async with gateway(server={"grace": "2s"}) as running:
        parts = urlsplit(running.url)
        async with TcpProxy(str(parts.hostname), int(parts.port or 0)) as proxy:
            url = f"http://127.0.0.1:{proxy.port}/stomp"
            destination = f"/topic/{unique('t')}"
            with client(node, "stompjs7", url, transport, destination) as opened:
                await asyncio.to_thread(opened.next, "connected")
                await asyncio.to_thread(opened.next, "receipt")
                for n in range(2):
                    opened.say(f"before {n}")
                    message = await asyncio.to_thread(opened.next, "message")
                    assert message["body"] == f"before {n}"
                    proxy.cut()
                    await asyncio.to_thread(opened.next, "closed")
                    await asyncio.to_thread(opened.next, "connected")
                    await asyncio.to_thread(opened.next, "receipt")
                opened.say("after")
                assert (await asyncio.to_thread(opened.next, "message"))["body"] == "after"
            sessions = running.gateway.server._sockjs._sessions
            await until(lambda: len(sessions) == 0, "sessions are forgotten")


# -- the article's page in a browser ------------------------------------------------------

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Progress</title>
<script src="sockjs.min.js"></script>
<script src="stomp.min.js"></script>
<h1 id="message">loading…</h1>
<script>
  var ws = OPEN;
  var client = Stomp.over(ws);
  client.heartbeat.outgoing = 0;
  var show = function (message) {
    document.getElementById("message").textContent = message.body;
  };
  var ok = function () { client.subscribe("/exchange/rabbitmq/zjj", show); };
  var err = function (error) { console.error(error); };
  client.connect("guest", "guest", ok, err, "/");
</script>
"""
# What a browser without WebSocket has, and how a test says which transport it means.
NO_WEBSOCKET = "delete window.WebSocket;"
CHOOSE = """;(function (All) {
  window.SockJS = function (url) {
    return window.made = new All(url, null, { transports: TRANSPORTS });
  };
  window.SockJS.bootstrap_iframe = All.bootstrap_iframe;
})(window.SockJS);"""


@dataclass(frozen=True)
class Site:
    """The page's own server. port: on which it is found by any name of this machine."""

    port: int
    files: dict[str, tuple[str, str]]

    async def show(
        self,
        page: BrowserPage,
        opening: str,
        transport: str | None = None,
        *,
        host: str = "localhost",
    ) -> None:
        """Open the page. opening: what it opens. transport: which alone sockjs-client may use."""
        library = self.files["/sockjs.js"][1]
        if transport is not None:
            library += CHOOSE.replace("TRANSPORTS", f'["{transport}"]')
        self.files["/sockjs.min.js"] = ("text/javascript", library)
        self.files["/"] = ("text/html", PAGE.replace("OPEN", opening))
        await page.goto(f"http://{host}:{self.port}/")
        assert await page.inner_text("#message") == "loading…"


@pytest.fixture
async def site(node: Node) -> AsyncIterator[Site]:
    """Serve the article's page with the libraries that it loads."""
    modules = node.directory / "node_modules"
    files = {
        "/sockjs.js": (modules / "sockjs-client/dist/sockjs.min.js").read_text(),
        "/stomp.min.js": (modules / "stompjs/lib/stomp.min.js").read_text(),
    }
    served = {name: ("text/javascript", text) for name, text in files.items()}

    async def serve(request: web.BaseRequest) -> web.Response:
        if request.path not in served:
            return web.Response(status=404)
        kind, body = served[request.path]
        return web.Response(text=body, content_type=kind)

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Site(runner.addresses[0][1], served)
    await runner.cleanup()


async def published_until_shown(behind: Behind, page: BrowserPage) -> None:
    """Publish progress as a back end does, again and again, until the page shows it."""
    shown = asyncio.ensure_future(
        page.wait_for_function(
            "document.getElementById('message').textContent === '[disk.info] Hello World!333'",
            timeout=PATIENCE * 1000,
        )
    )
    while not shown.done():
        await asyncio.to_thread(behind.publish, "rabbitmq", "zjj", "[disk.info] Hello World!333")
        await asyncio.wait([shown], timeout=0.2)
    await shown


@pytest.mark.browser
@pytest.mark.node
async def test_the_articles_page_over_a_native_websocket(
    behind: Behind, site: Site, page: BrowserPage
) -> None:
    opening = f'new WebSocket("{behind.gateway.ws_url}/ws")'
    await site.show(page, opening)
    await published_until_shown(behind, page)


@pytest.mark.browser
@pytest.mark.node
async def test_the_articles_page_over_sockjs(behind: Behind, site: Site, page: BrowserPage) -> None:
    await site.show(page, f'new SockJS("{behind.gateway.url}/stomp")')
    await published_until_shown(behind, page)
    assert await page.evaluate("ws.transport") == "websocket"


@pytest.mark.browser
@pytest.mark.node
async def test_the_articles_page_without_websocket(
    behind: Behind, site: Site, page: BrowserPage
) -> None:
    """The page as it is: sockjs-client chooses what a browser without WebSocket can do."""
    await page.add_init_script(NO_WEBSOCKET)
    await site.show(page, f'new SockJS("{behind.gateway.url}/stomp")')
    await published_until_shown(behind, page)
    assert await page.evaluate("ws.transport") == "xhr-streaming"


@pytest.mark.browser
@pytest.mark.node
@pytest.mark.parametrize(
    "transport",
    ["eventsource", "xhr-polling", "iframe-eventsource", "iframe-xhr-polling", "iframe-htmlfile"],
)
async def test_the_articles_page_over_each_transport(
    site: Site, page: BrowserPage, transport: str
) -> None:
    tables = {
        "server": {"grace": "2s", "sockjs_client_url": f"http://localhost:{site.port}/sockjs.js"},
        "exchange": [{"name": "rabbitmq", "type": "topic"}],
    }
    await page.add_init_script(NO_WEBSOCKET)
    async with gateway(**tables) as running:
        behind = Behind(running, None)
        opening = f'new SockJS("{running.url}/stomp")'
        await site.show(page, opening, transport)
        await published_until_shown(behind, page)
        assert await page.evaluate("made.transport") == transport


@pytest.mark.browser
@pytest.mark.node
async def test_the_articles_page_over_jsonp(site: Site, page: BrowserPage) -> None:
    """Of the same site: browsers say when a script is another's, and then it is refused."""
    tables = {
        "server": {"grace": "2s"},
        "exchange": [{"name": "rabbitmq", "type": "topic"}],
    }
    await page.add_init_script(NO_WEBSOCKET)
    async with gateway(**tables) as running:
        behind = Behind(running, None)
        opening = f'new SockJS("{running.url}/stomp")'
        await site.show(page, opening, "jsonp-polling", host="127.0.0.1")
        await published_until_shown(behind, page)
        assert await page.evaluate("made.transport") == "jsonp-polling"


EVIL = "https://evil.example"
FRAME = '<!doctype html><iframe src="FRAMED"></iframe>'


async def show_evil(page: BrowserPage, files: dict[str, tuple[str, str]]) -> None:
    """Open a page of somebody else's site, whose files come from nowhere."""

    async def serve(route: Any) -> None:
        kind, body = files[urlsplit(route.request.url).path]
        await route.fulfill(body=body, content_type=kind)

    await page.route(f"{EVIL}/**", serve)
    # Else the browser itself would keep a page of the world from this machine.
    await page.context.grant_permissions(["local-network-access"], origin=EVIL)
    await page.goto(EVIL)


@pytest.mark.browser
async def test_pages_of_others_cannot_connect(
    site: Site, page: BrowserPage, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(server={"grace": "2s"}) as running:
        files = {
            "/": ("text/html", PAGE.replace("OPEN", f'new SockJS("{running.url}/stomp")')),
            "/sockjs.min.js": site.files["/sockjs.js"],
            "/stomp.min.js": site.files["/stomp.min.js"],
        }
        await show_evil(page, files)
        await page.wait_for_function("ws.readyState === 3", timeout=PATIENCE * 1000)
    assert f"refused: pages of '{EVIL}' may not use this gateway" in caplog.text


@pytest.mark.browser
async def test_pages_of_others_cannot_frame_the_iframe(site: Site, page: BrowserPage) -> None:
    """In the iframe they would be of the gateway's own origin."""
    script = f"http://localhost:{site.port}/sockjs.js"
    async with gateway(server={"grace": "2s", "sockjs_client_url": script}) as running:
        framed = f"{running.url}/stomp/iframe.html"
        answered = asyncio.ensure_future(
            page.wait_for_event("response", lambda response: response.url == framed)
        )
        await asyncio.sleep(0)
        await show_evil(page, {"/": ("text/html", FRAME.replace("FRAMED", framed))})
        assert (await answered).status == 200
        frame = page.frames[1]
        await until(lambda: frame.url == "chrome-error://chromewebdata/", "the frame is blocked")
        site.files["/frame"] = ("text/html", FRAME.replace("FRAMED", framed))
        await page.goto(f"http://localhost:{site.port}/frame")
        frame = page.frames[1]
        await frame.wait_for_function("window.SockJS !== undefined", timeout=PATIENCE * 1000)
