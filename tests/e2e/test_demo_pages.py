"""The demo's pages in a real browser, with the gateway and the back end behind them.

With QUEUECAST_SCREENSHOTS=1 the pictures in docs/images are taken anew.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from queuecast.testing import RunningGateway, gateway

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.browser

TAKE = bool(os.environ.get("QUEUECAST_SCREENSHOTS"))
IMAGES = Path(__file__).parents[2] / "docs" / "images"
CHARTS = """() => [...document.querySelectorAll("canvas")].map((canvas) => {
  const { width, height } = canvas;
  const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  return data.reduce((sum, each, i) => (sum + each * (i % 997)) % 1000003, 0);
})"""

CONVERSATION = (
    ("Mei", "The report is done, the link is in the ticket."),
    ("Ada", "Thanks! Did every region arrive?"),
    ("Mei", "全部到了，一条不少。"),
    ("Ada", "Then let us ship it."),
)

# Keeps everything that an element has said in window.told.
TELL = """(selector) => {
  const element = document.querySelector(selector);
  window.told = [];
  new MutationObserver(() => window.told.push(element.textContent)).observe(element, {
    childList: true, characterData: true, subtree: true,
  });
}"""


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningGateway]:
    port = 15674 if TAKE else 0
    with gateway(server={"demo": True, "port": port}) as running:
        yield running


@asynccontextmanager
async def watched(page: "Page") -> AsyncIterator[list[str]]:
    """Collect what a page asks of hosts, and its errors; both must be clean."""
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: errors.append(message.text) if message.type == "error" else None,
    )
    yield asked
    assert errors == []


async def until(page: "Page", holds: str, arg: Any = None) -> None:
    """Wait until a function holds on the page (its policy forbids wait_for_function's eval)."""
    async with asyncio.timeout(30):
        while not await page.evaluate(holds, arg):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_the_index_shows_what_can_be_pasted_and_leads_on(
    page: "Page", demo: RunningGateway
) -> None:
    async with watched(page) as asked:
        await page.goto(f"{demo.url}/")
        shown = await page.locator("pre").all_inner_texts()
        assert any(text == f"curl -N {demo.url}/sse/topic/hello" for text in shown)
        assert not any("15674" in text for text in shown)
        for name in ("job", "dashboard", "chat"):
            await page.goto(f"{demo.url}/")
            await page.locator(f"a.card[href='demo/{name}']").click()
            await page.wait_for_url(f"{demo.url}/demo/{name}")
        assert asked
        assert all(url.startswith(demo.url) for url in asked)


async def test_a_job_goes_from_loading_to_its_result(page: "Page", demo: RunningGateway) -> None:
    async with watched(page):
        await page.goto(f"{demo.url}/demo/job")
        await page.evaluate(TELL, "#big")
        await page.click("#start")
        await page.wait_for_selector(".job[data-state=done]")
        told = await page.evaluate("window.told")
        assert told[0] == "loading…"
        assert re.fullmatch(r"π ≈ \d\.\d{4}", told[-1])
        percents = [int(text[:-2]) for text in told[1:-1]]
        assert percents == sorted(percents)
        assert len(set(percents)) > 10
        assert await page.locator("progress").evaluate("bar => bar.value") == 100


async def test_a_job_page_that_is_opened_late_shows_the_result(
    browser: "Browser", demo: RunningGateway
) -> None:
    page = await browser.new_page()
    await page.goto(f"{demo.url}/demo/job")
    await page.click("#start")
    await page.wait_for_selector(".job[data-state=done]")
    result = await page.locator("#big").inner_text()
    link = await page.locator("#share a").get_attribute("href")
    await page.close()
    assert link is not None
    late = await browser.new_page()
    await late.goto(link)
    await late.wait_for_selector(".job[data-state=done]")
    assert await late.locator("#big").inner_text() == result
    await late.close()


async def test_a_job_that_is_refused_says_why(page: "Page", demo: RunningGateway) -> None:
    await page.route(
        "**/publish/**",
        lambda route: route.fulfill(status=403, body=json.dumps({"text": "no jobs today"})),
    )
    await page.goto(f"{demo.url}/demo/job")
    await page.click("#start")
    await page.get_by_text("no jobs today").wait_for()
    assert await page.locator("#start").is_enabled()


async def test_the_dashboards_charts_move(page: "Page", demo: RunningGateway) -> None:
    async with watched(page):
        await page.goto(f"{demo.url}/demo/dashboard")
        await until(
            page, "() => [...document.querySelectorAll('output')].every((o) => o.value !== '–')"
        )
        before = await page.evaluate(CHARTS)
        assert len(before) == 4
        await until(page, f"(before) => ({CHARTS})().every((sum, i) => sum !== before[i])", before)
        await page.evaluate(TELL, "[data-metric=orders] output")
        now = await page.evaluate("Date.now()")
        demo.publish("/topic/metrics.orders", json.dumps({"value": 777, "at": now}))
        await until(page, "() => window.told.includes('777')")


async def test_two_windows_talk_through_the_queue(browser: "Browser", demo: RunningGateway) -> None:
    windows: list[Any] = []
    for name in ("Ada", "梅"):
        window = await browser.new_page()
        await window.goto(f"{demo.url}/demo/chat")
        await window.get_by_text("connected", exact=True).wait_for()
        await window.fill("#name", name)
        windows.append(window)
    ada, mei = windows
    await ada.fill("#text", "Is it <b>really</b> a queue?")
    await ada.press("#text", "Enter")
    await ada.locator("#lines .note", has_text="delivered to everybody").wait_for()
    await mei.get_by_text("Is it <b>really</b> a queue?").wait_for()
    await mei.fill("#text", "是的，你好")
    await mei.press("#text", "Enter")
    await ada.get_by_text("是的，你好").wait_for()
    assert await ada.locator("#lines .says").count() == 2
    # What is no line of a chat harms nobody.
    demo.publish("/queue/demo.chat", "no JSON")
    # Who comes later reads what was said.
    late = await browser.new_page()
    await late.goto(f"{demo.url}/demo/chat")
    await late.get_by_text("是的，你好").wait_for()
    assert await late.locator("#lines .says").all_inner_texts() == [
        "Is it <b>really</b> a queue?",
        "是的，你好",
    ]


async def test_the_chat_shows_a_refusal(page: "Page", demo: RunningGateway) -> None:
    await page.goto(f"{demo.url}/demo/chat")
    await page.get_by_text("connected", exact=True).wait_for()
    # Longer than a message may be, though not than a frame.
    await page.evaluate("document.getElementById('text').removeAttribute('maxlength')")
    await page.fill("#text", "x" * (1 << 20))
    await page.press("#text", "Enter")
    await page.locator("#lines .note", has_text="refused: ").wait_for()


async def test_the_chat_says_again_what_was_not_confirmed(
    page: "Page", demo: RunningGateway
) -> None:
    # The first socket opens and swallows everything; the second one is the gateway's.
    await page.add_init_script(
        """
        const Real = WebSocket;
        let first = null;
        window.WebSocket = class extends EventTarget {
          static OPEN = 1;
          constructor(url) {
            super();
            if (first) return new Real(url);
            first = this;
            this.readyState = 1;
            setTimeout(() => this.onopen());
          }
          send() { setTimeout(() => this.onclose({ code: 1006, reason: "" })); }
          close() {}
        };
        """
    )
    await page.goto(f"{demo.url}/demo/chat")
    await page.fill("#text", "said twice, seen once")
    await page.press("#text", "Enter")
    await page.locator("#lines .note", has_text="delivered to everybody").wait_for()
    assert await page.locator("#lines").get_by_text("said twice, seen once").count() == 1


async def test_a_gap_is_shown(page: "Page", demo: RunningGateway) -> None:
    notice = json.dumps({"reason": "evicted", "last": "a-1", "first": "a-9"})
    await page.route(
        "**/sse/**",
        lambda route: route.fulfill(
            status=200,
            content_type="text/event-stream",
            body=f"retry: 60000\n\nid: a-9\nevent: gap\ndata: {notice}\n\n",
        ),
    )
    await page.goto(f"{demo.url}/demo/dashboard")
    await page.get_by_text("Some messages were missed").wait_for()


async def test_the_shown_listen_comes_back_after_a_502_where_it_was(
    page: "Page", demo: RunningGateway
) -> None:
    """A final status stops an EventSource for good; listen.js opens another, with `since`."""
    asked: list[str] = []

    async def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            body = "retry: 10\n\nid: a-5\ndata: first\n\n"
            await route.fulfill(status=200, content_type="text/event-stream", body=body)
        elif len(asked) == 2:
            await route.fulfill(status=502, body="bad gateway")
        else:
            body = "retry: 60000\n\nid: a-6\ndata: second\n\n"
            await route.fulfill(status=200, content_type="text/event-stream", body=body)

    await page.route("**/sse/**", answer)
    await page.goto(f"{demo.url}/demo/job")
    heard = await page.evaluate(
        """async () => {
          const { listen } = await import("./listen.js");
          const heard = [];
          await new Promise((done) => listen("../sse/topic/x", {
            message(data) { heard.push(data); if (heard.length === 2) done(); },
          }));
          return heard;
        }"""
    )
    assert heard == ["first", "second"]
    assert asked[2].endswith("/sse/topic/x?since=a-5")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_look_right_in(
    browser: "Browser", demo: RunningGateway, scheme: Literal["light", "dark"]
) -> None:
    context = await browser.new_context(
        viewport={"width": 1100, "height": 760}, color_scheme=scheme
    )
    page = await context.new_page()
    for path in ("", "demo/job", "demo/dashboard", "demo/chat"):
        await page.goto(f"{demo.url}/{path}")
        colors = await page.evaluate(
            "(({ backgroundColor, color }) => [backgroundColor, color])"
            "(getComputedStyle(document.body))"
        )
        paper, ink = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
        assert (paper > ink) is (scheme == "light"), path
        await page.set_viewport_size({"width": 320, "height": 700})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320, path
        for control in await page.locator("button, input, .status").all():
            # A card that clips what it holds is no wider itself.
            box = await control.bounding_box()
            assert box is None or box["x"] + box["width"] <= 320, (path, await control.inner_text())
        await page.set_viewport_size({"width": 1100, "height": 760})
        if TAKE and path == "demo/dashboard":
            await page.wait_for_timeout(60_000)
            await page.set_viewport_size({"width": 1100, "height": 800})
        if TAKE and path == "demo/job":
            await page.click("#start")
            await until(page, "() => document.getElementById('bar').value > 60")
        if TAKE and path == "demo/chat":
            await page.fill("#name", "Ada")
            for index, (who, said) in enumerate(CONVERSATION):
                if who == "Ada":
                    await page.fill("#text", said)
                    await page.press("#text", "Enter")
                else:
                    line = {"id": f"{scheme}-{index}", "name": who, "text": said}
                    demo.publish("/queue/demo.chat", json.dumps(line))
                await page.locator("#lines").get_by_text(said).last.wait_for()
                await page.wait_for_timeout(200)
            await page.evaluate("window.scrollTo(0, 150)")
        if TAKE:
            IMAGES.mkdir(parents=True, exist_ok=True)
            name = path.removeprefix("demo/") or "index"
            await page.screenshot(path=IMAGES / f"{name}-{scheme}.png")
    await context.close()
