"""queuecast.js as pages use it: in Chromium, over each transport, through cuts and restarts."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from queuecast.testing import RunningGateway
from tests.conftest import Node
from tests.e2e.clients import PATIENCE, gateway, get, publish
from tests.support.processes import free_port
from tests.support.proxy import TcpProxy

if TYPE_CHECKING:
    from playwright.async_api import Page

Name = Callable[[], str]

TRANSPORTS = ["websocket", "sse", "poll"]

# Keeps everything that the page's client told, in the order in which it did.
SCRIPT = """
import { connect } from "./queuecast.js";
window.got = []; window.gaps = []; window.errors = []; window.states = []; window.settled = [];
document.body.innerHTML = "<p id=last>loading…</p>";
window.start = (options) => {
  window.client = connect(undefined, {
    retry: 50, state: (state, transport) => window.states.push(`${state} ${transport}`), ...options,
  });
  window.listen = (destination, options = {}) => {
    window.subscription = window.client.subscribe(destination, (message) => {
      window.got.push(message.body);
      window.message = message;
      document.getElementById("last").textContent = message.body;
    }, {
      gap: (gap) => window.gaps.push(gap.reason),
      error: ({ code }) => window.errors.push(code),
      ...options,
    });
  };
};
window.ready = true;
"""


def port_of(gw: RunningGateway) -> int:
    return int(gw.url.rsplit(":", 1)[1])


async def show(page: "Page", origin: str) -> None:
    """Open a page of the gateway's origin that has the module."""
    await page.goto(f"{origin}/")
    await page.add_script_tag(content=SCRIPT, type="module")
    await wait_for(page, "window.ready")


async def wait_for(page: "Page", expression: str) -> None:
    try:
        await page.wait_for_function(expression, timeout=PATIENCE * 1000)
    except Exception as error:
        told = await page.evaluate(
            "[window.got, window.gaps, window.errors, window.states, window.settled]"
        )
        raise AssertionError(f"{expression} does not hold: {told}") from error


async def listen(page: "Page", transport: str, destination: str, **options: Any) -> None:
    await page.evaluate("(transports) => window.start({ transports })", [transport])
    await page.evaluate("([name, options]) => window.listen(name, options)", [destination, options])
    await wait_for(page, "window.client.state === 'open'")
    if not destination.startswith("/queue/"):
        await wait_for(page, "window.subscription.position")  # it is live


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_page_shows_what_comes(
    page: "Page", gw: RunningGateway, name: Name, transport: str
) -> None:
    topic = f"/topic/{name()}"
    await publish(gw, topic, "before")
    await show(page, gw.url)
    await listen(page, transport, topic, last=1)
    await wait_for(page, "window.got.length === 1")
    await publish(gw, topic, "后来")
    await wait_for(page, "window.got.length === 2")
    assert await page.evaluate("window.got") == ["before", "后来"]
    assert await page.inner_text("#last") == "后来"
    assert await page.evaluate("window.message.destination") == topic
    assert await page.evaluate("window.message.position === window.subscription.position")
    assert await page.evaluate("window.gaps") == []


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_bodies_are_bytes_where_a_page_asks_for_it(
    page: "Page", gw: RunningGateway, name: Name, transport: str
) -> None:
    raw, text = f"/topic/{name()}", f"/topic/{name()}"
    async with TcpProxy("127.0.0.1", port_of(gw)) as proxy:
        await show(page, f"http://127.0.0.1:{proxy.port}")
        await page.evaluate("""() => {
          window.shown = [];
          window.show = (destination, options) => {
            window.subscription = window.client.subscribe(destination, ({ body, json }) => {
              window.shown.push([destination, typeof body, Array.from(body).join(), json()]);
            }, options);
          };
        }""")
        await page.evaluate("(transports) => window.start({ transports })", [transport])
        for topic, options in ((raw, {"binary": "always"}), (text, {})):
            await page.evaluate("([name, options]) => window.show(name, options)", [topic, options])
            await wait_for(page, "window.subscription.position")
        # Once from the beginning, and once from the positions that they had.
        for count in (2, 4):
            for topic in (raw, text):
                await publish(gw, topic, "[1]")
            await wait_for(page, f"window.shown.length === {count}")
            proxy.cut()
        shown = await page.evaluate("window.shown")
        assert sorted(shown) == sorted(
            [[raw, "object", "91,49,93", [1]], [text, "string", "[,1,]", [1]]] * 2
        )


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cuts_lose_and_repeat_nothing(
    page: "Page", gw: RunningGateway, name: Name, transport: str
) -> None:
    one, two = f"/topic/{name()}", f"/topic/{name()}"
    async with TcpProxy("127.0.0.1", port_of(gw)) as proxy:
        await show(page, f"http://127.0.0.1:{proxy.port}")
        await listen(page, transport, one)
        await page.evaluate("(name) => window.listen(name)", two)
        await wait_for(page, "window.subscription.position")  # it is live
        await publish(gw, two, "ready")
        await wait_for(page, "window.got.includes('ready')")
        for number in range(30):
            await publish(gw, one if number % 2 else two, str(number))
            if number in (7, 15):
                proxy.cut()
            if number == 22:
                proxy.fin()
        await wait_for(page, "window.got.length >= 31")
        got = await page.evaluate("window.got")
        assert sorted(got[1:], key=int) == [str(number) for number in range(30)]
        odd = [int(each) for each in got[1:] if int(each) % 2]
        assert odd == sorted(odd)
        assert await page.evaluate("window.gaps") == []


