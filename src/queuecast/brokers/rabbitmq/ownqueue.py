"""A consumer's own queue: declared and bound for it, and found again after a lost connection.

All of it goes over the consuming connection: exclusive queues are that connection's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ...errors import Locked, NotFound, Unavailable, Unsupported
from ...pattern import is_pattern
from ...queuespec import Owner, QueueSpec, Timestamp, read_age
from ..owners import Owners
from .connection import Link
from .supervisor import Supervisor
from .topology import (
    Topology,
    bind_queue,
    check_queue,
    declare_queue,
    delete_queue,
    try_delete_queue,
)


class OwnQueues:
    """The queues that sessions declared for themselves, and whose the exclusive ones are.

    patience: seconds that a call waits for a broker that is away.
    """

    def __init__(self, supervisor: Supervisor, topology: Topology, *, patience: float) -> None:
        self._supervisor = supervisor
        self._topology = topology
        self._patience = patience
        self.owners = Owners()

    def on_down(self) -> None:
        """The connection is gone, and all exclusive queues with it."""
        self.owners.clear()

    async def declare(self, queue: QueueSpec, owner: Owner) -> None:
        """Declare a session's queue; see the broker interface."""
        link = await self._supervisor.wait(self._patience)
        await OwnQueue(queue, owner, self.owners, self._topology).ensure(link)

    async def delete(self, name: str, owner: Owner) -> None:
        """Delete a queue; see the broker interface."""
        link = await self._supervisor.wait(self._patience)
        await check_owner(link, name, owner, self.owners)
        await delete_queue(link, name)
        self.owners.drop(name)

    async def release(self, owner: Owner) -> None:
        """Delete an owner's exclusive queues: the broker would keep them for our connection."""
        owner.gone = True
        link = self._supervisor.link
        for name in self.owners.held(owner):
            if link is not None and link.is_open:
                await try_delete_queue(link, name)
            self.owners.drop(name)


class OwnQueue:
    """One queue as one session wants it."""

    def __init__(
        self, spec: QueueSpec, owner: Owner | None, owners: Owners, topology: Topology
    ) -> None:
        self.spec = spec
        self._topology = topology
        self._owner = owner
        self._owners = owners

    async def ensure(self, link: Link) -> bool:
        """Declare and bind; returns whether it had to be made.

        Raises BadRequest (also for a binding that never matches), Conflict, Locked, Refused,
        NotFound (an exchange), Unavailable.
        """
        spec = self.spec
        if not spec.durable and not spec.exclusive:
            # RabbitMQ 4 may close the connection, which others share, over such a one.
            raise Unsupported(
                f"queue {spec.name!r}: transient and shared", "make it durable or exclusive"
            )
        read_age(spec)
        for binding in spec.bindings:
            if is_pattern(binding.key):
                # All others RabbitMQ checks by itself, which spares asking for the type.
                await self._topology.check_binding(link, binding.exchange, binding.key)
        await check_owner(link, spec.name, self._owner, self._owners)
        missing = False
        try:
            await check_queue(link, spec.name)
        except NotFound:
            missing = True
        try:
            await declare_queue(link, spec)
            self._owners.check(spec.name, self._owner)
            if self._owner is not None and self._owner.gone:
                raise Unavailable("the session is over")
        except BaseException:
            if missing:
                # Declared perhaps, but not bound, or nobody is there any more to delete it.
                await try_delete_queue(link, spec.name, if_unused=True)
            raise
        if spec.exclusive:
            self._owners.take(spec.name, self._owner)
        return missing

    async def bind(self, link: Link) -> None:
        """Bind again what is bound already or was lost; raises NotFound (an exchange), Refused."""
        await bind_queue(link, self.spec)

    async def discard(self, link: Link) -> None:
        """Delete what was made for a consumer that could not be opened."""
        await try_delete_queue(link, self.spec.name, if_unused=True)
        self._owners.drop(self.spec.name)


async def check_owner(link: Link, name: str, owner: Owner | None, owners: Owners) -> None:
    """Return if this owner may use a queue; raises Locked, Unavailable."""
    try:
        owners.check(name, owner)
    except Locked:
        # With auto-delete it may have gone since, with its last consumer.
        try:
            await check_queue(link, name)
        except NotFound:
            owners.drop(name)
            return
        raise


def field_table(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a consumer's arguments as pika writes them."""
    return {
        name: datetime.fromtimestamp(value.seconds, UTC) if isinstance(value, Timestamp) else value
        for name, value in arguments.items()
    }
