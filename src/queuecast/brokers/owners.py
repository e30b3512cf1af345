"""Exclusive queues on a shared broker connection, and whose they are.

AMQP ties an exclusive queue to a connection (0-9-1 section 3.1.4). Sessions share connections, so
the lock is kept here as well: each exclusive queue belongs to the one session that declared it.
"""

from __future__ import annotations

from ..errors import Locked
from ..queuespec import Owner


class Owners:
    """Who owns which exclusive queue; bounded by what sessions may declare."""

    def __init__(self) -> None:
        self._of: dict[str, Owner] = {}

    def check(self, name: str, owner: Owner | None) -> None:
        """Return if this owner may use the queue; raises Locked."""
        if self._of.get(name, owner) is not owner:
            raise Locked(f"queue {name!r} is exclusive to another session")

    def knows(self, name: str) -> bool:
        """Tell whether the queue is somebody's alone."""
        return name in self._of

    def take(self, name: str, owner: Owner | None) -> None:
        """Make the queue this owner's alone; an ownerless one is nobody's to lock."""
        self.check(name, owner)
        if owner is not None:
            self._of[name] = owner

    def drop(self, name: str) -> None:
        """The queue is gone."""
        self._of.pop(name, None)

    def held(self, owner: Owner) -> list[str]:
        """Return the names of an owner's queues."""
        return [name for name, each in self._of.items() if each is owner]

    def clear(self) -> None:
        """All are gone: their connection was lost."""
        self._of.clear()
