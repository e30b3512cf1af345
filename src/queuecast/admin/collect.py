"""Makes metrics of the counters that hub, sessions, sockets and broker keep anyway.

It looks only when somebody scrapes, and at feeds in groups with the loop's turn between: neither
a delivery nor a client waits for being measured.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from .. import __version__
from ..hub.feed import Feed
from ..hub.hub import Hub
from ..metrics import (
    Family,
    Sample,
    by_label,
    counter,
    gauge,
)
from ..sessions.services import Services
from .process import process_families

# Messages that a subscription is behind.
LAG_BOUNDS = (0, 10, 100, 1000, 10_000, 100_000)
# Feeds looked at before the loop has its turn.
_A_TURN = 500


class SocketCounts(Protocol):
    """server.sockets.Sockets, as far as it counts."""

    limit: int
    open: int
    accepted: int
    refused: int


class Measured(Protocol):
    """A broker."""

    @property
    def ready(self) -> bool: ...
    def families(self) -> Iterable[Family]: ...


class Collector:
    """Collects what one process has.

    kinds: open push connections by transport. sockjs: sessions over HTTP. polls: long polls that
    wait. handed: requests handed to other workers, by outcome. loop_lag: by how many seconds the
    loop came late to its last errand of every second.
    """

    def __init__(
        self,
        hub: Hub,
        services: Services,
        broker: Measured,
        sockets: SocketCounts,
        *,
        kinds: Callable[[], Mapping[str, int]],
        sockjs: Callable[[], int],
        polls: Callable[[], int],
        handed: Callable[[], Mapping[str, int]],
        loop_lag: Callable[[], float],
    ) -> None:
        self._hub = hub
        self._services = services
        self._broker = broker
        self._sockets = sockets
        self._kinds = kinds
        self._sockjs = sockjs
        self._polls = polls
        self._handed = handed
        self._loop_lag = loop_lag

    async def families(self) -> list[Family]:
        """Return all families, each once."""
        version = Sample(1, (("version", __version__),))
        return [
            Family("queuecast_info", "gauge", "The version that runs.", (version,)),
            *self._connections(),
            *self._feeds(),
            *await self._subscriptions(self._hub.feeds),
            *self._work(),
            gauge(
                "queuecast_broker_up", "1 while the broker can be used.", int(self._broker.ready)
            ),
            *self._broker.families(),
            gauge(
                "queuecast_loop_lag_seconds",
                "How late the event loop came to its last errand of every second.",
                self._loop_lag(),
            ),
            *process_families(),
        ]

    def _connections(self) -> list[Family]:
        sockets = self._sockets
        kinds = {**self._kinds(), "sockjs-poll": self._sockjs(), "poll": self._polls()}
        # Streams of SockJS are connections as well; sockjs-poll is the sessions without one.
        kinds["sockjs-poll"] = max(0, kinds["sockjs-poll"] - kinds.get("sockjs-stream", 0))
        return [
            gauge("queuecast_sockets", "Open sockets of clients, of every kind.", sockets.open),
            gauge("queuecast_sockets_limit", "How many there may be.", sockets.limit),
            counter("queuecast_sockets_accepted_total", "Sockets accepted.", sockets.accepted),
            counter(
                "queuecast_sockets_refused_total",
                "Of those, turned away because of the limit.",
                sockets.refused,
            ),
            by_label(
                "queuecast_connections",
                "gauge",
                "Clients that are connected, by transport.",
                "transport",
                kinds,
            ),
            by_label(
                "queuecast_handed_over_total",
                "counter",
                "Requests handed to the worker that they belong to, by outcome.",
                "outcome",
                self._handed(),
            ),
        ]

    def _feeds(self) -> list[Family]:
        hub, stats = self._hub, self._hub.stats
        return [
            counter(
                "queuecast_feed_messages_total",
                "Messages that feeds took in from the broker.",
                stats.appended,
            ),
            counter(
                "queuecast_deliveries_total",
                "Messages times the clients at the head of their feed that they went to.",
                stats.deliveries,
            ),
            counter(
                "queuecast_encoded_messages_total",
                "Messages encoded; deliveries divided by these is what cohorts save.",
                stats.encoded,
            ),
            counter(
                "queuecast_encodes_total", "Calls of an encoding, a batch each.", stats.encodes
            ),
            counter(
                "queuecast_caught_up_chunks_total",
                "Chunks to single clients behind the head of their feed.",
                stats.caught_up,
            ),
            counter(
                "queuecast_delivered_bytes_total",
                "Bytes of feeds handed to sockets, with all framing.",
                stats.bytes,
            ),
            counter("queuecast_writes_total", "Writes of feeds to sockets.", stats.writes),
            counter("queuecast_ticks_total", "Turns of the loop with something new.", stats.ticks),
            by_label(
                "queuecast_client_gaps_total",
                "counter",
                "Gaps told to single clients, by reason.",
                "reason",
                stats.gap_reasons,
            ),
            by_label(
                "queuecast_feed_gaps_total",
                "counter",
                "Holes in feeds, told to all their clients, by reason.",
                "reason",
                stats.feed_gaps,
            ),
            by_label(
                "queuecast_subscriptions_failed_total",
                "counter",
                "Subscriptions that were ended, by the code of the error.",
                "code",
                stats.failed,
            ),
            counter(
                "queuecast_log_evicted_messages_total",
                "Messages that logs dropped for age, number or size.",
                hub.evicted,
            ),
            gauge("queuecast_log_bytes", "Bytes in all logs.", hub.log_bytes),
            gauge(
                "queuecast_history_page_bytes", "Bytes of history for those behind.", hub.page_bytes
            ),
        ]

    async def _subscriptions(self, feeds: Iterable[Feed]) -> list[Family]:
        live = behind = count = cohorts = most = 0
        lags = [0] * (len(LAG_BOUNDS) + 1)
        for feed in feeds:
            count += 1
            if count % _A_TURN == 0:
                await asyncio.sleep(0)
            members = sum(len(cohort.members) for cohort in feed.cohorts.values())
            cohorts += len(feed.cohorts)
            live += members
            lags[0] += members
            if len(feed.subscribers) == members:
                continue
            for subscription in feed.subscribers:
                if not subscription.live:
                    behind += 1
                    lag = subscription.lag
                    lags[bisect_left(LAG_BOUNDS, lag)] += 1
                    most = max(most, lag)
        return [
            gauge("queuecast_feeds", "Feeds that are open.", count),
            gauge("queuecast_cohorts", "Groups of subscriptions that share their bytes.", cohorts),
            by_label(
                "queuecast_subscriptions",
                "gauge",
                "Subscriptions to feeds: at the head, or behind it.",
                "state",
                {"live": live, "behind": behind},
            ),
            # Gauges, not a histogram: it is about now, and goes down again.
            Family(
                "queuecast_subscriptions_lagging",
                "gauge",
                "Subscriptions that are behind by more than so many messages.",
                [
                    Sample(sum(lags[place + 1 :]), (("over", str(bound)),))
                    for place, bound in enumerate(LAG_BOUNDS)
                ],
            ),
            gauge(
                "queuecast_subscription_lag_max_messages",
                "By how many the one is that is furthest behind.",
                most,
            ),
        ]

    def _work(self) -> list[Family]:
        counts, deliveries = self._services.counts, self._services.deliveries
        return [
            by_label(
                "queuecast_publishes_total",
                "counter",
                "Publishes of clients by outcome: confirmed, or the code of the error.",
                "outcome",
                counts.publishes,
            ),
            gauge("queuecast_consumers", "Subscriptions to queues.", deliveries.users),
            gauge(
                "queuecast_queue_waiting_bytes",
                "Bodies of queues' messages that wait for slow clients.",
                deliveries.used,
            ),
            counter(
                "queuecast_queue_deliveries_total",
                "Messages of queues written to clients.",
                counts.queue_messages,
            ),
            counter(
                "queuecast_queue_delivered_bytes_total",
                "Their bytes, with all framing.",
                counts.queue_bytes,
            ),
            by_label(
                "queuecast_queue_settled_total",
                "counter",
                "What clients said of them: acked, requeued (nack) or rejected.",
                "verdict",
                {
                    "acked": counts.acked,
                    "requeued": counts.requeued,
                    "rejected": counts.rejected,
                },
            ),
            counter(
                "queuecast_leases_ended_total",
                "Messages taken back from clients that held them too long.",
                counts.leases_ended,
            ),
        ]
