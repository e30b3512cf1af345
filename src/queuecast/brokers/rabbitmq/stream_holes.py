"""Holes: places in a stream where messages are missing, because its binding was lost meanwhile.

A hole is told to live feeds and to all who read the history over it later, on every gateway and
after restarts. So it is written into the stream itself, as a small message of our own (like the
marks, stream_mark.py), right after the stream was bound again: what was lost is before it. Readers
turn it into a gap and hand it to no client. Gateways that notice the same loss give their holes
the same name; all but the first of a name are ignored.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from typing import NamedTuple

import pika.exceptions
import pika.spec

from ...errors import Unavailable
from ...message import Message
from .confirms import ConfirmChannel
from .failures import of_channel
from .supervisor import Supervisor
from .wire import PERSISTENT

_TYPE = "queuecast.gap"
_CONFIRM = 15.0  # seconds for the confirm of a hole
# Holes remembered. An exchange that is recreated all the time must not grow memory.
_MOST = 1000
_LONGEST = 500  # characters of a reason


class Hole(NamedTuple):
    """One hole. name: the same for all holes of one loss."""

    offset: int
    name: str
    why: str


def hole_of(message: Message, offset: int) -> Hole | None:
    """Return the hole that a message of our own stands for, None for a mark."""
    if message.properties.type != _TYPE:
        return None
    name, _, why = message.body.decode("utf-8", "replace").partition(" ")
    return Hole(offset, name, why[:_LONGEST] or "messages were missed")


async def write_hole(
    publishing: Supervisor, exchange: str, name: str, why: str, patience: float
) -> None:
    """Write a hole into the stream that `exchange` leads to; raises Unavailable."""
    link = await publishing.wait(patience)
    if link.blocked is not None:
        raise Unavailable(f"RabbitMQ takes no publishes: {link.blocked}")
    properties = pika.spec.BasicProperties(delivery_mode=PERSISTENT, type=_TYPE)
    try:
        async with asyncio.timeout(_CONFIRM):
            confirming = await ConfirmChannel.open(link)
            await confirming.send_once(exchange, "", f"{name} {why}".encode(), properties)
    except TimeoutError:
        raise Unavailable("RabbitMQ does not confirm a message to the stream") from None
    except pika.exceptions.AMQPError as error:
        raise of_channel(error) from None


class Holes:
    """The holes of one stream that this gateway has come across, by their offsets."""

    def __init__(self) -> None:
        self._all: list[Hole] = []
        self._first: dict[str, int] = {}  # the lowest offset of each name
        self.lost = -1
        """Holes up to this offset may have been forgotten."""

    def clear(self) -> None:
        """Forget all: the stream is another one."""
        self._all.clear()
        self._first.clear()
        self.lost = -1

    def note(self, hole: Hole) -> bool:
        """Remember a hole; return whether it is the first one of its name."""
        first = self._first.get(hole.name)
        if first == hole.offset:
            return True
        if first is None or hole.offset < first:
            self._first[hole.name] = hole.offset
        insort(self._all, hole)
        if len(self._all) > _MOST:
            dropped = self._all.pop(0)
            self.lost = dropped.offset
            if self._first.get(dropped.name) == dropped.offset:
                del self._first[dropped.name]
        return first is None or hole.offset < first

    def has(self, name: str) -> bool:
        """Return whether a hole of this name was seen."""
        return name in self._first

    def next(self, low: int, high: int) -> Hole | None:
        """Return the first hole at offsets from `low` to `high`."""
        for hole in self._all[bisect_left(self._all, (low,)) :]:
            if hole.offset > high:
                return None
            if self._first.get(hole.name) == hole.offset:
                return hole
        return None

    def last(self, low: int, high: int) -> Hole | None:
        """Return the last hole at offsets from `low` to `high`."""
        found = None
        while (hole := self.next(low, high)) is not None:
            found, low = hole, hole.offset + 1
        return found
