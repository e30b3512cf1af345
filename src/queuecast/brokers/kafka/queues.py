"""The node's consumer groups: one for each topic that is consumed here."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict

from ...delivery import Consumer, DeliverySink
from ...destination import Destination
from ...errors import LimitExceeded, Unavailable
from .control import Control
from .group import Group
from .names import queue_target
from .takeover import Known

# Seconds for which an answer waits for the group: until the others have noticed a new member, or
# that an old one is dead. After that records come when they come.
_PATIENCE = 15.0
# Groups at a time; each is a connection. It stops a client that consumes ever other topics.
MAX_GROUPS = 1000


class Queues:
    """Finds or joins a topic's group. prefix: of the groups' names."""

    def __init__(self, control: Control, prefix: str) -> None:
        self._control = control
        self._prefix = prefix
        self._groups: dict[str, Group] = {}
        # What this node knew when it last left a group, by group and partition.
        self._memory: OrderedDict[str, dict[int, Known]] = OrderedDict()
        self._owner = secrets.token_hex(4)
        self._closed = False

    @property
    def trouble(self) -> str:
        """What is the matter with one of the groups, "" if nothing is."""
        return next((group.trouble for group in self._groups.values() if group.trouble), "")

    async def open(self, destination: Destination, sink: DeliverySink, prefetch: int) -> Consumer:
        """Join, and return once this node is a member; see the broker interface."""
        target = queue_target(destination)
        topic = await self._control.topic(target.topic, create=target.create)
        name = f"{self._prefix}.{topic.name}"
        # Asked for here, because a member learns of a refusal only by and by.
        await self._control.committed(name, topic.name, [0])
        if self._closed:
            raise Unavailable("the gateway is closing its connection to Kafka")
        while (group := self._groups.get(name)) is not None and group.closed:
            await group.close()  # what it knew is committed then, and it has left
            if self._groups.get(name) is group:
                del self._groups[name]
        if group is None:
            self._groups = {key: each for key, each in self._groups.items() if not each.ended}
            if len(self._groups) >= MAX_GROUPS:
                raise LimitExceeded(f"{MAX_GROUPS} topics are consumed already")
            group = self._groups[name] = Group(
                self._control, topic, name, self._owner, self._remembered(name)
            )
        return await group.join(sink, prefetch, _PATIENCE)

    def _remembered(self, name: str) -> dict[int, Known]:
        """Return what a group may remember, and be remembered for."""
        memory = self._memory.setdefault(name, {})
        self._memory.move_to_end(name)
        while len(self._memory) > 2 * MAX_GROUPS:  # clients choose topics
            self._memory.popitem(last=False)
        return memory

    async def close(self) -> None:
        """Commit and leave all groups."""
        self._closed = True
        await asyncio.gather(*(group.close() for group in list(self._groups.values())))
