"""The brokers that the contract is run on: a new one has its line in BROKERS and its maker.

Every test uses names of its own, so that a shared server will do. A test of what not every broker
can do is marked `needs("…")` and run on those that can; that the others refuse it, naming what is
allowed, is tested too (test_refusals.py).
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
from tests.support.durable import on_disk
from tests.support.kafka import Kafkas
from tests.support.sinks import DeliveryList, FeedList

BROKERS: list[Any] = [
    "embedded",
    "embedded-on-disk",
    *(pytest.param(name, marks=pytest.mark.rabbitmq) for name in RABBITS),
    pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.timeout(400)]),
]

# exchanges: of several types, to be declared. queues: with settings, bindings and dead letters.
# keys: a topic's messages are told apart by key without anything declared. properties: a message
# that was given none has none.
ABILITIES = {
    "embedded": {"exchanges", "queues", "properties"},
    "rabbitmq": {"exchanges", "queues", "properties"},
    "kafka": set[str](),
}

# Those that give offsets and keep messages without a [[retain]] rule.
WITH_HISTORY = ["embedded", "embedded-on-disk"]

# Those that are given [[retain]] rules.
RETAINING = ["embedded", "embedded-on-disk"]

Consume = Callable[..., Awaitable[DeliveryList]]
Keyed = Callable[[str], Destination]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a broker cannot do: it is not skipped, there is nothing to be made good."""

    def lacks(item: pytest.Item) -> bool:
        marker = item.get_closest_marker("needs")
        if marker is None or not isinstance(item, pytest.Function):
            return False
        kind = str(item.callspec.params["kind"]).partition("-")[0]
        return not set(marker.args) <= ABILITIES[kind]

    left_out = [item for item in items if lacks(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _make(kind: str, request: pytest.FixtureRequest) -> Broker:
    if kind == "embedded":
        return EmbeddedBroker()
    if kind == "embedded-on-disk":
        return on_disk(_directory(request))
    if kind == "kafka":
        from queuecast.brokers.kafka import KafkaBroker

        return KafkaBroker(_url(kind, request))
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
    if kind == "kafka":
        kafkas: Kafkas = request.getfixturevalue("kafkas")
        return kafkas.shared().url
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
    if not kind.startswith("rabbitmq"):
        return "guest"
    return unquote(urlsplit(_url(kind, request)).username or "guest")


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def keyed(kind: str, name: str) -> Keyed:
    """Return the destination of a key or pattern that everybody may use without declaring."""
    if kind == "kafka":
        return lambda key: Destination.parse(f"/exchange/{name}-topic/{key}")
    return lambda key: Destination.parse(f"/topic/{key}")


@pytest.fixture
def make_queue(kind: str, broker: Broker) -> Callable[[str], Awaitable[None]]:
    """Make an empty queue."""

    async def make(name: str) -> None:
        if kind == "kafka":
            sink = FeedList()
            await (await broker.open_feed(Destination.parse(f"/topic/{name}"), sink)).close()
        else:
            await broker.declare(queues=[passing(name)])

    return make


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
