"""How many deliveries/s a server holds with its publisher and its broker on the same machine.

The gateway behind each broker, with each transport and size that the plan names; then each peer,
beside the gateway with the same transport and the same publisher. How the best rate is found:
climb.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from .bench import Bench
from .child import Child
from .climb import Climb, Step
from .figures import Row
from .peers import FAULTS, Peer, available, failed
from .plan import Behind
from .wire import ALL

# The gateway's first rates, messages/s of 100 B and of larger ones: about half of what two slow
# cores hold.
_FIRST = {"amqp": (4000.0, 1500.0), "kafka": (8000.0, 2000.0), "http": (1000.0, 500.0)}
_SMALL = 100
_BEHIND = {"amqp": "RabbitMQ", "kafka": "Kafka", "http": "POST, embedded"}


@dataclass(frozen=True, slots=True)
class Case:
    """What stands behind the gateway, the transport, and the bytes of a message."""

    behind: Behind
    wire: str
    size: int

    @property
    def first(self) -> float:
        """Messages/s of the first step."""
        return _FIRST[self.behind][self.size > _SMALL]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure the gateway behind each broker and transport, and each peer beside it."""
    plan = bench.plan
    peers = [peer for peer in available(bench) if _base(peer.wire) in plan.wires]
    ours: dict[Case, Step] = {}
    with ExitStack() as stack:
        brokers = _Brokers(bench, stack)
        for case in _cases(bench):
            bench.report(
                f"ceiling: the gateway, {ALL[case.wire].title}, {_BEHIND[case.behind]}, "
                f"{case.size} B"
            )
            ours[case] = brokers.gateway(case)
        beside: set[Case] = set()
        for peer in peers:
            case = Case(peer.publisher, _base(peer.wire), plan.size)
            if case not in ours:
                continue
            bench.report(f"ceiling: {peer.name}, {ALL[peer.wire].title}")
            try:
                with peer.start(bench) as port, ExitStack() as own:
                    publisher = brokers.publisher(peer.publisher, port, own, peer.dialect)
                    climb = Climb(bench, peer.name, port, peer.wire, publisher, may_fail=True)
                    theirs = climb.best(peer.first)
            except FAULTS as error:
                failed(bench, peer, error)
                continue
            beside.add(case)
            yield _rate(bench, case, ours[case], peer, theirs)
            yield from _by_broker(bench, peer, theirs, ours)
        for case, step in ours.items():
            if case not in beside:
                yield _rate(bench, case, step)
        for case, step in ours.items():
            if step.cpu is not None:
                yield Row(
                    "ceiling", f"{_what(bench, case)}: CPU at that rate", ALL[case.wire].title,
                    "CPU µs/delivery", "", None, step.cpu * 1e6, cost=True,
                )  # fmt: skip


def _base(wire: str) -> str:
    """Return the gateway's transport that a peer's stands beside."""
    return wire.partition("-")[0]


def _cases(bench: Bench) -> Iterator[Case]:
    plan = bench.plan
    # Some peers take POSTs alone; so the gateway beside them does, too.
    there = {"http"}
    if bench.rabbit() is not None:
        there.add("amqp")
    if any(behind == "kafka" for behind, _, _ in plan.ceiling) and bench.kafka() is not None:
        there.add("kafka")
    for behind, wire, size in plan.ceiling:
        if behind in there and wire in plan.wires:
            yield Case(behind, wire, size)


class _Brokers:
    """The publishers, one for each broker, and the gateways behind them."""

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        self._bench = bench
        self._stack = stack
        self._publishers: dict[str, Child] = {}

    def gateway(self, case: Case) -> Step:
        """Return the gateway's best step."""
        if case.behind != "http":
            # Kafka's topic is there before anybody subscribes.
            self.publisher(case.behind, 0, self._stack)
        with Child("gateway_server", self._url(case.behind)) as server, ExitStack() as own:
            port = int(server.answer()["port"])
            return Climb(
                self._bench,
                "gateway",
                port,
                case.wire,
                self.publisher(case.behind, port, own),
                size=case.size,
                cpu=lambda: float(server.do("usage")["cpu"]),
            ).best(case.first)

    def publisher(
        self, behind: Behind, port: int, own: ExitStack, dialect: str = "queuecast"
    ) -> Child:
        """Return the publisher of a broker, or one of POSTs to a port, which ends with `own`."""
        if behind == "http":
            made = own.enter_context(Child("http_publisher", str(port), dialect))
            made.answer()
            return made
        if behind not in self._publishers:
            made = Child(f"{behind}_publisher", self._url(behind).removeprefix("kafka://"))
            self._publishers[behind] = self._stack.enter_context(made)
            made.answer()
            if behind == "kafka":
                made.do("create")
        return self._publishers[behind]

    def _url(self, behind: Behind) -> str:
        if behind == "http":
            return "embedded:"
        broker = self._bench.rabbit() if behind == "amqp" else self._bench.kafka()
        assert broker is not None
        return broker.url


def _what(bench: Bench, case: Case) -> str:
    return f"{bench.plan.subscribers:,} subscribers, {case.size} B, {_BEHIND[case.behind]}"


def _rate(
    bench: Bench, case: Case, ours: Step, peer: Peer | None = None, theirs: Step | None = None
) -> Row:
    return Row(
        "ceiling",
        f"{_what(bench, case)}: p99 ≤ {bench.plan.limit:g} s",
        ALL[case.wire].title,
        "deliveries/s",
        peer.name if peer else "",
        theirs.rate if theirs else None,
        ours.rate,
        goal=peer.goal if peer else None,
    )


def _by_broker(bench: Bench, peer: Peer, theirs: Step, ours: dict[Case, Step]) -> Iterator[Row]:
    """A peer that takes POSTs alone, beside the gateway as most use it: behind a broker."""
    case = Case("amqp", _base(peer.wire), bench.plan.size)
    if peer.publisher == "http" and case in ours:
        yield _rate(bench, case, ours[case], replace(peer, name=f"{peer.name}, by POST"), theirs)
