"""A connection as the hub sees it, and an encoding whose bytes tests can read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from queuecast.errors import QueuecastError
from queuecast.hub.log import Entry, Gap
from queuecast.hub.subscription import Subscription
from queuecast.position import Position, Vector


class Item(NamedTuple):
    """One thing that a client got: a body, or a gap's reason with the position it begins after."""

    position: str
    body: str = ""
    gap: str = ""
    last: str = ""


@dataclass(frozen=True)
class Lines:
    """One line an item. Equal tags are equal encodings; bodies hold no `|` and no newline."""

    tag: str = ""
    pad: int = 0
    """Bytes that the wire form needs more than the body."""

    def encode(self, entries: Sequence[Entry], vector: Vector) -> bytes:
        lines = []
        for entry in entries:
            before = str(vector)
            vector.advance(entry.lane, entry.offset, entry.epoch)
            if entry.message is None:
                lines.append(f"{self.tag}|{vector}||{entry.reason}|{before}|\n".encode())
                continue
            body = entry.message.body
            if body == b"poison":
                raise ValueError("cannot be encoded")
            lines.append(f"{self.tag}|{vector}|".encode() + body + b"|||" + b"." * self.pad + b"\n")
        return b"".join(lines)

    def encode_gap(self, gap: Gap, position: str) -> bytes:
        return f"{self.tag}|{position}||{gap.reason}|{gap.last}|\n".encode()


def decode(data: bytes, tag: str = "") -> list[Item]:
    """Return the items of one encoding in the bytes."""
    items = []
    for line in data.decode().splitlines():
        of, position, body, reason, last, _ = line.split("|")
        if of == tag:
            items.append(Item(position, body, reason, last))
    return items


class FakeOutlet:
    """Records writes; stops taking bytes when `room` is used up, as a socket's buffer does.

    at_once: what can be had with the answer is taken with it. began: where it then stood.
    """

    def __init__(self, room: int | None = None, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.began = ""
        self.box: list[bytes] = []
        self.paused = False
        self.room = room
        self.writes: list[bytes] = []
        self.subscriptions: list[Subscription] = []
        self.failures: list[tuple[Subscription, QueuecastError]] = []
        self.broken = False

    def start(self, subscription: Subscription) -> None:
        """Begin a subscription, as a session does with its answer."""
        self.subscriptions.append(subscription)
        self.began = str(subscription.vector)
        if not self.at_once:
            subscription.flow()
        elif first := subscription.begin():
            self.write(first)

    def write(self, data: bytes) -> None:
        assert not self.paused, "a paused connection is not written to"
        if self.broken:
            raise OSError("broken on purpose")
        self.writes.append(data)
        if self.room is not None:
            self.room -= len(data)
            if self.room <= 0:
                self.pause()

    def feed_failed(self, subscription: Subscription, error: QueuecastError) -> None:
        self.failures.append((subscription, error))

    def pause(self) -> None:
        self.paused = True
        for subscription in self.subscriptions:
            subscription.pause()

    def resume(self, room: int | None = None) -> None:
        self.paused = False
        self.room = room
        for subscription in self.subscriptions:
            subscription.resume()

    def items(self, tag: str = "") -> list[Item]:
        return decode(b"".join(self.writes), tag)

    def bodies(self, tag: str = "") -> list[str]:
        """What came, in order; a gap as `!reason`."""
        return [f"!{item.gap}" if item.gap else item.body for item in self.items(tag)]

    def last_position(self, tag: str = "") -> Position:
        return Position.parse(self.items(tag)[-1].position)
