"""Fixtures for every test: servers, browser, Node.js, and the event loops a test runs on."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.kafka import Kafka, Kafkas, KafkaServer
from tests.support.kafka_cluster import KafkaCluster
from tests.support.processes import require
from tests.support.rabbit_cluster import RabbitCluster
from tests.support.rabbit_installation import VERSIONS
from tests.support.servers import NginxServer, RabbitMQ, RabbitServer, find_chromium

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

# Tests against real servers, browsers and processes: on a machine that stalls for seconds one of
# thousands may fail for its sake alone. Such a test is tried once more, and named at the end with
# what it said the first time. The others are the same in every run, and fail at once.
SECOND_TRY = ("contract", "e2e")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

NODE_DIRECTORY = Path(__file__).parent / "e2e" / "node"

# Without the background-networking flags Chromium opens connections of its own at every start.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "both_loops: run the coroutine tests on asyncio's own loop and on uvloop"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in SECOND_TRY:
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why tests were tried again: it may be a rare fault of ours after all."""
    reports = terminalreporter.stats.get("rerun", [])
    for report in reports:
        terminalreporter.section(f"first try of {report.nodeid}", "_")
        terminalreporter.write_line(str(report.longrepr))
    if reports:
        terminalreporter.section(f"{len(reports)} tests were tried twice", "=")
        for report in reports:
            terminalreporter.write_line(report.nodeid)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Give a test asyncio's own loop, and uvloop as well where it is marked `both_loops`."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories


# Each RabbitMQ that tests run on, by the name that their ids have; one, when somebody else runs it.
RABBITS = (
    ["rabbitmq"]
    if os.environ.get("QUEUECAST_TEST_AMQP")
    else [f"rabbitmq-{version}" for version in VERSIONS]
)


class Rabbits:
    """The run's RabbitMQ servers, each started when a test first asks for it and then kept.

    `shared` ones are for tests that use names of their own; `own` ones may be stopped and killed.
    """

    def __init__(self) -> None:
        self._servers: dict[tuple[str, str], RabbitServer] = {}

    def shared(self, name: str) -> RabbitMQ:
        """Return the running broker of RABBITS's name."""
        external = RabbitMQ.external()
        return external if external is not None else self._running("shared", name)

    def own(self, name: str) -> RabbitServer:
        """Return the server that no test shares with another at a time; running."""
        return self._running("own", name)

    def _running(self, use: str, name: str) -> RabbitServer:
        server = self._servers.get((use, name))
        if server is None:
            server = self._servers[use, name] = self.make(name)
        server.start()
        return server

    @staticmethod
    def make(name: str) -> RabbitServer:
        """Return one more server, which the caller starts and closes."""
        if RabbitMQ.external() is not None:
            pytest.skip("RabbitMQ: QUEUECAST_TEST_AMQP names a broker that this test must not stop")
        return RabbitServer(name.removeprefix("rabbitmq-"))

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@pytest.fixture(scope="session")
def rabbits() -> Iterator[Rabbits]:
    """All RabbitMQ servers; for a test that needs one, rather take `rabbit` or `rabbit_own`."""
    servers = Rabbits()
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture(scope="session", params=RABBITS)
def rabbit_name(request: pytest.FixtureRequest) -> str:
    """The RabbitMQ that the test runs on; a test that asks for one is run on each."""
    return str(request.param)


@pytest.fixture(scope="session")
def rabbit(rabbits: Rabbits, rabbit_name: str) -> RabbitMQ:
    """A RabbitMQ shared by the whole run: use names of your own, and do not stop it."""
    return rabbits.shared(rabbit_name)


@pytest.fixture
def rabbit_own(rabbits: Rabbits, rabbit_name: str) -> RabbitServer:
    """A RabbitMQ that a test may stop and kill; running when it begins, with what others left."""
    return rabbits.own(rabbit_name)


@pytest.fixture(scope="session")
def kafkas() -> Iterator[Kafkas]:
    """All Kafka servers; for a test that needs one, rather take `kafka` or `kafka_own`."""
    servers = Kafkas()
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture(scope="session")
def kafka(kafkas: Kafkas) -> Kafka:
    """A Kafka shared by the whole run: use names of your own, and do not stop it."""
    return kafkas.shared()


@pytest.fixture
def kafka_own(kafkas: Kafkas) -> KafkaServer:
    """A Kafka that a test may stop and kill; running when it begins, with what others left."""
    return kafkas.own()


@pytest.fixture(scope="session")
def _kafka_cluster() -> Iterator[KafkaCluster]:
    cluster = KafkaCluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def kafka_cluster(_kafka_cluster: KafkaCluster) -> KafkaCluster:
    """Three Kafka nodes that a test may kill and freeze; whole and in sync when it begins."""
    _kafka_cluster.heal()
    return _kafka_cluster


@pytest.fixture
def rabbit_fresh(rabbits: Rabbits, rabbit_name: str) -> Iterator[RabbitServer]:
    """A RabbitMQ for this test alone, of which a kill may leave nothing that others can use."""
    server = rabbits.make(rabbit_name)
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module", params=VERSIONS, ids=[f"cluster-{each}" for each in VERSIONS])
def rabbit_cluster_of_module(request: pytest.FixtureRequest) -> Iterator[RabbitCluster]:
    """The module's cluster of three nodes; a test rather takes `rabbit_cluster`."""
    if RabbitMQ.external() is not None:
        pytest.skip("RabbitMQ: QUEUECAST_TEST_AMQP names a broker that this test must not stop")
    cluster = RabbitCluster(str(request.param))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def rabbit_cluster(rabbit_cluster_of_module: RabbitCluster) -> RabbitCluster:
    """A cluster that the module's tests share; all of its nodes run when a test begins."""
    rabbit_cluster_of_module.start()
    return rabbit_cluster_of_module


@pytest.fixture
def nginx() -> Iterator[Callable[..., NginxServer]]:
    """Start nginx servers: nginx("location / { … }", http="upstream …"); gone after the test."""
    servers: list[NginxServer] = []

    def start(server: str, *, http: str = "") -> NginxServer:
        started = NginxServer(server, http=http)
        servers.append(started)
        return started

    try:
        yield start
    finally:
        for started in servers:
            started.close()


@pytest.fixture
async def browser() -> AsyncIterator["Browser"]:
    """A headless Chromium, driven with Playwright's async API on the test's own loop."""
    chromium = find_chromium()
    require("Chromium", chromium is not None, "not installed: apt-get install chromium")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path=str(chromium), args=CHROMIUM_ARGUMENTS, headless=True
        )
        try:
            yield launched
        finally:
            await launched.close()


@pytest.fixture
async def page(browser: "Browser") -> AsyncIterator["Page"]:
    """An empty page; what it logs and throws is shown when the test fails."""
    opened = await browser.new_page()
    opened.on("console", lambda message: print(f"[page] {message.type}: {message.text}"))
    opened.on("pageerror", lambda error: print(f"[page] uncaught: {error}"))
    yield opened
    await opened.close()


@dataclass(frozen=True)
class Node:
    """Node.js, and the folder whose node_modules has the npm clients; run scripts from there."""

    command: Path
    directory: Path


@pytest.fixture(scope="session")
def node() -> Node:
    """Node.js with the packages of tests/e2e/node installed."""
    command = shutil.which("node")
    require("Node.js", command is not None, "not installed: apt-get install nodejs npm")
    installed = (NODE_DIRECTORY / "node_modules" / ".package-lock.json").exists()
    require("Node.js packages", installed, "not installed: npm ci in tests/e2e/node")
    return Node(Path(str(command)), NODE_DIRECTORY)
