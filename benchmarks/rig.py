"""A rig: a server under test with its subscribers, and what one run on it yields."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .child import BenchmarkError, Child
from .crowd import RECEIVERS, Crowd
from .latencies import Latency
from .owner import Owner

SERVERS = ("null_server", "gateway_server")
# Seconds that a server has to notice that its clients have left.
_LEAVE = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """One fan-out run. rate: deliveries/s. cpu: seconds of the server's CPU per delivery.

    per_write: messages in one write, as the server counts it. receiver: share of the CPUs that
    the receivers were busy; near 1 they, not the server, were the limit. bytes: of a delivery.
    """

    rate: float
    cpu: float
    per_write: float
    receiver: float
    bytes: float


class Rig(Owner):
    """A server, and the processes with its subscribers."""

    def __init__(self, server: str, *arguments: str, receivers: int = RECEIVERS) -> None:
        """server: one of SERVERS, with its arguments."""
        self.name = server
        super().__init__()
        self._receivers = receivers
        self.server = self._stack.enter_context(Child(server, *arguments))
        self.crowd = self._stack.enter_context(Crowd(receivers))
        self._port: int | None = None
        self._wire = ""
        self._count = 0
        self._topics = 0
        self._subscriptions = 1

    @property
    def port(self) -> int:
        """Where the server listens; asked for when it is needed, so that servers start together."""
        if self._port is None:
            self._port = int(self.server.answer()["port"])
        return self._port

    @property
    def _is_null(self) -> bool:
        return self.name == "null_server"

    def open(
        self,
        wire: str,
        count: int,
        *,
        topics: int = 0,
        subscriptions: int = 1,
        since: str = "",
        unlike: bool = False,
    ) -> float:
        """Connect `count` subscribers and wait until they are live; returns the seconds it took.

        topics, subscriptions, since, unlike: as receiver.Receiver.open. The null server knows no
        destinations: it writes as many messages to each connection.
        """
        self._topics = topics
        self._subscriptions = subscriptions
        self._wire = wire
        self._count = count
        if self._is_null:
            took = self.crowd.open(self.port, wire, count)
        else:
            took = self.crowd.open(
                self.port,
                wire,
                count,
                topics=topics,
                subscriptions=subscriptions,
                since=since,
                unlike=unlike,
            )
        self._await(count)
        return took

    def close(self) -> None:
        """Disconnect everybody, and wait until the server has seen it."""
        self.crowd.close()
        self._await(0)

    def _await(self, count: int) -> None:
        wanted = count if self._is_null else count * self._subscriptions
        deadline = time.monotonic() + _LEAVE
        while (found := self.server.do("connections")["connections"]) != wanted:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name} has {found} subscriptions instead of {wanted}")
            time.sleep(0.01)

    def rss(self) -> int:
        """Return the server's resident bytes."""
        assert self.port
        return int(self.server.do("usage")["rss"])

    def fan_out(self, seconds: float, batch: int, size: int) -> Run:
        """Publish for some seconds; raises BenchmarkError unless everything arrived in order.

        batch: messages to each destination in a tick.
        """
        self.crowd.begin()
        receiver_cpu = self.crowd.cpu()
        if self._is_null:
            batch *= self._subscriptions
        made = self.server.do(
            "fan_out",
            wire=self._wire,
            seconds=seconds,
            batch=batch,
            size=size,
            topics=0 if self._is_null else self._topics,
        )
        if made.get("gaps"):
            raise BenchmarkError(f"{made['gaps']} gaps")
        done = self.crowd.finish(made["messages"], made["cycle"])
        cpu = self.server.do("usage")["cpu"] - made["cpu_before"]
        receiver_cpu = self.crowd.cpu() - receiver_cpu
        each = 1 if self._is_null else self._subscriptions
        deliveries = made["messages"] * self._count * each
        elapsed = done.last - made["started"]
        return Run(
            deliveries / elapsed,
            cpu / deliveries,
            made.get("per_write", float(batch)),
            receiver_cpu / elapsed / self._receivers,
            done.bytes / deliveries,
        )

    def latency(self, rate: float, messages: int, size: int) -> Latency:
        """Publish at a fixed rate and take the time that each delivery takes."""
        self.crowd.begin(stamped=True)
        made = self.server.do("pace", wire=self._wire, rate=rate, messages=messages, size=size)
        latency = self.crowd.finish(made["messages"], made["cycle"]).latency
        assert latency is not None
        return latency
