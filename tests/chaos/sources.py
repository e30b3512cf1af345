"""Where numbered messages come from: a source is one destination with one publisher."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.clock import now

KEPT, LIVE, WORK = "kept", "live", "work"

# Exchanges that operators may delete, which they must not do to amq.topic.
OPEN, HELD = "chaos-open", "chaos-held"


@dataclass
class Source:
    """One destination and what its publisher knows of it.

    kind: KEPT (under a rule), LIVE (not) or WORK (a durable queue). via: "http", "amqp" or "kafka".
    pad: bytes that a body has besides its number. address: its destination, where that is not told
    by kind and name; wide: others that have its messages among those of more sources. confirmed:
    the last number that was answered; confirmed_at: when each was.
    copies: of each number whose outcome was unknown, how many there may be.
    refused: how often the gateway said that it did not publish. nacked, denied: when the broker
    refused a message, and when the gateway did so and said that trying again is of no use.
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
    confirmed_at: dict[int, float] = field(default_factory=dict)
    nacked: list[tuple[float, str]] = field(default_factory=list)
    denied: list[tuple[float, str]] = field(default_factory=list)

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

    @property
    def exchange(self) -> str:
        """RabbitMQ's exchange that it publishes to."""
        if self.kind == WORK:
            return ""
        return self.address.split("/")[2] if self.address else "amq.topic"

    def reaches(self, destination: str) -> bool:
        """Tell whether a destination has this source's messages."""
        if destination == self.destination or destination in self.wide:
            return True
        return not self.address and destination == f"/topic/{self.kind}.#"

    def body(self, number: int) -> str:
        return f"{self.key}:{number}:{'.' * self.pad}"

    def may_be(self, number: int) -> int:
        """How many copies of a number there may be."""
        return max(1, self.copies[number])

    def confirm(self, number: int) -> None:
        """Note that a number is published."""
        self.confirmed = number
        self.confirmed_at[number] = now()
        if self.copies[number] < 2:
            del self.copies[number]


def parse(body: str) -> tuple[str, int]:
    """Return a body's source key and number."""
    key, number, _ = body.split(":", 2)
    return key, int(number)


def make_sources(amqp: bool) -> list[Source]:
    """Return the sources of a run: of each kind two small ones, and a feed of large messages; on
    RabbitMQ also two of exchanges that can be deleted."""
    second = "amqp" if amqp else "http"
    made: list[Source] = []
    for kind, exchange in ((KEPT, HELD), (LIVE, OPEN)):
        made += [Source("a", kind, "http", 40), Source("b", kind, second, 40)]
        # Large, so that a client that does not read fills every buffer on its way.
        made.append(Source("large", kind, second, 16_000))
        if amqp:
            address = f"/exchange/{exchange}/{kind}.x"
            via = "http" if kind == LIVE else second
            made.append(Source("x", kind, via, 40, address=address))
    return [*made, Source("classic", WORK, "http", 40), Source("quorum", WORK, second, 40)]
