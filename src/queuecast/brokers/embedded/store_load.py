"""Reading the store at the start, and making its retained rules those of the configuration."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...message import Message
from ...retention import RetainRule
from ..base import BindingSpec, ExchangeSpec, QueueSpec
from .age import AgeClock, Anchor
from .store_batch import NUMBER_BITS
from .store_codec import decode_arguments, decode_properties
from .store_file import (
    Lock,
    connect_untouched,
    open_to_write,
    prepare,
    read_anchor,
    unusable,
    write_anchor,
)
from .store_writer import RuleState

logger = logging.getLogger(__name__)


def offset_of(entry: int) -> int:
    """Return the offset in its stream of an entry; numbers begin at 1, offsets at 0."""
    return (entry & (1 << NUMBER_BITS) - 1) - 1


class StoredEntry(NamedTuple):
    """A message of a queue as it was found.

    time: by the store's AgeClock, when it expires, None for never; of a stream's message when it
    came.
    """

    id: int
    message: Message
    deliveries: int
    time: float | None


class StoredQueue(NamedTuple):
    """A queue and its messages as they were found. last: the last number given in it."""

    spec: QueueSpec
    entries: list[StoredEntry]
    last: int


@dataclass(slots=True)
class Found:
    """What was in the store at the start.

    offset: after it nothing was given yet.
    """

    epoch: str
    offset: int
    exchanges: list[ExchangeSpec] = field(default_factory=list)
    queues: list[StoredQueue] = field(default_factory=list)


@dataclass(slots=True)
class KnownQueues:
    """The queues' ids by name, the last number given in each, and the next id."""

    ids: dict[str, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    next_id: int = 1


@dataclass(slots=True)
class Loaded:
    """An open store, with what the store itself goes on from.

    rules: the states by number in the configuration.
    """

    database: sqlite3.Connection
    lock: Lock
    found: Found
    queues: KnownQueues
    rules: dict[int, RuleState]


def load(directory: Path, synchronous: str, rules: Sequence[RetainRule], ages: AgeClock) -> Loaded:
    """Open a directory's store and read what is to be in memory; blocks. Raises ConfigError.

    ages: goes on from what is there.
    """
    lock = Lock(directory)
    try:
        path = prepare(directory)
        found, known, anchor = _read(path)
        database = open_to_write(path, synchronous)
        try:
            states, newest = _settle_rules(database, rules, found.offset)
            ages.resume(anchor, max(newest, _newest(found)))
            write_anchor(database, ages.anchor())
        except BaseException:
            database.close()
            raise
    except (sqlite3.Error, ValueError) as error:
        lock.release()
        raise unusable(path, error) from error
    except BaseException:
        lock.release()
        raise
    return Loaded(database, lock, found, known, states)


def _newest(found: Found) -> float:
    """Return when the newest message of all streams came, 0 for none."""
    streams = (queue.entries for queue in found.queues if queue.spec.is_stream)
    return max((entries[-1].time or 0.0 for entries in streams if entries), default=0.0)


def _read(path: Path) -> tuple[Found, KnownQueues, Anchor | None]:
    """Read everything for the memory, over a connection that leaves the files as they are."""
    database = connect_untouched(path)
    try:
        meta = dict(database.execute("SELECT name, value FROM meta"))
        found = Found(str(meta["epoch"]), int(meta["offset"]))
        return found, _read_topology(database, found), read_anchor(meta)
    except (TypeError, KeyError) as error:
        raise ValueError(f"unexpected values: {error!r}") from error
    finally:
        database.close()


def _read_topology(database: sqlite3.Connection, found: Found) -> KnownQueues:
    known = KnownQueues()
    found.exchanges = [
        ExchangeSpec(name, kind, True, bool(auto_delete), decode_arguments(arguments))
        for name, kind, auto_delete, arguments in database.execute(
            "SELECT name, kind, auto_delete, arguments FROM exchanges ORDER BY name"
        )
    ]
    bindings: dict[int, list[BindingSpec]] = {}
    for queue, exchange, key, arguments in database.execute(
        "SELECT queue, exchange, key, arguments FROM bindings"
    ):
        binding = BindingSpec(exchange, key, decode_arguments(arguments))
        bindings.setdefault(queue, []).append(binding)
    entries: dict[int, list[StoredEntry]] = {}
    for id, deliveries, time, exchange, key, properties, body in database.execute(
        "SELECT id, deliveries, time, exchange, key, properties, body FROM entries ORDER BY id"
    ):
        message = Message(body, exchange, key, decode_properties(properties))
        entry = StoredEntry(id, message, deliveries, time)
        entries.setdefault(id >> NUMBER_BITS, []).append(entry)
    for id, name, auto_delete, arguments, floor in database.execute(
        "SELECT id, name, auto_delete, arguments, floor FROM queues ORDER BY id"
    ):
        spec = QueueSpec(
            name,
            auto_delete=bool(auto_delete),
            arguments=decode_arguments(arguments),
            bindings=tuple(bindings.get(id, ())),
        )
        kept = entries.get(id, [])
        known.ids[name] = id
        last = kept[-1].id & (1 << NUMBER_BITS) - 1 if kept else 0
        known.numbers[id] = max(last, floor)
        known.next_id = id + 1
        found.queues.append(StoredQueue(spec, kept, known.numbers[id]))
    return known


def _settle_rules(
    database: sqlite3.Connection, rules: Sequence[RetainRule], offset: int
) -> tuple[dict[int, RuleState], float]:
    """Make tables for new rules and drop those of rules that are gone.

    Returns the states, and the time of the newest message.
    """
    states: dict[int, RuleState] = {}
    latest = 0.0
    there = {
        (exchange, pattern): row
        for exchange, pattern, *row in database.execute(
            "SELECT exchange, pattern, id, floor, count, bytes FROM rules"
        ).fetchall()
    }
    next_id = max((row[0] for row in there.values()), default=0) + 1
    database.execute("BEGIN IMMEDIATE")
    for number, rule in enumerate(rules):
        row = there.pop((rule.exchange, rule.pattern), None)
        if row is None:
            row = [next_id, offset, 0, 0]
            next_id += 1
            _make_table(database, row[0], rule, offset)
        id, floor, count, size = row
        state = RuleState(id, floor, count, size, rule.age, rule.bytes, rule.messages)
        states[number] = state
        newest = database.execute(
            f"SELECT at FROM {state.table} ORDER BY offset DESC LIMIT 1"
        ).fetchone()
        latest = max(latest, newest[0] if newest else 0.0)
    for (exchange, pattern), (id, _, count, _) in there.items():
        logger.warning(
            "no [[retain]] rule for exchange %r, pattern %r any more: its %d messages are dropped",
            exchange,
            pattern,
            count,
        )
        database.execute(f"DROP TABLE retained_{id}")
        database.execute("DELETE FROM rules WHERE id = ?", (id,))
    database.execute("COMMIT")
    return states, latest


def _make_table(database: sqlite3.Connection, id: int, rule: RetainRule, floor: int) -> None:
    database.execute(
        "INSERT INTO rules VALUES (?, ?, ?, ?, 0, 0)", (id, rule.exchange, rule.pattern, floor)
    )
    database.execute(
        f"CREATE TABLE retained_{id} (offset INTEGER PRIMARY KEY, at REAL, size INTEGER, "
        "key TEXT, properties TEXT, body BLOB)"
    )
    # Followed by the offset, as every index is: the newest of a key are found without a search.
    database.execute(f"CREATE INDEX retained_{id}_key ON retained_{id} (key)")
