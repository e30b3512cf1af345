"""A cohort: the subscriptions of a feed whose bytes on the wire are identical.

The batch of a tick is encoded once for all its live members. Encoded chunks are kept for a
moment, because the members who could not take a chunk fall behind at its border and come for
it soon: they get the same object instead of an encode each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..position import Mark, Position, Vector
from .log import Entry
from .subscription import Encoding, Outlet, Subscription

if TYPE_CHECKING:
    from .feed import Feed

# Bytes of encoded chunks kept per cohort, for those who are a little behind.
KEPT_BYTES = 512 * 1024


class Chunk(NamedTuple):
    """Encoded entries up to seq `end`; `after` is the position there (never modified)."""

    end: int
    after: Vector
    data: bytes


class Cohort:
    """Live members, and the chunks that they and those just behind share.

    cursor, vector: up to where the members have everything; meaningless without members.
    """

    __slots__ = ("_chunks", "_kept", "cursor", "encoding", "feed", "members", "users", "vector")

    def __init__(self, feed: Feed, encoding: Encoding) -> None:
        self.feed = feed
        self.encoding = encoding
        self.members: dict[Subscription, Outlet] = {}
        self.users = 0  # live, behind and waiting
        self.cursor = feed.log.next
        self.vector = feed.log.head.copy()
        self._chunks: dict[int, Chunk] = {}
        self._kept = 0

    # -- members --------------------------------------------------------------------------

    def join(self, subscription: Subscription) -> bool:
        """Make a subscription live if it stands where the members do; returns whether."""
        if not self.members:
            if subscription.cursor != self.feed.log.next:
                return False
            self.cursor = subscription.cursor
            self.vector = subscription.vector
        elif subscription.cursor != self.cursor:
            return False
        self.members[subscription] = subscription.outlet
        subscription.live = True
        # A live member's own vector means nothing; one shared by all costs an idle page nothing.
        subscription.vector = self.vector
        return True

    def part(self, subscription: Subscription) -> None:
        """Take a live member out; its cursor is where the members are."""
        del self.members[subscription]
        subscription.live = False
        subscription.cursor = self.cursor
        subscription.vector = self.vector

    def leave(self, subscription: Subscription) -> None:
        """Forget a subscription that ends."""
        self.members.pop(subscription, None)
        self.users -= 1
        if self.users == 0:
            self.feed.cohorts.pop(self.encoding, None)

    def position(self) -> Position:
        """Return the place up to which the members have everything."""
        if self.cursor == self.feed.log.next:
            return self.feed.position()
        return self.vector.position()

    # -- bytes ----------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether there is something that the members have not got."""
        return bool(self.members) and self.cursor != self.feed.log.next

    def flush(self, outlets: list[Outlet]) -> None:
        """Put the next chunk into every member's box, and those whose box was empty in a list."""
        data = self.take()
        if data is None:
            return
        for outlet in self.members.values():
            box = outlet.box
            if not box:
                outlets.append(outlet)
            box.append(data)

    def take(self) -> bytes | None:
        """Return the next chunk, which every member is about to get; None: there is none."""
        if not self.due:
            return None
        log = self.feed.log
        if self.cursor < log.base:
            # The node's bound took a burst's beginning before the tick: each is told the gap.
            for subscription in list(self.members):
                self.part(subscription)
                self.feed.ticker.chase(subscription)
            return None
        chunk = self.chunk(self.cursor, self.vector)
        stats = self.feed.ticker.stats
        stats.deliveries += len(self.members) * (chunk.end - self.cursor)
        self.cursor = chunk.end
        self.vector = chunk.after
        stats.bytes += len(self.members) * len(chunk.data)
        return chunk.data

    def encode(self, entries: Sequence[Entry], vector: Vector) -> tuple[int, Vector, bytes]:
        """Encode entries whose place before is `vector`, as many as fit into a write.

        Returns how many they are, the place after them, and the bytes.
        """
        ticker = self.feed.ticker
        stats = ticker.stats
        while True:
            after = vector.copy()
            after.bounds = self.feed.bounds
            data = self.encoding.encode(entries, after)
            stats.encodes += 1
            stats.encoded += len(entries)
            if len(data) <= ticker.chunk_bytes or len(entries) == 1:
                return len(entries), after, data
            # The wire form outgrew the estimate (base64, escapes): a write stays bounded.
            entries = entries[: len(entries) // 2]

    def chunk(self, seq: int, vector: Vector) -> Chunk:
        """Return the chunk that begins at seq, where the position is `vector`."""
        chunk = self._chunks.get(seq)
        if chunk is not None:
            return chunk
        entries, _ = self.feed.log.read(seq, self.feed.ticker.chunk_bytes)
        count, after, data = self.encode(entries, vector)
        chunk = Chunk(seq + count, after, data)
        if self.users > 1:
            self._keep(seq, chunk)
        return chunk

    def run(self, seq: int, vector: Vector) -> Chunk:
        """Return the chunk at seq together with the kept ones after it that fit into a write.

        Single messages' chunks, one a tick, would never let one who is behind catch up.
        """
        chunk = self.chunk(seq, vector)
        parts = [chunk.data]
        room = self.feed.ticker.chunk_bytes - len(chunk.data)
        while (following := self._chunks.get(chunk.end)) is not None:
            room -= len(following.data)
            if room < 0:
                break
            parts.append(following.data)
            chunk = following
        return chunk if len(parts) == 1 else chunk._replace(data=b"".join(parts))

    def widen(self, marks: Sequence[Mark]) -> None:
        """Begin at these marks in the lanes that the feed has got."""
        # A new vector: the old one may be a kept chunk's, or an earlier member's.
        self.vector = Vector([*self.vector.marks, *marks])
        for subscription in self.members:
            subscription.vector = self.vector
        self.forget_chunks()

    def forget_chunks(self) -> None:
        """Give the kept chunks' memory back."""
        self._chunks.clear()
        self._kept = 0

    def _keep(self, seq: int, chunk: Chunk) -> None:
        self._chunks[seq] = chunk
        self._kept += len(chunk.data)
        while self._kept > KEPT_BYTES and len(self._chunks) > 1:
            oldest = next(iter(self._chunks))
            self._kept -= len(self._chunks.pop(oldest).data)
