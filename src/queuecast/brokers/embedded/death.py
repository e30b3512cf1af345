"""Dead letters: the x-death header as RabbitMQ writes it, and its protection against cycles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...message import Message

REJECTED = "rejected"
EXPIRED = "expired"
MAXLEN = "maxlen"
DELIVERY_LIMIT = "delivery_limit"


def bury(
    message: Message,
    *,
    queue: str,
    reason: str,
    exchange: str,
    routing_key: str | None,
    time: int,
) -> Message:
    """Return a message as its queue's dead-letter exchange gets it.

    routing_key: the queue's own for dead letters, None to keep the message's. time: Unix
    seconds. The expiration is taken off, or it would expire again at once.
    """
    properties = message.properties
    headers = dict(properties.headers)
    deaths = [dict(death) for death in deaths_of(message)]
    same = next(
        (
            death
            for death in deaths
            if death.get("queue") == queue and death.get("reason") == reason
        ),
        None,
    )
    if same is not None:
        deaths.remove(same)
        count = same.get("count")
        same["count"] = count + 1 if isinstance(count, int) else 1
    else:
        same = {
            "count": 1,
            "reason": reason,
            "queue": queue,
            "time": time,
            "exchange": message.exchange,
            "routing-keys": [message.routing_key],
        }
        if properties.expiration is not None:
            same["original-expiration"] = properties.expiration
    deaths.insert(0, same)
    headers["x-death"] = deaths
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    headers.setdefault("x-first-death-exchange", message.exchange)
    return Message(
        message.body,
        exchange,
        message.routing_key if routing_key is None else routing_key,
        replace(properties, expiration=None, headers=headers),
    )


def deaths_of(message: Message) -> Sequence[Mapping[str, Any]]:
    """Return the entries of x-death, newest first; what a client may have put there is left."""
    deaths = message.properties.headers.get("x-death")
    if not isinstance(deaths, list | tuple):
        return ()
    return [death for death in deaths if isinstance(death, Mapping)]


def is_cycle(queue: str, deaths: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a dead letter must not enter a queue: it died there before, and nobody
    rejected it since, so that it would go round for ever."""
    for death in deaths:
        if death.get("reason") == REJECTED:
            return False
        if death.get("queue") == queue:
            return True
    return False
