"""Several nodes behind nginx, as docs/operations.md shows it: requests come back to their node."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from queuecast.testing import gateway
from tests.support.servers import NginxServer, unique

pytestmark = pytest.mark.nginx

DOCS = Path(__file__).parents[2] / "docs/operations.md"
Nginx = Callable[..., NginxServer]


def shown(heading: str) -> str:
    """Return the nginx configuration below a heading of the page."""
    text = DOCS.read_text("utf-8").partition(heading)[2]
    found = re.search(r"```nginx\n(.*?)```", text, re.S)
    assert found is not None
    return found[1]


async def test_a_cookie_brings_requests_back(nginx: Nginx) -> None:
    text = shown("### Affinity of several nodes")
    http, _, server = text.partition("server {\n    location")
    location = "    location" + server.rpartition("}")[0]
    with ExitStack() as stack:
        nodes = [stack.enter_context(gateway()) for _ in range(2)]
        for number, node in enumerate(nodes, 1):
            http = http.replace(f"10.0.0.{number}:15674", node.url.removeprefix("http://"))
        proxy = nginx(location, http=http)
        began = [0, 0]
        for _ in range(12):
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
                where = f"{proxy.url}/stomp/000/{unique('s')}"
                async with browser.post(f"{where}/xhr") as answer:
                    assert await answer.text() == "o\n"
                login = ["CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0"]
                async with browser.post(f"{where}/xhr_send", json=login) as answer:
                    assert answer.status == 204, await answer.text()
                async with browser.post(f"{where}/xhr") as answer:
                    assert (await answer.text()).startswith("a[")
                counts = [len(node.gateway.server._sockjs.sessions) for node in nodes]
                assert sum(counts) == sum(began) + 1
                began = counts
        assert min(began) > 0, "new browsers go to either"
