"""The feeds on RabbitMQ: one queue per exchange and node, however many destinations.

A destination's exchange decides its queue. Exchanges whose rules we know (direct, topic, fanout)
share one queue for all destinations; a headers exchange, one of a plugin's type, or one whose
type the broker will not tell gets a queue per destination.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pika.exceptions

from ...destination import Destination
from ...errors import QueuecastError, Refused, Unavailable, Unsupported
from ..background import Background
from ..base import FeedReader, FeedSink
from .canary import Canary
from .connection import Link
from .failures import of_channel
from .feedqueue import FeedQueue
from .supervisor import Supervisor
from .topology import MATCHED, Topology, try_delete_queue

log = logging.getLogger(__name__)

# Milliseconds that a feed's queue outlives our connection. The canary's is longer, because it
# counts from the last touch.
EXPIRES = 60_000
_CANARY_EXTRA = 60_000
_TOUCH = 20.0  # seconds
_CANARY_PATIENCE = 5.0  # seconds; a broker that is low on memory takes no message
REBIND = 30.0  # seconds between looks at exchanges and bindings


class Feeds:
    """All feeds of this node.

    prefix: begins the names of our queues. The others: see RabbitBroker.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        publishing: Supervisor,
        topology: Topology,
        prefix: str,
        *,
        patience: float,
        expires: int,
        rebind: float,
        zombie_patience: float,
        linger: float,
    ) -> None:
        self._supervisor = supervisor
        self._publishing = publishing
        self.topology = topology
        self.prefix = prefix
        self.expires = expires
        self.zombie_patience = zombie_patience
        self.link: Link | None = None
        self.patience = patience
        self._rebind = rebind
        self._linger = linger
        self._queues: dict[tuple[str, str | None], FeedQueue] = {}
        self._canary: Canary | None = None
        self._warned = False
        self._canary_link: Link | None = None
        self._refused = False  # a canary, to this login
        self._canaries: set[Canary] = set()
        self._verdicts: dict[str, bool] = {}
        self._lock = asyncio.Lock()
        self._background = Background(log)
        self._lingering: dict[FeedQueue, asyncio.TimerHandle] = {}
        self._closing = False

    # The link's life

    def on_up(self, link: Link) -> None:
        """Recover every queue on a new link."""
        self.link = link
        self._verdicts.clear()
        self._refused = False
        for queue in self._queues.values():
            queue.wake()
        if not self._background:
            self._spawn(self._tend(_TOUCH, self._touch), "canary")
            self._spawn(self._tend(self._rebind, self._look), "exchanges")

    def on_down(self, why: str) -> None:
        """Fail openings in progress; open feeds wait for the reconnect."""
        self.link = None
        for queue in self._queues.values():
            queue.on_down(why)

    # Feeds

    async def open(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """Open a feed; see the broker interface."""
        exchange, key = _address(destination)
        link = await self._supervisor.wait(self.patience)
        kind = await self.topology.check_binding(link, exchange, key)
        if self._closing:
            raise Unavailable("the gateway is closing")
        if self.link is None:
            # It went while we asked: nobody would fail this opening.
            raise Unavailable(f"RabbitMQ is away: {self._supervisor.status}")
        place = (exchange, None if kind in MATCHED else key)
        queue = self._queues.get(place)
        if queue is not None and queue.kind != kind:
            # Whoever is left there listens by the rules of an exchange that is gone.
            queue.supersede(kind)
            self.forget(queue)
            self._spawn(queue.close(), "superseded queue")
            queue = None
        if queue is None:
            queue = self._queues[place] = FeedQueue(self, exchange, kind)
        reader = queue.add(key, sink)
        try:
            await reader.opened
        except BaseException:
            await reader.close()
            raise
        return reader

    async def check(self, destination: Destination) -> None:
        """Return if the broker lets this login listen to a destination, as a feed would.

        It decides by a queue of our own: declaring one takes configure, binding it write on it
        and read on the exchange and the key, purging it read on it. Raises as `open`.
        """
        exchange, key = _address(destination)
        link = await self._supervisor.wait(self.patience)
        name = f"{self.prefix}.probe.{secrets.token_hex(8)}"
        declared = False
        try:
            async with link.probe(fresh=True) as channel:
                await channel.call(
                    "queue_declare", name, exclusive=True, arguments={"x-expires": self.expires}
                )
                declared = True
                await channel.call("queue_bind", name, exchange, key)
                await channel.call("queue_purge", name)
                await channel.call("queue_delete", name)
                declared = False
        except pika.exceptions.AMQPError as error:
            raise of_channel(error, exchange) from None
        finally:
            if declared and link.is_open and not self._closing:
                # The refusal closed the channel; exclusive queues stay until the connection ends.
                self._spawn(try_delete_queue(link, name), "probe queue")

    def on_empty(self, queue: FeedQueue) -> None:
        """Delete a queue some time after its last binding went."""
        earlier = self._lingering.pop(queue, None)
        if earlier is not None:
            earlier.cancel()
        loop = asyncio.get_running_loop()
        self._lingering[queue] = loop.call_later(self._linger, self._drop_if_empty, queue)

    def _drop_if_empty(self, queue: FeedQueue) -> None:
        if queue.is_empty and not self._closing:
            self.forget(queue)
            self._spawn(queue.close(), "empty queue")

    def forget(self, queue: FeedQueue) -> None:
        """Let the next reader make a new queue, and ask for the exchange's type anew."""
        timer = self._lingering.pop(queue, None)
        if timer is not None:
            timer.cancel()
        self.topology.forget(queue.exchange)
        for place in [place for place, known in self._queues.items() if known is queue]:
            del self._queues[place]

    # The canaries

    async def canary_of(self, link: Link) -> Canary | None:
        """Return the canary that was put by this link, putting it first if need be.

        None while there is none, because this login may not put one or the broker takes no
        publishes: a reconnect is a gap then.
        """
        async with self._lock:
            if self._canary_link is not link:
                self._canary = await self._put(link)
                self._canary_link = link
            return self._canary

    async def _put(self, link: Link) -> Canary | None:
        try:
            async with asyncio.timeout(_CANARY_PATIENCE):
                publishing = await self._publishing.wait(_CANARY_PATIENCE)
                if publishing.blocked is not None:
                    raise Unavailable(f"RabbitMQ takes no publishes: {publishing.blocked}")
                canary = await Canary.put(
                    link, publishing, self.prefix, self.expires + _CANARY_EXTRA
                )
        except Refused as error:
            if not self._warned:
                log.warning(
                    "each reconnect to RabbitMQ will be a gap in the feeds: %s; allow the user to "
                    "write to amq.default",
                    error,
                )
            self._warned = self._refused = True
            return None
        except (QueuecastError, TimeoutError) as error:
            if not link.is_open:
                raise Unavailable("the connection to RabbitMQ was lost") from None
            log.info("without a canary for now, a reconnect is a gap in the feeds: %s", error)
            return None
        self._canaries.add(canary)
        return canary

    async def is_alive(self, link: Link, canary: Canary) -> bool:
        """Tell whether the broker has not been restarted since the canary was put."""
        async with self._lock:
            if canary is self._canary and self._canary_link is link:
                return True
            known = self._verdicts.get(canary.name)
            if known is None:
                known = self._verdicts[canary.name] = await canary.alive(link)
            return known

    # Housekeeping

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._background.spawn(work, f"rabbitmq feeds: {name}")

    async def _tend(self, interval: float, call: Callable[[Link], Awaitable[None]]) -> None:
        while not self._closing:
            await asyncio.sleep(interval)
            link = self.link
            if link is None or not link.is_open:
                continue
            try:
                await call(link)
            except QueuecastError as error:
                log.debug("looking after the feeds: %s", error)
            except Exception:
                log.exception("looking after the feeds failed")

    async def _touch(self, link: Link) -> None:
        used = {queue.canary for queue in self._queues.values()} | {self._canary}
        for canary in list(self._canaries):
            if canary not in used:
                self._canaries.discard(canary)
                await canary.remove(link)
            elif not await canary.touch(link):
                self._lose(canary)
        if self._canary is None and self._canary_link is not None and not self._refused:
            async with self._lock:
                self._canary = await self._put(link)
                self._canary_link = link
        for queue in self._queues.values():
            # As good as one put with the queue: the link has not been lost since.
            if queue.canary is None and queue.is_on(link):
                queue.canary = self._canary

    def _lose(self, canary: Canary) -> None:
        self._canaries.discard(canary)
        if self._canary is canary:
            self._canary = None
        for queue in self._queues.values():
            if queue.canary is canary:
                queue.canary = None

    async def _look(self, link: Link) -> None:
        for queue in list(self._queues.values()):
            try:
                await queue.revive(link)
            except QueuecastError as error:
                log.debug("looking after exchange %r: %s", queue.exchange, error)
            queue.rebind()

    async def close(self) -> None:
        """Delete our queues at the broker, if it is there."""
        self._closing = True
        self._background.cancel()
        await self._background.ended()
        for timer in self._lingering.values():
            timer.cancel()
        ends = await asyncio.gather(
            *(queue.close() for queue in self._queues.values()), return_exceptions=True
        )
        for end in ends:
            if isinstance(end, BaseException):
                log.error("closing a feed's queue failed", exc_info=end)
        self._queues.clear()
        link = self.link
        if link is not None and link.is_open:
            for canary in self._canaries:
                await canary.remove(link)


def _address(destination: Destination) -> tuple[str, str]:
    """Return the exchange and the routing key or pattern of a feed; raises Unsupported."""
    if not destination.is_shared:
        raise Unsupported(f"{destination} is no feed", "a feed is /topic or /exchange")
    return destination.exchange, destination.pattern
