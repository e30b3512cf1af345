"""`python -m benchmarks.kafka_replay [--records 1000000] [--clients 20]`: a topic to many at once.

Fills a topic of three partitions, has all clients ask for it from its first record at once, over
SSE, and checks that each gets every record once and each partition in its order. Prints the
gateway's memory before and at most, its processor time, and the rate. It needs aiokafka; a Kafka
is started from the jars that scripts/test-servers.sh gets, or named by KAFKA_BOOTSTRAP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

PARTITIONS = 3
_BODY = re.compile(rb"^data: ([0-9]+) ", re.M)
# Seconds without a single record after which a client gives up.
_SILENCE = 120.0


@dataclass(frozen=True)
class Figures:
    """What was measured. Memory in MB, resident; seconds of the wall clock and the processor."""

    records: int
    clients: int
    seconds: float
    processor: float
    before: float
    most: float

    def __str__(self) -> str:
        rate = self.records * self.clients / self.seconds
        return (
            f"{self.clients} clients got {self.records:,} records each in {self.seconds:.1f} s: "
            f"{rate:,.0f} deliveries/s, {self.processor:.1f} s of processor time; the gateway's "
            f"memory was {self.before:.0f} MB before and {self.most:.0f} MB at most"
        )


class _Reader:
    """Checks one client's stream: every number once, those of a partition in their order."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._last = [number - PARTITIONS for number in range(PARTITIONS)]
        self._rest = b""
        self.count = 0

    def feed(self, data: bytes) -> None:
        """Take bytes; raises ValueError for a record that is missing, repeated or out of order."""
        data = self._rest + data
        whole = data.rfind(b"\n") + 1
        self._rest = data[whole:]
        if b"event: gap" in data:
            raise ValueError(f"a gap after {self.count} records")
        last = self._last
        numbers = _BODY.findall(data, 0, whole)
        for text in numbers:
            number = int(text)
            partition = number % PARTITIONS
            if number != last[partition] + PARTITIONS:
                raise ValueError(f"{number} after {last[partition]} in partition {partition}")
            last[partition] = number
        self.count += len(numbers)

    @property
    def done(self) -> bool:
        return self.count >= self._records


async def fill(bootstrap: str, topic: str, records: int) -> None:
    """Publish numbers, each padded to 100 bytes, in turn to the partitions."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, max_batch_size=1 << 18, linger_ms=20, acks=1
    )
    await producer.start()
    for first in range(0, records, 5000):
        sent = [
            await producer.send(
                topic, (b"%d " % number).ljust(100, b"x"), partition=number % PARTITIONS
            )
            for number in range(first, min(first + 5000, records))
        ]
        await asyncio.gather(*sent)
    await producer.stop()


async def replay(port: int, topic: str, records: int, clients: int, process: Any) -> Figures:
    """Have all clients read the topic at once; raises ValueError, TimeoutError."""

    async def read() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        request = f"GET /sse/topic/{topic}?since=first HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        writer.write(request.encode())
        check = _Reader(records)
        while not check.done:
            data = await asyncio.wait_for(reader.read(1 << 18), _SILENCE)
            if not data:
                raise ValueError(f"the end after {check.count} records")
            check.feed(data)
        writer.close()

    most = before = process.memory_info().rss

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    times = process.cpu_times()
    began = time.monotonic()
    try:
        await asyncio.gather(*(read() for _ in range(clients)))
    finally:
        watching.cancel()
    spent = time.monotonic() - began
    now = process.cpu_times()
    processor = now.user + now.system - times.user - times.system
    return Figures(records, clients, spent, processor, before / 1e6, most / 1e6)


@contextmanager
def gateway(url: str) -> Iterator[tuple[int, Any]]:
    """Run a gateway in a process of its own; yields its port and the process."""
    from tests.support.processes import free_port

    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "queuecast", "serve", "--port", str(port), "--broker", url],
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
                except OSError:
                    time.sleep(0.2)
                else:
                    break
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def measure(bootstrap: str, records: int, clients: int) -> Figures:
    """Fill a topic, replay it, return the figures."""
    topic = f"replay-{time.time_ns()}"
    asyncio.run(fill(bootstrap, topic, records))
    with gateway(f"kafka://{bootstrap}") as (port, process):
        return asyncio.run(replay(port, topic, records, clients, process))


def main() -> int:
    """Run the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kafka_replay", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    from tests.support.kafka import Kafkas

    servers = Kafkas()
    try:
        bootstrap = servers.shared().bootstrap
        figures = measure(bootstrap, arguments.records, arguments.clients)
    finally:
        servers.close()
    print(figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(figures)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
