"""`python -m benchmarks.durable [--quick]`: what durability costs a publisher.

Publishes persistent messages to a durable queue of the embedded broker, in memory and with a
data directory, from few and from many publishers, each of which waits for its answer before its
next message. Every message is counted again after a restart; a figure is shown only when all are
there. Exits with 1 when one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from queuecast.brokers.base import Broker
from queuecast.brokers.factory import Keeping, make_broker
from queuecast.destination import Destination
from queuecast.message import Properties

from . import machine
from .child import BenchmarkError

QUEUE = Destination.parse("/queue/benchmark")
PERSISTENT = Properties(persistent=True)
BODY = b"x" * 200
KINDS = ("memory", "normal", "full")
PUBLISHERS = (1, 100, 1000)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; times in milliseconds."""

    kind: str
    publishers: int
    rate: float
    median: float
    p99: float


def _make(kind: str, directory: Path) -> Broker:
    if kind == "memory":
        return make_broker("embedded:")
    return make_broker("embedded:", keeping=Keeping(str(directory), kind))


async def _measure(kind: str, publishers: int, seconds: float, directory: Path) -> Row:
    broker = _make(kind, directory)
    await broker.start()
    waits: list[float] = []
    clock = time.perf_counter
    start = clock()
    end = start + seconds

    async def publish() -> None:
        while (sent := clock()) < end:
            await broker.publish(QUEUE, BODY, PERSISTENT)
            waits.append(clock() - sent)
            if kind == "memory":
                await asyncio.sleep(0)  # the others' turn, which waiting for a disk is as well

    await asyncio.gather(*(publish() for _ in range(publishers)))
    took = clock() - start
    await broker.close()
    if kind != "memory":
        await _check(kind, directory, len(waits))
    waits.sort()
    return Row(
        kind,
        publishers,
        len(waits) / took,
        waits[len(waits) // 2] * 1000,
        waits[int(len(waits) * 0.99)] * 1000,
    )


async def _check(kind: str, directory: Path, expected: int) -> None:
    """Count what is there after a restart."""
    from queuecast.brokers.embedded.broker import EmbeddedBroker

    broker = _make(kind, directory)
    await broker.start()
    assert isinstance(broker, EmbeddedBroker)
    found = broker.counts().queues[QUEUE.name].ready
    await broker.close()
    if found != expected:
        raise BenchmarkError(f"{kind}: {expected} messages were answered, {found} are there")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where to write (default: /tmp)")
    arguments = parser.parse_args()
    print(machine.describe())
    print(f"{len(BODY)}-byte messages; each publisher waits for its answer")
    print("\n| broker | publishers | messages/s | median | p99 |\n|---|---|---|---|---|")
    for publishers in PUBLISHERS:
        for kind in KINDS:
            with tempfile.TemporaryDirectory(dir=arguments.data) as directory:
                seconds = 0.3 if arguments.quick else 3.0
                try:
                    row = asyncio.run(_measure(kind, publishers, seconds, Path(directory) / "data"))
                except BenchmarkError as error:
                    print(f"benchmark failed: {error}", file=sys.stderr)
                    return 1
                print(
                    f"| {row.kind} | {row.publishers:,} | {row.rate:,.0f} "
                    f"| {row.median:.2f} ms | {row.p99:.2f} ms |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
