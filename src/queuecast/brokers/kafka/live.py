"""The node's live reader: one consumer without a group for all topics that have feeds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka

from ...errors import QueuecastError, Unavailable
from .content import to_message
from .control import Control, Topic
from .damage import DAMAGED, damaged_of, find_damage
from .failures import reason, refused
from .names import Target
from .records import Records, started_consumer, stopped
from .silence import Silence
from .topic import Member, TopicFeed

log = logging.getLogger(__name__)

_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
# Records in one turn of the event loop: a full fetch would hold up every client.
_TURN = 1000
_FETCH_BYTES = 8 << 20


class Live:
    """Reads topics for the feeds; `open` and `close` a feed."""

    def __init__(self, control: Control, records: Records) -> None:
        self._control = control
        self._records = records
        self._feeds: dict[str, TopicFeed] = {}
        self._forget: dict[str, Callable[[], None]] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._consumer: Any = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        # Records handed on in one turn of the event loop.
        self._turn = _TURN
        self.trouble = ""
        # The last damage that was met: health goes on telling, because somebody has to look.
        self.damage = ""

    async def open(
        self, target: Target, member: Member, begin: Callable[[TopicFeed], None]
    ) -> TopicFeed:
        """Let a feed read a topic; `begin` is called before its first record.

        Raises NotFound, Refused, BadDestination, Unavailable.
        """
        name = target.topic
        self._control.require()
        known = self._feeds.get(name)
        if known is not None:
            # It is watched and may be read: ten thousand pages, each with its key, ask nothing.
            begin(known)
            known.add(member)
            return known
        lock = self._opening.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                topic = await self._control.topic(name, create=target.create)
                feed = self._feeds.get(name)
                if feed is None:
                    following = await self._records.ends(name, topic.partitions)
                    self._require_open()
                    feed = self._feeds.get(name)
                if feed is None:
                    feed = self._feeds[name] = TopicFeed(topic, following)
                    self._forget[name] = self._control.watch(
                        topic, lambda now: self._changed(name, now)
                    )
                    self._assign()
                begin(feed)
                feed.add(member)
        finally:
            if not lock.locked():
                self._opening.pop(name, None)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kafka feeds")
        return feed

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("the gateway is closing its connection to Kafka")

    def leave(self, feed: TopicFeed, member: Member) -> None:
        """Let a feed go; a topic without feeds is not read any more."""
        feed.remove(member)
        self._sweep(feed)

    def _sweep(self, feed: TopicFeed) -> None:
        name = feed.topic.name
        if feed.used or self._feeds.get(name) is not feed:
            return
        del self._feeds[name]
        self._forget.pop(name)()
        self._assign()

    # -- topics change --------------------------------------------------------------------

    def _changed(self, name: str, topic: Topic | None) -> None:
        feed = self._feeds.get(name)
        if feed is None:
            return
        if topic is None:
            # It may be recreated, as an exchange may: its subscribers stay. Until then it is not
            # read, because every answer would be an error, and those of other topics would wait.
            if not feed.away:
                feed.away = True
                self._assign()
            return
        back, feed.away = feed.away, False
        if topic.epoch != feed.topic.epoch:
            feed.renew(topic)
        elif topic.partitions > len(feed.next):
            feed.widen(topic)
        elif not back:
            return
        self._assign()
        self._sweep(feed)

    def _assign(self) -> None:
        """Assign all partitions, each at its place: an assignment forgets every position."""
        consumer = self._consumer
        if consumer is None:
            return
        places = {
            TopicPartition(name, partition): offset
            for name, feed in self._feeds.items()
            if not feed.away
            for partition, offset in enumerate(feed.next)
        }
        if not places:
            # aiokafka takes no empty assignment. Without feeds the reading ends by itself.
            consumer.pause(*consumer.assignment())
            return
        consumer._client.ids = {name: feed.topic.id for name, feed in self._feeds.items()}
        consumer.assign(list(places))
        for tp, offset in places.items():
            consumer.seek(tp, offset)

    # -- reading --------------------------------------------------------------------------

    async def _run(self) -> None:
        delay = _FIRST_RETRY
        while self._feeds and not self._closed:
            try:
                self._consumer = await started_consumer(
                    self._control, fetch_max_bytes=_FETCH_BYTES, fetch_max_wait_ms=500
                )
                self._assign()
                self.trouble = ""
                silence = Silence(self._control)
                while self._feeds and not self._closed:
                    if not await self._read(self._consumer):
                        silence.check(self._consumer)
                    delay = _FIRST_RETRY
            except (QueuecastError, kafka.KafkaError, OSError) as error:
                self.trouble = f"reading: {reason(error)}"
                log.warning("reading from Kafka failed, next attempt in %.1f s: %s", delay, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LAST_RETRY)
            except Exception:
                log.exception("reading from Kafka failed")
                self.trouble = "reading failed, see the log"
                await asyncio.sleep(_LAST_RETRY)
            finally:
                await self._drop()

    async def _read(self, consumer: Any) -> bool:
        """Hand on what has come; returns whether there was anything."""
        try:
            found = await consumer.getmany(timeout_ms=1000, max_records=self._turn)
        except kafka.OffsetOutOfRangeError as error:
            for tp in error.args[0]:
                await self._out_of_range(tp)
            return True
        except kafka.CorruptRecordException as error:
            await self._damaged(consumer, error)
            return True
        except kafka.TopicAuthorizationFailedError as error:
            for name, feed in list(self._feeds.items()):
                if name in str(error):
                    feed.fail(refused(f"read topic {name!r}", self._control.user))
                    self._sweep(feed)
            return True
        for tp, records in found.items():
            if tp.topic in self._feeds:
                self._append(self._feeds[tp.topic], tp.partition, records)
        if found:
            await asyncio.sleep(0)
        return bool(found)

    def _append(self, feed: TopicFeed, partition: int, records: Sequence[Any]) -> None:
        if records[0].offset < feed.next[partition]:
            return  # of an assignment that is over
        messages = [to_message(record) for record in records]
        feed.append(partition, messages, records[-1].offset + 1)
        self._sweep(feed)

    async def _out_of_range(self, tp: Any) -> None:
        """Go on where there is something: what stood at our place was deleted."""
        # It may be another topic by now.
        await self._control.refresh()
        feed = self._feeds.get(tp.topic)
        if feed is None or tp.partition >= len(feed.next):
            return
        partitions = len(feed.next)
        begins = await self._records.begins(tp.topic, partitions)
        ends = await self._records.ends(tp.topic, partitions)
        if len(feed.next) != partitions:
            return
        following = list(feed.next)
        at = following[tp.partition]
        begin, end = begins[tp.partition], ends[tp.partition]
        if at < begin:
            following[tp.partition] = begin
            feed.gap("evicted", following)
        elif at > end:
            following[tp.partition] = end
            feed.gap(f"Kafka lost the end of partition {tp.partition}", following)
        self._assign()
        self._sweep(feed)

    async def _damaged(self, consumer: Any, error: kafka.CorruptRecordException) -> None:
        """Go on behind records that are damaged, with a gap."""
        tp = damaged_of(error, consumer.assignment())
        if self._turn > 1:
            # With the error went what was fetched with it. Once more, record by record: then all
            # that stands before the damage has been handed on when the error comes again.
            self._turn = 1
            self._assign()
            return
        self._turn = _TURN
        feed = self._feeds.get(tp.topic)
        if feed is not None and tp.partition < len(feed.next):
            at = feed.next[tp.partition]
            damage = await find_damage(consumer, tp, at)
            if damage is None:
                raise error
            following = list(feed.next)
            following[tp.partition] = damage.following
            self.damage = (
                f"records {at} to {damage.following - 1} in partition {tp.partition} of topic "
                f"{tp.topic!r} are damaged and were passed over"
            )
            log.error("%s", self.damage)
            feed.gap(DAMAGED, following)
            self._sweep(feed)
        self._assign()

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stopped(consumer)

    async def close(self) -> None:
        """Stop reading; the sinks are not called any more."""
        self._closed = True
        self._feeds.clear()
        for forget in self._forget.values():
            forget()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._drop()
