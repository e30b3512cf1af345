"""A climb: the publisher's rate is raised until a server no longer holds it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .bench import Bench
from .child import BenchmarkError, Child
from .crowd import Crowd

# The next rate, where the p99 latency was far below the limit and where it was not.
_FAR, _NEAR = 2.0, 1.4
_IS_FAR = 0.25
# Halvings of the border between the rate that held and the one that did not.
_NARROW = 2
# Messages before the first step, so that what happens once is not measured.
_WARM_UP = 20
# How long nothing may come before a rate has not held (seconds).
_SILENCE = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """One rate. offered: messages/s. rate: deliveries/s, until the last has come. p50, p99: s.

    cpu: seconds of the server's CPU per delivery, None where nobody tells.
    """

    offered: float
    rate: float
    p50: float
    p99: float
    cpu: float | None
    held: bool


class Climb:
    """One server, its subscribers and its publisher: `Climb(…).best(3000.0)`."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        port: int,
        wire: str,
        publisher: Child,
        *,
        size: int = 0,
        cpu: Callable[[], float] | None = None,
        may_fail: bool = False,
        alike: bool = True,
    ) -> None:
        """size: of a message, the plan's unless given. cpu: the server's seconds of CPU so far.

        may_fail: a server that ends connections or refuses messages when it cannot keep up has
        not held that rate; else that is an error of the benchmark. alike: see Receiver.open.
        """
        self._bench = bench
        self._name = name
        self._port = port
        self._wire = wire
        self._publisher = publisher
        self._size = size or bench.plan.size
        self._cpu = cpu
        self._may_fail = may_fail
        self._alike = alike

    def best(self, first: float) -> Step:
        """Raise the rate and return the best step that held; BenchmarkError when none did.

        first: messages/s of the first step.
        """
        plan = self._bench.plan
        with Crowd() as crowd:
            crowd.open(self._port, self._wire, plan.subscribers, alike=self._alike)
            self._step(crowd, first, _WARM_UP)
            held: list[Step] = []
            low, high = 0.0, 0.0
            rate = first
            narrowed = 0
            for _ in range(plan.most):
                try:
                    step = self._step(crowd, rate, max(10, int(rate * plan.step)))
                except BenchmarkError as error:
                    if not (self._may_fail and held):
                        raise
                    self._bench.report(f"  {self._name}, {rate:,.0f} messages/s: {error}")
                    break
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
                elif low:
                    rate = low * (_FAR if step.p99 < plan.limit * _IS_FAR else _NEAR)
                else:
                    rate = high / 2
        if not held:
            raise BenchmarkError(f"{self._name}: p99 was above {plan.limit:g} s at every rate")
        return max(held, key=lambda step: step.rate)

    def _step(self, crowd: Crowd, rate: float, messages: int) -> Step:
        plan = self._bench.plan
        crowd.begin(stamped=True)
        receivers = crowd.cpu()
        before = self._cpu() if self._cpu else 0.0
        made = self._publisher.do("pace", rate=rate, messages=messages, size=self._size)
        done = crowd.finish(messages, messages, lossy=True, silence=_SILENCE)
        deliveries = messages * plan.subscribers
        cpu = (self._cpu() - before) / deliveries if self._cpu else None
        elapsed = done.last - made["started"]
        busy = f"publisher {made['busy']:.0%}, receivers {(crowd.cpu() - receivers) / elapsed:.0%}"
        if done.latency is None:
            # Too much for the server's bounds: nobody is told a figure from dropped work.
            self._bench.report(f"  {self._name}, {rate:,.0f} messages/s: lost {done.lost:,}")
            crowd.close()
            crowd.open(self._port, self._wire, plan.subscribers, alike=self._alike)
            return Step(rate, 0.0, float("inf"), float("inf"), None, held=False)
        found = done.latency
        delivered = deliveries / elapsed
        step = Step(rate, delivered, found.p50, found.p99, cpu, found.p99 <= plan.limit)
        self._bench.report(
            f"  {self._name}, {rate:,.0f} messages/s: {delivered:,.0f} deliveries/s, p99 "
            f"{found.p99:.3f} s{'' if step.held else ', not held'}; {busy} of a core"
        )
        return step
