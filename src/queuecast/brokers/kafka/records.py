"""Reading records at any place: one consumer of the node serves all history and all questions.

Whoever wants records names a partition and an offset; a run of them is fetched once and kept for
a while, so that many who read the same stretch are one read. The consumer has every partition in
use assigned and all but those that somebody waits for paused, so that it fetches nothing in vain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka

from ...errors import QueuecastError, Unavailable
from ...message import Message
from .client import adopt
from .content import to_message
from .control import Control, Topic
from .damage import Damaged, damaged_of, find_damage
from .failures import of_reading

log = logging.getLogger(__name__)

# One fetch of one partition.
RUN_BYTES = 256 << 10
# What fetched runs may hold in memory together: several feeds of one topic, or many who resume
# shortly after one another, then cost one read.
CACHE_BYTES = 16 << 20
_MESSAGE_BYTES = 500  # what a message costs beside its body
# Partitions that stay assigned; beyond it those that nobody reads are let go.
_MAX_ASSIGNED = 1000
# Seconds that a read or a question may take.
_ANSWER = 15.0
# Seconds for a consumer to end. aiokafka's fetcher misses a cancellation that comes while it takes
# another assignment in; a second one, at this timeout, ends it.
_END = 3.0


class OutOfRange(Exception):
    """The offset is not in the partition: deleted by retention, or not there yet."""


class Run:
    """Records of one partition. first: the offset asked for; following: the one to ask next.

    offsets, times (ms) and messages go together.
    """

    __slots__ = ("first", "following", "messages", "offsets", "size", "times")

    def __init__(self, first: int, following: int, records: Sequence[Any]) -> None:
        self.first = first
        self.following = following
        self.offsets = [record.offset for record in records]
        self.times = [record.timestamp for record in records]
        self.messages: list[Message] = [to_message(record) for record in records]
        self.size = sum(_MESSAGE_BYTES + len(message.body) for message in self.messages)

    def index(self, offset: int) -> int:
        """Return where the records from an offset on begin."""
        return bisect_left(self.offsets, offset)


_Place = tuple[str, str, int]  # epoch, topic, partition


class Records:
    """The node's reader of history."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._cached: OrderedDict[tuple[_Place, int], Run] = OrderedDict()
        self._firsts: dict[_Place, list[int]] = {}
        self._size = 0
        self._consumer: Any = None
        self._starting = asyncio.Lock()
        # Who waits: one offset at a time for each partition, the others behind it.
        self._wanted: dict[Any, OrderedDict[int, asyncio.Future[Run]]] = {}
        self._active: dict[Any, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.fetched = 0

    # -- questions ------------------------------------------------------------------------

    async def ends(self, topic: str, partitions: int) -> list[int]:
        """Return each partition's next offset, as committed transactions go."""
        return await self._ask("end_offsets", topic, partitions)

    async def begins(self, topic: str, partitions: int) -> list[int]:
        """Return the offset of each partition's first record that is still there."""
        return await self._ask("beginning_offsets", topic, partitions)

    async def at(self, topic: str, partitions: int, time: float) -> list[int | None]:
        """Return each partition's first offset of a time (Unix seconds) or later, if any."""
        consumer = await self._get()
        tps = {TopicPartition(topic, number): int(time * 1000) for number in range(partitions)}
        try:
            found = await asyncio.wait_for(consumer.offsets_for_times(tps), _ANSWER)
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise of_reading(error, f"read topic {topic!r}", self._control.user) from None
        return [None if found[tp] is None else found[tp].offset for tp in tps]

    async def _ask(self, question: str, topic: str, partitions: int) -> list[int]:
        consumer = await self._get()
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        try:
            found = await asyncio.wait_for(getattr(consumer, question)(tps), _ANSWER)
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise of_reading(error, f"read topic {topic!r}", self._control.user) from None
        return [found[tp] for tp in tps]

    # -- reading --------------------------------------------------------------------------

    async def read(self, of: Topic, partition: int, offset: int) -> Run:
        """Return a run that has what stands at an offset; there must be something behind it.

        Raises OutOfRange, Damaged, Refused, Unavailable.
        """
        topic = of.name
        place = (of.epoch, topic, partition)
        known = self._find(place, offset)
        if known is not None:
            return known
        consumer = await self._get()
        ids = consumer._client.ids
        if len(ids) > _MAX_ASSIGNED:
            ids.clear()  # then those that are being read are fetched by name, once
        ids[topic] = of.id
        tp = TopicPartition(topic, partition)
        wanted = self._wanted.setdefault(tp, OrderedDict())
        waiting = wanted.get(offset)
        if waiting is None or waiting.done():
            waiting = wanted[offset] = asyncio.get_running_loop().create_future()
        self._begin(tp)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kafka history")
        fetched = self.fetched
        try:
            run = await asyncio.wait_for(asyncio.shield(waiting), _ANSWER)
        except TimeoutError:
            error = Unavailable(f"Kafka did not answer for topic {topic!r}")
            self._give_up(tp, offset, error)
            if self.fetched == fetched:
                # Nobody was answered: the next one asks a new consumer (silence.py).
                await self._drop(error)
            raise error from None
        self._keep(place, run)
        return run

    def _find(self, place: _Place, offset: int) -> Run | None:
        firsts = self._firsts.get(place)
        if not firsts:
            return None
        at = bisect_left(firsts, offset + 1) - 1
        if at < 0:
            return None
        run = self._cached[place, firsts[at]]
        if offset >= run.following:
            return None
        self._cached.move_to_end((place, firsts[at]))
        return run

    def _keep(self, place: _Place, run: Run) -> None:
        if (place, run.first) in self._cached:
            return
        self._cached[place, run.first] = run
        firsts = self._firsts.setdefault(place, [])
        firsts.insert(bisect_left(firsts, run.first), run.first)
        self._size += run.size
        while self._size > CACHE_BYTES and len(self._cached) > 1:
            (old, first), dropped = self._cached.popitem(last=False)
            self._size -= dropped.size
            self._firsts[old].remove(first)
            if not self._firsts[old]:
                del self._firsts[old]

    def _give_up(self, tp: Any, offset: int, error: Unavailable) -> None:
        """Stop asking for an offset: the topic may be gone."""
        if self._active.get(tp) == offset:
            self._settle(tp, error=error)
        wanted = self._wanted.get(tp)
        waiting = wanted.pop(offset, None) if wanted else None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
            waiting.exception()

    def _begin(self, tp: Any) -> None:
        """Let the consumer fetch what is wanted of a partition next."""
        consumer = self._consumer
        if tp in self._active or consumer is None:
            return
        wanted = self._wanted.get(tp)
        if not wanted:
            self._wanted.pop(tp, None)
            return
        offset = next(iter(wanted))
        self._active[tp] = offset
        if tp not in consumer.assignment():
            self._assign(tp)
            return
        consumer.seek(tp, offset)
        consumer.resume(tp)

    def _assign(self, tp: Any) -> None:
        consumer = self._consumer
        assigned = consumer.assignment()
        if len(assigned) >= _MAX_ASSIGNED:
            assigned = set(self._active)
        # An assignment forgets every position (and it is not said what is paused).
        consumer.assign([*assigned, tp])
        for each in consumer.assignment():
            consumer.seek(each, self._active.get(each, 0))
            if each not in self._active:
                consumer.pause(each)

    async def _run(self) -> None:
        try:
            while self._active and not self._closed:
                await self._fetch()
        except (kafka.KafkaError, OSError) as error:
            await self._drop(of_reading(error, "read a topic", self._control.user))
        except Exception as error:
            log.exception("reading history failed")
            await self._drop(QueuecastError(f"reading history failed: {error}"))

    async def _fetch(self) -> None:
        consumer = self._consumer
        try:
            found = await consumer.getmany(timeout_ms=200)
        except kafka.OffsetOutOfRangeError as error:
            for tp in error.args[0]:
                self._settle(tp, error=OutOfRange())
            return
        except kafka.CorruptRecordException as error:
            await self._damaged(consumer, error)
            return
        except kafka.TopicAuthorizationFailedError as error:
            for tp in [tp for tp in self._active if tp.topic in str(error)]:
                self._settle(tp, error=of_reading(error, f"read {tp.topic!r}", self._control.user))
            return
        for tp in list(self._active):
            offset = self._active[tp]
            records = found.get(tp, ())
            following = await consumer.position(tp)
            # None at all, and yet further on: all that was there is of no interest to clients.
            if following > offset:
                self.fetched += 1
                self._settle(tp, Run(offset, following, records))

    async def _damaged(self, consumer: Any, error: kafka.CorruptRecordException) -> None:
        """Answer who waits for a partition with what stands before its damage, or with that."""
        tp = damaged_of(error, self._active)
        # With the error went what was fetched with it, for other partitions as well.
        for each, at in self._active.items():
            consumer.seek(each, at)
        offset = self._active[tp]
        damage = await find_damage(consumer, tp, offset)
        if damage is None:
            self._settle(tp, error=of_reading(error, f"read {tp.topic!r}", self._control.user))
            return
        records: list[Any] = []
        with contextlib.suppress(kafka.CorruptRecordException):
            while await consumer.position(tp) < damage.first:
                found = await consumer.getmany(tp, timeout_ms=200, max_records=1)
                if tp not in found:
                    break  # what is left before it is nothing for clients
                records += found[tp]
        if records:
            following = records[-1].offset + 1
            self._settle(tp, Run(offset, following, records))
        else:
            log.error("records %d to %d of %s are damaged", offset, damage.following - 1, tp)
            self._settle(tp, error=Damaged(tp.partition, damage.following))

    def _settle(self, tp: Any, run: Run | None = None, error: BaseException | None = None) -> None:
        offset = self._active.pop(tp, None)
        if offset is None:
            return
        # Before anything else runs, so that nothing is fetched ahead.
        if tp in self._consumer.assignment():
            self._consumer.pause(tp)
        waiting = self._wanted[tp].pop(offset)
        if not waiting.done():
            if run is not None:
                waiting.set_result(run)
            elif error is not None:
                waiting.set_exception(error)
                waiting.exception()  # whoever asked may have gone
        self._begin(tp)

    # -- the consumer ---------------------------------------------------------------------

    async def _get(self) -> Any:
        """Return the consumer, made on first use; raises Unavailable."""
        self._control.require()
        async with self._starting:
            if self._closed:
                raise Unavailable("the gateway is closing its connection to Kafka")
            if self._consumer is None:
                self._consumer = await started_consumer(
                    self._control, max_partition_fetch_bytes=RUN_BYTES, fetch_max_bytes=8 << 20
                )
            return self._consumer

    async def _drop(self, error: BaseException) -> None:
        consumer, self._consumer = self._consumer, None
        self._active.clear()
        for wanted in self._wanted.values():
            for waiting in wanted.values():
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()
        self._wanted.clear()
        if consumer is not None:
            await stopped(consumer)

    async def close(self) -> None:
        """Disconnect; who waits gets Unavailable."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._drop(Unavailable("the gateway is closing its connection to Kafka"))
        self._cached.clear()
        self._firsts.clear()


async def started_consumer(control: Control, **options: Any) -> Any:
    """Return a connected consumer without a group that reads what is committed.

    Raises Unavailable.
    """
    consumer = AIOKafkaConsumer(
        client_id="queuecast-reader",
        enable_auto_commit=False,
        # "none" is no strategy, so that an offset that is gone is told instead of skipped.
        auto_offset_reset="none",
        isolation_level="read_committed",
        request_timeout_ms=int(_ANSWER * 1000),
        **control.options,
        **options,
    )
    adopt(consumer._client, control.nodes)
    control.follow_files(consumer._client)
    try:
        await consumer.start()
    except BaseException as error:
        await consumer.stop()
        if isinstance(error, (kafka.KafkaError, OSError, TimeoutError)):
            raise of_reading(error, "start a reader", control.user) from None
        raise
    return consumer


async def stopped(consumer: Any) -> None:
    """Disconnect a consumer; returns when it has ended, or has been given up."""
    with contextlib.suppress(TimeoutError, kafka.KafkaError, OSError):
        await asyncio.wait_for(consumer.stop(), _END)
