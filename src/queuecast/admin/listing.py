"""Which client is slow: the subscriptions that are furthest behind, with who and where they are.

A subscription to a feed is behind by the messages of the log (or of the broker's history) that it
has not got; one to a queue by those that wait for its socket. What was handed over and is not on
its way yet counts as unsent.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from itertools import count as numbers

from ..hub.subscription import Subscription
from ..sessions.base import Session
from ..sessions.roll import Present
from ..sessions.work import WorkSubscription
from .view import Row

# Connections that are looked at before the loop has its turn: everybody's messages wait meanwhile.
_A_TURN = 500
# Lines of a list; a client that asks for more gets these.
MOST_ROWS = 1000

Either = Subscription | WorkSubscription


async def furthest_behind(people: Iterator[Present], count: int) -> list[Row]:
    """Return the worst, at most `count` and MOST_ROWS of them, each as a row.

    Keys: id, user, address, transport, destination, state, lag (messages), lag_bytes, unsent
    (bytes); of queues also unacked.
    """
    count = min(count, MOST_ROWS)
    worst: list[tuple[tuple[int, int], int, Present, Either]] = []
    number = numbers()
    for index, present in enumerate(people, 1):
        if index % _A_TURN == 0:
            await asyncio.sleep(0)
        subscribed: tuple[Either, ...] = (*present.session.subscriptions, *present.session.work)
        for each in subscribed:
            # The number decides between equals: what comes after it has no order.
            line = ((_lag(each), present.unsent), next(number), present, each)
            if len(worst) < count:
                heapq.heappush(worst, line)
            elif count and line > worst[0]:
                heapq.heapreplace(worst, line)
    return [_row(present, each) for _, _, present, each in sorted(worst, reverse=True)]


def _lag(each: Either) -> int:
    return each.lag if isinstance(each, Subscription) else each.held[0]


def _row(present: Present, each: Either) -> Row:
    session = present.session
    row: Row = {
        "id": name_of(session),
        "user": session.identity.name,
        "address": present.address,
        "transport": session.kind,
    }
    if isinstance(each, Subscription):
        row |= {
            "destination": each.feed.name,
            "state": each.state,
            "lag": each.lag,
            "lag_bytes": each.lag_bytes,
        }
    else:
        messages, size = each.held
        row |= {
            "destination": each.destination.shown,
            "state": "paused" if session.paused else "live",
            "lag": messages,
            "lag_bytes": size,
            "unacked": each.unacked,
        }
    return row | {"unsent": present.unsent}


def name_of(session: Session) -> str:
    """Return what a session is called: STOMP's own id, else a name that lasts as long as it."""
    return getattr(session, "id", "") or f"{session.kind}-{id(session):x}"
