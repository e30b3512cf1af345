"""Embedded brokers with a data directory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from queuecast.brokers.embedded.age import AgeClock
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.clock import Clock
from queuecast.brokers.embedded.keeper import Keeper
from queuecast.brokers.embedded.store import Store
from queuecast.brokers.embedded.store_writer import Writer
from queuecast.retention import RetainRule

# How a broker ends: closed, or killed, which the copy of its files stands for.
Restart = Callable[[EmbeddedBroker], Awaitable[EmbeddedBroker]]


def on_disk(
    directory: Path,
    *,
    synchronous: str = "full",
    rules: Sequence[RetainRule] = (),
    clock: Clock | None = None,
    ages: AgeClock | None = None,
) -> EmbeddedBroker:
    """Return a durable embedded broker, not yet started."""
    store = Store(directory, synchronous=synchronous, rules=rules, ages=ages)
    return EmbeddedBroker(clock, keeper=Keeper(store), retain=rules)


def image(source: Path, target: Path) -> None:
    """Copy a data directory as a kill would leave it now.

    Only right while nothing is being written: after an answered publish, with no other under way.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("lock", "*-shm"))


def closing(tmp_path: Path, brokers: list[EmbeddedBroker]) -> Restart:
    """Return what closes a broker and starts the next one; each has its number as directory."""

    async def restart(old: EmbeddedBroker) -> EmbeddedBroker:
        await old.close()
        directory = tmp_path / str(brokers.index(old))
        made = on_disk(directory.rename(tmp_path / str(len(brokers))))
        brokers.append(made)
        await made.start()
        return made

    return restart


def killing(tmp_path: Path, brokers: list[EmbeddedBroker]) -> Restart:
    """Return what starts a broker on the files that a kill would leave."""

    async def restart(old: EmbeddedBroker) -> EmbeddedBroker:
        await old.declare()  # whatever is under way is on disk then
        directory = tmp_path / str(len(brokers))
        image(tmp_path / str(brokers.index(old)), directory)
        made = on_disk(directory)
        brokers.append(made)
        await made.start()
        return made

    return restart


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
