"""Clients that come back: what each of them saw, in its order, over whichever transports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from websockets.exceptions import WebSocketException

from tests.chaos.clock import now
from tests.chaos.sources import KEPT, parse

# What a conversation ends with when a fault ended it.
LOST = (aiohttp.ClientError, WebSocketException, OSError, TimeoutError, EOFError)


class Again(Exception):
    """The gateway ended a conversation or refused it, and said that the same may succeed later."""


class Refused(Exception):
    """The gateway refused what it should grant; the text is its reason."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A message that a client got. key, number: its source's; at: when; gateway: from which."""

    key: str
    number: int
    position: str
    at: float = 0.0
    gateway: str = ""

    def __str__(self) -> str:
        return f"{self.key}:{self.number} at {self.at:.2f} from {self.gateway}"


@dataclass(frozen=True, slots=True)
class Missed:
    """A gap that a client was told. at: when; fresh: on another gateway than the place it gave;
    slept: the client had not been reading a while before."""

    reason: str
    at: float
    gateway: str
    fresh: bool
    slept: bool

    def __str__(self) -> str:
        how = "slept" * self.slept + " another gateway" * self.fresh
        return f"{self.reason!r} at {self.at:.2f} from {self.gateway} {how}"


class Transport(Protocol):
    """One conversation from client.place on; ends with one of LOST or Again."""

    async def __call__(self, client: Client) -> None: ...


class Visitor:
    """Whoever has a connection through the balancer: it may stop reading, leave, and come back."""

    def __init__(self, name: str, url: str, gateway_of: Callable[[int], str], seed: str) -> None:
        self.name = name
        self.url = url
        self.chance = random.Random(seed)
        self.conversations = 0
        # What it was refused for good, and when.
        self.refusals: list[tuple[float, str]] = []
        # The gateway of this conversation, once it was granted.
        self.gateway = ""
        # When a gateway last answered.
        self.heard = 0.0
        self.trouble: deque[str] = deque(maxlen=8)
        # When it was not there or did not read, by its own will: from, until.
        self.absences: list[tuple[float, float]] = []
        self._gateway_of = gateway_of
        self._reading = asyncio.Event()
        self._reading.set()
        self._slept_at = 0.0
        self._away = 0.0
        self._talk: asyncio.Task[None] | None = None

    async def converse(self) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Converse, again and again, until cancelled."""
        try:
            while True:
                self.conversations += 1
                self._talk = asyncio.create_task(self.converse())
                await asyncio.wait([self._talk])
                if not self._talk.cancelled():
                    self._ended(self._talk.exception())
                self.gateway = ""
                away, self._away = self._away, 0.0
                began = now()
                await asyncio.sleep(away or self.chance.uniform(0.05, 0.8))
                if away:
                    self.absences.append((began, now()))
        finally:
            if self._talk is not None:
                self._talk.cancel()
                await asyncio.gather(self._talk, return_exceptions=True)

    def _ended(self, error: BaseException | None) -> None:
        self.trouble.append(f"{now():.2f} {type(error).__name__} {error}")
        if error is None or isinstance(error, (Again, *LOST)):
            return
        if isinstance(error, Refused):
            self.refusals.append((now(), str(error)))
            return
        raise error

    def leave(self, seconds: float) -> None:
        """Drop the connection without a word, and stay away."""
        self._away = seconds
        if self._talk is not None:
            self._talk.cancel()

    async def stop_reading(self, seconds: float) -> None:
        self._reading.clear()
        began = now()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._slept_at = now()
            self.absences.append((began, self._slept_at))
            self._reading.set()

    async def reads(self) -> None:
        """Wait while the client is not reading; to be called before anything is taken."""
        await self._reading.wait()

    @property
    def slept(self) -> bool:
        return not self._reading.is_set() or now() - self._slept_at < 60

    def granted(self, port: int) -> None:
        """The gateway has answered, on the connection of this local port."""
        self.gateway = self._gateway_of(port)
        self.heard = now()


class Client(Visitor):
    """A reader of feeds. kind: KEPT or LIVE; destinations: one, or several on one connection."""

    def __init__(
        self,
        name: str,
        url: str,
        gateway_of: Callable[[int], str],
        seed: str,
        kind: str,
        destinations: list[str],
        transports: list[Transport],
    ) -> None:
        super().__init__(name, url, gateway_of, seed)
        self.kind = kind
        self.destinations = destinations
        self._transports = transports
        # Where to go on: "" until there is a position.
        self.place = ""
        # The gateway that the place is of.
        self._place_of = ""
        self.record: list[Seen | Missed] = []
        self.last: dict[str, int] = {}
        self.resumed: Counter[str] = Counter()

    @property
    def since(self) -> str:
        """What to resume from: retained destinations are read from their beginning."""
        return self.place or ("first" if self.kind == KEPT else "")

    async def converse(self) -> None:
        await self.chance.choice(self._transports)(self)

    def at(self, position: str) -> None:
        """A position that stands alone."""
        # A gateway may say a client's own position back before it tells of the gap behind it.
        if position and position != self.place:
            self.place, self._place_of = position, self.gateway

    def message(self, body: str, position: str) -> None:
        key, number = parse(body)
        self.record.append(Seen(key, number, position, now(), self.gateway))
        self.last[key] = max(number, self.last.get(key, 0))
        self.at(position)

    def gap(self, reason: str, position: str) -> None:
        fresh = self._place_of not in ("", self.gateway)
        self.record.append(Missed(reason, now(), self.gateway, fresh, self.slept))
        self.at(position)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A queue's message that a worker got. acked: it sent the ack before anything failed."""

    worker: str
    key: str
    number: int
    redelivered: bool
    at: float


class Worker(Visitor):
    """A competing consumer of a durable queue that acks each message after a moment."""

    def __init__(
        self,
        name: str,
        url: str,
        gateway_of: Callable[[int], str],
        seed: str,
        queue: str,
        transport: Callable[[Worker], Any],
    ) -> None:
        super().__init__(name, url, gateway_of, seed)
        self.queue = queue
        self._transport = transport
        self.deliveries: list[Delivery] = []
        # How often it was told that a message had gone back to its queue.
        self.returned = 0
        self.acked: Counter[tuple[str, int]] = Counter()

    async def converse(self) -> None:
        await self._transport(self)

    async def got(self, body: str, redelivered: bool) -> tuple[str, int]:
        """Record a delivery and work on it for a moment."""
        key, number = parse(body)
        self.deliveries.append(Delivery(self.name, key, number, redelivered, now()))
        await asyncio.sleep(self.chance.choice((0.0, 0.0, 0.05)))
        return key, number


def refused(said: Any, what: str) -> Exception:
    """Return what a refusal of the gateway's makes of a conversation."""
    with contextlib.suppress(TypeError, KeyError):
        return Again(json.dumps(said)) if said["retry"] else Refused(f"{what}: {said}")
    return Refused(f"{what}: {said}")
