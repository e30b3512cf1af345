"""The examples do what they say."""

import asyncio
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from queuecast import config
from queuecast.testing import RunningGateway, gateway
from tests.support.servers import RabbitMQ

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

EXAMPLES = Path(__file__).parents[2] / "examples"
GATEWAY = "http://127.0.0.1:15674"
ANYWHERE = {"access-control-allow-origin": "*"}


def load(name: str, url: str) -> ModuleType:
    """Import an example whose gateway is at `url`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.GATEWAY = url  # type: ignore[attr-defined]
    return module


def run(name: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def configured(folder: str) -> config.Config:
    return config.load(
        {"server.port": "0"}, file=str(EXAMPLES / folder / "queuecast.toml"), environ={}
    )


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningGateway]:
    with gateway() as running:
        yield running


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on a web server of its own, as page.html says."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[str]:
    with served(EXAMPLES) as url:
        yield url


def test_publish_http(plain: RunningGateway) -> None:
    done = run("publish_http.py", "/topic/例子", '{"done": 50}', QUEUECAST_URL=plain.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(plain.last("/topic/例子")) == {"done": 50}


def test_publish_http_says_why_it_was_refused(plain: RunningGateway) -> None:
    done = run("publish_http.py", "/nowhere", "1", QUEUECAST_URL=plain.url)
    assert done.returncode == 1
    assert "unknown destination" in done.stderr


def test_the_fastapi_apps_job_tells_how_far_it_is(plain: RunningGateway) -> None:
    load("fastapi_app", plain.url).work(7, pause=0)
    assert json.loads(plain.last("/topic/job.7")) == {"state": "done", "done": 100, "result": 42}


def test_the_django_views_publish(plain: RunningGateway) -> None:
    load("django_view", plain.url).publish("/topic/orders.9", {"state": "shipped"})
    assert json.loads(plain.last("/topic/orders.9")) == {"state": "shipped"}


@pytest.mark.parametrize(
    ("alias", "path"), [("/events/7", "/exchange/events/7"), ("/sse", "/topic/news")]
)
def test_the_aliases(alias: str, path: str) -> None:
    with gateway(configured("events_alias")) as running:
        running.publish(path, "到了")
        with urllib.request.urlopen(f"{running.url}{alias}?last=1", timeout=10) as stream:
            assert any(line == "data: 到了\n".encode() for line in stream)


def test_the_chat_goes_through_the_queue() -> None:
    with (
        gateway(configured("chat")) as running,
        connect(f"{running.ws_url}/ws/topic/chat?envelope=json&last=50") as room,
        connect(f"{running.ws_url}/ws/topic/chat?envelope=json&last=50") as other,
    ):
        room.send(json.dumps({"publish": "/queue/chat", "body": "hello", "id": 1}))
        confirmed: list[Any] = []
        while len(confirmed) < 2:
            said = json.loads(room.recv(timeout=10))
            confirmed += [said[key] for key in ("published", "body") if key in said]
        assert sorted(map(str, confirmed)) == ["1", "hello"]
        while "body" not in (heard := json.loads(other.recv(timeout=10))):
            pass
        assert (heard["destination"], heard["body"]) == ("/topic/chat", "hello")


@pytest.mark.browser
@pytest.mark.rabbitmq
async def test_the_articles_script_reaches_the_page(
    page: "Page", rabbit: RabbitMQ, site: str
) -> None:
    exchange = [{"name": "rabbitmq", "type": "topic"}]
    with gateway(broker={"url": rabbit.url}, exchange=exchange) as running:
        await page.goto(f"{site}/page.html?gateway={running.url}")
        await page.get_by_text("loading…").wait_for()
        await page.evaluate("events.readyState || new Promise((live) => { events.onopen = live; })")
        done = run("progress_worker.py", AMQP_URL=rabbit.url)
        assert (done.returncode, done.stderr) == (0, "")
        await page.get_by_text("[disk.info] Hello World!333").wait_for()


@pytest.mark.browser
async def test_the_page_opens_again_after_a_proxys_502(page: "Page", site: str) -> None:
    answers = [502]

    async def answer(route: "Route") -> None:
        if answers:
            await route.fulfill(status=answers.pop())
        else:
            await route.continue_()

    with gateway(exchange=[{"name": "rabbitmq", "type": "topic"}]) as running:
        await page.route("**/sse/**", answer)
        await page.goto(f"{site}/page.html?gateway={running.url}")
        await page.wait_for_function("events.readyState === EventSource.OPEN")
        assert not answers
        await asyncio.to_thread(running.publish, "/exchange/rabbitmq/zjj", "live again")
        await page.get_by_text("live again").wait_for()


@pytest.mark.browser
async def test_the_page_in_the_readme_opens_again_where_it_was(
    page: "Page", tmp_path: Path
) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    code = readme.partition("```html\n")[2].partition("```")[0]
    asked: list[str] = []

    async def answer(route: "Route") -> None:
        asked.append(route.request.url.partition("?")[2])
        if len(asked) == 1:
            body = "retry: 10\nid: 5f0c-7\ndata: once\n\n"
            await route.fulfill(body=body, content_type="text/event-stream", headers=ANYWHERE)
        elif len(asked) == 2:
            await route.fulfill(status=502)
        else:
            await route.continue_()

    with gateway() as running, served(tmp_path) as url:
        html = '<!doctype html><meta charset="utf-8">' + code
        (tmp_path / "page.html").write_text(html.replace(GATEWAY, running.url), "utf-8")
        await page.route("**/sse/**", answer)
        async with page.expect_response(lambda found: "since=" in found.url) as opened:
            await page.goto(f"{url}/page.html")
        assert (await opened.value).status == 200
        # The browser came again by itself, and gave up at the 502.
        assert asked == ["last=1", "last=1", "since=5f0c-7"]
        await asyncio.to_thread(running.publish, "/topic/hello", "live again")
        await page.get_by_text("live again").wait_for()


def test_code_in_the_readme_is_the_examples() -> None:
    """Python blocks that name an example are parts of it."""
    root = EXAMPLES.parent
    for readme in ("README.md", "README.zh-CN.md"):
        blocks = (root / readme).read_text("utf-8").split("```python\n")[1:]
        assert blocks, readme
        sources = [path.read_text("utf-8") for path in EXAMPLES.glob("*.py")]
        sources.append((root / "src/queuecast/testing.py").read_text("utf-8"))
        for block in blocks:
            code = block.partition("```")[0]
            assert any(code.strip() in source for source in sources), f"{readme}:\n{code}"
