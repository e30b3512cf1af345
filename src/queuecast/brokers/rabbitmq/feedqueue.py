"""A feed's queue at the broker: all destinations of one exchange, told apart here.

One task works on each queue: it opens or recovers it after a connect, and binds and unbinds what
the readers want, so that openings and closings of one destination cannot overtake each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from typing import TYPE_CHECKING, Any

import pika.exceptions

from ...errors import Conflict, NotFound, QueuecastError, Unavailable
from ...message import Message
from ..base import FeedSink
from .connection import Channel, Link
from .failures import NOT_FOUND, missing_exchange, of_channel, reason
from .feedkind import FeedKind
from .intake import PREFETCH, Intake
from .letters import AWAY
from .readers import Reader, Readers
from .recovery import EXPIRED, RESTARTED, UNWATCHED
from .settling import Settling
from .topology import MATCHED, check_queue, exchange_exists

if TYPE_CHECKING:
    from .canary import Canary
    from .exchange_watch import Following
    from .feeds import Feeds

log = logging.getLogger(__name__)

# Bindings per round trip: small enough that the first of ten thousand openings is answered soon.
_BATCH = 64
# Bindings declared anew per interval; a binding costs the broker up to a millisecond.
_REBIND = 500
# Seconds until a queue is asked again that was lost while it was asked, or holds messages back.
_AGAIN = 0.1
# Seconds in which RabbitMQ has to answer about one queue. It is silent for a minute about a
# classic queue whose node is down, and while a frozen node takes part in its cluster.
_ANSWERS = 5.0
_CONSUMES = 10.0  # the same for a new consumer: a quorum queue elects a leader when a node dies
_BINDS = 15.0  # the same for a batch of bindings, on a busy broker
# Seconds after a ping in which a queue that delivers nothing counts as healthy.
_SILENT = 10.0

_DELETED = "the feed's queue was deleted, or expired early by a policy, with what it held"
_IS_EXPIRED = "the feed's queue expired while the gateway was away"
_DOWN = "the node of RabbitMQ that held the feed's queue is down"
_STUCK = "the feed's queue did not deliver what it held, and was given up"
_UNHEARD = "RabbitMQ delivered nothing: its nodes may not agree on the bindings"
# What a binding is known by, where its exchange does not look at such arguments (headers exchanges
# pass over what begins with x-). An unbind of queue, exchange and key alone does not concern it.
_MARK = {"x-queuecast": True}
_MARKED = (*MATCHED, "headers")
_UNSAFE = re.compile(r"[^\w.\-]", re.ASCII)


class FeedQueue:
    """The queue of one exchange (or, where we cannot match ourselves, of one destination)."""

    def __init__(self, feeds: Feeds, exchange: str, kind: str) -> None:
        self._feeds = feeds
        self.exchange = exchange
        self.kind = kind
        self.name = ""
        self.canary: Canary | None = None
        self._problem = ""
        self._queue_kind: FeedKind | None = None
        self._following: Following | None = None
        self._lost_at = 0.0  # when its channel was lost, by the loop's clock
        self._look_again = False  # at the exchange, before the bindings
        self._seen = -1  # messages taken at the last look
        self._pinged_at: float | None = None
        self._work = asyncio.Event()
        self._settling = Settling(self._look, feeds.patience)
        self._readers = Readers(kind, self._work.set, self._settling.wait)
        self._intake = Intake(self._readers, self._on_stuck)
        self._channel: Channel | None = None
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._task = self._loop.create_task(self._run(), name=f"feed of exchange {exchange!r}")
        self._task.add_done_callback(self._ended)

    @property
    def is_empty(self) -> bool:
        return self._readers.is_empty

    @property
    def problem(self) -> str:
        """Why it is not read, "" while it is, or is made for the first time."""
        if self._problem or self._channel is None or self._intake.settled.is_set():
            return self._problem
        return f"the feed of exchange {self.exchange!r} waits for what its queue holds"

    def is_on(self, link: Link) -> bool:
        """Whether this queue is consumed on that link."""
        return link is self._link and self._channel is not None

    def add(self, key: str, sink: FeedSink) -> Reader:
        """Add a reader; await its `opened`."""
        return self._readers.add(key, sink)

    def on_down(self, why: str) -> None:
        """Fail the openings in progress; the connection is gone."""
        self._problem = f"RabbitMQ is away: {why}"
        self._lost_at = self._loop.time()
        self._intake.stop_recovery()
        self._readers.refuse(Unavailable(f"RabbitMQ is away: {why}"))
        self._readers.unbound()

    def wake(self) -> None:
        """Look at the link and the bindings again."""
        self._work.set()

    def dropped(self, keys: list[str], why: str) -> None:
        """Tell the readers of these routing keys that RabbitMQ dropped a message of theirs."""
        self._readers.gap_of(keys, why)

    def missed(self, why: str) -> None:
        """Tell all readers of messages that are lost."""
        self._readers.gap(why)

    async def ping(self, now: float) -> bool:
        """Look whether the queue delivers; False when it has not for too long."""
        intake = self._intake
        if self._channel is None or not intake.settled.is_set():
            self._pinged_at = None
            return True
        if intake.taken != self._seen:
            self._seen, self._pinged_at = intake.taken, None
            self._readers.heard()
            return True
        if self._pinged_at is not None:
            return now - self._pinged_at < _SILENT
        if await self._feeds.pings.send(self.name):
            self._pinged_at = now
        return True

    def doubt(self) -> None:
        """Note that the queue does not deliver, although its connection answers."""
        self._pinged_at = None
        self._readers.doubt(_UNHEARD)

    def _on_exchange(self, why: str) -> None:
        """Have everything bound again: the exchange was deleted, or is back."""
        self._feeds.topology.forget(self.exchange)
        self._readers.lose(why)
        self._look_again = True

    def rebind(self) -> None:
        """Declare bindings again, in turns: an exchange may have been deleted and recreated."""
        if self._channel is None:
            self._work.set()
        else:
            self._readers.refresh(_REBIND)

    async def _look(self, ends: float) -> None:
        """Return once all is handed on that the queue held; raises Unavailable.

        ends: when it gives up, by the loop's clock.
        """
        try:
            async with asyncio.timeout_at(ends):
                while not await self._is_read():
                    pass
        except TimeoutError:
            raise Unavailable(
                f"what RabbitMQ has for the exchange {self.exchange!r} is not read yet"
            ) from None

    async def _is_read(self) -> bool:
        intake = self._intake
        await intake.settled.wait()
        if self._closing:
            raise Unavailable(f"the feed of the exchange {self.exchange!r} was closed")
        channel = self._channel
        try:
            if channel is not None:
                ready = await self._held(channel)
                # More than the prefetch comes after the answers. A busy queue is never empty.
                due = intake.taken + ready
                while ready and intake.taken < due:
                    await asyncio.sleep(_AGAIN)
                    ready = await self._held(channel)
                return True
        except pika.exceptions.AMQPError as error:
            log.debug("a new channel will come: %s", reason(error))
        await asyncio.sleep(_AGAIN)
        return False

    async def _held(self, channel: Channel) -> int:
        """Return how many messages the queue held back; what it had sent has come."""
        answer = await channel.call("queue_declare", self.name, passive=True)
        # RabbitMQ's channel answers that before it hands on what the queue has sent it meanwhile.
        await channel.qos(PREFETCH)
        return int(answer.message_count)

    # The task

    async def _run(self) -> None:
        failures = 0
        while not self._closing:
            await self._work.wait()
            self._work.clear()
            link = self._feeds.link
            if link is None or not link.is_open:
                continue
            try:
                if link is not self._link or self._channel is None or not self._channel.is_open:
                    await self._establish(link)
                if self._look_again:
                    self._look_again = False
                    await self.revive(link)
                await self._apply(link)
                failures = 0
                self._problem = ""
                continue
            except (QueuecastError, pika.exceptions.AMQPError) as error:
                problem: Exception = error
            except TimeoutError:
                problem = Unavailable("RabbitMQ does not answer about the feed's queue")
            except Exception as error:
                log.exception("the feed of exchange %r failed", self.exchange)
                problem = error
            if not link.is_open:
                continue
            failures += 1
            failure = of_channel(problem, self.exchange)
            self._problem = f"the feed of exchange {self.exchange!r} is not read: {failure}"
            if failures == 1:
                log.warning("the feed of exchange %r: %s", self.exchange, failure)
            self._readers.refuse(failure)
            self._loop.call_later(min(0.25 * 2 ** min(failures, 16), 15.0), self._work.set)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        log.error("the feed of exchange %r ended", self.exchange, exc_info=task.exception())
        self._feeds.forget(self)
        self._readers.fail(QueuecastError("the feed failed inside the gateway, see its log"))

    async def _establish(self, link: Link) -> None:
        """Have a consumed queue on this link."""
        old, self._channel = self._channel, None
        self._intake.stop_recovery()
        self._link = link
        if old is not None and old.is_open:
            await old.close()
        if self._following is None:
            # Before the first binding, so that no loss of the exchange goes unnoticed.
            self._following = await self._feeds.follow(self.exchange, self._on_exchange)
        if self.name:
            lost = await self._recover(link)
            if lost is None:
                return
            # Noted before anything else can fail: the next attempt finds no queue to recover.
            self._intake.owed = lost
            self._give_up_queue()
        await self._create(link)
        if self._intake.owed is not None:
            # Told when each is bound again: until then it goes on losing messages.
            self._readers.owe(self._intake.owed)
            self._intake.owed = None

    def _give_up_queue(self) -> None:
        log.warning("the feed of exchange %r: %s", self.exchange, self._intake.owed)
        abandoned, self.name = self.name, ""
        self._feeds.abandon(abandoned)

    async def _create(self, link: Link) -> None:
        clean = _UNSAFE.sub("_", self.exchange)[:100]
        name = f"{self._feeds.prefix}.{clean}.{secrets.token_hex(4)}"
        kind = FeedKind.of(link)
        canary = await self._feeds.canary_of(link)
        letters = await self._feeds.letters_of(link)
        arguments = kind.arguments(self._feeds.expires, letters)
        async with asyncio.timeout(_ANSWERS), link.probe() as channel:
            await channel.call("queue_declare", name, durable=True, arguments=arguments)
        self.name = name
        self.canary = canary
        self._queue_kind = kind
        self._intake.renew()
        self._readers.unbound()
        await self._consume(link)

    async def _recover(self, link: Link) -> str | None:
        """Go on with the queue that we had; returns why that is not possible, if it is not."""
        kind = self._queue_kind
        assert kind is not None
        deadline = self._loop.time() + self._feeds.zombie_patience
        while True:
            try:
                ready, consumers = await check_queue(link, self.name)
            except NotFound:
                return self._why_gone()
            except Unavailable:
                if not link.is_open:
                    raise
                return _DOWN
            if not consumers or kind.is_quorum:
                break
            # The broker still believes in our old connection: what it was sent comes back, in
            # order, only when that is gone.
            if self._loop.time() >= deadline:
                return "the broker did not let go of the old connection"
            await asyncio.sleep(0.1)
        why = AWAY if await self._feeds.dropped_while_away(link) else self._intake.owed
        canary = self.canary
        alive = canary is not None and await self._feeds.is_alive(link, canary)
        if canary is not None and canary.restarted:
            # What is missing may stand between what the queue kept and what came later.
            return RESTARTED
        fresh = canary if alive else await self._feeds.canary_of(link)
        if not alive:
            why = why or self._why_dead(kind)
        if kind.is_quorum:
            # Its count may be 0 while a leader is elected.
            self._intake.resume(None, why)
        elif alive and self._intake.owed is None:
            self._intake.resume(ready, why)
        else:
            self._intake.restart(ready, why or RESTARTED)
        self._readers.unbound()
        try:
            await self._consume(link)
        except TimeoutError:
            # Killed within a second of a quorum queue's creation, RabbitMQ has it in name only.
            return _STUCK
        if kind.is_quorum and await self._feeds.pings.send(self.name):
            self._intake.await_ping(self._feeds.zombie_patience)
        self.canary = fresh
        return None

    def _why_gone(self) -> str:
        away = self._loop.time() - self._lost_at
        return _IS_EXPIRED if away * 1000 >= self._feeds.expires else _DELETED

    def _why_dead(self, kind: FeedKind) -> str:
        if self.canary is None:
            return UNWATCHED
        return EXPIRED if self.canary.expires_early or kind.is_quorum else RESTARTED

    def _on_stuck(self) -> None:
        """Make a new queue: this one is there and delivers nothing."""
        self._intake.owed = _STUCK
        self._give_up_queue()
        self._lose_channel()

    async def _consume(self, link: Link) -> None:
        channel = await link.channel()
        channel.on_closed = lambda why: self._on_channel_closed(channel, why)
        channel.on_cancel = lambda _tag: self._on_cancelled(channel)

        def on_message(message: Message, tag: int) -> None:
            if channel is self._channel:
                self._intake.take(message, tag)

        self._pinged_at = None
        try:
            await channel.qos(PREFETCH)
            self._channel = channel
            self._intake.attach(channel)
            # Quorum queues know no exclusive consumers: they have a single active one instead.
            async with asyncio.timeout(_CONSUMES):
                await channel.consume(self.name, "feed", on_message, exclusive=True)
        except BaseException:
            self._channel = None
            channel.abandon()
            raise

    def _on_channel_closed(self, channel: Channel, why: BaseException) -> None:
        if channel is not self._channel:
            return
        self._lose_channel()
        link = self._link
        if link is not None and link.is_open and not self._closing:
            log.warning("the feed of exchange %r: %s", self.exchange, reason(why))

    def _on_cancelled(self, channel: Channel) -> None:
        if channel is self._channel:
            log.warning(
                "the queue %s of exchange %r was deleted, or its node is down",
                self.name,
                self.exchange,
            )
            self._lose_channel()

    def _lose_channel(self) -> None:
        self._lost_at = self._loop.time()
        self._problem = f"the feed of exchange {self.exchange!r} is not read"
        self._intake.detach()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abandon()
        self._work.set()

    # Bindings

    async def _apply(self, link: Link) -> None:
        """Bind what has readers and is not bound, unbind what has none."""
        while self._readers.has_stale:
            wanted, unwanted = self._readers.take_stale(_BATCH)
            try:
                if wanted:
                    await self._bind(link, wanted)
                if unwanted:
                    await self._unbind(link, unwanted)
            except BaseException:
                self._readers.put_back([*wanted, *unwanted])
                raise

    @property
    def _mark(self) -> dict[str, Any] | None:
        return _MARK if self.kind in _MARKED else None

    async def _bind(self, link: Link, keys: list[str]) -> None:
        mark = self._mark
        self._readers.binding(keys)
        try:
            async with asyncio.timeout(_BINDS), link.probe() as channel:
                for key in keys[:-1]:
                    # Without an answer each; the last one's answer is for all.
                    channel.raw.queue_bind(self.name, self.exchange, key, mark)
                await channel.call("queue_bind", self.name, self.exchange, keys[-1], arguments=mark)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                self._bind_failed(keys, error)
            elif len(keys) == 1:
                self._readers.refuse(of_channel(error, self.exchange), keys)
            else:
                # One of them was refused, and RabbitMQ ignored those after it.
                for key in keys:
                    await self._bind(link, [key])
            return
        self._readers.bound(keys)

    def _bind_failed(self, keys: list[str], error: pika.exceptions.ChannelClosedByBroker) -> None:
        """Handle a missing exchange (retried later) or queue (recreated)."""
        if "no exchange" not in error.reply_text:
            self._lose_channel()
            raise of_channel(error)
        self._feeds.topology.forget(self.exchange)
        self._readers.refuse(missing_exchange(self.exchange), keys)
        if self._readers.missing(keys, f"the exchange {self.exchange!r} was missing"):
            log.warning("exchange %r is missing: its feeds wait for it to come back", self.exchange)

    async def _unbind(self, link: Link, keys: list[str]) -> None:
        bound = self._readers.unbinding(keys)
        if bound:
            try:
                async with asyncio.timeout(_BINDS), link.probe() as channel:
                    answers = [
                        channel.call(
                            "queue_unbind", self.name, self.exchange, key, arguments=self._mark
                        )
                        for key in bound
                    ]
                    results = await asyncio.gather(*answers, return_exceptions=True)
                    for result in results:
                        if isinstance(result, BaseException):
                            raise result
            except pika.exceptions.ChannelClosedByBroker as error:
                log.debug("unbinding from exchange %r: %s", self.exchange, reason(error))
        self._readers.forget(keys)
        if self.is_empty:
            self._feeds.on_empty(self)

    async def revive(self, link: Link) -> None:
        """Look after a missing exchange: declare it if it is configured, check its type."""
        lost, unmatched = self._readers.has_lost, self._readers.take_unmatched()
        if not lost and not unmatched:
            return
        if unmatched:
            # Perhaps it was recreated with another type, between two looks.
            self._feeds.topology.forget(self.exchange)
        try:
            await self._feeds.topology.repeat_exchange(link, self.exchange)
            await exchange_exists(link, self.exchange)
            kind = await self._feeds.topology.exchange_type(link, self.exchange)
        except NotFound:
            return
        if kind != self.kind:
            self.supersede(kind)

    def supersede(self, kind: str) -> None:
        """End the feeds: the exchange is of another type now."""
        self._readers.fail(
            Conflict(f"exchange {self.exchange!r} was {self.kind} and came back as {kind}")
        )

    # The end

    async def close(self) -> None:
        """Stop working and delete the queue, if the broker is there."""
        self._closing = True
        self._intake.stop_recovery()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._readers.close(Unavailable("the gateway is closing"))
        channel, self._channel = self._channel, None
        self._intake.settled.set()  # whoever waits for that learns that it is over
        if channel is not None and channel.is_open:
            await channel.close()
        if self._following is not None:
            await self._following.close()
        if self.name:
            await self._feeds.delete(self.name)
            self.name = ""
