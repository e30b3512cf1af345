"""Where numbered messages come from: a source is one destination with one publisher."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KEPT, LIVE, WORK = "kept", "live", "work"


@dataclass
class Source:
    """One destination and what its publisher knows of it.

    kind: KEPT (under a rule), LIVE (not) or WORK (a durable queue). via: "http", "amqp" or "kafka".
    pad: bytes that a body has besides its number. address: its destination, where that is not told
    by kind and name; wide: others that have its messages among those of more sources. confirmed:
    the last number that was answered.
    copies: of each number whose outcome was unknown, how many there may be.
    """

    name: str
    kind: str
    via: str
    pad: int
    confirmed: int = 0
    copies: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    address: str = ""
    wide: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind}.{self.name}"

    @property
    def queue(self) -> str:
        return f"chaos-{self.name}"

    @property
    def destination(self) -> str:
        if self.address:
            return self.address
        return f"/queue/{self.queue}" if self.kind == WORK else f"/topic/{self.key}"

    def reaches(self, destination: str) -> bool:
        """Tell whether a destination has this source's messages."""
        return destination in (self.destination, f"/topic/{self.kind}.#", *self.wide)

    def body(self, number: int) -> str:
        return f"{self.key}:{number}:{'.' * self.pad}"

    def may_be(self, number: int) -> int:
        """How many copies of a number there may be."""
        return max(1, self.copies[number])


def parse(body: str) -> tuple[str, int]:
    """Return a body's source key and number."""
    key, number, _ = body.split(":", 2)
    return key, int(number)


def make_sources(amqp: bool) -> list[Source]:
    """Return the sources of a run: of each kind two small ones, and a feed of large messages."""
    second = "amqp" if amqp else "http"
    made: list[Source] = []
    for kind in (KEPT, LIVE):
        made += [Source("a", kind, "http", 40), Source("b", kind, second, 40)]
        # Large, so that a client that does not read fills every buffer on its way.
        made.append(Source("large", kind, second, 16_000))
    return [*made, Source("classic", WORK, "http", 40), Source("quorum", WORK, second, 40)]
