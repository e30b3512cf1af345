"""The brokers that the contract is run on: a new one has its line in BROKERS and its maker.

Every test uses names of its own, so that a shared server will do.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from queuecast.brokers.base import DEFAULT_PREFETCH, Broker, QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.destination import Destination
from queuecast.retention import RetainRule
from tests.conftest import RABBITS, Rabbits
from tests.contract.sinks import DeliveryList
from tests.support.durable import on_disk

BROKERS: list[Any] = [
    "embedded",
    "embedded-on-disk",
    *(pytest.param(name, marks=pytest.mark.rabbitmq) for name in RABBITS),
]

# Those that give offsets and keep messages without a [[retain]] rule.
WITH_HISTORY = ["embedded", "embedded-on-disk"]

# Those that are given [[retain]] rules.
RETAINING = ["embedded", "embedded-on-disk"]

Consume = Callable[..., Awaitable[DeliveryList]]


def _make(kind: str, request: pytest.FixtureRequest) -> Broker:
    if kind == "embedded":
        return EmbeddedBroker()
    if kind == "embedded-on-disk":
        return on_disk(_directory(request))
    from queuecast.brokers.rabbitmq.broker import RabbitBroker

    return RabbitBroker(_url(kind, request))


def retaining_broker(
    kind: str, request: pytest.FixtureRequest, rules: Sequence[RetainRule]
) -> Broker:
    """Make a broker of RETAINING with rules."""
    if kind == "embedded":
        return EmbeddedBroker(retain=rules)
    return on_disk(_directory(request), rules=rules)


def _directory(request: pytest.FixtureRequest) -> Path:
    """Return a directory that no other broker of the test uses."""
    base: Path = request.getfixturevalue("tmp_path")
    return base / secrets.token_hex(4)


def _url(kind: str, request: pytest.FixtureRequest) -> str:
    rabbits: Rabbits = request.getfixturevalue("rabbits")
    return rabbits.shared(kind).url


@pytest.fixture(params=BROKERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The broker's kind; a test is run once for each."""
    return str(request.param)


@pytest.fixture
def maker(kind: str, request: pytest.FixtureRequest) -> Callable[[], Broker]:
    """Make one more gateway's view of the broker; for embedded it is a broker of its own."""
    if not kind.startswith("embedded"):
        _url(kind, request)
    else:
        _directory(request)
    return lambda: _make(kind, request)


@pytest.fixture
async def broker(maker: Callable[[], Broker]) -> AsyncIterator[Broker]:
    """A started broker."""
    made = maker()
    await made.start()
    yield made
    await made.close()


@pytest.fixture(params=WITH_HISTORY)
async def historic(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """A started broker that keeps history by itself: 100 messages per key."""
    made = _make(str(request.param), request)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def user(kind: str, request: pytest.FixtureRequest) -> str:
    """Who publishes, as far as the broker checks user_id."""
    if kind.startswith("embedded"):
        return "guest"
    return unquote(urlsplit(_url(kind, request)).username or "guest")


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
async def consume(broker: Broker) -> AsyncIterator[Consume]:
    """Open a consumer with a DeliveryList; all are closed after the test."""
    opened: list[DeliveryList] = []

    async def consume(destination: str, *, prefetch: int = DEFAULT_PREFETCH) -> DeliveryList:
        sink = DeliveryList()
        sink.consumer = await broker.consume(
            Destination.parse(destination), sink, prefetch=prefetch
        )
        opened.append(sink)
        return sink

    yield consume
    for sink in opened:
        assert sink.consumer is not None
        await sink.consumer.close()


def passing(name: str, **more: Any) -> QueueSpec:
    """Return a queue that leaves a shared server by itself a minute after the test.

    more: QueueSpec's fields; arguments are added to x-expires.
    """
    arguments = {"x-expires": 60_000, **more.pop("arguments", {})}
    return QueueSpec(name, arguments=arguments, **more)
