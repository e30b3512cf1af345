"""Subscribers in several receiver processes, driven as one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .child import Answer, BenchmarkError, Child
from .latencies import Latency, merged
from .owner import Owner

# One core is the server's; more than four are never needed.
RECEIVERS = max(1, min(4, (os.cpu_count() or 1) - 1))


@dataclass(frozen=True, slots=True)
class Received:
    """What everybody got. last: of the last byte (monotonic seconds). lost: messages that did not
    come, where that is allowed. latency: None when it was not taken."""

    last: float
    bytes: int
    lost: int
    latency: Latency | None


class Crowd(Owner):
    """`with Crowd() as crowd: crowd.open(port, "ws", 1000)`."""

    def __init__(self, receivers: int = RECEIVERS) -> None:
        super().__init__()
        self._receivers = [self._stack.enter_context(Child("receiver")) for _ in range(receivers)]
        self._stamped = False

    def open(self, port: int, wire: str, count: int, **more: object) -> float:
        """Connect `count` subscribers, spread over the processes; returns the seconds it took.

        more: as receiver.Receiver.open; raises BenchmarkError when one is refused.
        """
        first = 0
        for place, receiver in enumerate(self._receivers):
            share = (count + place) // len(self._receivers)
            receiver.send("open", port=port, wire=wire, count=share, first=first, **more)
            first += share
        answers = self._answers()
        return float(
            max(answer["ended"] for answer in answers)
            - min(answer["started"] for answer in answers)
        )

    def close(self) -> None:
        """Disconnect everybody."""
        self._do("close")

    def begin(self, *, stamped: bool = False) -> None:
        """Begin to count. stamped: take latencies too."""
        self._stamped = stamped
        self._do("begin", stamped=stamped)

    def finish(self, messages: int, cycle: int, **more: object) -> Received:
        """Receive the rest and check everything; as receiver.Receiver.finish."""
        answers = self._do("finish", messages=messages, cycle=cycle, **more)
        lost = sum(answer.get("lost", 0) for answer in answers)
        return Received(
            max(answer["last"] for answer in answers),
            sum(answer.get("bytes", 0) for answer in answers),
            lost,
            merged(answers) if self._stamped and not lost else None,
        )

    def cpu(self) -> float:
        """Return the seconds of CPU that they have used."""
        return float(sum(answer["cpu"] for answer in self._do("usage")))

    def _do(self, name: str, **arguments: object) -> list[Answer]:
        for receiver in self._receivers:
            receiver.send(name, **arguments)
        return self._answers()

    def _answers(self) -> list[Answer]:
        """Wait for all, also when one has failed: else its neighbours' answers would stay."""
        answers = []
        failed: BenchmarkError | None = None
        for receiver in self._receivers:
            try:
                answers.append(receiver.answer())
            except BenchmarkError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return answers
