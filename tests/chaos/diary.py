"""What was done to a run and when, and which messages that may have destroyed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from tests.chaos.clock import now
from tests.chaos.sources import Source

# Seconds that a gateway has to notice what was done to its broker and to mend it. It is two where
# nothing else happens; here gateways are killed and connections stall meanwhile.
MENDED = 15.0


@dataclass
class Event:
    """A fault as it was done. began, ended: when; harms: keys of the sources of which it may
    destroy messages; past: also those that were there before it; shuffles: it moves messages, so
    that those around it have no order."""

    kind: str
    began: float
    ended: float = math.inf
    harms: frozenset[str] = frozenset()
    past: bool = False
    shuffles: bool = False

    def overlaps(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended


class Diary:
    """All events of a run, in their order."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events = list(events)

    @contextlib.contextmanager
    def during(
        self,
        kind: str,
        harms: Iterable[Source] = (),
        *,
        past: bool = False,
        shuffles: bool = False,
    ) -> Iterator[Event]:
        """Enter an event that lasts as long as the block."""
        keys = frozenset(source.key for source in harms)
        event = Event(kind, now(), harms=keys, past=past, shuffles=shuffles)
        self.events.append(event)
        try:
            yield event
        finally:
            event.ended = now()

    def note(self, kind: str) -> None:
        """Enter an event of no length that destroys nothing."""
        with self.during(kind):
            return

    def destroyed(self, source: Source, number: int) -> bool:
        """Return whether an event may have destroyed a message that was confirmed."""
        at = source.confirmed_at.get(number, 0.0)
        return any(
            (event.past or event.began <= at) and at <= event.ended + MENDED
            for event in self.harming(source)
            if not event.shuffles
        )

    def shuffled(self, source: Source, number: int) -> bool:
        """Return whether an event may have changed a message's place among others."""
        at = source.confirmed_at.get(number, 0.0)
        return any(
            event.began - 1 <= at <= event.ended + MENDED
            for event in self.harming(source)
            if event.shuffles
        )

    def harming(self, source: Source) -> list[Event]:
        return [event for event in self.events if source.key in event.harms]

    def seconds(self, kinds: Collection[str], began: float, ended: float) -> float:
        """Return how much of a span events of these kinds took."""
        spans = [(each.began, each.ended) for each in self.events if each.kind in kinds]
        return covered(spans, began, ended)


def covered(spans: Iterable[tuple[float, float]], began: float, ended: float) -> float:
    """Return the seconds between began and ended that lie in one or more of the spans."""
    total, done = 0.0, began
    for start, end in sorted(spans):
        start, end = max(start, done), min(end, ended)
        if start < end:
            total += end - start
            done = end
    return total
