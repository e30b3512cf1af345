"""How much is in the embedded broker, for people and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What is in a queue now."""

    ready: int
    unacked: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in the broker now; bytes are estimates."""

    exchanges: int
    queues: dict[str, QueueCounts]
    feeds: int
    offset: int
    queue_bytes: int
    history_bytes: int
