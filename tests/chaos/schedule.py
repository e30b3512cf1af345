"""The schedule of a run: which fault comes when, all of it from one seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """What may happen. group: its name for --faults; weight: how often in comparison; least, most:
    the seconds that it lasts."""

    group: str
    weight: int
    least: float
    most: float


KINDS: dict[str, Kind] = {
    "kill node": Kind("node", 3, 0.0, 3.0),
    "kill broker": Kind("broker", 1, 0.0, 2.0),
    "cut clients": Kind("network", 3, 0.0, 0.0),
    "fin clients": Kind("network", 2, 0.0, 0.0),
    "stall clients": Kind("network", 2, 0.5, 5.0),
    "cut broker": Kind("network", 3, 0.0, 0.0),
    "fin broker": Kind("network", 2, 0.0, 0.0),
    "stall broker": Kind("network", 2, 0.5, 5.0),
    "stop reading": Kind("client", 3, 2.0, 15.0),
    "leave": Kind("client", 3, 0.5, 10.0),
    # One node of a cluster. It stands still for longer than the others wait for it; it is held
    # down for a share of the run; and with it dies the gateway that is connected to it.
    "kill member": Kind("broker", 2, 0.0, 3.0),
    "freeze member": Kind("broker", 1, 13.0, 15.0),
    "hold member": Kind("broker", 1, 0.0, 0.0),
    "restart members": Kind("broker", 1, 0.0, 1.0),
    "kill both": Kind("broker", 2, 1.0, 4.0),
    # What an operator's scripts do to RabbitMQ …
    "recreate exchange": Kind("operator", 2, 0.0, 0.0),
    "delete exchange": Kind("operator", 2, 1.0, 4.0),
    "unbind": Kind("operator", 3, 0.0, 0.0),
    "recreate queue": Kind("operator", 2, 0.0, 0.0),
    "delete feed queues": Kind("operator", 2, 0.0, 0.0),
    "delete stream": Kind("operator", 1, 0.0, 0.0),
    "limit queues": Kind("operator", 3, 1.0, 5.0),
    # … and to Kafka.
    "recreate topic": Kind("operator", 2, 0.0, 1.0),
    "add partitions": Kind("operator", 1, 0.0, 0.0),
    "lower retention": Kind("operator", 2, 3.0, 5.0),
    "delete records": Kind("operator", 2, 0.0, 0.0),
}

GROUPS = tuple(dict.fromkeys(kind.group for kind in KINDS.values()))

# Without a server beside the gateway: what can be done to gateways and to clients.
ANYWHERE = frozenset(
    {"kill node", "cut clients", "fin clients", "stall clients", "stop reading", "leave"}
)

# Seconds of peace at the beginning, in which no gap at all is due.
CALM = 3.0


@dataclass(frozen=True)
class Fault:
    """One fault. at, length: seconds; node: which gateway; share: of connections or clients;
    seed: for other choices; first: of its kind, so that it is done even if it has to wait."""

    at: float
    kind: str
    length: float
    node: int
    share: float
    seed: int
    first: bool

    def __str__(self) -> str:
        return f"{self.at:7.2f} {self.kind} node={self.node} {self.length:.2f}s {self.share:.0%}"


def choose_kinds(possible: Collection[str], groups: Iterable[str]) -> list[str]:
    """Return the kinds of these groups, of those that are possible."""
    chosen = set(groups)
    return [name for name, kind in KINDS.items() if name in possible and kind.group in chosen]


def make_schedule(seed: int, duration: float, *, nodes: int, kinds: list[str]) -> list[Fault]:
    """Return the faults of a run, in their order; each kind comes once before any comes twice.

    duration: seconds, of which the first CALM have no fault.
    """
    chance = random.Random(seed)
    weights = [KINDS[kind].weight for kind in kinds]
    first = chance.sample(kinds, len(kinds))
    # So dense that even a short run sees every kind.
    pause = min(2.0, (duration - CALM) / (len(kinds) + 2))
    pauses = [chance.uniform(0.3, 1.7) for _ in range(round((duration - CALM) / pause))]
    faults: list[Fault] = []
    for done in itertools.accumulate(pauses[:-1], initial=0.0):
        new = bool(first)
        kind = first.pop() if first else chance.choices(kinds, weights)[0]
        faults.append(
            Fault(
                CALM + (duration - CALM) * done / sum(pauses),
                kind,
                chance.uniform(KINDS[kind].least, KINDS[kind].most),
                chance.randrange(nodes),
                chance.choice((0.1, 0.3, 1.0)),
                chance.randrange(1 << 30),
                new,
            )
        )
    return faults
