"""What is between publishers and clients: gateways, the broker, and a proxy before each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import queuecast
from tests.chaos.clock import now
from tests.chaos.site import Site
from tests.support.processes import Directory, Process, free_port, wait_until
from tests.support.proxy import TcpProxy, _End

_SOURCES = str(Path(queuecast.__file__).parents[1])

_START = 90.0


class Gateway:
    """A gateway in a process of its own, on a port that it keeps."""

    def __init__(
        self, name: str, directory: Path, tables: str, environment: dict[str, str]
    ) -> None:
        """tables: the configuration of its broker and of what is there."""
        self.name = name
        self.port = free_port()
        self.log = directory / f"{name}.log"
        self._config = directory / f"{name}.toml"
        self._environment = environment
        self._process: Process | None = None
        self._starting = threading.Lock()
        # When it ended by itself, and its last words.
        self.ends: list[str] = []
        self.kept = False
        self._config.write_text(
            f"""
[server]
port = {self.port}
node = "{name}"
heartbeat = "2s"
[log]
messages = 500
bytes = "1MB"
{tables}"""
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start it and return when it serves, whatever its broker does, or has ended again.

        Raises RuntimeError when it ended by itself, unless it is kept.
        """
        with self._starting:
            if self.running:
                return
            command = [sys.executable, "-m", "queuecast", "serve", "--config", str(self._config)]
            started = self._process = Process(command, log=self.log, env=self._environment)
        try:
            started.wait_until(lambda: self.asked("/healthz"), what=self.name, timeout=_START)
        except RuntimeError:
            if started is self._process and not self.kept:
                raise

    async def keep(self) -> None:
        """Start it again whenever it has ended by itself, as a service manager does, and note
        that; until cancelled."""
        self.kept = True
        while True:
            await asyncio.sleep(1)
            ended = self._process
            if ended is not None and not ended.running:
                self.ends.append(f"at {now():.2f}: {ended.log_tail(1)}")
                await asyncio.to_thread(self.start)

    def asked(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ready(self) -> None:
        """Return when it has its broker."""
        wait_until(lambda: self.asked("/readyz"), what=f"{self.name}: broker", timeout=_START)

    def kill(self) -> None:
        killed, self._process = self._process, None
        if killed is not None:
            killed.kill()


class Balancer(TcpProxy):
    """A TCP load balancer: connections go to the gateways that run in turn."""

    def __init__(self, gateways: list[Gateway]) -> None:
        super().__init__("127.0.0.1", 0)
        self._gateways = gateways
        # By the client's port, the gateway that it came to.
        self._taken: dict[int, str] = {}

    async def _dial(self, client: _End) -> None:
        up = [gateway for gateway in self._gateways if gateway.running] or self._gateways
        chosen = up[self.accepted % len(up)]
        if client.transport is not None:
            self._taken[client.transport.get_extra_info("peername")[1]] = chosen.name
        self._target_port = chosen.port
        await super()._dial(client)

    def gateway_of(self, port: int) -> str:
        """Return the name of the gateway that a client's port was taken to."""
        return self._taken.get(port, "")


def some(proxy: TcpProxy, share: float, chance: random.Random) -> list[_End]:
    """Return a share of a proxy's connections, both ends of each."""
    chosen: list[_End] = []
    for client in sorted(proxy._clients, key=id):
        if chance.random() < share:
            chosen += [client, *([client.peer] if client.peer else [])]
    return chosen


class House:
    """Everything that runs: gateways, the balancer before them, and the site of the broker."""

    def __init__(self, gateways: list[Gateway], web: Balancer, site: Site) -> None:
        self.gateways = gateways
        self.web = web
        self.site = site

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web.port}"

    async def ready(self) -> bool:
        """Return when every gateway has its broker; False if that takes too long."""
        try:
            for gateway in self.gateways:
                await asyncio.to_thread(gateway.ready)
        except TimeoutError:
            return False
        return True


def embedded_keeps() -> bool:
    """Tell whether this gateway's embedded broker can keep its messages over a kill."""
    environment = {"PYTHONPATH": _SOURCES}
    command = [sys.executable, "-m", "queuecast", "serve", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return "--data" in done.stdout


@contextlib.asynccontextmanager
async def house(site: Site) -> AsyncIterator[House]:
    """Run the gateways before a broker that runs, or one gateway that has its own."""
    environment = {**os.environ, "PYTHONPATH": _SOURCES}
    async with contextlib.AsyncExitStack() as stack:
        directory = Directory("chaos")
        stack.callback(directory.remove)
        await site.open(stack)
        gateways = [
            Gateway(name, directory.path, site.tables(number, directory.path), environment)
            for number, name in enumerate(site.gateways)
        ]
        site.companions[:] = gateways
        for gateway in gateways:
            stack.callback(gateway.kill)
            await asyncio.to_thread(gateway.start)
        web = await stack.enter_async_context(Balancer(gateways))
        made = House(gateways, web, site)
        if not await made.ready():
            raise RuntimeError(f"no broker:\n{gateways[-1].log.read_text(errors='replace')}")
        await site.settled()
        yield made
