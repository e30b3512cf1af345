"""A running gateway for tests: `with gateway() as gw: …`, in synchronous and asyncio tests alike.

import pytest, queuecast.testing

@pytest.fixture(scope="session")
def gateway():
    with queuecast.testing.gateway() as gw:
        yield gw

def test_progress(gateway):
    run_job(gateway.url)
    assert gateway.last("/topic/job.7") == b"done"
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .config import Config, from_tables
from .destination import Destination
from .gateway import Gateway


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Where a gateway listens, and what tests do most. url: http://127.0.0.1:PORT."""

    url: str
    gateway: Gateway
    loop: asyncio.AbstractEventLoop

    @property
    def ws_url(self) -> str:
        """The same address for WebSocket clients."""
        return "ws" + self.url.removeprefix("http")

    def publish(self, destination: str, body: bytes | str) -> None:
        """Publish over HTTP; raises urllib.error.HTTPError when refused."""
        path = Destination.parse(destination).url_path
        data = body.encode() if isinstance(body, str) else body
        request = urllib.request.Request(f"{self.url}/publish{path}", data, method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            response.read()

    def last(self, destination: str, timeout: float = 10.0) -> bytes:
        """Return the last message of a shared destination, waiting for one if there is none.

        timeout: seconds. Raises TimeoutError.
        """
        path = Destination.parse(destination).url_path
        url = f"{self.url}/sse{path}?last=1&envelope=json"
        with urllib.request.urlopen(url, timeout=timeout) as stream:
            event = "message"
            for line in stream:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    event = value
                elif field == "data" and event == "message":
                    envelope = json.loads(value)
                    if "base64" in envelope:  # a body that is no text
                        return base64.b64decode(envelope["base64"])
                    return str(envelope["body"]).encode()
                elif not field:
                    event = "message"
        raise TimeoutError(f"no message on {destination} within {timeout} s")


@contextmanager
def gateway(config: Config | None = None, **tables: Any) -> Iterator[RunningGateway]:
    """Run a gateway in a thread of its own, on a free loopback port, until the block ends.

    config: a whole configuration; or tables as in queuecast.toml, e.g.
    `gateway(exchange=[{"name": "events", "type": "topic"}], aliases={…})`.
    Raises what Gateway.start raises.
    """
    if config is None:
        server = {"port": 0, **tables.pop("server", {})}
        config = from_tables({"server": server, **tables})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="queuecast", daemon=True)
    thread.start()
    made = Gateway(config)
    try:
        asyncio.run_coroutine_threadsafe(made.start(), loop).result(60)
        yield RunningGateway(made.url, made, loop)
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
