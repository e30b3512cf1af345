"""The queues that one STOMP session has declared, and what it may do with them.

Each is declared once in a session, as RabbitMQ does it: a later frame with other properties
changes nothing. Exclusive ones end with the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..auth.policy import Verb
from ..destination import Destination, Kind
from ..errors import Refused
from ..queuespec import Owner, QueueSpec
from .stomp_queues import dead_letter_targets

if TYPE_CHECKING:
    from .stomp import StompSession

# Names that are remembered; a client that makes up ever new ones must not grow memory. One that
# was forgotten is declared again.
MAX_DECLARED = 1000


class OwnQueues:
    """One session's queues. owner: whose the exclusive ones are at the broker."""

    __slots__ = ("_declared", "_session", "_used", "owner")

    def __init__(self, session: StompSession) -> None:
        self.owner = Owner()
        self._session = session
        # How each /queue/N was declared first: None as always. Bounded by MAX_DECLARED.
        self._declared: dict[str, QueueSpec | None] = {}
        self._used = False

    def first(self, destination: Destination, queue: QueueSpec | None) -> QueueSpec | None:
        """Return how a destination's queue is declared: as it was first, else as now."""
        if destination.kind is not Kind.QUEUE:
            return queue
        return self._declared.get(destination.name, queue)

    def knows(self, destination: Destination) -> bool:
        """Tell whether this session has declared a queue."""
        return destination.name in self._declared

    def note(self, destination: Destination, queue: QueueSpec | None) -> None:
        """Remember that /queue/N was declared."""
        if destination.kind is not Kind.QUEUE or destination.name in self._declared:
            return
        if len(self._declared) >= MAX_DECLARED:
            del self._declared[next(iter(self._declared))]
        self._declared[destination.name] = queue

    def check(self, queue: QueueSpec, *, named: bool = False) -> None:
        """Ask the policy what a queue lets its session do; raises Refused.

        named: the client chose the name, which may be anybody's queue.
        """
        if named:
            self._allow_any("subscribe", _names(queue.name))
        targets = dead_letter_targets(queue)
        if targets:
            self._allow_any("publish", targets)

    def _allow_any(self, verb: Verb, destinations: tuple[Destination, ...]) -> None:
        session = self._session
        for destination in destinations[1:]:
            try:
                session.services.allow(session.identity, verb, destination)
            except Refused:
                continue
            return
        session.services.allow(session.identity, verb, destinations[0])

    async def declare(self, destination: Destination, queue: QueueSpec) -> None:
        """Declare /queue/N as its first frame wants it; raises as Broker.declare_own."""
        self._used = True
        await self._session.services.queues.declare_own(queue, self.owner)
        self.note(destination, queue)

    async def delete(self, name: str) -> None:
        """Delete a durable subscription's queue; raises as Broker.delete_own."""
        await self._session.services.queues.delete_own(name, self.owner)

    def use(self, queue: QueueSpec | None) -> None:
        """A consumer declares this queue."""
        self._used = self._used or queue is not None

    def release(self) -> None:
        """The session is over: what is exclusive to it goes."""
        self._declared.clear()
        self.owner.gone = True
        if self._used:
            services = self._session.services
            services.runtime.spawn(services.queues.release(self.owner), "delete exclusive queues")


def _names(queue: str) -> tuple[Destination, ...]:
    return (Destination(Kind.QUEUE, queue), Destination(Kind.AMQ_QUEUE, queue))
