"""One run of the suite: its plan, its progress, and the brokers that its parts share."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import pytest

from tests.support.kafka import Kafka, Kafkas
from tests.support.processes import free_port
from tests.support.rabbit_installation import VERSIONS, RabbitInstallation
from tests.support.servers import RabbitServer

from .owner import Owner
from .plan import Plan
from .rig import Run

_SET_UP = "run scripts/test-servers.sh, which sets it up"


class OutOfTime(Exception):
    """A part took longer than it may; no BenchmarkError, which a peer is forgiven."""


@dataclass(frozen=True, slots=True)
class Rabbit:
    """A RabbitMQ of the benchmark's own. web_stomp: the port of its plugin."""

    server: RabbitServer
    web_stomp: int

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def name(self) -> str:
        return f"RabbitMQ {self.server.version}"


class Bench(Owner):
    """`with Bench(plan) as bench:`; what it started is gone afterwards."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.missing: list[str] = []
        # What more than one part needs (topics.runs), by what it is.
        self.rounds: dict[tuple[str, int, int, int], list[list[Run]]] = {}
        super().__init__()
        self._rabbit: Rabbit | None = None
        self._kafka: Kafka | None = None
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._started

    def report(self, what: str) -> None:
        """Say what is going on."""
        print(f"{self.seconds:5.0f} s  {what}", file=sys.stderr, flush=True)

    def lacks(self, name: str, how: str) -> None:
        """Note that somebody is not here, and how to add it."""
        text = f"{name}: {how}"
        if text not in self.missing:
            self.missing.append(text)
            self.report(f"left out: {text}")

    def rabbit(self) -> Rabbit | None:
        """Return the RabbitMQ with the Web STOMP plugin, None where it is not installed."""
        if self._rabbit is not None:
            return self._rabbit
        version = next((name for name in VERSIONS if RabbitInstallation.look_for(name)), None)
        if version is None:
            self.lacks("RabbitMQ and its Web STOMP", _SET_UP)
            return None
        self.report(f"RabbitMQ {version} starts")
        server = RabbitServer(version)
        self._stack.callback(server.close)
        port = free_port()
        (server.directory / "enabled_plugins").write_text("[rabbitmq_web_stomp].\n")
        with (server.directory / "rabbitmq.conf").open("a") as file:
            file.write(f"stomp.listeners.tcp.1 = 127.0.0.1:{free_port()}\n")
            file.write(f"web_stomp.tcp.ip = 127.0.0.1\nweb_stomp.tcp.port = {port}\n")
        server.start()
        self._rabbit = Rabbit(server, port)
        return self._rabbit

    def kafka(self) -> Kafka | None:
        """Return the Kafka, None where there is none."""
        if self._kafka is not None:
            return self._kafka
        servers = Kafkas()
        self._stack.callback(servers.close)
        try:
            self._kafka = servers.shared()
        except (pytest.skip.Exception, pytest.fail.Exception):
            self.lacks("Kafka", f"{_SET_UP}, with Java and Maven")
            return None
        self.report("Kafka is there")
        return self._kafka

    @contextmanager
    def within(self, seconds: float, what: str) -> Iterator[None]:
        """Raise OutOfTime in what takes longer."""

        def ring(_signal: int, _frame: FrameType | None) -> None:
            raise OutOfTime(f"{what} took longer than {seconds:g} s")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
