"""A run: everything started, the schedule carried out, peace, the verdict."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos import transports
from tests.chaos.clients import Client, Seen, Transport, Worker
from tests.chaos.clock import now
from tests.chaos.kafka import UNMARKED
from tests.chaos.nodes import House, Server, house, some
from tests.chaos.publishers import Publisher, make_publisher
from tests.chaos.schedule import Fault, make_schedule
from tests.chaos.sources import KEPT, LIVE, WORK, Source
from tests.chaos.verdict import (
    Verdict,
    judge_gaps,
    judge_kept,
    judge_live,
    judge_same,
    judge_work,
)
from tests.support.kafka import KafkaServer

# Seconds that everybody has, after the last fault, to come to the same end.
SETTLE = 180.0

Say = Callable[[str], None]

_SINGLE: dict[str, list[Transport]] = {
    "sse": [transports.sse],
    "websocket": [transports.websocket],
    "poll": [transports.poll],
    "stomp": [transports.stomp],
    "sockjs": [transports.sockjs],
    "hopper": [
        transports.sse,
        transports.websocket,
        transports.poll,
        transports.stomp,
        transports.sockjs,
    ],
}


def make_clients(count: int, seed: int, made: House, sources: list[Source]) -> list[Client]:
    """Return feed clients: kinds, transports and destinations in turn, large messages rarer."""
    clients: list[Client] = []
    names = [*_SINGLE, "several"]
    for number in range(count):
        kind = (KEPT, KEPT, LIVE)[number % 3]
        name = names[number // 3 % len(names)]
        choices, pair = made.destinations(kind)
        if name == "several":
            # One composite position, on the transports that have them.
            destinations, ways = pair, [transports.sse]
        else:
            destinations, ways = [choices[number // 3 // 2 % len(choices)]], _SINGLE[name]
        label = f"{number}-{name}-{'+'.join(destinations)}"
        clients.append(
            Client(
                label,
                made.url,
                made.web.gateway_of,
                f"{seed}-{number}",
                kind,
                destinations,
                ways,
            )
        )
    return clients


def make_workers(count: int, seed: int, made: House, sources: list[Source]) -> list[Worker]:
    queues = [source.queue for source in sources if source.kind == WORK]
    ways = [transports.websocket_work, transports.stomp_work]
    return [
        Worker(
            f"worker-{number}-{ways[number // 2 % 2].__name__}",
            made.url,
            made.web.gateway_of,
            f"{seed}-w{number}",
            queues[number % 2],
            ways[number // 2 % 2],
        )
        for number in range(count)
    ]


class Run:
    """One run over a house that stands."""

    def __init__(self, made: House, seed: int, clients: int, say: Say, interval: float) -> None:
        self.house = made
        self.say = say
        self.sources = made.sources()
        self.workers = make_workers(max(4, clients // 5), seed, made, self.sources)
        self.clients = make_clients(clients - len(self.workers), seed, made, self.sources)
        self.publishers: list[Publisher] = [
            make_publisher(source, made.url, made.broker, interval) for source in self.sources
        ]
        # What was done to whom, and when.
        self.faults: list[tuple[float, str]] = []
        self._start = now()
        # Held while the broker is down.
        self._broker = asyncio.Lock()

    async def carry_out(self, schedule: list[Fault]) -> Verdict:
        """Do all of it; raises what a publisher or client fails with."""
        async with asyncio.TaskGroup() as group:
            visits = [group.create_task(each.run()) for each in [*self.clients, *self.workers]]
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

    # -- the faults -----------------------------------------------------------------------

    async def _break(self, schedule: list[Fault]) -> None:
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                await asyncio.sleep(self._start + fault.at - now())
                self.say(f"{fault}")
                group.create_task(self._do(fault))

    async def _do(self, fault: Fault) -> None:
        web, link, server = self.house.web, self.house.link, self.house.server
        chance = random.Random(fault.seed)
        began = now()
        match fault.kind:
            case "kill node":
                gateway = self.house.gateways[fault.node]
                if not gateway.running:
                    return
                await asyncio.to_thread(gateway.kill)
                await asyncio.sleep(fault.length)
                await asyncio.to_thread(gateway.start)
            case "kill broker":
                assert server is not None
                if self._broker.locked():
                    return
                async with self._broker:
                    await asyncio.to_thread(server.kill)
                    await asyncio.sleep(fault.length)
                    await asyncio.to_thread(server.start)
                self.faults.append((now(), "kill broker"))
            case "cut clients":
                for end in some(web, fault.share, chance):
                    end.reset()
            case "cut broker":
                assert link is not None
                for end in some(link, fault.share, chance):
                    end.reset()
            case "fin clients":
                for end in some(web, fault.share, chance):
                    end.finish()
            case "fin broker":
                assert link is not None
                for end in some(link, fault.share, chance):
                    end.finish()
            case "stall clients" | "stall broker":
                proxy = web if fault.kind == "stall clients" else link
                assert proxy is not None
                if proxy.stalled:
                    return
                proxy.stall()
                try:
                    await asyncio.sleep(fault.length)
                finally:
                    proxy.unstall()
            case "stop reading":
                readers = [each for each in self.clients if chance.random() < fault.share]
                await asyncio.gather(*(each.stop_reading(fault.length) for each in readers))
            case "leave":
                for each in [*self.clients, *self.workers]:
                    if chance.random() < fault.share:
                        each.leave(chance.uniform(0.5, fault.length + 0.5))
        self.faults.append((began, fault.kind))

    # -- the end --------------------------------------------------------------------------

    async def _settle(self, publishing: list[asyncio.Task[None]]) -> bool:
        """Wait until all have what there is; tell whether they did in time."""
        self.say("peace")
        deadline = now() + SETTLE
        await self.house.ready()
        # First everybody sees something that was published after the last fault …
        marks = {source.key: source.confirmed + 1 for source in self.sources}
        there = await self._until(lambda: not self._behind(marks), deadline)
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
        sources = {source.key: source for source in self.sources}
        if not settled:
            verdict.failures.append(f"not everybody came to the end within {SETTLE:g} s of peace")
            verdict.failures += self._stragglers()
        kafka = isinstance(self.house.server, KafkaServer)
        for client in self.clients:
            if client.kind == KEPT:
                judge_kept(client, sources, verdict)
            else:
                judge_live(client, sources, verdict)
                judge_gaps(client, self.faults, verdict, never=kafka)
        kept = [client for client in self.clients if client.kind == KEPT]
        judge_same(kept, sources, verdict)
        unmarked = UNMARKED if kafka else ("kill broker",)
        judge_work(self.workers, self.sources, self.faults, verdict, unmarked)
        for visitor in [*self.clients, *self.workers]:
            verdict.failures += [f"{visitor.name}: refused {text}" for text in visitor.refusals]
        counts = verdict.counts
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
        # A killed broker stands there twice, for its end and its return.
        kinds = Counter(kind for _, kind in self.faults)
        kinds["kill broker"] //= 2
        counts.update({f"fault: {kind}": count for kind, count in kinds.items() if count})
        return verdict


async def chaos(
    server: Server | None,
    *,
    seed: int,
    duration: float,
    clients: int,
    say: Say,
    interval: float = 0.2,
    logs: Path | None = None,
) -> Verdict:
    """Run the chaos test and return its verdict.

    server: a RabbitMQ or Kafka of one's own that runs, None for the durable embedded broker.
    duration: seconds of faults; interval: seconds between a publisher's messages; logs: a folder
    for those of the gateways.
    """
    say(f"seed {seed}, {duration:g} s, {clients} clients")
    # Publishers beside the gateways have a thread each; on few cores the default has no more.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    async with house(server) as made:
        schedule = make_schedule(seed, duration, nodes=len(made.gateways), apart=server is not None)
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
