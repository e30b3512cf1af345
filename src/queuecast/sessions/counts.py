"""What sessions have done so far, in plain integers that metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..metrics import count_up


@dataclass(slots=True)
class Counts:
    """Counters over the life of the gateway, shared by all sessions.

    publishes: by outcome: "confirmed", or the code of the error. queue_messages, queue_bytes:
    deliveries of work queues to clients. acked, requeued, rejected: what clients said of them.
    leases_ended: those that clients held for too long.
    """

    publishes: dict[str, int] = field(default_factory=lambda: {"confirmed": 0})
    queue_messages: int = 0
    queue_bytes: int = 0
    acked: int = 0
    requeued: int = 0
    rejected: int = 0
    leases_ended: int = 0

    def published(self, outcome: str) -> None:
        """Count a publish that was answered."""
        count_up(self.publishes, outcome)

    def settled(self, *, ack: bool, requeue: bool) -> None:
        """Count what a client said of a message."""
        if ack:
            self.acked += 1
        elif requeue:
            self.requeued += 1
        else:
            self.rejected += 1
