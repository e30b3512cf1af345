"""A gateway in a process of its own that publishes numbers as fast as all but one client read.

Run as `python -m tests.e2e.flood DESTINATION`: prints its URL, then obeys standard input:
`publish FIRST COUNT` publishes the numbers as bodies and answers `done`; `stats` answers the
hub's counters as JSON; the end of input stops it.
"""

import asyncio
import dataclasses
import json
import sys

import uvloop

from queuecast.config import from_tables
from queuecast.destination import Destination
from queuecast.gateway import Gateway
from queuecast.hub.hub import Hub

# Messages between two looks at the clients.
_STRIDE = 64


def _not_live(hub: Hub) -> int:
    """Count the subscriptions that are not at the head: their clients do not keep up."""
    return sum(not each.live for feed in hub.feeds for each in feed.subscribers)


async def publish(gateway: Gateway, destination: Destination, first: int, count: int) -> None:
    """Publish, paced by the slowest of all clients but one, which never reads."""
    for n in range(first, first + count):
        if n % _STRIDE == 0:
            await asyncio.sleep(0)
            while _not_live(gateway.hub) > 1:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.001)
        await gateway.broker.publish(destination, b"%d" % n)


async def main() -> None:
    destination = Destination.parse(sys.argv[1])
    gateway = Gateway(from_tables({"server": {"port": 0, "grace": "1s"}}))
    await gateway.start()
    # No heartbeats between the messages, so that clients can compare what comes byte by byte.
    gateway.server.connections.beat = lambda now: None  # type: ignore[method-assign]
    print(gateway.url, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.split():
            case ["publish", first, count]:
                await publish(gateway, destination, int(first), int(count))
                print("done", flush=True)
            case ["stats"]:
                print(json.dumps(dataclasses.asdict(gateway.hub.stats)), flush=True)
    await gateway.stop()


if __name__ == "__main__":
    uvloop.run(main())
