"""Latencies of a run: what each read took, counted by its messages."""

from __future__ import annotations

import array
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .child import Answer

# Neighbouring buckets differ by one per cent.
_STEP = math.log(1.01)


@dataclass(frozen=True, slots=True)
class Latency:
    """Publish to receipt, in seconds."""

    p50: float
    p99: float
    p999: float
    max: float


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
        """Return the counts by bucket, for `merged`."""
        buckets: Counter[int] = Counter()
        for seconds, count in zip(self._seconds, self._counts, strict=True):
            buckets[math.ceil(math.log(max(seconds, 1e-7)) / _STEP)] += count
        return {"latencies": {str(bucket): count for bucket, count in buckets.items()}}


def merged(answers: Sequence[Answer]) -> Latency:
    """Return what several receivers saw together; ValueError when there is nothing."""
    buckets: Counter[int] = Counter()
    for answer in answers:
        for bucket, count in answer.get("latencies", {}).items():
            buckets[int(bucket)] += count
    if not buckets:
        raise ValueError("no latency was taken")
    ordered = sorted(buckets.items())
    total = buckets.total()
    return Latency(
        _at(ordered, total * 0.5),
        _at(ordered, total * 0.99),
        _at(ordered, total * 0.999),
        math.exp(ordered[-1][0] * _STEP),
    )


def _at(ordered: list[tuple[int, int]], place: float) -> float:
    passed = 0
    for bucket, count in ordered:
        passed += count
        if passed > place:
            return math.exp(bucket * _STEP)
    return math.exp(ordered[-1][0] * _STEP)
