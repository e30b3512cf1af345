"""A rule's reader: follows the stream's end for as long as the gateway runs.

It hands what comes to the feeds under the rule, each by its own pattern, and remembers where each
routing key's last messages are. After a reconnect it goes on at the last message that it had:
that one comes again, and shows by its content and place that nothing before it is missing. When
the stream turns out to be another one, the feeds are told of a gap and go on in the new numbering.

A message's offset for the hub is its offset in the stream plus one: 0 is the place before all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import pika.exceptions

from ...errors import Conflict, NotFound, QueuecastError, Unavailable
from ...message import Message
from ...position import Mark
from ...retention import RetainRule
from ..matching import Index, new_index
from .connection import Channel, Link
from .content import fingerprint
from .failures import Away, missing_exchange, of_channel, reason
from .stream_binding import StreamBinding
from .stream_holes import hole_of
from .stream_index import Window
from .stream_mark import Marks, Silent
from .stream_pass import StreamPass
from .stream_past import Past
from .stream_request import keys_of, size_of, take_offset
from .streams import (
    StreamIdentity,
    check_exchange,
    declare_stream,
    stream_name,
)

if TYPE_CHECKING:
    from .retained import Retained
    from .stream_feed import RetainedFeed

log = logging.getLogger(__name__)

PREFETCH = 2000  # messages; what the broker may send ahead of our acks
# Bytes of the newest messages that are kept here: a page that asks for a result that has just
# come needs no consumer of its own.
WINDOW = 8 << 20
_FIRST_RETRY, _LAST_RETRY = 0.25, 15.0  # seconds between attempts
# Attempts at a node that has no replica of the stream before another node is tried.
_HERE = 3
_CATCH_UP = 1.0  # seconds between marks, at least
# Seconds in which RabbitMQ has to answer all that a stream needs before it is read. A channel whose
# process waits inside RabbitMQ for the stream's coordinator is silent while the connection lives.
ANSWERS = 60.0

RENEWED = "the stream of the retained destination was deleted and made anew"
DELETED = "the retained messages were deleted before this gateway had read them"


class StreamReader:
    """The live reader of one rule, and what hangs on it: feeds, index, history pass."""

    def __init__(self, owner: Retained, rule: RetainRule) -> None:
        self._owner = owner
        self.rule = rule
        self.name = stream_name(rule)
        self.kind = ""
        self.epoch = ""
        self.last = -1
        """The stream's offset up to which everything was handed to the feeds."""
        self.window = Window(WINDOW)
        self._identity = StreamIdentity(self.name)
        marks = self._identity.exchange
        self.past = Past(rule, StreamPass(self.name, marks, owner.wait))
        self._binding = StreamBinding(owner, rule, marks, self.past.holes, self.look)
        self.problem = "not started"
        self._feeds: set[RetainedFeed] = set()
        self._by_key: Index[RetainedFeed] = new_index("topic")
        self._print: int | None = None  # the last message's, to know it again
        self._unbound = False
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._arrived: list[tuple[int, Message]] = []
        self._tag = 0
        self._flushing = False
        self._opening = ""  # how the first message is to be looked at: fresh, renewed, resumed
        self._found = ""  # the epoch of the stream that is being opened
        self._held = False  # until it is certain whose messages they are
        self._broken = False  # it does not go on where it was, although its epoch says so
        self._marks = Marks(self._identity.exchange, owner.publishing, owner.patience)
        self._catching_up = asyncio.Lock()
        self._caught_up = -_CATCH_UP
        self._live = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._work = asyncio.Event()
        self._check = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name=f"reader of {self.name}")
        self._task.add_done_callback(self._ended)

    @property
    def is_live(self) -> bool:
        """Whether it reads now."""
        return self._live.is_set()

    async def ready(self, patience: float) -> None:
        """Return once it reads; raises why it cannot: Conflict, NotFound …, Unavailable."""
        if self._live.is_set():
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        self._work.set()
        try:
            async with asyncio.timeout(patience):
                await waiter
        except TimeoutError:
            raise Unavailable(f"the retained stream is not read yet: {self.problem}") from None
        finally:
            self._waiters.discard(waiter)

    def on_up(self) -> None:
        """Look at the link."""
        self._work.set()

    def on_down(self, why: str) -> None:
        """Let go of the link; the feeds wait for the next."""
        self._lose_channel(f"RabbitMQ is away: {why}")

    def look(self) -> None:
        """Look after the binding and whether the stream is still the same."""
        self._check = True
        self._work.set()

    # -- the task -------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._work.wait()
            self._work.clear()
            link = self._owner.link
            if link is None or not link.is_open:
                continue
            try:
                if link is not self._link or self._channel is None or not self._channel.is_open:
                    await self._attach(link)
                elif self._check:
                    async with asyncio.timeout(ANSWERS):
                        await self._look(link)
                self._check = False
                failures = 0
                continue
            except (QueuecastError, pika.exceptions.AMQPError) as error:
                problem: Exception = error
            except TimeoutError:
                problem = Unavailable(f"RabbitMQ does not answer about the stream {self.name!r}")
            except Exception as error:
                log.exception("the reader of %s failed", self.name)
                problem = error
            failure = of_channel(problem, self.rule.exchange)
            self._lose_channel(str(failure))
            if not link.is_open:
                continue
            failures += 1
            if failures == 1:
                log.warning("the retained stream %s: %s", self.name, failure)
            self._settle(failure)
            if isinstance(failure, Away) and failure.elsewhere and failures > _HERE:
                await self._owner.elsewhere(link)
            delay = min(_FIRST_RETRY * 2 ** min(failures - 1, 16), _LAST_RETRY)
            self._loop.call_later(delay, self._work.set)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        log.error("the reader of %s ended", self.name, exc_info=task.exception())
        self._fail(QueuecastError("the feed failed inside the gateway, see its log"))

    def _settle(self, error: QueuecastError | None) -> None:
        for waiter in self._waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    # -- attaching ------------------------------------------------------------------------

    async def _attach(self, link: Link) -> None:
        """Have a live consumer on this link that goes on where we were."""
        self._link = link
        self._lose_channel(self.problem or "attaching")
        async with asyncio.timeout(ANSWERS):
            opening = await self._open_stream(link)
        self._held = False
        self._flush()
        await self._mark_end(self._channel, needed=opening == "fresh")
        self._live.set()
        self.problem = ""
        self._settle(None)
        self.past.backfill()

    async def _open_stream(self, link: Link) -> str:
        """Have the stream and a consumer whose messages are held back; return `opening`."""
        await self._prepare(link)
        if self._broken:
            log.error("the stream %s lost what it had confirmed, or was replaced", self.name)
            await self._identity.renew(link, self.epoch)
            self._broken = False
        epoch = self._found = await self._identity.learn(link)
        if epoch != self.epoch:
            self._binding.forget()
        await self._bind(link)
        spec: int | str
        if not self.epoch:
            opening, spec = "fresh", "last"
        elif epoch != self.epoch:
            opening, spec = "renewed", "first"
            self.past.history.reset(Unavailable("the stream was made anew"))
        else:
            opening, spec = "resumed", self.last
        self._opening, self._held = opening, True
        await self._consume(link, spec)
        if await self._identity.current(link) != epoch:
            raise Unavailable("the stream was deleted while it was opened")
        return opening

    async def _prepare(self, link: Link) -> None:
        """Have the stream; a feed that was open waits for a missing exchange."""
        rule, topology = self.rule, self._owner.topology
        await self._binding.follow()
        try:
            kind = await topology.exchange_type(link, rule.exchange)
            check_exchange(rule, kind)
        except NotFound:
            if not self.epoch:
                raise
            kind = ""
        if kind and self.kind and kind != self.kind:
            self._fail(
                Conflict(f"exchange {rule.exchange!r} was {self.kind} and came back as {kind}")
            )
        self.kind = kind or self.kind
        await declare_stream(link, rule)

    async def _bind(self, link: Link) -> None:
        """Have the stream bound; what it has missed comes as a hole in the stream."""
        exchange = self.rule.exchange
        if await self._binding.bind(link):
            self._unbound = False
            return
        if not self.epoch:
            raise missing_exchange(exchange)
        self._owner.topology.forget(exchange)
        self._binding.missing(self.last)
        if not self._unbound:
            log.warning(
                "exchange %r is missing: its retained feeds wait for it to come back", exchange
            )
        self._unbound = True

    async def _consume(self, link: Link, spec: int | str) -> None:
        channel = await link.channel()
        channel.on_closed = lambda why: self._on_closed(channel, why)
        channel.on_cancel = lambda _tag: self._on_cancelled(channel)

        def on_message(message: Message, tag: int) -> None:
            if channel is not self._channel:
                return
            self._arrived.append((take_offset(message), message))
            self._tag = tag
            if not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)

        try:
            await channel.qos(PREFETCH)
            self._channel = channel
            await channel.consume(
                self.name, "live", on_message, arguments={"x-stream-offset": spec}
            )
        except BaseException:
            self._channel = None
            channel.abandon()
            raise

    async def _mark_end(self, channel: Channel | None, *, needed: bool) -> None:
        """Wait until what was confirmed before now has been handed over; raises Unavailable."""
        if channel is None:
            raise Unavailable("the stream's consumer was lost")
        try:
            await self._marks.round_trip(channel, lambda: self.last, needed=needed)
        except Silent:
            # RabbitMQ sends nothing from a place that the stream has not reached. Either it does
            # not even have the message any more that we had last, or this node's replica has not
            # caught up yet.
            if self._opening == "resumed" and self._link is not None:
                self._broken = await self._is_shorter(self._link)
            raise

    async def _is_shorter(self, link: Link) -> bool:
        """Return whether the stream certainly ends before the last message that we had.

        That is proven by a mark, published now, whose offset is not after that message. A replica
        that is behind does not deliver the mark.
        """
        channel = await link.channel()
        seen = -1

        def on_message(message: Message, tag: int) -> None:
            nonlocal seen
            seen = take_offset(message)
            channel.ack(tag)
            if message.exchange == self._identity.exchange:
                self._marks.saw(message.body)

        try:
            async with asyncio.timeout(ANSWERS):
                await channel.qos(PREFETCH)
                await channel.consume(
                    self.name, "end", on_message, arguments={"x-stream-offset": "last"}
                )
            await self._marks.round_trip(channel, lambda: seen, needed=True)
        except (Unavailable, TimeoutError, pika.exceptions.AMQPError) as error:
            log.warning(
                "the stream %s delivers nothing after the message at offset %d: a replica that is "
                "behind, or what was confirmed is lost; waiting (%s)",
                self.name,
                self.last,
                error,
            )
            return False
        finally:
            channel.abandon()
        return seen <= self.last

    async def catch_up(self) -> None:
        """Return when what was confirmed before now has been handed over; raises Unavailable.

        At most once a second for all who ask: each time writes a small message to the stream.
        """
        asked = self._loop.time()
        async with self._catching_up:
            if self._caught_up >= asked:
                return
            await asyncio.sleep(max(0.0, self._caught_up + _CATCH_UP - asked))
            begun = self._loop.time()
            await self._mark_end(self._channel, needed=True)
            self._caught_up = begun

    def _on_closed(self, channel: Channel, why: BaseException) -> None:
        if channel is self._channel:
            self._lose_channel(reason(why))
            self._work.set()

    def _on_cancelled(self, channel: Channel) -> None:
        if channel is self._channel:
            log.warning("the retained stream %s was deleted or moved", self.name)
            self._lose_channel("the stream was deleted or moved")
            self._work.set()

    def _lose_channel(self, why: str) -> None:
        self._flush()
        self._live.clear()
        self.problem = why
        channel, self._channel = self._channel, None
        self._arrived = []
        if channel is not None:
            channel.abandon()

    async def _look(self, link: Link) -> None:
        """Notice what nobody tells: a lost binding, another epoch."""
        topology, rule = self._owner.topology, self.rule
        if self._unbound or self._binding.changed:
            self._binding.changed = False
            await topology.repeat_exchange(link, rule.exchange)
            with contextlib.suppress(NotFound):
                if await topology.exchange_type(link, rule.exchange) != self.kind:
                    raise Unavailable("the exchange is of another type now")
        await self._bind(link)
        if await self._identity.current(link) != self.epoch:
            raise Unavailable("the stream was made anew")

    # -- messages -------------------------------------------------------------------------

    def _flush(self) -> None:
        """Hand over what came in this turn of the loop, and ack it."""
        self._flushing = False
        channel = self._channel
        if self._held or channel is None or not self._arrived:
            return
        arrived, self._arrived = self._arrived, []
        try:
            taken = self._take(arrived)
        except Exception:
            log.exception("the reader of %s failed", self.name)
            taken = False
        if not taken:
            self._channel = None
            channel.abandon()
            self._live.clear()
            self._work.set()
            return
        channel.ack(self._tag, multiple=True)

    def _take(self, arrived: list[tuple[int, Message]]) -> bool:
        """Hand messages over; False when they do not continue what was there before."""
        if self._opening and not self._open(*arrived[0]):
            return False
        lists: dict[RetainedFeed, list[Message]] = {}
        mark = self._identity.exchange
        index = self.past.index
        last = self.last
        for offset, message in arrived:
            if offset <= last:
                continue
            last = offset
            if message.exchange == mark:
                # Who waits for it runs when all before it are handed over, below.
                self._marks.saw(message.body)
                hole = hole_of(message, offset)
                if hole is not None and self.past.holes.note(hole):
                    self._hand(lists, offset - 1)
                    lists = {}
                    self._gap(hole.why, offset + 1)
                continue
            self.window.add(offset, message, size_of(message))
            for key in keys_of(message):
                index.add(key, offset)
                for feed in self._by_key.match(key):
                    batch = lists.get(feed)
                    if batch is None:
                        lists[feed] = [message]
                    elif batch[-1] is not message:
                        batch.append(message)
        if last != self.last:
            self._print = fingerprint(arrived[-1][1])
        self._hand(lists, last)
        self.past.note(last)
        return True

    def _hand(self, lists: dict[RetainedFeed, list[Message]], last: int) -> None:
        for feed, batch in lists.items():
            feed.append(batch)
        self.last = last

    def _open(self, offset: int, message: Message) -> bool:
        """Look at the first message after attaching."""
        opening, self._opening = self._opening, ""
        if opening == "resumed":
            if offset < self.last or (offset == self.last and fingerprint(message) != self._print):
                self._broken = True
                return False
            if offset > self.last + 1:
                self.window.clear(offset)
                self.last = offset - 1
                self._gap(DELETED, offset)
            return True
        self.epoch = self._found
        self.past.renew(offset)
        self.window.clear(offset)
        self.last = offset - 1
        if opening == "renewed":
            self._gap(RENEWED, offset)
        return True

    # -- feeds ----------------------------------------------------------------------------

    def add(self, feed: RetainedFeed) -> None:
        """Hand messages to a feed from now on; it begins at `last`."""
        self._flush()
        self._feeds.add(feed)
        self._by_key.add(feed.pattern, feed)

    def remove(self, feed: RetainedFeed) -> None:
        """Forget a feed."""
        if feed in self._feeds:
            self._feeds.discard(feed)
            self._by_key.remove(feed.pattern, feed)

    def _gap(self, why: str, offset: int) -> None:
        for feed in list(self._feeds):
            feed.gap(why, Mark(self.epoch, offset))

    def _fail(self, error: QueuecastError) -> None:
        for feed in list(self._feeds):
            feed.fail(error)

    async def close(self) -> None:
        """Stop reading; the stream stays."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.past.history.close()
        await self._binding.close()
        self._settle(Unavailable("the gateway is closing"))
        channel, self._channel = self._channel, None
        self._live.clear()
        if channel is not None and channel.is_open:
            await channel.close()
