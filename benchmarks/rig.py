"""A rig: a server under test with its receiver, and what one run on it yields."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .child import BenchmarkError, Child

SERVERS = ("null_server", "gateway_server")
# Seconds that a server has to notice that its clients have left.
_LEAVE = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """One fan-out run. rate: deliveries/s. cpu: seconds of the server's CPU per delivery.

    per_write: messages in one write, as the server counts it. receiver: share of a CPU that the
    receiver was busy; near 1 it, not the server, was the limit. bytes: of a delivery.
    """

    rate: float
    cpu: float
    per_write: float
    receiver: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Publish to receipt, in seconds."""

    p50: float
    p99: float
    max: float


class Rig:
    """Two processes: a server and its subscribers."""

    def __init__(self, server: str) -> None:
        """server: one of SERVERS."""
        self.name = server
        self._stack = ExitStack()
        self._server = self._stack.enter_context(Child(server))
        self._receiver = self._stack.enter_context(Child("receiver"))
        self._port = int(self._server.answer()["port"])
        self._wire = ""
        self._count = 0

    def open(self, wire: str, count: int) -> None:
        """Connect `count` subscribers and wait until they are live."""
        self._receiver.do("open", port=self._port, wire=wire, count=count)
        self._wire = wire
        self._count = count
        self._await(count)

    def close(self) -> None:
        """Disconnect everybody, and wait until the server has seen it."""
        self._receiver.do("close")
        self._await(0)

    def _await(self, count: int) -> None:
        deadline = time.monotonic() + _LEAVE
        while (found := self._server.do("connections")["connections"]) != count:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name} has {found} connections instead of {count}")
            time.sleep(0.01)

    def rss(self) -> int:
        """Return the server's resident bytes."""
        return int(self._server.do("usage")["rss"])

    def fan_out(self, seconds: float, batch: int, size: int) -> Run:
        """Publish for some seconds; raises BenchmarkError unless everything arrived in order."""
        self._receiver.do("begin", stamped=False)
        receiver_cpu = self._receiver.do("usage")["cpu"]
        made = self._server.do("fan_out", wire=self._wire, seconds=seconds, batch=batch, size=size)
        if made.get("gaps"):
            raise BenchmarkError(f"{made['gaps']} gaps")
        done = self._receiver.do("finish", messages=made["messages"], cycle=made["cycle"])
        cpu = self._server.do("usage")["cpu"] - made["cpu_before"]
        receiver_cpu = self._receiver.do("usage")["cpu"] - receiver_cpu
        deliveries = made["messages"] * self._count
        elapsed = done["last"] - made["started"]
        return Run(
            deliveries / elapsed,
            cpu / deliveries,
            made.get("per_write", float(batch)),
            receiver_cpu / elapsed,
            done["bytes"],
        )

    def latency(self, rate: float, messages: int, size: int) -> Latency:
        """Publish at a fixed rate and take the time that each delivery takes."""
        self._receiver.do("begin", stamped=True)
        made = self._server.do("pace", wire=self._wire, rate=rate, messages=messages, size=size)
        done = self._receiver.do("finish", messages=made["messages"], cycle=made["cycle"])
        return Latency(done["p50"], done["p99"], done["max"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
