"""One topic's feeds on this node: its records, told apart by key, in one lane per partition."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2s

from ...errors import QueuecastError, Unavailable
from ...message import Message
from ...position import Mark
from ..base import FeedSink
from ..matching import TopicIndex
from .content import key_of
from .control import Topic

log = logging.getLogger(__name__)


class Member:
    """One feed of the topic. pattern: of the record keys; None takes every record."""

    __slots__ = ("closed", "pattern", "sink")

    def __init__(self, sink: FeedSink, pattern: str | None) -> None:
        self.sink = sink
        self.pattern = pattern
        self.closed = False


class TopicFeed:
    """The feeds of a topic and where they stand.

    next: per partition, the Kafka offset of the next record to come; as a mark's offset it means
    that all before it is known.
    """

    def __init__(self, topic: Topic, following: Sequence[int]) -> None:
        self.topic = topic
        self.next = list(following)
        self.away = False  # deleted, and not back yet
        self._all: dict[Member, None] = {}
        self._keyed: dict[Member, None] = {}
        self._index: TopicIndex[Member] = TopicIndex()

    @property
    def used(self) -> bool:
        return bool(self._all or self._keyed)

    def epoch(self, pattern: str | None) -> str:
        """Return the epoch of a destination's positions.

        Each pattern has its own: of several destinations on one connection a position's marks
        can be told apart by it when the topic has grown. All nodes come to the same.
        """
        if pattern is None:
            return self.topic.epoch
        return blake2s(f"{self.topic.epoch} {pattern}".encode(), digest_size=5).hexdigest()

    def marks(self, pattern: str | None) -> list[Mark]:
        """Return the place up to which everything was handed on."""
        return self._marks(pattern, self.next)

    def _marks(self, pattern: str | None, offsets: Sequence[int]) -> list[Mark]:
        epoch = self.epoch(pattern)
        return [Mark(epoch, offset) for offset in offsets]

    def add(self, member: Member) -> None:
        """Take a feed in: it gets what comes from now on."""
        if member.pattern is None:
            self._all[member] = None
        else:
            self._index.add(member.pattern, member)
            self._keyed[member] = None

    def remove(self, member: Member) -> None:
        """Let a feed go; harmless when it has gone."""
        if member.closed:
            return
        member.closed = True
        if member.pattern is None:
            self._all.pop(member, None)
        else:
            self._index.remove(member.pattern, member)
            self._keyed.pop(member, None)

    def append(self, partition: int, messages: Sequence[Message], following: int) -> None:
        """Hand on a partition's next messages; following: the offset after them."""
        for member in list(self._all):
            self._tell(member, member.sink.append, messages)
        if self._keyed:
            parts: dict[Member, list[Message]] = {}
            for message in messages:
                for member in self._index.match(key_of(message)):
                    parts.setdefault(member, []).append(message)
            for member, part in parts.items():
                self._tell(member, member.sink.append, part)
        self.next[partition] = following

    def gap(self, reason: str, following: Sequence[int]) -> None:
        """Tell everybody of records that are lost; following: where each partition goes on."""
        for member in self._members():
            self._tell(member, member.sink.gap, reason, self._marks(member.pattern, following))
        self.next = list(following)

    def widen(self, topic: Topic) -> None:
        """Take the topic's new partitions in, from their first record on."""
        added = topic.partitions - len(self.next)
        self.topic = topic
        self.next += [0] * added
        for member in self._members():
            self._tell(member, member.sink.widen, self.marks(member.pattern)[-added:])

    def renew(self, topic: Topic) -> None:
        """Begin with a topic that was recreated under its name: all its records are new."""
        why = f"the topic {topic.name} was deleted and recreated"
        if topic.partitions < len(self.next):
            # A feed cannot lose lanes. Clients that reconnect with an old position get the gap.
            self.topic = topic
            self.next = [0] * topic.partitions
            self.fail(Unavailable(why))
            return
        self.topic = topic
        self.gap(why, [0] * len(self.next))
        if topic.partitions > len(self.next):
            self.widen(topic)

    def fail(self, error: QueuecastError) -> None:
        """End all feeds of the topic."""
        for member in self._members():
            self.remove(member)
            try:
                member.sink.fail(error)
            except Exception:
                log.exception("a feed of %s could not be told of: %s", self.topic.name, error)

    def _members(self) -> list[Member]:
        return [*self._all, *self._keyed]

    def _tell(self, member: Member, call: Callable[..., None], *args: object) -> None:
        if member.closed:
            return
        try:
            call(*args)
        except Exception as error:
            # A broken sink must not stop the others.
            log.exception("a feed of %s failed", self.topic.name)
            self.remove(member)
            member.sink.fail(QueuecastError(f"the feed failed: {error}"))
