"""What a run needs to know of its broker, and what can be done to it: a site.

The one here is the broker that is embedded in the gateway. Those with a server of its own are in
rabbitmq.py and kafka.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from tests.chaos.diary import Diary
from tests.chaos.publishers import HttpPublisher, Publisher
from tests.chaos.schedule import ANYWHERE, Fault
from tests.chaos.sources import Source, make_sources
from tests.support.proxy import TcpProxy


class Killable(Protocol):
    """What can be killed and started again; both block."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


# Does a fault, and returns when what it broke is whole again.
Act = Callable[[Fault, random.Random], Awaitable[None]]


class Turns:
    """Faults at the broker, one at a time: an operator needs a broker that is up, and of a cluster
    one node may be away. The first of a kind waits for its turn, later ones are left out."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def wrap(self, act: Act) -> Act:
        async def in_turn(fault: Fault, chance: random.Random) -> None:
            if self._lock.locked() and not fault.first:
                return
            async with self._lock:
                await act(fault, chance)

        return in_turn


class Site:
    """The embedded broker, with its data in a directory. acts: what can be done to it, by kind."""

    name = "embedded"
    gateways: tuple[str, ...] = ("one",)
    # It keeps what it was given although no client listens, so that no gap is due.
    keeps_all = False
    # Faults after which the broker does not mark what it had delivered before.
    unmarked: frozenset[str] = frozenset()
    # One node may be lost, and it goes on within seconds.
    majority = False

    def __init__(self) -> None:
        self.links: list[TcpProxy] = []
        self.diary = Diary()
        self.sources = self.make_sources()
        self.acts: dict[str, Act] = {}
        self.turns = Turns()
        # The gateways.
        self.companions: list[Killable] = []

    def make_sources(self) -> list[Source]:
        return make_sources(amqp=False)

    @property
    def possible(self) -> frozenset[str]:
        """The kinds of faults that there are here."""
        return ANYWHERE | self.acts.keys()

    async def open(self, stack: AsyncExitStack) -> None:
        """Start what stands between the gateways and the broker; its end goes onto the stack."""

    async def settled(self) -> None:
        """Have on disk what the gateways declared at their first start."""

    def tables(self, number: int, directory: Path) -> str:
        """Return the broker's part of a gateway's configuration."""
        return tables("embedded:", data=str(directory / "data"))

    def destinations(self, kind: str) -> tuple[list[str], list[str]]:
        """Return what clients of a kind subscribe to, and what one does on one connection."""
        a, b, large, *more = (each.destination for each in self.sources if each.kind == kind)
        return [a, *more, b, a, *more, b, large, f"/topic/{kind}.#"], [a, *more, b]

    def publisher(self, source: Source, url: str, interval: float) -> Publisher:
        """Return the publisher of a source. url: the gateways'."""
        return HttpPublisher(source, url, interval)


def tables(url: str, *, data: str = "", more: str = "") -> str:
    """Return a gateway's tables for RabbitMQ, or for the embedded broker with its directory."""
    kept = f'data = "{data}"\n' if data else ""
    quorum = "" if data else 'arguments = { x-queue-type = "quorum", x-delivery-limit = 10000 }'
    return f"""
[broker]
url = "{url}"
{kept}
[[retain]]
destination = "/topic/kept.#"
age = "2h"
bytes = "2GB"
[[queue]]
name = "chaos-classic"
[[queue]]
name = "chaos-quorum"
{quorum}
{more}"""
