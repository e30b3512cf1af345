"""The gateway under test: as `queuecast serve` runs it, with a producer in the same process.

Without an argument messages are published to the embedded broker, so what is measured is the
whole path: exchange and binding, history, feed, log, cohort, tick, session, socket. The argument
is another broker's URL; somebody else publishes there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from unittest import mock

import uvloop

from queuecast.config import Config
from queuecast.destination import Destination
from queuecast.gateway import Gateway
from queuecast.message import NO_PROPERTIES
from queuecast.server.connection import Connections
from queuecast.server.listener import raise_open_files
from queuecast.settings import BrokerConfig, ServerConfig

from . import child, message
from .producer import as_fast_as_possible, at_a_rate

# Fewer than the embedded broker takes from one publisher before it lets the loop turn.
_PUBLISHES_A_TURN = 32
_DESTINATION = Destination.parse(message.DESTINATION)


class GatewayServer:
    """A gateway and the commands of the benchmark."""

    def __init__(self, broker: str) -> None:
        """broker: its URL."""
        server = ServerConfig(port=0)
        self.gateway = Gateway(Config(server=server, broker=BrokerConfig(url=broker)))

    async def start(self) -> int:
        """Listen on a free loopback port and return it."""
        raise_open_files()
        await self.gateway.start()
        return int(self.gateway.url.rpartition(":")[2])

    def is_held(self) -> bool:
        """Whether any subscriber is behind: it is not live in its cohort."""
        return any(
            len(cohort.members) < cohort.users
            for feed in self.gateway.hub.feeds
            for cohort in feed.cohorts.values()
        )

    async def fan_out(self, wire: str, seconds: float, batch: int, size: int) -> child.Answer:
        """Publish batches of `batch` messages for some seconds."""
        publish_one = self.gateway.broker.publish

        async def publish_from(numbers: Iterator[int]) -> None:
            for number in numbers:
                await publish_one(_DESTINATION, message.body(number, size), NO_PROPERTIES)

        async def publish(first: int) -> None:
            # The embedded broker makes a publisher wait a turn now and then. Another one then
            # goes on in the same turn, so that a tick has the whole batch.
            numbers = iter(range(first, first + batch))
            publishers = 1 + -(-batch // _PUBLISHES_A_TURN)
            await asyncio.gather(*(publish_from(numbers) for _ in range(publishers)))

        stats = self.gateway.hub.stats
        deliveries, writes, gaps = stats.deliveries, stats.writes, stats.gaps
        made = await as_fast_as_possible(publish, self.is_held, seconds, batch)
        return {
            **made,
            "cycle": made["messages"],
            "per_write": (stats.deliveries - deliveries) / max(1, stats.writes - writes),
            "gaps": stats.gaps - gaps,
        }

    async def pace(self, wire: str, rate: float, messages: int, size: int) -> child.Answer:
        """Publish one message each 1/rate seconds, with the time in it."""

        async def publish(number: int) -> None:
            body = message.body(number, size, stamped=True)
            await self.gateway.broker.publish(_DESTINATION, body, NO_PROPERTIES)

        return {**await at_a_rate(publish, rate, messages), "cycle": messages}

    async def connections(self) -> child.Answer:
        """Return how many are subscribed."""
        return {"connections": sum(len(feed.subscribers) for feed in self.gateway.hub.feeds)}


async def main() -> None:
    """Serve until the standard input ends."""
    server = GatewayServer(sys.argv[1] if len(sys.argv) > 1 else "embedded:")
    child.tell({"port": await server.start()})
    # Heartbeats in the middle of a run would be bytes that the null server does not write.
    with mock.patch.object(Connections, "beat"):
        await child.serve(
            {"fan_out": server.fan_out, "pace": server.pace, "connections": server.connections}
        )
    await server.gateway.stop(grace=0.2)


if __name__ == "__main__":
    uvloop.run(main())
