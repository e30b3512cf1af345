"""Telling repeated messages from new ones after a reconnect.

What a feed's queue delivered is acked at once, but when the connection goes, some acks may not
have arrived: RabbitMQ then delivers the end of what we had once more (marked redelivered, in the
old order), followed by what was on its way, followed by new messages. A `Tail` remembers the
fingerprints of what was handed on and finds the border, or says that it cannot be known. One
case stays open: a message that equals an unacked one in everything, of a stream that has not
repeated itself so far, is taken for its repetition; a message-id or timestamp tells them apart.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

# Fingerprints kept: enough to recognize what a killed broker forgot to have been acked; about
# 300 KB per exchange at most.
MEMORY = 8192


class Tail:
    """Fingerprints of the last messages handed on.

    The newest `pending` ones are those whose ack the broker may not have.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._recent: deque[int] = deque(maxlen=memory)
        self._pending = 0

    def add(self, fingerprint: int) -> None:
        """Note a message that was handed on."""
        self._recent.append(fingerprint)
        self._pending += 1

    @property
    def pending(self) -> int:
        return self._pending

    def settled(self, count: int) -> None:
        """Note that the broker has the acks of the `count` oldest pending messages."""
        self._pending = max(0, self._pending - count)

    def realign(self, count: int | None = None) -> None:
        """Say that the newest `count` messages (all that are remembered) may come once more."""
        self._pending = len(self._recent) if count is None else count

    def repeated(self, redelivered: Sequence[int]) -> tuple[int, bool]:
        """Return how many of the redelivered messages were handed on, and whether that is sure.

        redelivered: the fingerprints of all messages marked redelivered, in order. It is unsure
        when equal messages leave several borders possible, or when what was redelivered does not
        continue what we had (somebody else took or dropped messages of the queue).
        """
        recent = list(self._recent)
        pending = recent[max(0, len(recent) - self._pending) :]
        count = _overlap(pending, redelivered)
        if not set(pending).isdisjoint(redelivered[count:]):
            return count, False
        if not count:
            return 0, True
        seen = Counter(recent[len(recent) - count :])
        others = Counter(recent[: len(recent) - count]) + Counter(redelivered[count:])
        sure = all(times == 1 and value not in others for value, times in seen.items())
        return count, sure

    def replayed(self) -> Iterator[int]:
        """Return everything remembered, oldest first: what a restarted broker may repeat."""
        return iter(tuple(self._recent))


def _overlap(before: Sequence[int], after: Sequence[int]) -> int:
    """Return the length of the longest end of `before` that `after` begins with."""
    # The prefix function of Knuth, Morris and Pratt, over both with a border between.
    joined: list[int | None] = [*after, None, *before]
    lengths = [0] * len(joined)
    for at in range(1, len(joined)):
        length = lengths[at - 1]
        while length and joined[at] != joined[length]:
            length = lengths[length - 1]
        if joined[at] == joined[length] and joined[at] is not None:
            length += 1
        lengths[at] = length
    return lengths[-1] if before and after else 0


class Replay:
    """Drops what a restarted broker repeats: the beginning of its queue, in the old order."""

    def __init__(self, tail: Tail) -> None:
        self._remaining = tail.replayed()

    def was_handed_on(self, fingerprint: int) -> bool:
        """Tell whether the next message was there before; once it was not, never again."""
        return any(known == fingerprint for known in self._remaining)
