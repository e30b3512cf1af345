"""RabbitMQ's Web STOMP plugin beside the gateway: `python -m benchmarks.webstomp [--quick]`.

The suite starts a RabbitMQ of its own with the plugin. The same subscribers of one topic are
connected first to the plugin, then to the gateway with that RabbitMQ behind it. A pika publisher's
rate is doubled (or halved, if the first is too much) until the p99 latency passes a second, and
the border is then narrowed. What counts is what was really delivered per second, the time to
drain included, at the best rate that held.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support.processes import free_port
from tests.support.rabbit_installation import VERSIONS, RabbitInstallation
from tests.support.servers import RabbitServer

from . import machine
from .child import BenchmarkError, Child
from .plan import FULL, QUICK, Plan

# Messages/s of the first step: RabbitMQ's plugin reaches some tens with 1,000 subscribers.
_FIRST = {"plugin": 10.0, "gateway": 500.0}
# Halvings of the border between the rate that held and the one that did not.
_NARROW = 2
# Messages before the first step, so that what happens once is not measured.
_WARM_UP = 20
MISSING = (
    "RabbitMQ with its rabbitmq_web_stomp plugin is not installed: run scripts/test-servers.sh, "
    "or install Debian's rabbitmq-server"
)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One rate. offered: messages/s. rate: deliveries/s, until the last has come. p50, p99: s."""

    offered: float
    rate: float
    p50: float
    p99: float
    held: bool
    publisher: float
    receiver: float


@dataclass(frozen=True, slots=True)
class WebStomp:
    """The best steps of both that held, and the limit of p99 in seconds; ratio: of deliveries/s."""

    rabbitmq: str
    subscribers: int
    limit: float
    plugin: Step
    gateway: Step

    @property
    def ratio(self) -> float:
        return self.gateway.rate / self.plugin.rate


class Side:
    """One server with its subscribers, and the publisher."""

    def __init__(self, name: str, port: int, publisher: Child, plan: Plan) -> None:
        self.name = name
        self._port = port
        self._publisher = publisher
        self._plan = plan

    def best(self, report: Report) -> Step:
        """Raise the rate and return the best step that held; BenchmarkError when none did."""
        with Child("receiver") as receiver:
            receiver.do("open", port=self._port, wire="stomp", count=self._plan.crowd)
            self._step(receiver, _FIRST[self.name], _WARM_UP)
            held: list[Step] = []
            low, high = 0.0, 0.0
            rate = _FIRST[self.name]
            narrowed = 0
            for _ in range(self._plan.most):
                step = self._step(receiver, rate, max(10, int(rate * self._plan.step)))
                report(
                    f"{self.name}, {rate:,.0f} messages/s: {step.rate:,.0f} deliveries/s, "
                    f"p99 {step.p99:.3f} s{'' if step.held else ', not held'}, "
                    f"publisher {step.publisher:.0%}, receiver {step.receiver:.0%} of a core"
                )
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
            raise BenchmarkError(f"{self.name}: p99 was above {self._plan.limit:g} s at every rate")
        return max(held, key=lambda step: step.rate)

    def _step(self, receiver: Child, rate: float, messages: int) -> Step:
        receiver.do("begin", stamped=True)
        before = receiver.do("usage")["cpu"]
        made = self._publisher.do("pace", rate=rate, messages=messages, size=self._plan.size)
        done = receiver.do("finish", messages=messages, cycle=messages, lossy=True)
        elapsed = done["last"] - made["started"]
        busy = (receiver.do("usage")["cpu"] - before) / elapsed
        if "lost" in done:
            # Too much for the server's bounds: nobody is told a figure from dropped work.
            receiver.do("close")
            receiver.do("open", port=self._port, wire="stomp", count=self._plan.crowd)
            return Step(rate, 0.0, float("inf"), float("inf"), False, made["busy"], busy)
        return Step(
            rate,
            messages * self._plan.crowd / elapsed,
            done["p50"],
            done["p99"],
            done["p99"] <= self._plan.limit,
            made["busy"],
            busy,
        )


def available() -> str | None:
    """Return the version of a RabbitMQ on this machine that can be started, None without one."""
    return next((name for name in VERSIONS if RabbitInstallation.look_for(name)), None)


@contextmanager
def _node(version: str) -> Iterator[tuple[RabbitServer, int]]:
    """Start a RabbitMQ with the plugin; yields it and the plugin's port."""
    rabbit = RabbitServer(version)
    port = free_port()
    try:
        (rabbit.directory / "enabled_plugins").write_text("[rabbitmq_web_stomp].\n")
        with (rabbit.directory / "rabbitmq.conf").open("a") as file:
            file.write(f"stomp.listeners.tcp.1 = 127.0.0.1:{free_port()}\n")
            file.write(f"web_stomp.tcp.ip = 127.0.0.1\nweb_stomp.tcp.port = {port}\n")
        rabbit.start()
        yield rabbit, port
    finally:
        rabbit.close()


def measure(plan: Plan, report: Report) -> Iterator[WebStomp]:
    """Compare, if there is a RabbitMQ; raises BenchmarkError when a message is not in order."""
    version = available()
    if version is None:
        report(f"web stomp is left out: {MISSING}")
        return
    report(f"RabbitMQ {version} with rabbitmq_web_stomp starts")
    with ExitStack() as stack:
        rabbit, port = stack.enter_context(_node(version))
        publisher = stack.enter_context(Child("amqp_publisher", rabbit.url))
        publisher.answer()
        plugin = Side("plugin", port, publisher, plan).best(report)
        # The plugin's queues go with their connections; nobody is to pay for them later.
        deadline = time.monotonic() + 30
        while any(name.startswith("stomp-subscription-") for name in rabbit.list_queues()):
            if time.monotonic() > deadline:
                raise BenchmarkError("the plugin's queues are still there")
        server = stack.enter_context(Child("gateway_server", rabbit.url))
        gateway = Side("gateway", int(server.answer()["port"]), publisher, plan).best(report)
    yield WebStomp(version, plan.crowd, plan.limit, plugin, gateway)


def main() -> int:
    """Run the comparison alone; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webstomp", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    arguments = parser.parse_args()
    from .table import Figures

    plan = QUICK if arguments.quick else FULL
    try:
        rows = list(measure(plan, lambda what: print(what, file=sys.stderr)))
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    if not rows:
        return 1
    print(Figures(machine.describe(), plan.size, webstomp=rows).table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
