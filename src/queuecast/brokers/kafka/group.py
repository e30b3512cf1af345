"""One topic's consumer group on this node: one member, which shares its records out.

The member fetches what its windows (window.py) have room for and hands each record to one of the
node's subscribers in turn. Commits follow acks within a moment. When the group rebalances, what
is acked is committed first; a partition that comes back at once keeps its window, so that no record
is delivered twice for it. Of one that went elsewhere only what takeover.py needs is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from ...delivery import DeliverySink
from ...errors import QueuecastError, Refused, Unavailable
from .client import adopt
from .content import to_message
from .control import Control, Topic
from .damage import damaged_of, find_damage
from .failures import missing, of_reading, reason
from .silence import Silence
from .subscriber import Subscriber
from .takeover import ALL, Beginning, Known, beginning, recreated
from .window import MAX_RECORDS, Commit, Item, Window

log = logging.getLogger(__name__)

_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
# Between two commits; acks of the meantime are one.
_COMMIT_PAUSE = 0.05
# Records handed on in one turn of the event loop.
_TURN = 500
# A partition is not fetched from when fewer records may be, and again when so many may: the one
# with the least room decides how many are taken at a time.
_TIGHT, _WORTH = MAX_RECORDS // 8, MAX_RECORDS // 4
_FETCH_BYTES = 8 << 20
# Seconds for which the membership outlives its last subscriber: a page that reloads is back in a
# moment, and every membership is a rebalance for all.
_LINGER = 1.0
# Kafka gives a silent member's partitions to the others after so long.
SESSION_TIMEOUT = 10.0
# Seconds without a commit, though some are due, after which nothing more is handed out: the group
# may have given this node's partitions to another, which counts what we may have handed out so far.
_UNHEARD = 0.8 * SESSION_TIMEOUT
# Seconds for one commit. aiokafka repeats it without end, even when the group has rebalanced and
# the partitions are another's, whose commit it would then overwrite.
_COMMIT = SESSION_TIMEOUT / 4
# Seconds for which a topic may be missing before its consumers are told that it is gone: scripts
# delete a topic and recreate it.
GONE = 30.0


class Group:
    """The member and its subscribers."""

    def __init__(
        self, control: Control, topic: Topic, name: str, owner: str, memory: dict[int, Known]
    ) -> None:
        """owner: this node's name in commits. memory: of the partitions it had before."""
        self.name = name
        self._control = control
        self._topic = topic.name
        self._now = topic
        self._owner = owner
        self._memory = memory
        self._subscribers: deque[Subscriber] = deque()
        self._windows: dict[int, Window] = {}
        # Of partitions that a rebalance has taken, until it is known where they go.
        self._between: dict[int, Window] = {}
        self._fresh: deque[Item] = deque()
        self._again: list[tuple[int, int, Item]] = []  # a heap: oldest first
        self._consumer: Any = None
        self._task: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._dirty = asyncio.Event()
        self._lock = asyncio.Lock()
        self._scheduled = False
        self._turn = _TURN
        self._idle: asyncio.TimerHandle | None = None
        self._forget = control.watch(topic, self._changed)
        self._gone_since: float | None = None
        self._unheard_since: float | None = None
        self._moving = False  # the group rebalances: nothing is handed out
        self._untold: dict[str, None] = {}  # gaps, in order
        self._broken: QueuecastError | None = None
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holds = 0  # subscribers on their way in
        self.closed = False
        self._ended = asyncio.Event()
        self.trouble = ""

    @property
    def ended(self) -> bool:
        """Whether it has left, with everything committed."""
        return self._ended.is_set()

    # -- subscribers ----------------------------------------------------------------------

    async def join(self, sink: DeliverySink, prefetch: int, patience: float) -> Subscriber:
        """Add a subscriber once this node is a member; its first record comes after that.

        patience: seconds to wait for that; then it is added, and records come when they come.
        Raises Refused, NotFound, Unavailable.
        """
        self._holds += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"group {self.name}")
            self._committing = asyncio.create_task(self._commits(), name=f"commit {self.name}")
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._started), patience)
            if self.closed:
                raise Unavailable("the group was closed")
            subscriber = Subscriber(self, sink, prefetch)
            self._subscribers.append(subscriber)
            self.schedule()
        finally:
            self._holds -= 1
            self._maybe_idle()
        return subscriber

    def leave(self, subscriber: Subscriber, items: list[Item]) -> None:
        """Let a subscriber go; what it held goes to the others."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
        self.give_back(items)
        self._maybe_idle()

    def _maybe_idle(self) -> None:
        if not self._subscribers and not self._holds and not self.closed and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(_LINGER, self._end_soon)

    def _end_soon(self) -> None:
        self._idle = None
        if not self._subscribers and not self._holds and not self.closed:
            self.closed = True  # at once: who comes now gets a group of its own
            self._ending = asyncio.ensure_future(self._finish())

    def give_back(self, items: Iterable[Item]) -> None:
        """Take records back that are to be delivered again, to whoever has room."""
        for item in items:
            if not item.window.lost:
                item.again()
                heapq.heappush(self._again, (item.window.partition, item.offset, item))
        self.schedule()

    def settle(self, item: Item) -> None:
        """Note that a record is done; of a partition that is lost it is too late."""
        if item.window.lost:
            return
        item.window.settle(item)
        self._dirty.set()
        self.schedule()

    def schedule(self) -> None:
        """Hand records out at the end of this turn of the event loop."""
        if not self._scheduled and not self.closed:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._scheduled = False
        if self._moving or not self._heard():
            return  # `_take_over` and the next commit schedule it again
        if self._untold and self._subscribers:
            for why, each in itertools.product(self._untold, list(self._subscribers)):
                each.gap(why)
            self._untold.clear()
        while self._again or self._fresh:
            subscriber = self._next_with_room()
            if subscriber is None:
                break
            item = heapq.heappop(self._again)[2] if self._again else self._fresh.popleft()
            if item.window.lost or item.done:
                continue
            try:
                subscriber.give(item)
            except Exception as error:
                log.exception("a subscriber of %s failed", self._topic)
                subscriber.cancel(QueuecastError(f"the subscription failed: {error}"))
                self.leave(subscriber, [])
                item.holder = None
                self.give_back((item,))
            self._dirty.set()

    def _heard(self) -> bool:
        since = self._unheard_since
        return since is None or asyncio.get_running_loop().time() - since < _UNHEARD

    def _gap(self, why: str) -> None:
        """Have the subscribers told of a gap before their next record."""
        if why not in self._untold:
            log.warning("gap in group %s: %s", self.name, why)
            self._untold[why] = None

    def _next_with_room(self) -> Subscriber | None:
        for _ in range(len(self._subscribers)):
            self._subscribers.rotate(-1)
            if self._subscribers[-1].has_room:
                return self._subscribers[-1]
        return None

    # -- the member -----------------------------------------------------------------------

    async def _run(self) -> None:
        delay = _FIRST_RETRY
        while not self.closed:
            try:
                await self._join_group()
                self.trouble = ""
                silence = Silence(self._control)
                while True:
                    if not await self._fetch():
                        silence.check(self._consumer)
                    delay = _FIRST_RETRY
            except (QueuecastError, kafka.KafkaError, OSError, TimeoutError) as error:
                meant = of_reading(error, f"use the group {self.name!r}", self._control.user)
                if isinstance(meant, Refused):
                    self._fail(meant)
                    return
                self.trouble = f"group {self.name}: {reason(error)}"
                log.warning("group %s, next attempt in %.1f s: %s", self.name, delay, reason(error))
            except Exception:
                log.exception("group %s failed", self.name)
                self.trouble = f"group {self.name} failed, see the log"
                delay = _LAST_RETRY
            await self._drop()
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)

    async def _join_group(self) -> None:
        consumer = AIOKafkaConsumer(
            client_id="queuecast-group",
            group_id=self.name,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=int(SESSION_TIMEOUT * 1000),
            heartbeat_interval_ms=int(SESSION_TIMEOUT * 1000 / 4),
            # Its state is the class's: a class for each member keeps topics apart.
            partition_assignment_strategy=[type("Sticky", (StickyPartitionAssignor,), {})],
            fetch_max_bytes=_FETCH_BYTES,
            **self._control.options,
        )
        self._control.follow_files(consumer._client)
        self._consumer = consumer
        adopt(consumer._client, self._control.nodes).ids = {self._topic: self._now.id}
        await consumer.start()
        consumer.subscribe([self._topic], listener=_Rebalance(self))

    async def _fetch(self) -> bool:
        """Take what has come; returns whether there was anything."""
        if self._broken is not None:
            error, self._broken = self._broken, None
            raise error
        consumer = self._consumer
        rooms = [window.room for window in self._windows.values()]
        most = min([self._turn, *(room for room in rooms if room >= _TIGHT)])
        try:
            found = await consumer.getmany(timeout_ms=200, max_records=most)
        except kafka.CorruptRecordException as error:
            await self._damaged(consumer, error)
            return True
        for tp, records in found.items():
            window = self._windows.get(tp.partition)
            if window is None or tp not in consumer.assignment():
                continue
            window = self._joined(tp, window, records[0].offset)
            for record in records:
                item = window.add(record.offset, to_message(record, queue=True))
                if item is not None:
                    self._fresh.append(item)
        self._bound()
        self.schedule()
        if found:
            await asyncio.sleep(0)
        return bool(found)

    def _joined(self, tp: Any, window: Window, offset: int) -> Window:
        """Return the window that takes the next records; tells what is missing before them."""
        client = self._consumer._client
        if window.next > offset:
            # aiokafka found our place behind the end, and began at the beginning.
            self._gap(f"Kafka lost the end of partition {tp.partition}")
            self._lose(window)
            self._memory.pop(tp.partition, None)
            window = self._window(tp.partition, Beginning(doubt=ALL))
            self._windows[tp.partition] = window
        elif 0 <= window.next < min(offset, client.log_starts.get(tp, 0)):
            self._gap("evicted")
        if window.end < 0:
            window.end = self._consumer.highwater(tp) or 0
        return window

    def _window(self, partition: int, begin: Beginning) -> Window:
        return Window(
            partition,
            begin.commit,
            delivered=begin.delivered,
            acked=begin.acked,
            doubt=begin.doubt,
            epoch=self._now.epoch,
            owner=self._owner,
        )

    async def _damaged(self, consumer: Any, error: kafka.CorruptRecordException) -> None:
        """Go on behind records that are damaged: nobody can have them."""
        tp = damaged_of(error, consumer.assignment())
        window = self._windows.get(tp.partition)
        if self._turn == 1 and window is not None:
            at = window.next if window.next >= 0 else await consumer.position(tp)
            damage = await find_damage(consumer, tp, at)
            if damage is None:
                raise error
            log.error(
                "group %s: records %d to %d of %s are damaged and are passed over",
                self.name, at, damage.following - 1, tp,
            )  # fmt: skip
            window.next = damage.following
            self._turn = _TURN
            self._dirty.set()
        else:
            # With the error went what was fetched with it. Once more, record by record: then all
            # that stands before the damage has been handed on when the error comes again.
            self._turn = 1
        for each in consumer.assignment():
            held = self._windows.get(each.partition)
            if held is not None and held.next >= 0:
                consumer.seek(each, held.next)
            else:
                await consumer.seek_to_beginning(each)

    def _bound(self) -> None:
        """Fetch from a partition only while its window has room."""
        consumer = self._consumer
        paused = consumer.paused()
        for tp in consumer.assignment():
            window = self._windows.get(tp.partition)
            if window is None:
                continue
            if window.room < _TIGHT and tp not in paused:
                consumer.pause(tp)
            elif window.room >= _WORTH and tp in paused:
                consumer.resume(tp)

    # -- commits --------------------------------------------------------------------------

    async def _commits(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                if not await self._commit():
                    await asyncio.sleep(_FIRST_RETRY)
                    self._dirty.set()
            except Exception:
                log.exception("committing for %s failed", self.name)
                await asyncio.sleep(_LAST_RETRY)
                self._dirty.set()
            await asyncio.sleep(_COMMIT_PAUSE)

    async def _commit(self, *, release: bool = False) -> bool:
        """Commit what is due; returns whether it succeeded. release: we let go of everything."""
        async with self._lock:
            consumer = self._consumer
            if consumer is None:
                return False
            due: dict[Any, tuple[Window, Commit, int]] = {}
            for window in self._windows.values():
                found = window.due(release=release)
                if found is not None:
                    due[TopicPartition(self._topic, window.partition)] = (window, *found)
            if not due:
                self._unheard_since = None
                return True
            if self._unheard_since is None:
                self._unheard_since = asyncio.get_running_loop().time()
            offsets = {tp: (commit.offset, commit.metadata) for tp, (_, commit, _) in due.items()}
            try:
                await asyncio.wait_for(consumer.commit(offsets), _COMMIT)
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                # Of a rebalance the next assignment tells; otherwise it is tried again.
                log.info("committing for %s: %s", self.name, reason(error))
                return False
            self._unheard_since = None
            for window, commit, number in due.values():
                window.was_committed(commit, number)
            self._bound()
            self.schedule()
            return True

    # -- rebalances -----------------------------------------------------------------------

    async def revoked(self) -> None:
        """Commit what is acked before others may have the partitions, and hand nothing out."""
        self._moving = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._commit(release=True), SESSION_TIMEOUT / 2)
        self._between.update(self._windows)
        self._windows.clear()

    async def assigned(self, partitions: list[int]) -> None:
        """Take partitions over; those that only we have had since keep their windows."""
        try:
            await self._take_over(partitions)
        except QueuecastError as error:
            # aiokafka would log it and go on without us.
            self._broken = error
        else:
            if not self._started.done():
                self._started.set_result(None)

    async def _take_over(self, partitions: list[int]) -> None:
        committed = await self._control.committed(self.name, self._topic, sorted(partitions))
        for partition in partitions:
            found = committed.get(partition)
            tp = TopicPartition(self._topic, partition)
            before = self._between.pop(partition, None)
            if before is not None:
                now = found.commit if found is not None else None
                if before.next >= 0 and before.committed == now:
                    self._windows[partition] = before
                    self._consumer.seek(tp, before.next)
                    continue
                self._lose(before)
            known = self._memory.get(partition)
            begin = beginning(self._topic, self._now.epoch, self._owner, found, known, MAX_RECORDS)
            if begin.gap:
                self._gap(begin.gap)
            self._windows[partition] = self._window(partition, begin)
            if begin.commit is not None:
                self._consumer.seek(tp, begin.commit.offset)
            elif found is not None and found.offset is not None:
                # What is committed is of another topic; aiokafka would go there.
                assignment = self._consumer._subscription.subscription.assignment
                assignment.state_value(tp).await_reset(OffsetResetStrategy.EARLIEST)
        for window in self._between.values():
            self._lose(window)
        self._between.clear()
        self._moving = False
        self._bound()
        self._dirty.set()  # claims, and acks that came meanwhile
        self.schedule()

    def _lose(self, window: Window) -> None:
        """Let go of a partition, and remember what may matter when it comes back."""
        window.lost = True
        if window.next >= 0:
            self._memory[window.partition] = Known(
                window.epoch, window.committed, window.first, window.marked, window.acked
            )
        for item in window.waiting():
            if isinstance(item.holder, Subscriber):
                item.holder.drop(item)

    # -- the end --------------------------------------------------------------------------

    def _changed(self, topic: Topic | None) -> None:
        now = asyncio.get_running_loop().time()
        if topic is None:
            self._gone_since = now if self._gone_since is None else self._gone_since
            if now - self._gone_since > GONE:
                self._fail(missing(self._topic))
            return
        self._gone_since = None
        grown = topic.partitions > self._now.partitions
        if topic.epoch != self._now.epoch:
            # Its offsets are others: what is in the windows has no meaning any more.
            self._broken = Unavailable(recreated(self._topic))
        elif grown and self._consumer is not None:
            # The member that leads the group shares the new ones out when it learns of them, which
            # aiokafka by itself asks for every five minutes.
            self._consumer._client.force_metadata_update()
        self._now = topic

    def _fail(self, error: QueuecastError) -> None:
        """End the group for all its subscribers."""
        if not self._started.done():
            self._started.set_exception(error)
            self._started.exception()
        subscribers = list(self._subscribers)
        self._subscribers.clear()
        for subscriber in subscribers:
            subscriber.cancel(error)
        self._end_soon()

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        for window in (*self._windows.values(), *self._between.values()):
            self._lose(window)
        self._windows.clear()
        self._between.clear()
        self._moving = False
        self._unheard_since = None
        if consumer is not None:
            with contextlib.suppress(kafka.KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(consumer.stop(), 10)

    async def close(self) -> None:
        """Commit, and leave the group at once, so that others need not wait for a timeout."""
        if self.closed:
            await self._ended.wait()
            return
        self.closed = True
        await self._finish()

    async def _finish(self) -> None:
        try:
            await self._leave()
        finally:
            self._ended.set()

    async def _leave(self) -> None:
        self._forget()
        if self._idle is not None:
            self._idle.cancel()
        if not self._started.done():
            self._started.set_exception(Unavailable("the group was closed"))
            self._started.exception()
        for task in (self._committing, self._task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._control.ready:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._commit(release=True), 5)
        await self._drop()


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """aiokafka's view of a group."""

    def __init__(self, group: Group) -> None:
        self._group = group

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._group.revoked()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._group.assigned([tp.partition for tp in assigned])
