"""Embedded brokers with a data directory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.clock import Clock
from queuecast.brokers.embedded.keeper import Keeper
from queuecast.brokers.embedded.store import Store
from queuecast.brokers.embedded.store_writer import Writer
from queuecast.retention import RetainRule


def on_disk(
    directory: Path,
    *,
    synchronous: str = "full",
    rules: Sequence[RetainRule] = (),
    clock: Clock | None = None,
) -> EmbeddedBroker:
    """Return a durable embedded broker, not yet started."""
    store = Store(directory, synchronous=synchronous, rules=rules)
    return EmbeddedBroker(clock, keeper=Keeper(store), retain=rules)


def image(source: Path, target: Path) -> None:
    """Copy a data directory as a kill would leave it now.

    Only right while nothing is being written: after an answered publish, with no other under way.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("lock", "*-shm"))


def writer_of(broker: EmbeddedBroker) -> Writer:
    """Return what writes a broker's store, to get in its way."""
    assert broker._keeper is not None
    return broker._keeper._store._writer


async def quiet(broker: EmbeddedBroker) -> None:
    """Return once nothing is under way in a broker, neither on the disk nor in its queues."""
    assert broker._keeper is not None
    store = broker._keeper._store
    calm = 0
    while calm < 3:
        await asyncio.sleep(0)
        if store._is_writing or store.waiting or store._gathering:
            await broker.declare()
            calm = 0
        else:
            calm += 1
