"""How many deliveries/s a server holds with its publisher and its broker on the same machine.

The publisher's rate is doubled (or halved, if the first is too much) until the p99 latency passes
a second, and the border is then narrowed. What counts is what was really delivered per second,
the time to drain included, at the best rate that held. Each peer stands beside the gateway with
the same transport and the same publisher.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from .bench import Bench
from .child import BenchmarkError, Child
from .crowd import Crowd
from .figures import Row
from .peers import Peer, available, gateway
from .wire import ALL

# Halvings of the border between the rate that held and the one that did not.
_NARROW = 2
# Messages before the first step, so that what happens once is not measured.
_WARM_UP = 20
# What a rate that did not hold may take to arrive, and how long nothing may come (seconds).
_SILENCE = 5.0
# The gateway's first rates, by publisher.
_FIRST = {"amqp": 3000.0, "kafka": 2000.0, "http": 250.0}
_BEHIND = {"amqp": "RabbitMQ", "kafka": "Kafka", "http": "POST, embedded"}


@dataclass(frozen=True, slots=True)
class Step:
    """One rate. offered: messages/s. rate: deliveries/s, until the last has come. p50, p99: s."""

    offered: float
    rate: float
    p50: float
    p99: float
    held: bool


class Side:
    """One server with its subscribers, and the publisher."""

    def __init__(self, bench: Bench, name: str, port: int, wire: str, publisher: Child) -> None:
        self._bench = bench
        self._name = name
        self._port = port
        self._wire = wire
        self._publisher = publisher

    def best(self, first: float) -> Step:
        """Raise the rate and return the best step that held; BenchmarkError when none did."""
        plan = self._bench.plan
        with Crowd() as crowd:
            crowd.open(self._port, self._wire, plan.subscribers)
            self._step(crowd, first, _WARM_UP)
            held: list[Step] = []
            low, high = 0.0, 0.0
            rate = first
            narrowed = 0
            for _ in range(plan.most):
                step = self._step(crowd, rate, max(10, int(rate * plan.step)))
                if step.held:
                    held.append(step)
                    low = rate
                else:
                    high = rate
                if low and high:
                    if narrowed == _NARROW:
                        break
                    narrowed += 1
                    rate = statistics.geometric_mean((low, high))
                else:
                    rate = rate * 2 if low else rate / 2
        if not held:
            raise BenchmarkError(f"{self._name}: p99 was above {plan.limit:g} s at every rate")
        return max(held, key=lambda step: step.rate)

    def _step(self, crowd: Crowd, rate: float, messages: int) -> Step:
        plan = self._bench.plan
        crowd.begin(stamped=True)
        before = crowd.cpu()
        made = self._publisher.do("pace", rate=rate, messages=messages, size=plan.size)
        done = crowd.finish(messages, messages, lossy=True, silence=_SILENCE)
        elapsed = done.last - made["started"]
        busy = f"publisher {made['busy']:.0%}, receivers {(crowd.cpu() - before) / elapsed:.0%}"
        if done.latency is None:
            # Too much for the server's bounds: nobody is told a figure from dropped work.
            self._bench.report(f"  {self._name}, {rate:,.0f} messages/s: lost {done.lost:,}")
            crowd.close()
            crowd.open(self._port, self._wire, plan.subscribers)
            return Step(rate, 0.0, float("inf"), float("inf"), False)
        found = done.latency
        delivered = messages * plan.subscribers / elapsed
        step = Step(rate, delivered, found.p50, found.p99, found.p99 <= plan.limit)
        self._bench.report(
            f"  {self._name}, {rate:,.0f} messages/s: {delivered:,.0f} deliveries/s, p99 "
            f"{found.p99:.3f} s{'' if step.held else ', not held'}; {busy} of a core"
        )
        return step


def measure(bench: Bench) -> Iterator[Row]:
    """Measure the gateway behind each broker and transport, and each peer beside it."""
    peers = [peer for peer in available(bench) if _base(peer.wire) in bench.plan.wires]
    ours: dict[tuple[str, str], Step] = {}
    with ExitStack() as stack:
        brokers = _Brokers(bench, stack)
        for behind, wire in _cases(bench):
            bench.report(f"ceiling: the gateway, {ALL[wire].title}, {_BEHIND[behind]}")
            ours[behind, wire] = brokers.gateway(behind, wire)
        beside: set[tuple[str, str]] = set()
        for peer in peers:
            wire = _base(peer.wire)
            bench.report(f"ceiling: {peer.name}, {ALL[peer.wire].title}")
            try:
                with peer.start(bench) as port:
                    side = brokers.side(peer.name, port, peer.wire, peer.publisher)
                    theirs = side.best(peer.first)
            except BenchmarkError as error:
                # A peer's fault is no fault of ours, but it is said.
                bench.lacks(f"{peer.name} over {ALL[peer.wire].title}", f"it failed: {error}")
                continue
            beside.add((peer.publisher, wire))
            yield from _rows(bench, peer.publisher, wire, ours[peer.publisher, wire], peer, theirs)
        for (behind, wire), step in ours.items():
            if (behind, wire) not in beside:
                yield from _rows(bench, behind, wire, step, None, None)


def _base(wire: str) -> str:
    """Return the gateway's transport that a peer's stands beside."""
    return wire.partition("-")[0]


def _cases(bench: Bench) -> Iterator[tuple[str, str]]:
    plan = bench.plan
    if bench.rabbit() is not None:
        yield from (("amqp", wire) for wire in plan.wires)
    if bench.kafka() is not None:
        yield from (("kafka", wire) for wire in plan.kafka_wires if wire in plan.wires)
    # Nchan's publisher is a POST; so that of the gateway beside it is, too.
    yield from (("http", wire) for wire in ("ws", "sse") if wire in plan.wires)


class _Brokers:
    """The publishers, one for each broker, and the gateways behind them."""

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        self._bench = bench
        self._stack = stack
        self._publishers: dict[str, Child] = {}

    def gateway(self, behind: str, wire: str) -> Step:
        """Return the gateway's best step over a transport."""
        if behind != "http":
            # Kafka's topic is there before anybody subscribes.
            self._publisher(behind)
        with gateway(self._url(behind)) as port:
            return self.side("gateway", port, wire, behind).best(_FIRST[behind])

    def side(self, name: str, port: int, wire: str, behind: str) -> Side:
        """Return a server with the publisher of its broker."""
        if behind == "http":
            publisher = self._stack.enter_context(Child("http_publisher", str(port)))
            publisher.answer()
        else:
            publisher = self._publisher(behind)
        return Side(self._bench, name, port, wire, publisher)

    def _publisher(self, behind: str) -> Child:
        if behind not in self._publishers:
            made = Child(f"{behind}_publisher", self._url(behind).removeprefix("kafka://"))
            self._publishers[behind] = self._stack.enter_context(made)
            made.answer()
            if behind == "kafka":
                made.do("create")
        return self._publishers[behind]

    def _url(self, behind: str) -> str:
        if behind == "http":
            return "embedded:"
        broker = self._bench.rabbit() if behind == "amqp" else self._bench.kafka()
        assert broker is not None
        return broker.url


def _rows(
    bench: Bench, behind: str, wire: str, ours: Step, peer: Peer | None, theirs: Step | None
) -> Iterator[Row]:
    plan = bench.plan
    what = f"{plan.subscribers:,} subscribers, {plan.size} B, {_BEHIND[behind]}"
    title = ALL[wire].title
    name = peer.name if peer else ""
    yield Row(
        "ceiling",
        f"{what}: p99 ≤ {plan.limit:g} s",
        title,
        "deliveries/s",
        name,
        theirs.rate if theirs else None,
        ours.rate,
        goal=peer.goal if peer else None,
    )
    yield Row(
        "ceiling",
        f"{what}: p99 at that rate",
        title,
        "ms",
        name,
        theirs.p99 * 1e3 if theirs else None,
        ours.p99 * 1e3,
        cost=True,
    )
