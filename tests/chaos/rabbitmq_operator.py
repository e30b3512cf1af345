"""What operators do to RabbitMQ: exchanges, queues, bindings and policies, without asking us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.exceptions

from tests.chaos.diary import Diary
from tests.chaos.schedule import Fault
from tests.chaos.site import Act
from tests.chaos.sources import HELD, KEPT, LIVE, OPEN, WORK, Source
from tests.support.servers import RabbitServer

_EXCHANGES = ("amq.topic", OPEN, HELD)

# As the gateways' configuration declares them.
_QUEUES: dict[str, dict[str, Any]] = {
    "chaos-classic": {},
    "chaos-quorum": {"x-queue-type": "quorum", "x-delivery-limit": 10000},
}

_POLICY = "chaos"

# Catch-all policies, as they are found in the wild; expires and message-ttl in milliseconds.
_LIMITS: tuple[dict[str, int], ...] = (
    {"max-length": 5},
    {"max-length-bytes": 500},
    {"message-ttl": 50},
    {"expires": 1000},
)

Node = Callable[[], RabbitServer]


class RabbitOperator:
    """The acts. node: returns a node that is up."""

    def __init__(self, node: Node, diary: Diary, sources: list[Source]) -> None:
        self._node = node
        self._diary = diary
        self._sources = sources

    def acts(self) -> dict[str, Act]:
        return {
            "recreate exchange": self._exchange,
            "delete exchange": self._exchange,
            "unbind": self._unbind,
            "recreate queue": self._queue,
            "delete feed queues": self._feed_queues,
            "delete stream": self._stream,
            "limit queues": self._limit,
        }

    def _of(self, *kinds: str, exchange: str = "") -> list[Source]:
        return [
            source
            for source in self._sources
            if source.kind in kinds and (not exchange or source.exchange == exchange)
        ]

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self._node().url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    async def _exchange(self, fault: Fault, chance: random.Random) -> None:
        """Delete an exchange and declare it again, of the same type."""
        exchange = chance.choice((OPEN, HELD))
        with self._diary.during(fault.kind, self._of(KEPT, LIVE, exchange=exchange)):
            await asyncio.to_thread(self._delete_exchange, exchange)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._declare_exchange, exchange)

    def _delete_exchange(self, exchange: str) -> None:
        with self._channel() as channel:
            channel.exchange_delete(exchange)

    def _declare_exchange(self, exchange: str) -> None:
        with self._channel() as channel:
            channel.exchange_declare(exchange, "topic", durable=True)

    async def _unbind(self, fault: Fault, chance: random.Random) -> None:
        """Take all bindings from an exchange."""
        exchange = chance.choice(_EXCHANGES)
        with self._diary.during(fault.kind, self._of(KEPT, LIVE, exchange=exchange)):
            await asyncio.to_thread(self._unbind_all, exchange)

    def _unbind_all(self, exchange: str) -> None:
        bound = [row for row in self._node().list_bindings() if row["source_name"] == exchange]
        with self._channel() as channel:
            for row in bound:
                if row["destination_kind"] == "queue":
                    channel.queue_unbind(row["destination_name"], exchange, row["routing_key"])
                else:
                    channel.exchange_unbind(row["destination_name"], exchange, row["routing_key"])

    async def _queue(self, fault: Fault, chance: random.Random) -> None:
        """Delete a work queue and declare it again."""
        queue = chance.choice(sorted(_QUEUES))
        harmed = [source for source in self._of(WORK) if source.queue == queue]
        with self._diary.during(fault.kind, harmed, past=True):
            await asyncio.to_thread(self._recreate_queue, queue)

    def _recreate_queue(self, queue: str) -> None:
        with self._channel() as channel:
            channel.queue_delete(queue)
        self._declare_queues()

    def _declare_queues(self) -> None:
        with self._channel() as channel:
            for queue, arguments in _QUEUES.items():
                channel.queue_declare(queue, durable=True, arguments=arguments)

    async def _feed_queues(self, fault: Fault, chance: random.Random) -> None:
        """Delete all queues of the gateways' that are no streams."""
        with self._diary.during(fault.kind, self._of(LIVE), past=True):
            await asyncio.to_thread(self._delete_ours, False, None)

    async def _stream(self, fault: Fault, chance: random.Random) -> None:
        """Delete the stream of a retained destination, with all of its history."""
        exchange = chance.choice(("amq.topic", HELD))
        with self._diary.during(fault.kind, self._of(KEPT, exchange=exchange), past=True):
            await asyncio.to_thread(self._delete_ours, True, exchange)

    def _delete_ours(self, streams: bool, exchange: str | None) -> None:
        """Delete the gateways' streams, or their other queues; exchange: what they are bound to."""
        node = self._node()
        bound = {
            row["destination_name"]
            for row in node.list_bindings()
            if exchange in (None, row["source_name"])
        }
        rows = node.rows("list_queues", "name", "arguments")
        with self._channel() as channel:
            for row in rows:
                name = row["name"]
                stream = _type_of(row["arguments"]) == "stream"
                if name not in _QUEUES and stream == streams and (not exchange or name in bound):
                    channel.queue_delete(name)

    async def _limit(self, fault: Fault, chance: random.Random) -> None:
        """Set a policy on all queues, and clear it."""
        limits = chance.choice(_LIMITS)
        with self._diary.during(fault.kind, self._of(LIVE, WORK), past=True):
            await asyncio.to_thread(self._set_policy, limits)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._clear_policy)
            # A queue that expired is gone.
            await asyncio.to_thread(self._declare_queues)

    def _set_policy(self, limits: dict[str, int]) -> None:
        definition = json.dumps(limits)
        self._node().ctl("set_policy", _POLICY, ".*", definition, "--apply-to", "queues")

    def _clear_policy(self) -> None:
        self._node().ctl("clear_policy", _POLICY)


def _type_of(arguments: Any) -> str:
    """Return the queue type that a queue was declared with, as either way of asking shows it."""
    if isinstance(arguments, dict):
        return str(arguments.get("x-queue-type", "classic"))
    return next((str(each[-1]) for each in arguments if each[0] == "x-queue-type"), "classic")
