"""The schedule of a run: which fault comes when, all of it from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

# What may happen, how often in comparison, and the seconds that it lasts.
KINDS: dict[str, tuple[int, float, float]] = {
    "kill node": (3, 0.0, 3.0),
    "kill broker": (1, 0.0, 2.0),
    "cut clients": (3, 0.0, 0.0),
    "fin clients": (2, 0.0, 0.0),
    "stall clients": (2, 0.5, 5.0),
    "cut broker": (3, 0.0, 0.0),
    "fin broker": (2, 0.0, 0.0),
    "stall broker": (2, 0.5, 5.0),
    "stop reading": (3, 2.0, 15.0),
    "leave": (3, 0.5, 10.0),
}

# Those of a broker that is a server of its own.
APART = frozenset({"kill broker", "cut broker", "fin broker", "stall broker"})

# Seconds of peace at the beginning, in which no gap at all is due.
CALM = 3.0


@dataclass(frozen=True)
class Fault:
    """One fault. at, length: seconds; node: which is killed; share: of connections or clients;
    seed: for the choice of those."""

    at: float
    kind: str
    length: float
    node: int
    share: float
    seed: int

    def __str__(self) -> str:
        return f"{self.at:7.2f} {self.kind} node={self.node} {self.length:.2f}s {self.share:.0%}"


def make_schedule(seed: int, duration: float, *, nodes: int, apart: bool) -> list[Fault]:
    """Return the faults of a run, in their order; each kind comes once before any comes twice.

    duration: seconds, of which the first CALM have no fault. apart: the broker is a server of its
    own.
    """
    chance = random.Random(seed)
    kinds = [kind for kind in KINDS if apart or kind not in APART]
    weights = [KINDS[kind][0] for kind in kinds]
    first = chance.sample(kinds, len(kinds))
    # So dense that even a short run sees every kind.
    pause = min(4.0, (duration - CALM) / (len(kinds) + 2) * 2)
    faults: list[Fault] = []
    at = CALM
    while at < duration:
        kind = first.pop() if first else chance.choices(kinds, weights)[0]
        _, least, most = KINDS[kind]
        faults.append(
            Fault(
                at,
                kind,
                chance.uniform(least, most),
                chance.randrange(nodes),
                chance.choice((0.1, 0.3, 1.0)),
                chance.randrange(1 << 30),
            )
        )
        at += chance.uniform(0.3, 1.7) * pause / 2
    return faults
