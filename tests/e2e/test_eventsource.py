"""The EventSources that people use: Chromium's, npm's, and the one our pages reopen."""

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import queuecast.demo
from queuecast.testing import RunningGateway
from tests.conftest import Node
from tests.e2e.clients import PATIENCE, gateway, publish
from tests.support.processes import free_port
from tests.support.proxy import TcpProxy
from tests.support.servers import NginxServer

if TYPE_CHECKING:
    from playwright.async_api import Page

Name = Callable[[], str]

LISTEN = Path(queuecast.demo.__file__).parent / "pages/listen.js"

# As a page would: but it keeps every EventSource, so that the test sees what became of them.
PAGE = """<!doctype html><meta charset="utf-8"><p id="last">loading…</p>
<script>
window.sources = [];
window.EventSource = class extends EventSource {
  constructor(url) { super(url); window.sources.push(this); }
};
</script>
<script type="module">
import { listen } from "./listen.js";
window.got = []; window.gaps = []; window.opened = 0;
listen(location.hash.slice(1), {
  open() { window.opened += 1; },
  message(data) { window.got.push(data); document.getElementById("last").textContent = data; },
  gap(gap) { window.gaps.push(gap.reason); },
});
</script>"""

PROXY = """location / {{
  proxy_pass http://127.0.0.1:{port};
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  proxy_set_header Connection "";
}}"""


async def show(page: "Page", origin: str, url: str) -> None:
    """Open the page at the proxy's own origin; all but page and script goes to the network."""

    async def serve_page(route: Any) -> None:
        await route.fulfill(body=PAGE, content_type="text/html")

    async def serve_script(route: Any) -> None:
        await route.fulfill(path=LISTEN, content_type="text/javascript")

    await page.route("**/page", serve_page)
    await page.route("**/listen.js", serve_script)
    await page.goto(f"{origin}/page#{url}")
    await page.wait_for_function("window.opened === 1", timeout=PATIENCE * 1000)


async def wait_for(page: "Page", expression: str) -> None:
    await page.wait_for_function(expression, timeout=PATIENCE * 1000)


@pytest.mark.browser
@pytest.mark.nginx
async def test_a_page_survives_a_restart_behind_nginx(
    page: "Page", nginx: Callable[..., NginxServer], name: Name
) -> None:
    topic = f"/topic/{name()}"
    port = free_port()
    proxy = nginx(PROXY.format(port=port))
    settings = {"server": {"port": port, "grace": "2s", "retry": 100}}
    async with gateway(**settings) as gw:
        await show(page, proxy.url, f"/sse{topic}")
        await publish(gw, topic, "before")
        await wait_for(page, "window.got.length === 1")
    # nginx answers 502 now, which ends an EventSource for good.
    await wait_for(page, "window.sources[0].readyState === EventSource.CLOSED")
    async with gateway(**settings) as gw:
        await publish(gw, topic, "after, 你好")
        await wait_for(page, "window.got.length === 2")
        await publish(gw, topic, "live")
        await wait_for(page, "window.got.length === 3")
        assert await page.evaluate("window.got") == ["before", "after, 你好", "live"]
        # The embedded broker lost its memory with the process, and the page is told so.
        assert await page.evaluate("window.gaps") == ["epoch"]
        assert "since=" in await page.evaluate("window.sources.at(-1).url")
        assert await page.text_content("#last") == "live"
        await page.close()


@pytest.mark.browser
@pytest.mark.nginx
async def test_a_page_misses_nothing_while_nginx_cannot_reach_the_gateway(
    page: "Page", nginx: Callable[..., NginxServer], gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    async with TcpProxy("127.0.0.1", int(gw.url.rsplit(":", 1)[1])) as cut:
        proxy = nginx(PROXY.format(port=cut.port))
        await show(page, proxy.url, f"/sse{topic}?last=1")
        await publish(gw, topic, "0")
        await wait_for(page, "window.got.length === 1")
        await cut.refuse()
        cut.cut()
        for n in range(1, 20):
            await publish(gw, topic, str(n))
        await wait_for(page, "window.sources[0].readyState === EventSource.CLOSED")
        await cut.accept()
        await wait_for(page, "window.got.length >= 20")
        await publish(gw, topic, "20")
        await wait_for(page, "window.got.length >= 21")
        assert await page.evaluate("window.got") == [str(n) for n in range(21)]
        assert await page.evaluate("window.gaps") == []
        await page.close()


@pytest.mark.browser
async def test_chromium_resumes_by_itself(page: "Page", gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with TcpProxy("127.0.0.1", int(gw.url.rsplit(":", 1)[1])) as proxy:
        # A page of another origin on loopback: CORS lets it in.
        await page.goto(f"{gw.url}/healthz")
        await page.evaluate(
            """url => {
                window.got = []; window.ids = []; window.opened = 0;
                const source = new EventSource(url);
                source.onopen = () => { window.opened += 1; };
                source.onmessage = ({data, lastEventId}) => {
                    window.got.push(data); window.ids.push(lastEventId);
                };
                source.addEventListener("binary", ({data}) => window.got.push(atob(data).length));
            }""",
            f"http://127.0.0.1:{proxy.port}/sse{topic}",
        )
        await wait_for(page, "window.opened === 1")
        await publish(gw, topic, "一\n二")
        await publish(gw, topic, b"\xff\xfe\xfd")
        await wait_for(page, "window.got.length === 2")
        proxy.cut()
        await publish(gw, topic, "missed")
        await wait_for(page, "window.opened === 2 && window.got.length === 3")
        await publish(gw, topic, "live")
        await wait_for(page, "window.got.length >= 4")
        assert await page.evaluate("window.got") == ["一\n二", 3, "missed", "live"]
        assert all(await page.evaluate("window.ids"))
        await page.close()


@asynccontextmanager
async def follow(node: Node, url: str) -> AsyncIterator[Callable[[str], Any]]:
    """Run npm's EventSource; yields what waits for its next event of a type."""
    process = await asyncio.create_subprocess_exec(
        str(node.command), "follow.mjs", url, cwd=node.directory, stdout=PIPE
    )
    assert process.stdout is not None

    async def following(kind: str) -> Any:
        while True:
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)  # type: ignore[union-attr]
            assert line, "node ended"
            event = json.loads(line)
            if event["type"] == kind:
                return event
            assert event["type"] in ("open", "error", "position"), event

    try:
        yield following
    finally:
        process.kill()
        await process.wait()


@pytest.mark.node
async def test_npms_eventsource_resumes_from_its_first_position(
    node: Node, gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    async with (
        TcpProxy("127.0.0.1", int(gw.url.rsplit(":", 1)[1])) as proxy,
        follow(node, f"http://127.0.0.1:{proxy.port}/sse{topic}") as following,
    ):
        position = await following("position")
        assert (position["data"], bool(position["id"])) == ("", True)
        # Cut off before its first message, it still misses nothing.
        proxy.cut()
        await publish(gw, topic, "missed")
        assert (await following("message"))["data"] == "missed"
        await publish(gw, topic, "键\r\n值")
        assert (await following("message"))["data"] == "键\n值"
        proxy.cut()
        await publish(gw, topic, "again")
        message = await following("message")
        assert message["data"] == "again"
        assert message["id"]


@pytest.mark.node
async def test_npms_eventsource_stops_at_a_refusal(
    node: Node, gw: RunningGateway, name: Name
) -> None:
    async with follow(node, f"{gw.url}/sse/topic/job.") as following:
        error = await following("error")
        assert (error["state"], error["code"]) == (2, 400)
