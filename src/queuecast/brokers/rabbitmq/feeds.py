"""The feeds on RabbitMQ: one queue per exchange and node, however many destinations.

A destination's exchange decides its queue. Exchanges whose rules we know (direct, topic, fanout)
share one queue for all destinations; a headers exchange, one of a plugin's type, or one whose
type the broker will not tell gets a queue per destination.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from .exchange_watch import ExchangeWatch
from .failures import of_channel
from .feedkind import FeedKind
from .feedqueue import FeedQueue
from .letters import AWAY, Letters
from .pings import Pings
from .recovery import EXPIRED
from .supervisor import Supervisor
from .topology import MATCHED, Topology, try_delete_queue

log = logging.getLogger(__name__)

# Milliseconds that a feed's queue outlives our connection. The canary's is longer, because it
# counts from the last touch.
EXPIRES = 60_000
_CANARY_EXTRA = 60_000
_TOUCH = 20.0  # seconds
_FIRST_TOUCH = 2.0  # seconds; a policy that expires messages shows soon
# Seconds between looks at whether the queues deliver, and queues looked at in one of them.
_PING = 5.0
_PINGS = 200
# Seconds after a reconnect: the first look at how long messages live, and the last.
_FIRST_AGE = 0.25
_MOST_AGE = 60.0
_DELETION = 5.0  # seconds for the broker to delete a queue
_CANARY_PATIENCE = 5.0  # seconds; a broker that is low on memory takes no message
REBIND = 30.0  # seconds between looks at exchanges and bindings


class Feeds:
    """All feeds of this node.

    watch: notices deleted exchanges. prefix: begins the names of our queues. The others: see
    RabbitBroker.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        publishing: Supervisor,
        topology: Topology,
        watch: ExchangeWatch,
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
        self.follow = watch.follow
        self.prefix = prefix
        self.expires = expires
        self.pings = Pings(publishing)
        self._letters = Letters(prefix, expires + _CANARY_EXTRA, self._on_dropped)
        self._letters_link: Link | None = None
        self._letters_came = False
        self._down_at: float | None = None  # when the link was lost, by the loop's clock
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
        if self._queues and self._down_at is not None:
            away = asyncio.get_running_loop().time() - self._down_at
            self._spawn(self._measure_ages(link, away, list(self._queues.values())), "ages")
        self._down_at = None
        self._verdicts.clear()
        self._refused = False
        for queue in self._queues.values():
            queue.wake()
        if not self._background:
            self._spawn(self._tend(_TOUCH, self._touch, first=_FIRST_TOUCH), "canary")
            self._spawn(self._tend(self._rebind, self._look), "exchanges")
            self._spawn(self._tend(_PING, self._ping), "pings")

    def on_down(self, why: str) -> None:
        """Fail openings in progress; open feeds wait for the reconnect."""
        self.link = None
        if self._down_at is None:
            self._down_at = asyncio.get_running_loop().time()
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

    @property
    def problem(self) -> str:
        """Why not all feeds are read, "" when they are."""
        return next((queue.problem for queue in self._queues.values() if queue.problem), "")

    def abandon(self, name: str) -> None:
        """Delete a queue that is not ours to read any more, as soon as RabbitMQ can."""
        if not self._closing:
            self._spawn(self.delete(name), "abandoned queue")

    async def delete(self, name: str) -> None:
        """Delete a queue, if the broker is there and answers; else it expires."""
        link = self.link
        if link is None or not link.is_open:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DELETION):
                await try_delete_queue(link, name)

    # The letters

    async def letters_of(self, link: Link) -> str:
        """Return the name of the queue for what is dropped, "" where this login may have none."""
        async with self._lock:
            if self._letters_link is not link or not self._letters.is_read:
                came = False
                try:
                    async with asyncio.timeout(_CANARY_PATIENCE):
                        away = self._letters_link is not link
                        came = await self._letters.open(link, FeedKind.of(link), away=away)
                except (QueuecastError, TimeoutError) as error:
                    if not link.is_open:
                        raise Unavailable("the connection to RabbitMQ was lost") from None
                    log.info("what RabbitMQ drops is not noticed for now: %s", error)
                if self._letters_link is not link:
                    self._letters_link, self._letters_came = link, came
                elif came:
                    # No queue is recovered now: the letters' channel alone was lost.
                    for queue in self._queues.values():
                        queue.missed(AWAY)
            return self._letters.name if self._may_have_letters else ""

    @property
    def _may_have_letters(self) -> bool:
        """Whether a feed's queue may name the queue of letters."""
        # Naming the default exchange takes the right to write to it, which the canary needs too.
        return not self._refused

    async def dropped_while_away(self, link: Link) -> bool:
        """Return whether RabbitMQ dropped messages of ours before this link."""
        await self.letters_of(link)
        return self._letters_came

    def _on_dropped(self, name: str, keys: list[str], why: str) -> None:
        for queue in self._queues.values():
            if queue.name == name:
                queue.dropped(keys, why)

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
                    link,
                    publishing,
                    self.prefix,
                    FeedKind.of(link),
                    self.expires + _CANARY_EXTRA,
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

    async def _tend(
        self, interval: float, call: Callable[[Link], Awaitable[None]], *, first: float = 0.0
    ) -> None:
        pause = first or interval
        while not self._closing:
            await asyncio.sleep(pause)
            pause = interval
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
            elif not await canary.touch(link, self._publishing.link):
                self._lose(canary)
        if self._canary is None and self._canary_link is not None and not self._refused:
            async with self._lock:
                self._canary = await self._put(link)
                self._canary_link = link
        for queue in self._queues.values():
            # As good as one put with the queue: the link has not been lost since.
            if queue.canary is None and queue.is_on(link):
                queue.canary = self._canary

    async def _measure_ages(self, link: Link, away: float, queues: list[FeedQueue]) -> None:
        """Notice a policy that limits the age of messages to less than the gateway was away.

        Letters expire like the messages that they tell of, and a policy does not concern older
        messages. So a new message shows how long messages live now.
        """
        try:
            canary = await self.canary_of(link)
            pause = waited = _FIRST_AGE
            while canary is not None and waited < min(2 * away, _MOST_AGE):
                await asyncio.sleep(pause)
                if self._letters_came or not link.is_open:
                    return  # it is told, or will be looked at again
                if not await canary.alive(link):
                    for queue in queues:
                        queue.missed(EXPIRED)
                    await canary.touch(link, self._publishing.link)
                    return
                pause, waited = waited, 2 * waited
        except QueuecastError as error:
            log.debug("how long messages live is not known: %s", error)

    def _lose(self, canary: Canary) -> None:
        self._canaries.discard(canary)
        if self._canary is canary:
            self._canary = None
        for queue in self._queues.values():
            if queue.canary is canary:
                queue.canary = None

    async def _ping(self, link: Link) -> None:
        if self._letters_link is link and not self._letters.is_read:
            await self.letters_of(link)
        now = asyncio.get_running_loop().time()
        places = list(self._queues)[:_PINGS]
        for place in places:
            queue = self._queues.get(place)
            if queue is None:
                continue
            # To the end: the others come first in the next look.
            self._queues[place] = self._queues.pop(place)
            if not await queue.ping(now):
                log.warning(
                    "the feed of exchange %r: RabbitMQ answers, but has delivered nothing: "
                    "connecting again",
                    queue.exchange,
                )
                queue.doubt()
                await link.close()
                return

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
        # Together: about each a cluster with a node that is down may be silent for seconds.
        names = [canary.name for canary in self._canaries]
        if self._letters.name:
            names.append(self._letters.name)
        await asyncio.gather(*(self.delete(name) for name in names))


def _address(destination: Destination) -> tuple[str, str]:
    """Return the exchange and the routing key or pattern of a feed; raises Unsupported."""
    if not destination.is_shared:
        raise Unsupported(f"{destination} is no feed", "a feed is /topic or /exchange")
    return destination.exchange, destination.pattern
