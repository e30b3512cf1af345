"""Faults of a cluster's nodes; at each moment at most one of them is away.

A node is killed, stands still for longer than the others wait for it, is held down for a share of
the run, all are restarted one after the other, and a node dies together with its gateway.
"""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

from tests.chaos.diary import Diary
from tests.chaos.schedule import Fault
from tests.chaos.site import Act, Killable

SIZE = 3


class Members(Protocol):
    """A cluster's nodes by number, 0 to SIZE - 1. All calls block."""

    def kill(self, number: int) -> None:
        """Kill a node with SIGKILL, also a frozen one."""

    def stop(self, number: int) -> None:
        """Stop a node as an operator would."""

    def start(self, number: int) -> None:
        """Start a node and return when it is in the cluster again."""

    def freeze(self, number: int) -> None:
        """Have a node stand still."""

    def thaw(self, number: int) -> None:
        """Let it go on; return when it is in the cluster again, killed for it if need be."""


class MemberFaults:
    """The acts. held: seconds that a node is held down; gateways: by the number of the node that
    each prefers."""

    def __init__(
        self, members: Members, diary: Diary, gateways: list[Killable], held: float
    ) -> None:
        self._members = members
        self._diary = diary
        self._gateways = gateways
        self._held = held

    def acts(self) -> dict[str, Act]:
        return {
            "kill member": self._kill,
            "hold member": self._hold,
            "freeze member": self._freeze,
            "restart members": self._restart,
            "kill both": self._kill_both,
        }

    async def _kill(self, fault: Fault, chance: random.Random) -> None:
        await self._down(fault, chance.randrange(SIZE), fault.length)

    async def _hold(self, fault: Fault, chance: random.Random) -> None:
        await self._down(fault, chance.randrange(SIZE), self._held)

    async def _down(self, fault: Fault, number: int, seconds: float) -> None:
        with self._diary.during(fault.kind):
            await asyncio.to_thread(self._members.kill, number)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self._members.start, number)

    async def _freeze(self, fault: Fault, chance: random.Random) -> None:
        number = chance.randrange(SIZE)
        with self._diary.during(fault.kind):
            await asyncio.to_thread(self._members.freeze, number)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._members.thaw, number)

    async def _restart(self, fault: Fault, chance: random.Random) -> None:
        with self._diary.during(fault.kind):
            for number in chance.sample(range(SIZE), SIZE):
                await asyncio.to_thread(self._members.stop, number)
                await asyncio.sleep(fault.length)
                await asyncio.to_thread(self._members.start, number)

    async def _kill_both(self, fault: Fault, chance: random.Random) -> None:
        """Kill a gateway and the node it prefers; the gateway returns before the node does."""
        gateway = self._gateways[fault.node]
        with self._diary.during(fault.kind):
            await asyncio.gather(
                asyncio.to_thread(gateway.kill),
                asyncio.to_thread(self._members.kill, fault.node),
            )
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(gateway.start)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._members.start, fault.node)
