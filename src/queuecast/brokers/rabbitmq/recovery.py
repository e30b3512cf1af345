"""Going on with a feed's queue after a reconnect: what is repeated, what is new, is there a gap.

A recovery looks at the first messages of the queue until it can tell. Pure decisions; the queue
feeds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...message import Message
from .content import fingerprint
from .tail import Replay, Tail

RESTARTED = "the broker was restarted; transient messages may be lost"
UNWATCHED = "reconnected; whether the broker lost messages meanwhile cannot be known"
EXPIRED = "messages that waited for the gateway expired: a policy limits their age (message-ttl)"
UNSURE = "reconnected; repeated and new messages cannot be told apart"
UNFINISHED = "reconnected; the feed's queue did not deliver what it held"


class Verdict(NamedTuple):
    """What a recovery has found: the new messages so far, whether it is done, and the gap."""

    messages: list[Message]
    done: bool
    gap: str | None = None
    ack: bool = True


class Recovery(Protocol):
    """Looks at a queue's first messages after a reconnect."""

    def take(self, messages: Sequence[Message]) -> Verdict:
        """Look at the next messages."""

    def give_up(self) -> Verdict:
        """Decide with what there was: the rest did not come in time."""


class Resumed:
    """The queue lived on: everything is there, the unacked messages come once more first.

    expected: the number of messages that were in the queue; None where the broker may not know:
    the first message that is not marked redelivered ends the recovery then. limit: no more than
    this many can be marked redelivered (the prefetch). why: a gap that is due in any case.
    """

    def __init__(
        self, tail: Tail, expected: int | None, limit: int, why: str | None = None
    ) -> None:
        self._tail = tail
        self._counted = expected is not None
        self._expected = limit if expected is None else min(expected, limit)
        self._why = why
        # Bounded by the prefetch: nothing is acked before the decision.
        self._held: list[Message] = []

    def take(self, messages: Sequence[Message]) -> Verdict:
        held = self._held
        held.extend(messages)
        if len(held) < self._expected and held[-1].redelivered:
            return Verdict([], False, ack=False)
        return self._decide()

    def give_up(self) -> Verdict:
        if not self._counted and not self._held:
            self._tail.realign(0)
            return Verdict([], True, self._why)
        verdict = self._decide()
        return verdict._replace(gap=verdict.gap or UNFINISHED)

    def _decide(self) -> Verdict:
        held = self._held
        again = next((at for at, one in enumerate(held) if not one.redelivered), len(held))
        marks = [fingerprint(message) for message in held[:again]]
        count, sure = self._tail.repeated(marks)
        if sure:
            self._tail.realign(count)
            return Verdict(held[count:], True, self._why)
        replay = Replay(self._tail)
        start = 0
        while start < again and replay.was_handed_on(marks[start]):
            start += 1
        self._tail.realign()
        return Verdict(held[start:], True, self._why or UNSURE)


class Restarted:
    """The broker was restarted: transient messages are gone, acks may be forgotten."""

    def __init__(self, tail: Tail, expected: int, why: str = RESTARTED) -> None:
        self._replay = Replay(tail)
        self._why = why
        self._expected = expected
        tail.realign()

    def take(self, messages: Sequence[Message]) -> Verdict:
        for at, message in enumerate(messages):
            if self._expected <= 0 or not self._replay.was_handed_on(fingerprint(message)):
                return Verdict(list(messages[at:]), True, self._why)
            self._expected -= 1
        if self._expected <= 0:
            return Verdict([], True, self._why)
        return Verdict([], False)

    def give_up(self) -> Verdict:
        return Verdict([], True, self._why)
