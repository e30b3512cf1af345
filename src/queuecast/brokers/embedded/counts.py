"""How much is in the embedded broker, for people and metrics."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...metrics import Family, Sample, by_label, counter, gauge


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


def embedded_families(counts: Counts, configured: Collection[str]) -> list[Family]:
    """Return metrics of them. configured: queues that are shown one by one.

    Clients make queues by naming them, so that showing all could be a series for each client.
    """
    queues = counts.queues
    own = [(name, queues[name]) for name in sorted(configured) if name in queues]
    by_queue = [
        Sample(value, (("queue", name), ("state", state)))
        for name, found in own
        for state, value in (("ready", found.ready), ("unacked", found.unacked))
    ]
    totals = {
        "ready": sum(each.ready for each in queues.values()),
        "unacked": sum(each.unacked for each in queues.values()),
    }
    return [
        gauge("queuecast_exchanges", "Exchanges of the embedded broker.", counts.exchanges),
        gauge("queuecast_queues", "Its queues.", len(queues)),
        by_label("queuecast_queues_messages", "gauge", "Messages in all of them.", "state", totals),
        Family(
            "queuecast_queue_messages",
            "gauge",
            "Messages in each queue of the configuration.",
            by_queue,
        ),
        Family(
            "queuecast_queue_consumers",
            "gauge",
            "Consumers of each queue of the configuration.",
            [Sample(found.consumers, (("queue", name),)) for name, found in own],
        ),
        gauge("queuecast_queues_bytes", "Bytes of the messages in queues.", counts.queue_bytes),
        gauge(
            "queuecast_history_bytes",
            "Bytes of what is remembered for those who come late.",
            counts.history_bytes,
        ),
        counter(
            "queuecast_embedded_published_total",
            "Messages that the embedded broker took; the offset of the last.",
            counts.offset,
        ),
    ]
