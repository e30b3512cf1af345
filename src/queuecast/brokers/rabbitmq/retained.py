"""The retained destinations on RabbitMQ: one stream and one reader for each rule.

They live on a connection of their own, because RabbitMQ closes the whole connection for what a
stream does not support, and because a history that is read fast must not delay other deliveries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ...destination import Destination
from ...errors import QueuecastError, Unavailable
from ...retention import RetainRule, rule_for
from ..base import FeedReader, FeedSink
from .connection import Link
from .exchange_watch import ExchangeWatch
from .stream_feed import RetainedFeed
from .stream_reader import StreamReader
from .streams import check_rule, stream_name
from .supervisor import Supervisor
from .topology import Topology

log = logging.getLogger(__name__)

# Seconds that a start waits for the streams: a broker that was just started needs some.
_START = 20.0


class Retained:
    """All rules of this node.

    supervisor: of the streams' connection; publishing: for the marks. watch: notices deleted
    exchanges. patience: seconds that a call waits. rebind: seconds between looks at bindings and
    streams.
    """

    def __init__(
        self,
        rules: Sequence[RetainRule],
        supervisor: Supervisor,
        publishing: Supervisor,
        topology: Topology,
        *,
        watch: ExchangeWatch,
        patience: float,
        rebind: float,
    ) -> None:
        """Raises ConfigError for a rule that a stream cannot keep to."""
        for rule in rules:
            check_rule(rule)
        self._rules = tuple(rules)
        self._supervisor = supervisor
        self.publishing = publishing
        self.topology = topology
        self.follow = watch.follow
        self.patience = patience
        self.link: Link | None = None
        self._rebind = rebind
        self._readers: dict[str, StreamReader] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def holds(self, destination: Destination) -> bool:
        """Tell whether a rule holds for a destination."""
        return rule_for(self._rules, destination) is not None

    # -- the link -------------------------------------------------------------------------

    async def wait(self) -> Link:
        """Return the link, waiting for it; raises Unavailable."""
        return await self._supervisor.wait(self.patience)

    def on_up(self, link: Link) -> None:
        """Attach every reader to a new link."""
        self.link = link
        for reader in self._readers.values():
            reader.on_up()

    def on_down(self, why: str) -> None:
        """Let go of the link."""
        self.link = None
        for reader in self._readers.values():
            reader.on_down(why)

    async def elsewhere(self, link: Link) -> None:
        """Connect again, perhaps to another node, unless a stream is read by this link."""
        if not any(reader.is_live for reader in self._readers.values()):
            log.info("no retained stream can be read by this connection: connecting again")
            await link.close()

    @property
    def problem(self) -> str:
        """Why not all streams are read, "" when they are."""
        for reader in self._readers.values():
            if not reader.is_live:
                return f"the retained stream {reader.name} is not read: {reader.problem}"
        return ""

    # -- streams --------------------------------------------------------------------------

    async def start(self) -> None:
        """Have all streams, and read them.

        Raises Conflict (a stream exists with other arguments), ConfigError, NotFound (an
        exchange), Refused, Unavailable. May be called again.
        """
        readers = [self._reader(rule) for rule in self._rules]
        results = await asyncio.gather(
            *(reader.ready(_START) for reader in readers), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="rabbitmq streams")

    def _reader(self, rule: RetainRule) -> StreamReader:
        if self._closed:
            raise Unavailable("the gateway is closing")
        name = stream_name(rule)
        reader = self._readers.get(name)
        if reader is None:
            reader = self._readers[name] = StreamReader(self, rule)
        return reader

    async def open(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """Open a feed under a rule; raises as `start`."""
        rule = rule_for(self._rules, destination)
        assert rule is not None
        reader = self._reader(rule)
        await reader.ready(self.patience)
        feed = RetainedFeed(reader, destination.pattern, sink, self.patience)
        feed.open()
        return feed

    async def publishable(self, destination: Destination) -> bool:
        """Tell whether a rule holds, and return only once its stream takes messages.

        For a moment after its start RabbitMQ confirms messages without having routed them to the
        streams bound to their exchange; a reader whose mark came back shows that this is over.
        Raises Unavailable.
        """
        rule = rule_for(self._rules, destination) if self._rules else None
        if rule is None:
            return False
        await self._reader(rule).ready(self.patience)
        return True

    def look(self, destination: Destination) -> None:
        """Look after the stream of a destination, if a rule holds: something did not reach it."""
        rule = rule_for(self._rules, destination)
        reader = self._readers.get(stream_name(rule)) if rule is not None else None
        if reader is not None:
            reader.look()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._rebind)
            for reader in self._readers.values():
                reader.look()

    async def close(self) -> None:
        """Stop reading; the streams stay, that is what they are for."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for reader in self._readers.values():
            try:
                await reader.close()
            except QueuecastError as error:
                log.info("closing %s: %s", reader.name, error)
