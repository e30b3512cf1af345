"""A partition's records between what is committed and what was fetched.

Kafka commits one offset per partition: everything before it is done. Acks come in any order, so
the window remembers them until they are contiguous. What a commit's offset cannot say goes into
its metadata: of which topic it is (its epoch), which node holds the partition, up to where records
were handed out, and which of them are acked already. The next owner of the partition marks the
former as redelivered and skips the latter (takeover.py).
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from dataclasses import dataclass

from ...message import Message

# Records between the commit and the fetch position.
MAX_RECORDS = 1000
# The same in bytes of bodies: 1,000 records of a megabyte each would be a gigabyte.
MAX_BYTES = 16 << 20
# Kafka's default for offset.metadata.max.bytes is 4,096.
_MAX_METADATA = 3500
_VERSION, _FIRST_VERSION = "queuecast2", "queuecast1"
# The owner in a commit that was made when its node let go of the partition, and in older ones.
_RELEASED, _SOMEBODY = "-", "?"


@dataclass(frozen=True, slots=True)
class Commit:
    """What is committed for a partition. offset: the first record that is not done.

    delivered: the offset after the last one that was handed out. acked: offsets from `offset` on
    that are done. epoch: the topic's, "" where it was not said. owner: the node that holds the
    partition, "" when it has let go. foreign: another program made it; only `offset` is known.
    """

    offset: int
    delivered: int
    acked: frozenset[int] = frozenset()
    epoch: str = ""
    owner: str = ""
    foreign: bool = False

    @property
    def metadata(self) -> str:
        """The text that Kafka keeps with the offset."""
        ahead = max(self.delivered - self.offset, 0)
        bits = 0
        for offset in self.acked:
            if offset - self.offset < 8 * _MAX_METADATA:  # a compacted topic has wide holes
                bits |= 1 << (offset - self.offset)
        data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        head = f"{_VERSION} {self.epoch} {self.owner or _RELEASED} {ahead} "
        text = head + base64.b64encode(data).decode()
        # Without room some of what is acked is redelivered, which is what Kafka promises anyhow.
        return text if len(text) <= _MAX_METADATA else head

    @classmethod
    def parse(cls, offset: int, metadata: str) -> Commit:
        """Read what was committed; the metadata of another program is of no meaning here."""
        parts = metadata.split(" ")
        if parts[0] == _FIRST_VERSION:
            parts[:1] = [_VERSION, "", _SOMEBODY]
        if len(parts) != 5 or parts[0] != _VERSION or not parts[3].isdigit():
            return cls(offset, offset, foreign=True)
        _, epoch, owner, ahead, text = parts
        try:
            bits = int.from_bytes(base64.b64decode(text, validate=True), "little")
        except ValueError:
            return cls(offset, offset, foreign=True)
        acked = frozenset(offset + place for place in range(bits.bit_length()) if bits >> place & 1)
        owner = "" if owner == _RELEASED else owner
        return cls(offset, offset + int(ahead[:9]), acked, epoch, owner)


class Item:
    """A record in the window. done: it is acked. holder: who has it, None while it waits."""

    __slots__ = ("done", "holder", "message", "offset", "tag", "window")

    def __init__(self, window: Window, offset: int, message: Message) -> None:
        self.window = window
        self.offset = offset
        self.message = message
        self.done = False
        self.holder: object | None = None
        self.tag = 0

    def again(self) -> None:
        """Mark the record as redelivered; who had it keeps the message as it was."""
        old = self.message
        self.message = Message(
            old.body, old.exchange, old.routing_key, old.properties, True, old.offset, old.lane
        )


class Window:
    """One partition's window. lost: it is another's now, and what is said of it too late.

    commit: what Kafka has. delivered, acked, doubt: as in takeover.Beginning. epoch, owner: what
    our commits say. claimed: Kafka has a commit that says that this node holds the partition;
    nothing is handed out before, so that no other takes what it had for the whole.
    """

    def __init__(
        self,
        partition: int,
        commit: Commit | None,
        *,
        delivered: int = 0,
        acked: frozenset[int] = frozenset(),
        doubt: int = 0,
        epoch: str = "",
        owner: str = "",
    ) -> None:
        self.partition = partition
        self.epoch = epoch
        self.lost = False
        self.committed = commit
        self.next = commit.offset if commit else -1  # the next record to fetch, once known
        self.doubt = doubt
        self.end = -1  # where the partition ended when the first records came, once known
        self._owner = owner
        self._delivered = delivered
        self._marked = delivered  # what is below it may have been seen
        self._acked = acked
        self._items: OrderedDict[int, Item] = OrderedDict()
        self._bytes = 0
        self._fetched = 0  # records ever, …
        self._committed_to = 0  # … and those of them that the last commit covers

    @property
    def claimed(self) -> bool:
        """Whether records may be handed out; without any commit there is nothing to claim."""
        return self.committed is None or self.committed.owner == self._owner

    @property
    def open(self) -> int:
        """Records that are not done, or behind one that is not."""
        return len(self._items)

    @property
    def room(self) -> int:
        """How many records may be fetched now."""
        if self._bytes >= MAX_BYTES or not self.claimed:
            return 0
        return MAX_RECORDS - (self._fetched - self._committed_to)

    def add(self, offset: int, message: Message) -> Item | None:
        """Take a fetched record in; None when it was acked before this node had the partition."""
        self.next = offset + 1
        self._fetched += 1
        item = Item(self, offset, message)
        self._items[offset] = item
        self._bytes += len(message.body)
        if offset in self._acked:
            self.settle(item)
            return None
        doubtful = self._fetched <= self.doubt and offset < self.end
        message.redelivered = offset < self._marked or doubtful
        return item

    def delivered(self, item: Item) -> None:
        """Note that somebody was given a record."""
        self._delivered = max(self._delivered, item.offset + 1)

    def settle(self, item: Item) -> None:
        """Note that a record is done."""
        item.done = True
        while self._items:
            first = next(iter(self._items.values()))
            if not first.done:
                break
            del self._items[first.offset]
            self._bytes -= len(first.message.body)

    def waiting(self) -> list[Item]:
        """Return what is not done, in order."""
        return [item for item in self._items.values() if not item.done]

    def due(self, *, release: bool = False) -> tuple[Commit, int] | None:
        """Return what is to be committed, and a number for `was_committed`; None if nothing is.

        release: this node lets go of the partition, and hands nothing out any more.
        """
        if self.next < 0:
            return None
        offset = self.first
        delivered = max(self._delivered, offset)
        owner = "" if release else self._owner
        commit = Commit(offset, delivered, self.acked, self.epoch, owner)
        if commit == self.committed:
            return None
        return commit, self._fetched - len(self._items)

    @property
    def first(self) -> int:
        """The first record that is not done."""
        return next(iter(self._items)) if self._items else self.next

    @property
    def acked(self) -> frozenset[int]:
        """What is done from there on."""
        acked = frozenset(item.offset for item in self._items.values() if item.done)
        # What another node had acked, and this one has not come to yet.
        return acked | frozenset(each for each in self._acked if each >= max(self.first, self.next))

    @property
    def marked(self) -> int:
        """The offset after the last record that may have been seen by a client."""
        return max(self._delivered, self.first)

    def was_committed(self, commit: Commit, number: int) -> None:
        """Note a commit that Kafka has."""
        self.committed = commit
        self._committed_to = max(self._committed_to, number)
