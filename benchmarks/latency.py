"""Latency: from publish to receipt at modest fixed rates, the receiver's own turn included.

The last of a thousand subscribers waits for 999 others to be written and read. That is the same
for everybody; what the gateway adds is the difference. Beside the null server both publish in
their own process; beside peers that take POSTs both are published to with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from .bench import Bench
from .child import Child
from .crowd import Crowd
from .figures import Row
from .latencies import Latency
from .peers import FAULTS, Peer, available, failed, gateway
from .rig import SERVERS, Rig
from .wire import WIRES

_WARM_UP = 20
# Messages of a run, however slow.
_FEWEST = 5
# Messages/s at which Nchan's latency is the goal.
_GOAL_AT = 100.0
# SockJS is STOMP in JSON; the rest of its way is the same.
_WIRES = ("ws", "sse", "stomp")


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every transport; raises BenchmarkError unless everything arrived in order."""
    plan = bench.plan
    wires = [wire for wire in _WIRES if wire in plan.wires] or list(plan.wires)
    with Rig(SERVERS[0]) as null, Rig(SERVERS[1]) as ours:
        for wire in wires:
            bench.report(f"latency, {WIRES[wire].title}")
            pair = (null, ours)
            for rig in pair:
                rig.open(wire, plan.subscribers)
            for rate in plan.rates:
                messages = max(_FEWEST, int(rate * plan.paced))
                # In turns, as the fan-out; the medians of the rounds.
                rounds = [
                    [rig.latency(rate, messages, plan.size) for rig in pair]
                    for _ in range(plan.rounds)
                ]
                of_null, of_ours = (_median([each[side] for each in rounds]) for side in (0, 1))
                yield from _rows(bench, rate, wire, "null server", of_null, of_ours)
            for rig in pair:
                rig.close()
    for peer in available(bench):
        if peer.publisher == "http" and peer.wire.partition("-")[0] in wires:
            yield from _beside(bench, peer)


class _Posted:
    """A server with its subscribers and its publisher of POSTs."""

    def __init__(self, stack: ExitStack, port: int, wire: str, dialect: str, count: int) -> None:
        self._crowd = stack.enter_context(Crowd())
        self._publisher = stack.enter_context(Child("http_publisher", str(port), dialect))
        self._publisher.answer()
        self._crowd.open(port, wire, count)

    def latency(self, rate: float, messages: int, size: int) -> Latency:
        self._crowd.begin(stamped=True)
        self._publisher.do("pace", rate=rate, messages=messages, size=size)
        latency = self._crowd.finish(messages, messages).latency
        assert latency is not None
        return latency


def _beside(bench: Bench, peer: Peer) -> Iterator[Row]:
    """Measure a peer that is published to with POST, and the gateway in turns with it."""
    plan = bench.plan
    wire = peer.wire.partition("-")[0]
    count = plan.subscribers
    bench.report(f"latency, {WIRES[wire].title}, beside {peer.name}")
    with ExitStack() as stack:
        ours = _Posted(stack, stack.enter_context(gateway()), wire, "queuecast", count)
        try:
            port = stack.enter_context(peer.start(bench))
            theirs = _Posted(stack, port, peer.wire, peer.dialect, count)
        except FAULTS as error:
            failed(bench, peer, error)
            return
        for rate in plan.rates:
            messages = max(_FEWEST, int(rate * plan.paced))
            rounds: list[tuple[Latency, Latency]] = []
            # The first round is a short one, so that what happens once is not measured.
            for number in (min(messages, _WARM_UP), *[messages] * plan.rounds):
                try:
                    of_theirs = theirs.latency(rate, number, plan.size)
                except FAULTS as error:
                    failed(bench, peer, error, f"latency at {rate:g} messages/s")
                    return
                rounds.append((of_theirs, ours.latency(rate, number, plan.size)))
            del rounds[0]
            medians = [_median([each[side] for each in rounds]) for side in (0, 1)]
            yield from _rows(bench, rate, wire, f"{peer.name}, both by POST", *medians)


def _rows(
    bench: Bench, rate: float, wire: str, beside: str, theirs: Latency, ours: Latency
) -> Iterator[Row]:
    asked = beside.startswith("Nchan") and rate == _GOAL_AT
    for name, of_theirs, of_ours in (
        ("p50", theirs.p50, ours.p50),
        ("p99", theirs.p99, ours.p99),
        ("p99.9", theirs.p999, ours.p999),
    ):
        yield Row(
            "latency",
            f"{bench.plan.subscribers:,} subscribers, {rate:g} messages/s: {name}",
            WIRES[wire].title,
            "ms",
            beside,
            of_theirs * 1e3,
            of_ours * 1e3,
            cost=True,
            goal=1.0 if asked and name != "p99.9" else None,
        )


def _median(runs: list[Latency]) -> Latency:
    return Latency(
        median(run.p50 for run in runs),
        median(run.p99 for run in runs),
        median(run.p999 for run in runs),
        median(run.max for run in runs),
    )
