"""The gateway under test: as `queuecast serve` runs it, with a producer in the same process.

    python -m benchmarks.gateway_server [BROKER] [--data DIR] [--retain DESTINATION] [--port N]

Without a broker's URL messages are published to the embedded broker, so what is measured is the
whole path: exchange and binding, history, feed, log, cohort, tick, session, socket. With another
broker's somebody else publishes there.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from unittest import mock

import uvloop

from queuecast.arrays import RetainConfig
from queuecast.config import Config
from queuecast.destination import Destination
from queuecast.gateway import Gateway, collect_rarely
from queuecast.hub.feed import Feed
from queuecast.message import NO_PROPERTIES, Properties
from queuecast.server.connection import Connections
from queuecast.server.listener import raise_open_files
from queuecast.settings import BrokerConfig, ServerConfig

from . import child, message
from .producer import as_fast_as_possible, at_a_rate, most

# Fewer than the embedded broker takes from one publisher before it lets the loop turn.
_PUBLISHES_A_TURN = 32
# Messages of one turn that go to many destinations.
_SWEEP = 1000
# Destinations up to which it is looked in each turn whether a subscriber is behind. With more that
# alone would be work; the log is there for those who are.
_LOOKED_AT = 100
_DESTINATION = Destination.parse(message.DESTINATION)


class GatewayServer:
    """A gateway and the commands of the benchmark."""

    def __init__(self, broker: str, data: str = "", retain: str = "", port: int = 0) -> None:
        """broker: its URL. data, retain: see BrokerConfig and RetainConfig."""
        self.gateway = Gateway(
            Config(
                server=ServerConfig(port=port),
                broker=BrokerConfig(url=broker, data=data),
                retain=(RetainConfig(destination=retain, age=3600.0),) if retain else (),
            )
        )

    async def start(self) -> int:
        """Listen on a free loopback port and return it."""
        raise_open_files()
        await self.gateway.start()
        return int(self.gateway.url.rpartition(":")[2])

    def is_held(self, feeds: Sequence[Feed]) -> bool:
        """Whether any subscriber of these is behind: it is not live in its cohort."""
        return any(
            len(cohort.members) < cohort.users for feed in feeds for cohort in feed.cohorts.values()
        )

    async def fan_out(
        self, wire: str, seconds: float, batch: int, size: int, topics: int
    ) -> child.Answer:
        """Publish batches of `batch` messages for some seconds, to each destination."""
        stats = self.gateway.hub.stats
        deliveries, writes, gaps = stats.deliveries, stats.writes, stats.gaps
        if topics:
            made = await self._sweep(seconds, batch, size, topics)
        else:
            # Not all feeds: with ten thousand, looking at them would be most of the work.
            feeds = [feed for feed in self.gateway.hub.feeds if feed.name == message.DESTINATION]

            async def publish(first: int) -> None:
                await self._publish(((_DESTINATION, 0),), range(first, first + batch), size)
                await self._sent()

            made = await as_fast_as_possible(
                publish, lambda: self.is_held(feeds), seconds, batch, most(size)
            )
        return {
            **made,
            "cycle": made["messages"],
            "per_write": (stats.deliveries - deliveries) / max(1, stats.writes - writes),
            "gaps": stats.gaps - gaps,
        }

    async def _publish(
        self, places: Sequence[tuple[Destination, int]], numbers: range, size: int
    ) -> None:
        """Publish these messages to all places, in one turn."""
        publish_one = self.gateway.broker.publish

        async def publish_from(work: Iterator[tuple[Destination, int, int]]) -> None:
            for destination, topic, number in work:
                body = message.body(number, size, topic=topic)
                await publish_one(destination, body, NO_PROPERTIES)

        # The embedded broker makes a publisher wait a turn now and then. Another one then goes on
        # in the same turn, so that a tick has the whole batch.
        work = ((destination, topic, number) for destination, topic in places for number in numbers)
        publishers = 1 + -(-len(places) * len(numbers) // _PUBLISHES_A_TURN)
        await asyncio.gather(*(publish_from(work) for _ in range(publishers)))

    async def _sent(self) -> None:
        """Wait for the end of the tick: batches of the same size as the null server's."""
        while self.gateway.hub.ticker.pending:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)

    async def _sweep(self, seconds: float, batch: int, size: int, topics: int) -> child.Answer:
        """Publish to many destinations in turn, all of them equally often."""
        places = [(Destination.parse(message.destination(topic)), topic) for topic in range(topics)]
        stride = max(1, _SWEEP // batch)
        slices = [places[first : first + stride] for first in range(0, topics, stride)]
        feeds = self.gateway.hub.feeds
        started = time.monotonic()
        before = child.usage()["cpu"]
        messages = 0
        while not messages or time.monotonic() < started + seconds:
            for part in slices:
                while topics <= _LOOKED_AT and self.is_held(feeds):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.001)
                await self._publish(part, range(messages, messages + batch), size)
                await self._sent()
            messages += batch
        return {"messages": messages, "started": started, "cpu_before": before}

    async def fill(self, messages: int, size: int, queue: str = "") -> child.Answer:
        """Publish some persistent messages one after the other, to a queue where it is named."""
        destination = Destination.parse(f"/queue/{queue}") if queue else _DESTINATION
        for number in range(messages):
            body = message.body(number, size)
            await self.gateway.broker.publish(destination, body, Properties(persistent=True))
        return {}

    async def pace(self, wire: str, rate: float, messages: int, size: int) -> child.Answer:
        """Publish one message each 1/rate seconds, with the time in it."""

        async def publish(number: int) -> None:
            body = message.body(number, size, stamped=True)
            await self.gateway.broker.publish(_DESTINATION, body, NO_PROPERTIES)

        return {**await at_a_rate(publish, rate, messages), "cycle": messages}

    async def connections(self) -> child.Answer:
        """Return how many are subscribed."""
        return {"connections": sum(len(feed.subscribers) for feed in self.gateway.hub.feeds)}


async def main(arguments: argparse.Namespace) -> None:
    """Serve until the standard input ends."""
    server = GatewayServer(arguments.broker, arguments.data, arguments.retain, port=arguments.port)
    child.tell({"port": await server.start()})
    # Heartbeats in the middle of a run would be bytes that the null server does not write.
    with mock.patch.object(Connections, "beat"):
        await child.serve(
            {
                "fan_out": server.fan_out,
                "pace": server.pace,
                "fill": server.fill,
                "connections": server.connections,
            }
        )
    await server.gateway.stop(grace=0.2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_server")
    parser.add_argument("broker", nargs="?", default="embedded:")
    parser.add_argument("--data", default="")
    parser.add_argument("--retain", default="")
    parser.add_argument("--port", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    collect_rarely()
    uvloop.run(main(_arguments()))
