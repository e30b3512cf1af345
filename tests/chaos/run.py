"""A run: everything started, the schedule carried out, peace, the verdict."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.clients import Seen
from tests.chaos.clock import now
from tests.chaos.crowd import make_clients, make_workers
from tests.chaos.faults import Faults
from tests.chaos.nodes import House, house
from tests.chaos.schedule import GROUPS, Fault, choose_kinds, make_schedule
from tests.chaos.site import Site
from tests.chaos.sources import KEPT, WORK
from tests.chaos.verdict import (
    Verdict,
    judge_delay,
    judge_gaps,
    judge_kept,
    judge_live,
    judge_publishing,
    judge_refusals,
    judge_same,
    judge_work,
)

# Seconds that everybody has, after the last fault, to come to the same end.
SETTLE = 180.0

Say = Callable[[str], None]


class Run:
    """One run over a house that stands."""

    def __init__(self, made: House, seed: int, clients: int, say: Say, interval: float) -> None:
        self.house = made
        self.say = say
        self.sources = made.site.sources
        self.workers = make_workers(max(4, clients // 5), seed, made)
        self.clients = make_clients(clients - len(self.workers), seed, made)
        self.publishers = [made.site.publisher(each, made.url, interval) for each in self.sources]
        self._faults = Faults(made, self.clients, self.workers)
        self._start = now()

    async def carry_out(self, schedule: list[Fault]) -> Verdict:
        """Do all of it; raises what a publisher or client fails with."""
        async with asyncio.TaskGroup() as group:
            visits = [group.create_task(each.run()) for each in [*self.clients, *self.workers]]
            visits += [group.create_task(each.keep()) for each in self.house.gateways]
            await self._all_there()
            publishing = [group.create_task(each.run()) for each in self.publishers]
            self._start = now()
            await self._break(schedule)
            settled = await self._settle(publishing)
            for visit in visits:
                visit.cancel()
        return self._judge(settled)

    async def _all_there(self) -> None:
        deadline = now() + SETTLE
        everybody = [*self.clients, *self.workers]
        if not await self._until(lambda: all(each.gateway for each in everybody), deadline):
            out = [(each.name, *each.trouble) for each in everybody if not each.gateway]
            raise RuntimeError(f"not everybody was let in: {out[:5]}")
        # Granted is not yet subscribed, for STOMP: an unretained client may begin a little late.

    async def _break(self, schedule: list[Fault]) -> None:
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                await asyncio.sleep(self._start + fault.at - now())
                self.say(f"{fault}")
                group.create_task(self._faults.do(fault))

    # -- the end --------------------------------------------------------------------------

    async def _settle(self, publishing: list[asyncio.Task[None]]) -> bool:
        """Wait until all have what there is; tell whether they did in time."""
        self.say("peace")
        deadline = now() + SETTLE
        there = await self.house.ready()
        # First everybody sees something that was published after the last fault …
        marks = {source.key: source.confirmed + 1 for source in self.sources}
        there &= await self._until(lambda: not self._behind(marks), deadline)
        # … then the very last of it.
        for publisher in self.publishers:
            publisher.stop()
        await asyncio.wait(publishing, timeout=max(1.0, deadline - now()))
        there &= all(each.done() for each in publishing)
        ends = {source.key: source.confirmed for source in self.sources}
        there &= await self._until(lambda: not self._behind(ends), deadline)
        there &= await self._until(lambda: not self._unacked(), deadline)
        if not there:
            for task in publishing:
                task.cancel()
        # What nobody should get comes now, if it comes.
        await asyncio.sleep(2)
        return there

    def _behind(self, marks: dict[str, int]) -> list[str]:
        return [
            each.name
            for each in self.clients
            for source in self.sources
            if any(source.reaches(destination) for destination in each.destinations)
            and each.last.get(source.key, 0) < marks[source.key]
        ]

    def _stragglers(self) -> list[str]:
        """Say of those who did not come to the end where they are, and what befell them last."""
        behind = set(self._behind({source.key: source.confirmed for source in self.sources}))
        return [
            f"{each.name} is at {each.place or 'no place'} on {each.gateway or 'no gateway'} after "
            f"{each.conversations} conversations, the last answer at {each.heard:.2f}: "
            f"{list(each.trouble)}"
            for each in self.clients
            if each.name in behind
        ][:10]

    def _unacked(self) -> bool:
        acked: set[tuple[str, int]] = set()
        for worker in self.workers:
            acked |= worker.acked.keys()
        return any(
            (source.key, number) not in acked
            and not self.house.site.diary.destroyed(source, number)
            for source in self.sources
            if source.kind == WORK
            for number in range(1, source.confirmed + 1)
        )

    @staticmethod
    async def _until(condition: Callable[[], bool], deadline: float) -> bool:
        while not condition():
            if now() > deadline:
                return False
            await asyncio.sleep(0.25)
        return True

    def _judge(self, settled: bool) -> Verdict:
        verdict = Verdict()
        site, diary = self.house.site, self.house.site.diary
        sources = {source.key: source for source in self.sources}
        if not settled:
            verdict.failures.append(f"not everybody came to the end within {SETTLE:g} s of peace")
            verdict.failures += self._stragglers()
        for client in self.clients:
            if client.kind == KEPT:
                judge_kept(client, sources, diary, verdict)
            else:
                judge_live(client, sources, verdict)
                judge_gaps(client, sources, diary, verdict, never=site.keeps_all)
            judge_delay(client, sources, diary, verdict, fail=site.majority)
        kept = [client for client in self.clients if client.kind == KEPT]
        judge_same(kept, sources, diary, verdict)
        judge_work(self.workers, self.sources, diary, verdict, site.unmarked)
        for visitor in [*self.clients, *self.workers]:
            judge_refusals(visitor, sources, diary, verdict)
        for gateway in self.house.gateways:
            verdict.failures += [f"{gateway.name} ended by itself {end}" for end in gateway.ends]
        for source in self.sources:
            judge_publishing(source, diary, verdict, acks=site.majority)
        self._count(verdict.counts)
        return verdict

    def _count(self, counts: Counter[str]) -> None:
        counts["messages"] = sum(source.confirmed for source in self.sources)
        counts["numbers of unknown outcome"] = sum(len(each.copies) for each in self.sources)
        counts["publishes that were refused and said again"] = sum(
            source.refused for source in self.sources
        )
        counts["deliveries"] = sum(
            isinstance(each, Seen) for client in self.clients for each in client.record
        ) + sum(len(worker.deliveries) for worker in self.workers)
        counts["returns that workers were told of"] = sum(each.returned for each in self.workers)
        counts["conversations"] = sum(each.conversations for each in [*self.clients, *self.workers])
        counts.update(f"fault: {event.kind}" for event in self.house.site.diary.events)


async def chaos(
    site: Site,
    *,
    seed: int,
    duration: float,
    clients: int,
    interval: float = 0.2,
    faults: Iterable[str] = GROUPS,
    logs: Path | None = None,
    say: Say,
) -> Verdict:
    """Run it at a site whose broker runs.

    duration: seconds of faults; interval: seconds between a publisher's messages; faults: the
    groups of schedule.GROUPS to take them from; logs: a folder for those of the gateways.
    """
    say(f"seed {seed}, {duration:g} s, {clients} clients")
    # Publishers beside the gateways have a thread each; on few cores the default has no more.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    async with house(site) as made:
        kinds = choose_kinds(site.possible, faults)
        schedule = make_schedule(seed, duration, nodes=len(made.gateways), kinds=kinds)
        run = Run(made, seed, clients, say, interval)
        try:
            verdict = await run.carry_out(schedule)
        finally:
            say(_errors(made))
            if logs is not None:
                await asyncio.to_thread(_keep, made, logs)
        if verdict.failures:
            verdict.failures.append(f"replay with --seed {seed}")
        return verdict


def _keep(made: House, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for gateway in made.gateways:
        shutil.copy(gateway.log, logs)


def _errors(made: House) -> str:
    """The errors in the gateways' logs, which a person should look at."""
    found: list[str] = []
    for gateway in made.gateways:
        lines = gateway.log.read_text(errors="replace").splitlines()
        bad = [line for line in lines if "Traceback" in line or "ERROR" in line]
        found += [f"[{gateway.name}] {line}" for line in bad[-20:]]
    return "\n".join(found)
