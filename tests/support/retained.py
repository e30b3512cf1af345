"""A RabbitMQ broker with `[[retain]]` rules, a feed of it, and a walk through its history."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pika

from queuecast.brokers.base import ExchangeSpec, HistoryReader
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.destination import Destination
from queuecast.message import Message
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule
from tests.support.servers import RabbitMQ
from tests.support.sinks import eventually

D = Destination.parse
FIRST = Start("first")


def rule(destination: str, *, age: float = 3600.0, size: int = 64 << 20) -> RetainRule:
    return RetainRule(D(destination), age, size)


class Sink:
    """A feed's sink: bodies and gaps in their order, and where they stand."""

    def __init__(self) -> None:
        self.start: Mark | None = None
        self.events: list[bytes | tuple[str, Mark]] = []
        self.messages: list[Message] = []
        self.failed: Exception | None = None

    def begin(
        self,
        start: Sequence[Mark] | None,
        backlog: Sequence[Message] = (),
        *,
        history: bool = False,
        complete: float = 0.0,
    ) -> None:
        assert self.start is None
        assert start is not None
        assert history
        assert not backlog
        (self.start,) = start

    def append(self, messages: Sequence[Message]) -> None:
        assert self.start is not None
        self.messages += messages
        self.events += [message.body for message in messages]

    def gap(self, reason: str, start: Sequence[Mark] | None = None) -> None:
        assert start is not None
        self.events.append((reason, start[0]))

    def widen(self, marks: Sequence[Mark]) -> None:
        raise AssertionError("a stream has one lane")

    def fail(self, error: Exception) -> None:
        self.failed = error

    @property
    def bodies(self) -> list[bytes]:
        return [event for event in self.events if isinstance(event, bytes)]

    @property
    def gaps(self) -> list[tuple[str, Mark]]:
        return [event for event in self.events if not isinstance(event, bytes)]

    async def until(self, body: bytes, patience: float = 60.0) -> None:
        """Wait for a body among the last that came."""
        await eventually(
            lambda: body in self.events[-200:],
            f"{body!r}; there are {self.events[-3:]}, {self.failed}",
            patience,
        )


@contextlib.asynccontextmanager
async def retaining(
    url: str, *rules: RetainRule, exchanges: Sequence[ExchangeSpec] = (), **options: Any
) -> AsyncIterator[RabbitBroker]:
    """A broker with rules, started and with its streams."""
    broker = RabbitBroker(url, retain=rules, **{"reconnect": 0.5, **options})
    try:
        await broker.start()
        await broker.declare(exchanges)
        yield broker
    finally:
        await broker.close()


@contextlib.contextmanager
def channel(rabbit: RabbitMQ, *, confirms: bool = True) -> Iterator[Any]:
    """A back end's channel; without confirms many messages are there when it is closed."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    try:
        opened = connection.channel()
        if confirms:
            opened.confirm_delivery()
        yield opened
    finally:
        if connection.is_open:
            connection.close()


def publish(
    rabbit: RabbitMQ, key: str, bodies: Sequence[bytes], exchange: str = "amq.topic"
) -> None:
    with channel(rabbit) as opened:
        for body in bodies:
            opened.basic_publish(exchange, key, body)


def delete(rabbit: RabbitMQ, kept: RetainRule) -> None:
    with channel(rabbit) as opened:
        opened.queue_delete(stream_name(kept))


async def open_feed(broker: RabbitBroker, destination: str) -> tuple[HistoryReader, Sink]:
    sink = Sink()
    reader = await broker.open_feed(D(destination), sink)
    assert isinstance(reader, HistoryReader)
    return reader, sink


class Read:
    """A walk through a feed's history, as the hub makes it."""

    def __init__(self, place: Sequence[Mark]) -> None:
        self.place = tuple(place)
        self.messages: list[Message] = []
        self.gaps: list[tuple[str, Mark]] = []
        self.pages = 0

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    async def on(self, reader: HistoryReader, max_bytes: int = 1 << 18) -> Read:
        """Read to the end of what there is now."""
        while True:
            page = await reader.history(self.place, max_bytes)
            self.pages += 1
            if page.gap:
                assert page.start is not None
                self.gaps.append((page.gap, page.start[0]))
                self.place = tuple(page.start)
            for message in page.messages:
                assert message.offset is not None
                assert message.offset > self.place[0].offset
                assert message.offset <= page.after[0].offset
            self.messages += page.messages
            assert page.after[0].offset >= self.place[0].offset
            assert page.end or page.after != self.place
            self.place = tuple(page.after)
            if page.end:
                return self


async def seen(broker: RabbitBroker, kept: RetainRule) -> None:
    """Return when the gateway has read what was published before; history ends there."""
    await broker._retained._readers[stream_name(kept)].catch_up()


async def read(reader: HistoryReader, start: Start | Mark, max_bytes: int = 1 << 18) -> Read:
    place = [start] if isinstance(start, Mark) else await reader.locate(start)
    return await Read(place).on(reader, max_bytes)
