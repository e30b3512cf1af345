"""A consumer: one channel on one of the pool's connections, with the client's own prefetch.

Acks name tags that this consumer gave out and that are still outstanding; all others are
ignored here, because RabbitMQ would answer one unknown tag by closing the channel. A consumer
may have a queue of its own (ownqueue.py) or a place in a stream (streamplace.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pika.exceptions

from ...destination import Destination, Kind
from ...errors import NotFound, QueuecastError
from ...message import Message
from ..base import ConsumeSpec, Delivery, DeliverySink
from .connection import Channel, Link
from .failures import away, ends_connections, missing_queue, of_channel, reason
from .held import Held
from .ownqueue import OwnQueue, check_owner, field_table
from .prefetch import PrefetchWindow
from .reopening import FIRST_RETRY, Reopening
from .streamplace import StreamPlace, is_stream, offset_of
from .topology import Topology, ensure_queue

if TYPE_CHECKING:
    from .consumers import Consumers

log = logging.getLogger(__name__)

# Seconds for RabbitMQ to begin a consumer; it waits for a minute where the queue's node just went.
_OPENING = 10.0
# Seconds that a pause must last before the broker hears of it: a socket that is full for a
# moment should not cost a cancel, which in a quorum queue disturbs the order.
_BRIEF = 0.25

LOST = "the subscription's queue was lost with the connection to the broker"
PLACELESS = "the place in the stream was not known yet"


class QueueConsumer:
    """One subscription's consumer."""

    def __init__(
        self,
        consumers: Consumers,
        topology: Topology,
        destination: Destination,
        sink: DeliverySink,
        prefetch: int,
        spec: ConsumeSpec,
    ) -> None:
        self._consumers = consumers
        self._topology = topology
        self._destination = destination
        self.queue = destination.name if spec.queue is None else spec.queue.name
        self._owner = spec.owner
        self._own = (
            None
            if spec.queue is None
            else OwnQueue(spec.queue, spec.owner, consumers.owners, topology)
        )
        # An auto-delete queue goes when its only consumer is cancelled: pausing must not do so.
        self._stays = spec.queue is not None and spec.queue.auto_delete
        self._arguments = spec.arguments
        self._place = StreamPlace(spec.arguments) if spec.is_stream else None
        self._no_stream = False  # the queue was asked
        self._begun = False
        # The reason of a gap, to be told before what comes next; once, until something comes.
        self._owed: str | None = None
        self._told = False
        self._sink = sink
        self._prefetch = prefetch
        self._channel: Channel | None = None
        # The broker numbers deliveries anew on each channel; ours go on from `_base`.
        self._base = 0
        self._last = 0
        self._outstanding: set[int] = set()  # bounded by the prefetch
        self._window = PrefetchWindow(prefetch)
        self._held = Held(consumers.budget)  # what came while paused
        # The channel's own tags of what came when no more could be held; bounded by the
        # prefetch. They go back once the broker has stopped sending: earlier, it would send
        # them again at once, behind their successors.
        self._surplus: list[int] = []
        self._tag: str | None = None  # of the consumer at the broker, while there is one
        self._tags = 0
        self._paused = False
        self._suspended = False  # paused, and nothing is held meanwhile
        self.closed = False
        self._opening = False
        self._switching: asyncio.Task[None] | None = None
        self._reopening = Reopening(self, consumers.away)

    async def open(self, link: Link) -> None:
        """Consume on this link; raises NotFound, Refused, Conflict, Unavailable."""
        self._consumers.away.check(self.queue)
        made = False
        if self._own is not None:
            made = await self._own.ensure(link)
        else:
            if self._destination.kind is Kind.QUEUE:
                made = await ensure_queue(link, self._topology.queue(self.queue))
            await check_owner(link, self.queue, self._owner, self._consumers.owners)
        if self._begun and made:
            self._owed = LOST
        elif self._begun and self._place is not None and self._place.is_lost:
            self._owed = PLACELESS
        channel: Channel | None = None
        self._opening = True
        try:
            channel = await link.channel()
            self._watch(channel)
            self._base = self._last
            self._channel = channel
            self._tag = None
            if not self._paused or self._stays:
                async with asyncio.timeout(_OPENING):
                    await self._start(channel)
            if not channel.is_open:
                if not channel.closed.done():
                    raise missing_queue(self.queue)  # it was deleted just now
                raise of_channel(channel.closed.result())
        except BaseException as error:
            self._channel = None
            self._forget()
            if channel is not None and channel.is_open and not channel.raw.is_closing:
                channel.raw.close()
            if self._own is not None and made and not self._begun:
                await self._own.discard(link)
            if isinstance(error, TimeoutError):
                raise away(self.queue, "RabbitMQ began no consumer", dangerous=True) from None
            if ends_connections(error):
                raise away(self.queue, "RabbitMQ failed to consume it", dangerous=True) from None
            if isinstance(error, pika.exceptions.AMQPError):
                raise of_channel(error) from None
            raise
        finally:
            self._opening = False
        self._begun = True
        self._consumers.away.used(self.queue)
        self._look_at_window()  # it may have been resumed meanwhile

    def _watch(self, channel: Channel) -> None:
        channel.on_closed = lambda why: self._on_channel_closed(channel, why)
        channel.on_cancel = lambda tag: self._on_cancelled(channel, tag)

    async def _start(self, channel: Channel) -> None:
        self._tags += 1
        tag = f"consumer-{self._tags}"

        def on_message(message: Message, tag: int) -> None:
            if channel is self._channel and not self.closed:
                self._take(Delivery(message, tag))

        await self._make_sure(channel)
        self._tag = tag
        owed, self._owed = self._owed, None
        if owed is not None and not self._told:
            self._told = True
            self._guard_sink(self._sink.gap, owed)
        arguments = self._arguments if self._place is None else self._place.arguments()
        # One that stays cannot begin anew with more.
        window = self._window.begin(self._last, len(self._outstanding))
        await channel.qos(self._prefetch if self._stays else window)
        await channel.consume(self.queue, tag, on_message, arguments=field_table(arguments))

    async def _make_sure(self, channel: Channel) -> None:
        """Ask the queue whether it is the stream that its deliveries look like."""
        if self._place is None or self._place.sure:
            return
        verdict = await is_stream(channel.link, self.queue)
        if verdict:
            self._place.sure = True
        elif verdict is False:
            self._place, self._no_stream = None, True

    def _take(self, delivery: Delivery) -> None:
        size = len(delivery.message.body)
        waits = self._paused or bool(self._held)
        if self._surplus or self._suspended or (waits and not self._held.has_room(size)):
            self._refuse(delivery.tag)
            return
        if self._place is None and not self._no_stream and offset_of(delivery.message) is not None:
            self._place = StreamPlace(self._arguments, sure=False)
        if self._place is not None and not self._place.takes(delivery.message):
            if self._channel is not None:
                self._channel.ack(delivery.tag)
            return
        delivery.tag += self._base
        if self._place is not None:
            self._place.taken(delivery.tag, delivery.message)
        self._last = delivery.tag
        self._told = False
        self._outstanding.add(delivery.tag)
        self._window.took(size)
        if waits:
            self._held.add(delivery)
        else:
            self._deliver(delivery)
        self._look_at_window()

    def _refuse(self, raw: int) -> None:
        """Note a tag of the channel's that goes back."""
        self._surplus.append(raw)
        self._window.refused(self._held.share)
        self._switch()

    def _deliver(self, delivery: Delivery) -> None:
        try:
            if self._sink.deliver(delivery) is False:
                # It and all that came after it, or they would overtake it.
                back = [delivery, *self._held]
                self._held.clear()
                for each in back:
                    self._outstanding.discard(each.tag)
                    if self._place is not None:
                        self._place.returned(each.tag)
                    self._refuse(each.tag - self._base)
        except Exception:
            # Nobody would ever settle it: the consumer ends, and it goes back to the queue.
            log.exception("a consumer's sink failed")
            channel, self._channel = self._channel, None
            self._forget()
            if channel is not None:
                channel.abandon()
            self.end(QueuecastError("the consumer failed inside the gateway, see its log"))

    def _forget(self) -> None:
        """Forget deliveries that are void or were given back."""
        self._outstanding.clear()
        self._held.clear()
        self._surplus.clear()
        if self._place is not None:
            self._place.void()

    # Settling

    def ack(self, tag: int) -> bool:
        """Settle one delivery; False when the tag is unknown or of an older connection."""
        channel = self._channel
        if tag not in self._outstanding or channel is None:
            return False
        self._settled(tag)
        channel.ack(tag - self._base)
        return True

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        """Give one delivery back or dead-letter it; as ack otherwise."""
        channel = self._channel
        if tag not in self._outstanding or channel is None:
            return False
        self._settled(tag)
        channel.nack(tag - self._base, requeue=requeue)
        return True

    def _settled(self, tag: int) -> None:
        self._outstanding.discard(tag)
        if self._place is not None:
            self._place.settled(tag)
        self._window.settled(tag)
        self._look_at_window()

    def _look_at_window(self) -> None:
        """Begin anew when the broker sends no more although the prefetch allows it."""
        if self._must_begin:
            self._switch()

    @property
    def _must_begin(self) -> bool:
        if self._paused or self._held or self.closed or self._opening:
            return False
        if len(self._outstanding) >= self._prefetch:
            return False
        return self._tag is None or self._window.is_used_up

    # Pausing

    def pause(self) -> None:
        """Stop new deliveries; what is on its way is held until `resume`."""
        if not self._paused and not self.closed:
            self._paused = True
            self._switch()

    def suspend(self, tags: Sequence[int]) -> None:
        """Give these back, and what is held, once the broker has stopped sending.

        The only consumer of an auto-delete queue must stay: there they wait for `resume`.
        """
        if self.closed:
            return
        self._paused = self._suspended = True
        back = [*tags, *(delivery.tag for delivery in self._held)]
        self._held.clear()
        for tag in back:
            if tag in self._outstanding:
                self._settled(tag)
                self._surplus.append(tag - self._base)
        self._switch()

    def resume(self) -> None:
        """Take deliveries again, those held first."""
        if not self._paused or self.closed:
            return
        self._paused = self._suspended = False
        while self._held and not self._paused:
            self._deliver(self._held.take())
        if self._stays and not self._paused:
            self._give_surplus_back()
        self._switch()

    def _switch(self) -> None:
        if self._stays:
            return
        # A task that has returned but whose callback has not run yet would miss this change.
        if self._switching is None or self._switching.done():
            self._switching = asyncio.get_running_loop().create_task(self._follow())
            self._switching.add_done_callback(self._switched)

    def _switched(self, task: asyncio.Task[None]) -> None:
        if self._switching is task:
            self._switching = None
        if not task.cancelled() and task.exception() is not None:
            log.error("pausing a consumer failed", exc_info=task.exception())

    async def _follow(self) -> None:
        """Make the consumer at the broker what `_paused` says, one call at a time."""
        while not self.closed:
            channel = self._channel
            if channel is None or not channel.is_open:
                return
            begin = self._must_begin
            if not (self._surplus or begin or (self._paused and self._tag is not None)):
                return
            try:
                if self._surplus or (begin and self._tag is not None):
                    await self._stop(channel)
                elif self._paused:
                    await asyncio.sleep(_BRIEF)
                    if self._paused and channel is self._channel:
                        await self._stop(channel)
                else:
                    await self._start(channel)
            except pika.exceptions.AMQPError:
                return  # the channel's end is handled where it is noticed
            except QueuecastError as error:
                # Whether the queue is a stream could not be asked.
                log.info("the consumer of queue %r: %s", self.queue, error)
                await asyncio.sleep(FIRST_RETRY)

    async def _stop(self, channel: Channel) -> None:
        """Have the broker send no more, then give back what could not be held."""
        tag, self._tag = self._tag, None
        if tag is not None:
            await channel.cancel(tag)
        if channel is self._channel:
            self._give_surplus_back()

    def _give_surplus_back(self) -> None:
        surplus, self._surplus = self._surplus, []
        for each in surplus:
            if self._channel is not None:
                self._channel.nack(each, requeue=True)

    # Losing and finding

    def _void(self) -> None:
        had = bool(self._outstanding) or self._channel is not None
        self._channel = None
        self._tag = None
        self._forget()
        self._base = self._last
        if had and not self.closed:
            self._guard_sink(self._sink.reset)

    @staticmethod
    def _guard_sink(call: Any, *args: Any) -> None:
        try:
            call(*args)
        except Exception:
            log.exception("a consumer's sink failed")

    def on_down(self) -> None:
        """The connection is gone: what is unacked comes again."""
        self._reopening.stop()
        if self._channel is not None:
            self._void()

    def on_up(self, link: Link) -> None:
        """A new connection is there."""
        if not self.closed:
            self._reopening.start(link)

    def _on_channel_closed(self, channel: Channel, why: BaseException) -> None:
        if channel is not self._channel or self._opening:
            return  # while it is being opened, `open` raises the reason
        self._void()
        if channel.link.is_open and not self.closed:
            log.warning("the consumer of queue %r: %s", self.queue, reason(why))
            self._reopening.start(channel.link)

    def _on_cancelled(self, channel: Channel, tag: str) -> None:
        # The queue was deleted, its node went down, or it moved to another node of the broker.
        if channel is not self._channel or tag != self._tag:
            return
        if self._opening:
            channel.abandon()  # `open` raises the reason
            return
        self._void()
        if channel.is_open:
            channel.raw.close()
        self._reopening.start(channel.link, cancelled=True)

    def owe(self, reason: str, *, bound: bool = False) -> None:
        """Note the reason of a gap, told once the queue is consumed again.

        bound: a gap only where messages come by bindings, whose publishers are not told that the
        queue missed them. What a stream holds is not lost by that.
        """
        if self._place is None and (self._own is not None or not bound):
            self._owed = reason

    @property
    def exchanges(self) -> frozenset[str]:
        """The exchanges that the consumer's own queue is bound to."""
        if self._own is None:
            return frozenset()
        return frozenset(binding.exchange for binding in self._own.spec.bindings)

    async def rebind(self, why: str) -> None:
        """Bind its own queue again after a binding was lost, and tell the gap with this reason.

        Raises NotFound while the exchange is missing, Refused, Unavailable; without a connection
        it does nothing, because a new one binds the queue anyway.
        """
        channel = self._channel
        if self._own is None or channel is None or not channel.link.is_open:
            return
        await self._own.bind(channel.link)
        if not self.closed:
            self._guard_sink(self._sink.gap, why)

    def end(self, error: QueuecastError) -> None:
        """Tell the sink that the consumer cannot go on."""
        self.closed = True
        self._consumers.forget(self)
        if isinstance(error, NotFound):
            error = NotFound(f"the queue {self.queue!r} was deleted")
        self._guard_sink(self._sink.cancelled, error)

    async def close(self) -> None:
        """End the consumer; closing its channel gives unacked deliveries back."""
        self.closed = True
        self._reopening.stop()
        if self._switching is not None:
            self._switching.cancel()
        channel, self._channel = self._channel, None
        self._forget()
        try:
            if channel is not None and channel.is_open:
                with contextlib.suppress(pika.exceptions.AMQPError):
                    await channel.close()
        finally:
            # Only now: until its channel is closed it counts.
            self._consumers.forget(self)
