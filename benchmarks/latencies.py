"""Latencies by the read: what one read brought counts as often as it has messages."""

from __future__ import annotations

import array

from .child import Answer


class Latencies:
    """Every message of a read has the latency of its first, the oldest, so none looks faster.

    Parsing each of ten million stamps a second would make the receiver the limit.
    """

    def __init__(self) -> None:
        self._seconds = array.array("d")
        self._counts = array.array("L")

    def add(self, seconds: float, messages: int) -> None:
        """Take one read."""
        self._seconds.append(seconds)
        self._counts.append(messages)

    def clear(self) -> None:
        """Forget all of it."""
        del self._seconds[:]
        del self._counts[:]

    def summary(self) -> Answer:
        """Return p50, p99 and max in seconds; ValueError when there is nothing."""
        if not self._seconds:
            raise ValueError("no latency was taken")
        ordered = sorted(zip(self._seconds, self._counts, strict=True))
        total = sum(self._counts)
        return {
            "p50": _at(ordered, total * 50 // 100),
            "p99": _at(ordered, total * 99 // 100),
            "max": ordered[-1][0],
        }


def _at(ordered: list[tuple[float, int]], place: int) -> float:
    passed = 0
    for seconds, count in ordered:
        passed += count
        if passed > place:
            return seconds
    return ordered[-1][0]
