"""Embedded brokers with a data directory."""

from __future__ import annotations

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
