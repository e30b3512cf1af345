"""The demo's pages behind nginx: under a path prefix, and across a restart of the gateway."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from queuecast.testing import gateway
from tests.support.processes import free_port
from tests.support.servers import NginxServer

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.nginx]

# As docs/operations.md shows it.
MAP = """map $http_upgrade $queuecast_connection { default upgrade; "" ""; }"""
LOCATION = """
    location %s {
        proxy_pass %s;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $queuecast_connection;
        proxy_buffering off;
        proxy_read_timeout 75s;
    }
"""
Nginx = Callable[..., NginxServer]


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "kept"])
async def test_every_page_works_under_a_prefix(page: "Page", nginx: Nginx, stripped: bool) -> None:
    prefix = "" if stripped else "/push"
    with gateway(server={"demo": True, "prefix": prefix}) as running:
        parts = urlsplit(running.url)
        upstream = f"http://{parts.netloc}" + ("/" if stripped else "")
        proxy = nginx(LOCATION % ("/push/", upstream), http=MAP)
        await page.goto(f"{proxy.url}/push/")
        shown = await page.locator("pre").first.inner_text()
        assert shown == f"curl -N {proxy.url}/push/sse/topic/hello"
        await page.locator("a.card[href='demo/job']").click()
        await page.click("#start")
        await page.wait_for_selector(".job[data-state=done]")
        await page.get_by_role("link", name="Dashboard").click()
        await page.get_by_text("live", exact=True).wait_for()
        await page.get_by_role("link", name="Chat").click()
        await page.get_by_text("connected", exact=True).wait_for()
        await page.fill("#text", "under a prefix")
        await page.press("#text", "Enter")
        await page.locator("#lines .note", has_text="delivered to everybody").wait_for()
        await page.locator("a.brand").click()
        await page.wait_for_url(f"{proxy.url}/push/")


async def test_listen_survives_the_502_of_a_restart(page: "Page", nginx: Nginx) -> None:
    port = free_port()
    proxy = nginx(LOCATION % ("/", f"http://127.0.0.1:{port}"), http=MAP)
    server = {"demo": True, "port": port, "retry": 100}
    statuses: list[int] = []
    page.on(
        "response",
        lambda response: statuses.append(response.status) if "/sse/" in response.url else None,
    )
    with gateway(server=server) as running:
        await page.goto(f"{proxy.url}/demo/job")
        await page.evaluate(
            """async () => {
              const { listen } = await import("./listen.js");
              window.heard = [];
              await new Promise((live) => listen("../sse/topic/x", {
                open: live,
                gap: (gap) => window.heard.push("gap: " + gap.reason),
                message: (data) => window.heard.push(data),
              }));
            }"""
        )
        running.publish("/topic/x", "one")
        await heard(page, "one")
    async with asyncio.timeout(30):
        while 502 not in statuses:  # noqa: ASYNC110 - the browser asks by itself
            await asyncio.sleep(0.05)
    with gateway(server=server) as running:
        # Another process would have another memory as well: that is said, not hidden.
        await heard(page, "gap: epoch")
        running.publish("/topic/x", "two")
        await heard(page, "two")
        assert await page.evaluate("window.heard") == ["one", "gap: epoch", "two"]


async def heard(page: "Page", text: str) -> None:
    """Wait until the page has heard something."""
    async with asyncio.timeout(45):
        while text not in await page.evaluate("window.heard"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
