"""The binding of a rule's stream to its exchange, and what the stream missed without it.

RabbitMQ deletes the binding together with the exchange. The watch (exchange_watch.py) gives the
exchange an epoch; beside the stream, in an exchange bound to it, stands the epoch that it was
bound under. Where the two differ the stream has missed something: it is bound again, and a hole is
written into it (stream_holes.py). As both epochs are kept at the broker, that is noticed also when
the exchange was deleted while no gateway was running.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pika.exceptions

from ...errors import NotFound, Unavailable
from ...retention import RetainRule
from .connection import Link
from .exchange_watch import Following
from .failures import of_channel
from .identity import Identity
from .stream_holes import Holes, write_hole
from .streams import bind_stream, stream_name

if TYPE_CHECKING:
    from .retained import Retained

_ATTEMPTS = 5  # at writing an epoch, while other gateways do the same

log = logging.getLogger(__name__)


class BoundEpoch(Identity):
    """The exchange's epoch that a stream was bound under; it goes with the stream."""

    def __init__(self, stream: str) -> None:
        digest = hashlib.blake2b(stream.encode(), digest_size=6).hexdigest()
        super().__init__(f"queuecast.b.{digest}", f"the stream {stream!r}")
        self._stream = stream

    async def write(self, link: Link, epoch: str) -> None:
        """Write the epoch in place of another one; raises Refused, Unavailable."""
        for _ in range(_ATTEMPTS):
            replace = await self.declare(link, epoch) != epoch
            try:
                async with link.probe() as channel:
                    if replace:
                        await channel.call("exchange_delete", self.exchange)
                        continue
                    await channel.call("queue_bind", self._stream, self.exchange, "")
                    return
            except pika.exceptions.AMQPError as error:
                failure = of_channel(error)
                if not isinstance(failure, NotFound):
                    raise failure from None
            # Another gateway was writing at the same time.
        raise Unavailable(f"the epoch of {self.what} cannot be written")


class StreamBinding:
    """One rule's binding.

    marks: the exchange that leads to the stream alone. holes: those that were read in it. wake:
    called when the binding has to be looked after.
    """

    def __init__(
        self,
        owner: Retained,
        rule: RetainRule,
        marks: str,
        holes: Holes,
        wake: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._rule = rule
        self._marks = marks
        self._holes = holes
        self._wake = wake
        self._record = BoundEpoch(stream_name(rule))
        self._following: Following | None = None
        self._why = ""
        self._missed = ""  # a loss without an epoch: the name of its hole
        self._written = ""  # the epoch that is known to be recorded
        self.changed = False
        """The exchange was deleted since the last look: it may be of another type."""

    async def follow(self) -> None:
        """Watch the exchange, before the first binding; raises Unavailable."""
        if self._following is None:
            self._following = await self._owner.follow(
                self._rule.exchange, self._on_lost, self._on_lost
            )

    def _on_lost(self, why: str) -> None:
        self._why = why
        self.changed = True
        self._owner.topology.forget(self._rule.exchange)
        self._wake()

    def missing(self, last: int) -> None:
        """Note that the exchange is not there; last: the offset of the last message before."""
        # All gateways saw the same last message.
        self._missed = self._missed or f"m{last}"

    def forget(self) -> None:
        """The stream is another one: what is recorded beside it is not known."""
        self._written = self._missed = ""

    async def bind(self, link: Link) -> bool:
        """Have the stream bound; False when there is no such exchange.

        Writes a hole where the stream has missed messages. Raises Refused, Unavailable.
        """
        assert self._following is not None
        epoch = self._following.epoch
        if not await bind_stream(link, self._rule):
            return False
        if not epoch:
            if not self._following.is_blind:
                return True  # it is not watched, or the watch will call when it sees it again
            if self._missed:
                await self._hole(self._missed)
        elif epoch != self._written:
            recorded = await self._record.declare(link, epoch)
            if recorded != epoch:
                await self._hole(epoch)
            await self._record.write(link, epoch)
            self._written = epoch
        self._missed = self._why = ""
        return True

    async def _hole(self, name: str) -> None:
        exchange = self._rule.exchange
        if self._holes.has(name):
            return  # another gateway was faster
        why = self._why or f"the exchange {exchange!r} was deleted and declared again"
        log.warning("%s: the retained stream %s has a gap", why, stream_name(self._rule))
        patience = self._owner.patience
        await write_hole(self._owner.publishing, self._marks, name, why, patience)

    async def close(self) -> None:
        """End the watch."""
        if self._following is not None:
            await self._following.close()
