"""The gateway that most end-to-end tests share: embedded broker, every name a test's own."""

import itertools
from collections.abc import Callable, Iterator

import pytest

import queuecast.testing
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.testing import RunningGateway

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def gw() -> Iterator[RunningGateway]:
    """A gateway on the embedded broker; tests use destinations of their own (see `name`)."""
    with queuecast.testing.gateway(
        server={"grace": "2s", "retry": 1234},
        limits={"message": "64KB", "frame": "128KB", "head": "8KB"},
        exchange=[{"name": "events", "type": "topic"}, {"name": "事件", "type": "direct"}],
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have gateways try to reconnect to their broker more often than those that serve people."""
    defaults = RabbitBroker.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "reconnect", 0.5)


@pytest.fixture
def name() -> Callable[[], str]:
    """Make names that no other test uses."""
    return lambda: f"n{next(_numbers)}"
