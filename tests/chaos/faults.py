"""The faults of gateways, connections and clients; those of a broker are its site's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from tests.chaos.clients import Client, Worker
from tests.chaos.nodes import House, some
from tests.chaos.schedule import Fault
from tests.support.proxy import TcpProxy


class Faults:
    """Does what a schedule says, and enters it in the site's diary."""

    def __init__(self, house: House, clients: Sequence[Client], workers: Sequence[Worker]) -> None:
        self._house = house
        self._clients = clients
        self._everybody = [*clients, *workers]
        self._diary = house.site.diary

    async def do(self, fault: Fault) -> None:
        """Do a fault; return when what it broke is whole again."""
        chance = random.Random(fault.seed)
        act = self._house.site.acts.get(fault.kind)
        if act is not None:
            await act(fault, chance)
            return
        verb, _, whom = fault.kind.partition(" ")
        match verb:
            case "kill":
                await self._kill(fault)
            case "cut" | "fin":
                self._end(fault, self._proxies(whom), chance, reset=verb == "cut")
            case "stall":
                proxies = self._proxies(whom)
                await asyncio.gather(*(self._stall(fault, proxy) for proxy in proxies))
            case "stop":
                await self._stop_reading(fault, chance)
            case "leave":
                self._leave(fault, chance)
            case _:
                raise ValueError(f"an unknown fault: {fault.kind}")

    def _proxies(self, whom: str) -> Sequence[TcpProxy]:
        return (self._house.web,) if whom == "clients" else self._house.site.links

    async def _kill(self, fault: Fault) -> None:
        gateway = self._house.gateways[fault.node]
        if not gateway.running:
            return
        with self._diary.during(fault.kind):
            await asyncio.to_thread(gateway.kill)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(gateway.start)

    def _end(
        self, fault: Fault, proxies: Sequence[TcpProxy], chance: random.Random, *, reset: bool
    ) -> None:
        self._diary.note(fault.kind)
        for proxy in proxies:
            for end in some(proxy, fault.share, chance):
                if reset:
                    end.reset()
                else:
                    end.finish()

    async def _stall(self, fault: Fault, proxy: TcpProxy) -> None:
        if proxy.stalled:
            return
        with self._diary.during(fault.kind):
            proxy.stall()
            try:
                await asyncio.sleep(fault.length)
            finally:
                proxy.unstall()

    async def _stop_reading(self, fault: Fault, chance: random.Random) -> None:
        readers = [each for each in self._clients if chance.random() < fault.share]
        with self._diary.during(fault.kind):
            await asyncio.gather(*(each.stop_reading(fault.length) for each in readers))

    def _leave(self, fault: Fault, chance: random.Random) -> None:
        self._diary.note(fault.kind)
        for each in self._everybody:
            if chance.random() < fault.share:
                each.leave(chance.uniform(0.5, fault.length + 0.5))
