"""A clock for embedded brokers; durable ones that are started again, closed and killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from queuecast.brokers.embedded.broker import EmbeddedBroker
from tests.support.durable import Restart, closing, killing, on_disk
from tests.unit.brokers.hand_clock import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def brokers() -> AsyncIterator[list[EmbeddedBroker]]:
    """All brokers of a test, to be closed."""
    made: list[EmbeddedBroker] = []
    yield made
    for broker in made:
        await broker.close()


@pytest.fixture
async def broker(tmp_path: Path, brokers: list[EmbeddedBroker]) -> EmbeddedBroker:
    """A started broker with a data directory."""
    made = on_disk(tmp_path / "0")
    brokers.append(made)
    await made.start()
    return made


@pytest.fixture(params=["closed", "killed"])
def restart(
    request: pytest.FixtureRequest, tmp_path: Path, brokers: list[EmbeddedBroker]
) -> Restart:
    """End a broker and start the next one on what it left."""
    return closing(tmp_path, brokers) if request.param == "closed" else killing(tmp_path, brokers)