@pytest.mark.browser
async def test_a_fallback_goes_on_where_the_other_was(
    page: "Page", gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    await show(page, gw.url)
    await listen(page, "websocket", topic)
    await publish(gw, topic, "1")
    await wait_for(page, "window.got.length === 1")
    for number, transport in enumerate(("sse", "poll", "websocket"), 2):
        position = await page.evaluate("window.subscription.position")
        await page.evaluate("window.client.close()")
        await publish(gw, topic, str(number))
        await listen(page, transport, topic, since=position)
        await wait_for(page, f"window.got.length === {number}")
    assert await page.evaluate("window.got") == ["1", "2", "3", "4"]
    assert await page.evaluate("window.gaps") == []


@pytest.mark.browser
async def test_without_websockets_it_takes_the_next(
    page: "Page", gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    await show(page, gw.url)
    await page.evaluate(
        """() => {
          window.WebSocket = class {
            constructor() { setTimeout(() => this.onclose(), 10); }
            close() {}
          };
          window.start({});
        }"""
    )
    await page.evaluate("(name) => window.listen(name)", topic)
    await wait_for(page, "window.subscription.position")
    await publish(gw, topic, "x")
    await wait_for(page, "window.got.length === 1")
    assert await page.evaluate("window.client.transport") == "sse"


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_reload_goes_on_from_the_storage(
    page: "Page", gw: RunningGateway, name: Name, transport: str
) -> None:
    topic = f"/topic/{name()}"
    await show(page, gw.url)
    start = "(transports) => window.start({ transports, storage: sessionStorage })"
    await page.evaluate(start, [transport])
    await page.evaluate("(name) => window.listen(name)", topic)
    await wait_for(page, "window.client.state === 'open' && window.subscription.position")
    await publish(gw, topic, "1")
    await wait_for(page, "window.got.length === 1")
    await page.goto("about:blank")
    await publish(gw, topic, "2")
    await show(page, gw.url)
    await page.evaluate(start, [transport])
    await page.evaluate("(name) => window.listen(name, { last: 5 })", topic)
    await wait_for(page, "window.got.length >= 1")
    await publish(gw, topic, "3")
    await wait_for(page, "window.got.length >= 2")
    assert await page.evaluate("window.got") == ["2", "3"]


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_publish_is_confirmed_or_says_why_not(
    page: "Page", gw: RunningGateway, name: Name, transport: str
) -> None:
    topic = f"/topic/{name()}"
    await show(page, gw.url)
    await listen(page, transport, topic)
    await page.evaluate(
        """async (topic) => {
          await window.client.publish(topic, "text");
          await window.client.publish(topic, { a: [1] }, { "content-type": "application/json" });
          await window.client.publish(topic, new Uint8Array([0, 255, 7]));
          await window.client.publish("/topic/*", "x")
            .catch(({ code }) => window.errors.push(code));
        }""",
        topic,
    )
    await wait_for(page, "window.got.length === 3 && window.errors.length === 1")
    assert await page.evaluate("window.got.slice(0, 2)") == ["text", '{"a":[1]}']
    assert await page.evaluate("[...window.got[2]]") == [0, 255, 7]
    assert await page.evaluate("window.errors") == ["bad_request"]


@pytest.mark.browser
async def test_a_publish_under_a_cut_is_made_once(
    page: "Page", gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    async with TcpProxy("127.0.0.1", port_of(gw)) as proxy:
        await show(page, f"http://127.0.0.1:{proxy.port}")
        await listen(page, "websocket", topic)
        await page.evaluate(
            """(topic) => {
              for (let n = 0; n < 200; n++) {
                window.client.publish(topic, `${n}`).then(() => window.settled.push(n),
                  ({ code }) => window.errors.push(code));
              }
            }""",
            topic,
        )
        for _ in range(3):
            await asyncio.sleep(0.02)
            proxy.cut()
        await wait_for(page, "window.settled.length === 200")
        await wait_for(page, "window.got.length >= 200")
        got = await page.evaluate("window.got")
    assert sorted(map(int, got)) == list(range(200))


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_refused_ends_that_subscription_alone(
    page: "Page", name: Name, transport: str
) -> None:
    topic = f"/topic/public.{name()}"
    rule = {"subscribe": ["/topic/public.#"], "publish": ["/topic/public.#"]}
    async with gateway(allow=[rule]) as guarded:
        await show(page, guarded.url)
        await page.evaluate("(transports) => window.start({ transports })", [transport])
        await page.evaluate("window.listen('/topic/secret')")
        await wait_for(page, "window.errors.length === 1")
        await page.evaluate("(name) => window.listen(name)", topic)
        await wait_for(page, "window.subscription.position")
        await publish(guarded, topic, "seen")
        await wait_for(page, "window.got.length === 1")
        assert await page.evaluate("window.errors") == ["refused"]


@pytest.mark.browser
async def test_queues_are_acked_by_the_page(page: "Page", gw: RunningGateway, name: Name) -> None:
    queue = f"/queue/{name()}"
    await publish(gw, queue, "work")
    await show(page, gw.url)
    await listen(page, "websocket", queue, ack="client", prefetch=1)
    await wait_for(page, "window.got.length === 1")
    await publish(gw, queue, "more")
    await page.evaluate("window.message.nack()")
    await wait_for(page, "window.got.length === 2")
    assert await page.evaluate("window.message.redelivered") is True
    await page.evaluate("window.message.ack()")
    await wait_for(page, "window.got.length === 3")
    assert await page.evaluate("window.got") == ["work", "work", "more"]


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_gap_is_told(page: "Page", gw: RunningGateway, name: Name, transport: str) -> None:
    topic = f"/topic/{name()}"
    await show(page, gw.url)
    await listen(page, transport, topic, since="gone-7")
    await wait_for(page, "window.gaps.length === 1")
    await publish(gw, topic, "on")
    await wait_for(page, "window.got.length === 1")
    assert await page.evaluate("window.gaps") == ["epoch"]


@pytest.mark.browser
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_listener_that_fails_disturbs_nobody(
    page: "Page", gw: RunningGateway, name: Name, transport: str
) -> None:
    topic = f"/topic/{name()}"
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(error.message))
    await show(page, gw.url)
    await page.evaluate("(transports) => window.start({ transports })", [transport])
    await page.evaluate(
        """(name) => {
          window.client.subscribe(name, ({ body }) => { throw new Error(`mine: ${body}`); });
          window.listen(name);
        }""",
        topic,
    )
    await wait_for(page, "window.subscription.position")
    for body in ("1", "2", "3"):
        await publish(gw, topic, body)
        await wait_for(page, f"window.got.includes('{body}')")
    assert await page.evaluate("window.got") == ["1", "2", "3"]
    assert faults == ["mine: 1", "mine: 2", "mine: 3"]
    assert (
        await page.evaluate("window.states.filter((state) => state.startsWith('open')).length") == 1
    )


@pytest.mark.browser
async def test_a_gateway_that_restarts_is_found_again(page: "Page", name: Name) -> None:
    topic = f"/topic/{name()}"
    port = free_port()
    async with gateway(server={"port": port, "grace": "1s"}) as first:
        await show(page, first.url)
        await listen(page, "websocket", topic)
        await publish(first, topic, "1")
        await wait_for(page, "window.got.length === 1")
    async with gateway(server={"port": port}) as second:
        await wait_for(page, "window.gaps.length === 1")  # memory went with the first gateway
        await publish(second, topic, "2")
        await wait_for(page, "window.got.length === 2")
        assert await page.evaluate("window.gaps") == ["epoch"]


@pytest.mark.browser
async def test_a_gateway_that_was_away_is_no_reason_for_another_transport(
    page: "Page", name: Name
) -> None:
    topic = f"/topic/{name()}"
    port = free_port()
    async with gateway(server={"port": port, "grace": "1s"}) as first:
        await show(page, first.url)
        await page.evaluate("window.start({})")
        await page.evaluate("(name) => window.listen(name)", topic)
        await wait_for(page, "window.subscription?.position")
    attempts = "window.states.filter((state) => state.startsWith('connecting')).length"
    begun = await page.evaluate(attempts)
    await wait_for(page, f"{attempts} > {begun} + 3")
    async with gateway(server={"port": port}) as second:
        await wait_for(page, "window.gaps.length === 1")
        await publish(second, topic, "2")
        await wait_for(page, "window.got.length === 1")
        told = set(await page.evaluate("window.states"))
        assert told == {f"{state} websocket" for state in ("connecting", "open", "waiting")}


async def test_the_module_is_typed_and_small(gw: RunningGateway, node: Node) -> None:
    answer = await get(f"{gw.url}/queuecast.js")
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert not re.search(r"^import |https?://", answer.text, re.MULTILINE)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = shutil.which("npx")
        assert command is not None
        return subprocess.run(
            [command, "--no-install", *arguments],
            cwd=node.directory,
            input=answer.text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    small = run("esbuild", "--minify", "--target=es2022", "--format=esm")
    assert small.returncode == 0, small.stderr
    assert len(small.stdout.encode()) < 6 * 1024
    source = node.directory.parents[2] / "src/queuecast/server/queuecast.js"
    options = "--noEmit --allowJs --checkJs --strict --target es2022 --module esnext"
    typed = run("tsc", *options.split(), "--lib", "es2022,dom,dom.iterable", str(source))
    assert typed.returncode == 0, typed.stdout
