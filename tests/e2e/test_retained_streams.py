"""Retained destinations at RabbitMQ: what the broker adapter makes of streams."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pika
import pytest

from queuecast.brokers.base import ExchangeSpec, HistoryReader
from queuecast.brokers.rabbitmq import RabbitBroker, stream_mark, stream_reader
from queuecast.brokers.rabbitmq.streams import (
    Identity,
    declare_stream,
    stream_arguments,
    stream_name,
)
from queuecast.destination import Destination
from queuecast.errors import ConfigError, Conflict, NotFound, Refused, Unavailable
from queuecast.message import Message
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule
from tests.support.rabbit import proxied, through
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import ListFeed, eventually
from tests.support.streams import Numbers, numbers, settled

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]

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


# -- publishing ---------------------------------------------------------------------------


async def test_a_publish_that_misses_the_stream_is_told_and_mended(rabbit: RabbitMQ) -> None:
    key = unique("missed")
    kept = rule(f"/topic/{key}")
    login = RabbitBroker(rabbit.url, covered=[kept])
    await login.start()
    try:
        async with retaining(rabbit.url, kept) as broker:
            _, sink = await open_feed(broker, f"/topic/{key}")
            # Whoever publishes with a login of his own, and who says that it need not arrive.
            for publisher in (broker, login):
                with channel(rabbit) as opened:
                    opened.queue_unbind(stream_name(kept), "amq.topic", key)
                with pytest.raises(Unavailable, match="takes no messages"):
                    await publisher.publish(D(f"/topic/{key}"), b"lost", mandatory=False)
                # The gateway that reads the stream binds it again.
                with contextlib.suppress(Unavailable):
                    await broker.publish(D(f"/topic/{key}"), b"1")
                async with asyncio.timeout(60):
                    while not await accepted(publisher, key):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                await sink.until(b"accepted")
            assert b"lost" not in sink.bodies
            await login.publish(D(f"/topic/not-{key}"), b"nobody keeps this")
    finally:
        await login.close()
    delete(rabbit, kept)


async def accepted(publisher: RabbitBroker, key: str) -> bool:
    """Publish, and tell whether that was confirmed."""
    try:
        await publisher.publish(D(f"/topic/{key}"), b"accepted")
    except Unavailable:
        return False
    return True


# -- what is declared ---------------------------------------------------------------------


def test_names_are_readable_and_no_two_rules_share_one() -> None:
    def name(destination: str) -> str:
        return stream_name(rule(destination))

    assert name("/topic/job.#") == "queuecast.retain.amq.topic:job.#"
    assert name("/exchange/events/a.b") == "queuecast.retain.events:a.b"
    assert name("/exchange/amq.topic/job.#") == name("/topic/job.#")
    long = "x" * 200
    names = [
        name("/exchange/a/b.c"),
        name("/exchange/a.b/c"),
        name("/exchange/a%3Ab/c"),
        name("/exchange/a/b%3Ac"),
        name("/exchange/事件/job"),
        name(f"/topic/{long}"),
        name(f"/topic/{long}x"),
    ]
    assert len(set(names)) == len(names)
    assert all(each.isascii() and len(each) <= 80 for each in names)


def test_a_segment_is_an_eighth_of_what_is_kept() -> None:
    assert stream_arguments(rule("/topic/a", size=64 << 20)) == {
        "x-queue-type": "stream",
        "x-max-age": "3600s",
        "x-max-length-bytes": 64 << 20,
        "x-stream-max-segment-size-bytes": 8 << 20,
    }
    aged = stream_arguments(rule("/topic/a", age=0.5, size=0))
    assert aged["x-max-age"] == "1s"
    assert "x-max-length-bytes" not in aged
    tiny = stream_arguments(rule("/topic/a", age=0, size=1000))
    assert tiny["x-stream-max-segment-size-bytes"] == 64 << 10
    assert "x-max-age" not in tiny
    huge = stream_arguments(rule("/topic/a", size=1 << 40))
    assert huge["x-stream-max-segment-size-bytes"] == 500_000_000


def test_a_bound_on_messages_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot count messages"):
        RabbitBroker("amqp://localhost", retain=[RetainRule(D("/topic/a"), messages=5, age=1)])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"age": 7200.0}, ["age", "'?7200s", "3600s"]),
        ({"size": 32 << 20}, ["bytes", str(32 << 20), str(64 << 20)]),
        ({"age": 0.0}, ["age", "none", "3600s"]),
    ],
)
async def test_changed_settings_stop_the_start_and_name_both_values(
    rabbit: RabbitMQ, changed: dict[str, Any], words: list[str]
) -> None:
    key = unique("changed")
    kept = rule(f"/topic/{key}")
    async with retaining(rabbit.url, kept):
        pass
    try:
        with pytest.raises(Conflict) as caught:
            async with retaining(rabbit.url, rule(f"/topic/{key}", **changed)):
                pass
        for word in [stream_name(kept), *words]:
            assert word.strip("'?") in caught.value.text, caught.value
        # What is there is unharmed.
        async with retaining(rabbit.url, kept):
            pass
    finally:
        delete(rabbit, kept)


async def test_a_queue_of_the_streams_name_is_refused(rabbit: RabbitMQ) -> None:
    kept = rule(f"/topic/{unique('classic')}")
    with channel(rabbit) as opened:
        opened.queue_declare(stream_name(kept), durable=True)
    try:
        with pytest.raises(Conflict, match="exists with"):
            async with retaining(rabbit.url, kept):
                pass
    finally:
        delete(rabbit, kept)


async def test_a_missing_exchange_stops_the_start_with_the_line_to_add(rabbit: RabbitMQ) -> None:
    name = unique("missing")
    kept = rule(f"/exchange/{name}/#")
    with pytest.raises(NotFound, match=f'name = "{name}"'):
        async with retaining(rabbit.url, kept):
            pass
    exchanges = [ExchangeSpec(name, auto_delete=True)]
    async with retaining(rabbit.url, kept, exchanges=exchanges) as broker:
        reader, _ = await open_feed(broker, f"/exchange/{name}/a")
        publish(rabbit, "a", [b"1"], name)
        await eventually(lambda: (reader.position() or [0])[0] >= 2, "the message")
    delete(rabbit, kept)


@pytest.mark.parametrize(("kind", "word"), [("headers", "topic, direct"), ("direct", "patterns")])
async def test_exchanges_that_a_pattern_cannot_retain_are_refused(
    rabbit: RabbitMQ, kind: str, word: str
) -> None:
    name = unique(kind)
    with pytest.raises(ConfigError, match=word):
        async with retaining(
            rabbit.url,
            rule(f"/exchange/{name}/#"),
            exchanges=[ExchangeSpec(name, type=kind)],
        ):
            pass
    with channel(rabbit) as opened:
        opened.exchange_delete(name)


@pytest.mark.parametrize(
    ("kind", "kept", "feed", "key"),
    [("direct", "/k", "/k", "k"), ("fanout", "/#", "/what.ever", "else"), ("fanout", "", "", "x")],
)
async def test_direct_and_fanout_exchanges(
    rabbit: RabbitMQ, kind: str, kept: str, feed: str, key: str
) -> None:
    name = unique(kind)
    retained = rule(f"/exchange/{name}{kept}")
    async with retaining(rabbit.url, retained, exchanges=[ExchangeSpec(name, type=kind)]) as broker:
        reader, sink = await open_feed(broker, f"/exchange/{name}{feed}")
        publish(rabbit, key, [b"1", b"2"], name)
        await sink.until(b"2")
        assert sink.bodies == [b"1", b"2"]
        assert (await read(reader, FIRST)).bodies == [b"1", b"2"]
        assert (await read(reader, Start("last", count=1))).bodies == [b"2"]
    delete(rabbit, retained)
    with channel(rabbit) as opened:
        opened.exchange_delete(name)


async def test_a_user_needs_only_the_documented_permissions(rabbit: RabbitMQ) -> None:
    user = unique("user")
    url = rabbit.add_user(
        user, "secret", r"queuecast\..*", r"queuecast\..*", r"queuecast\..*|amq\.topic"
    )
    kept = rule(f"/topic/{user}.#")
    async with retaining(url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{user}.a")
        publish(rabbit, f"{user}.a", [b"1"])
        await sink.until(b"1")
        assert (await read(reader, FIRST)).bodies == [b"1"]
    delete(rabbit, kept)
    poor = rabbit.add_user(unique("poor"), "secret", "", "", ".*")
    with pytest.raises(Refused):
        async with retaining(poor, kept):
            pass


# -- reading ------------------------------------------------------------------------------


async def test_what_was_published_before_anyone_came_is_there(rabbit: RabbitMQ) -> None:
    key = unique("before")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as broker:
        for name in "abab":
            publish(rabbit, f"{key}.{name}", [name.encode() + b"%d" % n for n in range(3)])
        await seen(broker, kept)
        one, live = await open_feed(broker, f"/topic/{key}.a")
        both, _ = await open_feed(broker, f"/topic/{key}.*")
        none, _ = await open_feed(broker, f"/topic/{key}.c")
        a = [b"a0", b"a1", b"a2"] * 2
        assert (await read(one, FIRST)).bodies == a
        assert (await read(one, FIRST, max_bytes=1)).bodies == a
        assert (await read(one, Start("last", count=1))).bodies == [b"a2"]
        assert (await read(one, Start("last", count=4))).bodies == a[2:]
        assert (await read(one, Start("last", count=100))).bodies == a
        assert (await read(both, Start("last", count=4))).bodies == [b"a2", b"b0", b"b1", b"b2"]
        assert len((await read(both, FIRST)).bodies) == 12
        assert (await read(none, FIRST)).bodies == []
        assert (await read(none, Start("last", count=1))).bodies == []
        publish(rabbit, f"{key}.a", [b"live"])
        await live.until(b"live")
        assert live.bodies == [b"live"]
        assert live.messages[0].routing_key == f"{key}.a"
        assert not live.messages[0].properties.headers
        # The history and the feed join: what follows the last page is what was handed over.
        assert live.start is not None
        joined = await read(one, live.start)
        assert joined.bodies == [b"live"]
        assert joined.place == (Mark(live.start.epoch, one.position()[0]),)  # type: ignore[index]
    delete(rabbit, kept)


async def test_since_a_time(rabbit: RabbitMQ) -> None:
    key = unique("time")
    kept = rule(f"/topic/{key}")
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, [b"old"])
        await sink.until(b"old")
        await asyncio.sleep(2.5)  # RabbitMQ counts whole seconds
        now = time.time()
        publish(rabbit, key, [b"new"])
        await sink.until(b"new")
        since = Start("time", time=now - 1)
        assert (await read(reader, since)).bodies == [b"new"]
        assert (await read(reader, Start("time", time=now - 60))).bodies == [b"old", b"new"]
        assert (await read(reader, Start("time", time=0))).bodies == [b"old", b"new"]
        assert (await read(reader, Start("time", time=now + 60))).bodies == []
        # A gateway that was not there then asks the broker.
        async with retaining(rabbit.url, kept) as late:
            reader, _ = await open_feed(late, f"/topic/{key}")
            assert (await read(reader, since)).bodies == [b"new"]
            assert (await read(reader, Start("time", time=now - 60))).bodies == [b"old", b"new"]
    delete(rabbit, kept)


async def test_a_sender_selected_key_reaches_its_feed(rabbit: RabbitMQ, rabbit_name: str) -> None:
    # Before 4.0 a stream drops headers that are lists, and with them the other keys.
    expected = [b"2"] if rabbit_name == "rabbitmq-3.10" else [b"1", b"2"]
    key = unique("cc")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}.b")
        _, both = await open_feed(broker, f"/topic/{key}.#")
        properties = pika.BasicProperties(headers={"CC": [f"{key}.b"]})
        with channel(rabbit) as opened:
            opened.basic_publish("amq.topic", f"{key}.a", b"1", properties)
            opened.basic_publish("amq.topic", f"{key}.b", b"2")
        await sink.until(b"2")
        await both.until(b"2")
        assert both.bodies == [b"1", b"2"]
        assert sink.bodies == expected
        assert (await read(reader, FIRST)).bodies == expected
    delete(rabbit, kept)


async def test_positions_hold_on_other_nodes_and_after_restarts_of_all(rabbit: RabbitMQ) -> None:
    key = unique("nodes")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as a, retaining(rabbit.url, kept) as b:
        _, on_a = await open_feed(a, f"/topic/{key}.x")
        reader, on_b = await open_feed(b, f"/topic/{key}.x")
        assert on_a.start is not None
        assert on_b.start is not None
        assert on_a.start.epoch == on_b.start.epoch
        publish(rabbit, f"{key}.x", [b"%d" % n for n in range(10)])
        publish(rabbit, f"{key}.y", [b"other"])
        await on_a.until(b"9")
        offset = on_a.messages[4].offset
        assert offset is not None
        mark = Mark(on_a.start.epoch, offset)
        rest = [b"%d" % n for n in range(5, 10)]
        on = await read(reader, mark)
        assert (on.bodies, on.gaps) == (rest, [])
        assert [m.offset for m in on.messages] == [m.offset for m in on_a.messages[5:]]
    async with retaining(rabbit.url, kept) as c:
        reader, _ = await open_feed(c, f"/topic/{key}.x")
        on = await read(reader, mark)
        assert (on.bodies, on.gaps) == (rest, [])
    delete(rabbit, kept)


async def test_a_position_that_never_was_is_a_gap(rabbit: RabbitMQ) -> None:
    key = unique("forged")
    kept = rule(f"/topic/{key}")
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}")
        assert sink.start is not None
        publish(rabbit, key, [b"1"])
        await sink.until(b"1")
        for mark in (Mark("0123456789", 1), Mark(sink.start.epoch, 10**15)):
            on = await read(reader, mark)
            assert on.bodies == [b"1"]
            assert on.gaps == [("epoch", Mark(sink.start.epoch, 0))]
    delete(rabbit, kept)


# -- streams that are deleted -------------------------------------------------------------


async def test_a_stream_deleted_under_running_gateways_is_a_gap(rabbit: RabbitMQ) -> None:
    key = unique("deleted")
    kept = rule(f"/topic/{key}")
    bodies = [b"%d" % n for n in range(5)]
    async with retaining(rabbit.url, kept) as a, retaining(rabbit.url, kept) as b:
        (reader, one), (_, two) = [await open_feed(each, f"/topic/{key}") for each in (a, b)]
        publish(rabbit, key, bodies)
        for sink in (one, two):
            await sink.until(b"4")
        delete(rabbit, kept)
        await eventually(lambda: bool(one.gaps and two.gaps), "the gaps")
        await eventually(lambda: a.ready and b.ready, "the new stream")
        # The very same messages again: nothing but the epoch tells the streams apart.
        publish(rabbit, key, bodies)
        await eventually(lambda: one.bodies == two.bodies == [*bodies, *bodies], "all twice")
        assert one.start is not None
        epochs = {sink.gaps[0][1].epoch for sink in (one, two)}
        assert len(epochs) == 1
        assert epochs != {one.start.epoch}
        assert len(one.gaps) == len(two.gaps) == 1
        offset = one.messages[2].offset
        assert offset is not None
        on = await read(reader, Mark(one.start.epoch, offset))
        assert on.bodies == bodies
        assert [gap for gap, _ in on.gaps] == ["epoch"]
    delete(rabbit, kept)


@pytest.mark.parametrize("by_hand", [False, True], ids=["by the gateway", "by hand"])
async def test_a_stream_deleted_and_made_anew_while_all_are_down_is_a_gap(
    rabbit: RabbitMQ, by_hand: bool
) -> None:
    key = unique("replaced")
    kept = rule(f"/topic/{key}")
    bodies = [b"%d" % n for n in range(5)]
    async with retaining(rabbit.url, kept) as broker:
        _, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, bodies)
        await sink.until(b"4")
        assert sink.start is not None
        mark = Mark(sink.start.epoch, sink.messages[2].offset or 0)
    delete(rabbit, kept)
    if by_hand:
        with channel(rabbit) as opened:
            opened.queue_declare(stream_name(kept), durable=True, arguments=stream_arguments(kept))
            opened.queue_bind(stream_name(kept), "amq.topic", key)
        publish(rabbit, key, bodies)
    async with retaining(rabbit.url, kept) as broker:
        reader, _ = await open_feed(broker, f"/topic/{key}")
        if not by_hand:
            publish(rabbit, key, bodies)
        await seen(broker, kept)
        on = await read(reader, mark)
        assert [gap for gap, _ in on.gaps] == ["epoch"]
        assert on.bodies == bodies
        assert on.place[0].epoch != mark.epoch
    delete(rabbit, kept)


async def test_a_stream_that_lost_its_end_gets_a_new_epoch(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_mark, "PATIENCE", 2.0)
    key = unique("shortened")
    kept = rule(f"/topic/{key}")
    name, identity = stream_name(kept), Identity(stream_name(kept)).exchange
    async with proxied(rabbit) as proxy, retaining(through(proxy, rabbit.url), kept) as broker:
        _, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, [b"%d" % n for n in range(5)])
        await sink.until(b"4")
        taken = proxy.accepted
        await proxy.refuse()
        proxy.cut()
        with channel(rabbit) as opened:
            # What a power cut can do to an unreplicated stream: same stream, fewer messages.
            # Here the identity is kept alive by another binding.
            keeper = opened.queue_declare("", exclusive=True).method.queue
            opened.queue_bind(keeper, identity)
            opened.queue_delete(name)
            opened.queue_declare(name, durable=True, arguments=stream_arguments(kept))
            opened.queue_bind(name, "amq.topic", key)
            opened.queue_bind(name, identity)
            opened.basic_publish("amq.topic", key, b"again")
            await proxy.accept()
            await eventually(lambda: proxy.accepted >= taken + 3, "new connections")
            await sink.until(b"again")
        assert sink.start is not None
        assert len(sink.gaps) == 1
        assert sink.gaps[0][1].epoch != sink.start.epoch
    delete(rabbit, kept)


async def test_an_exchange_that_comes_back_is_bound_again_with_a_gap(rabbit: RabbitMQ) -> None:
    name = unique("exchange")
    kept = rule(f"/exchange/{name}/#")
    with channel(rabbit) as opened:
        opened.exchange_declare(name, "topic", durable=True)
    async with retaining(rabbit.url, kept, rebind=0.2) as broker:
        _, sink = await open_feed(broker, f"/exchange/{name}/a")
        publish(rabbit, "a", [b"1"], name)
        await sink.until(b"1")
        with channel(rabbit) as opened:
            opened.exchange_delete(name)
        await asyncio.sleep(1.0)  # several looks
        with channel(rabbit) as opened:
            opened.exchange_declare(name, "topic", durable=True)
        await eventually(lambda: bool(sink.gaps), "the gap")
        publish(rabbit, "a", [b"2"], name)
        await sink.until(b"2")
        assert sink.start is not None
        assert [mark.epoch for _, mark in sink.gaps] == [sink.start.epoch]
    delete(rabbit, kept)
    with channel(rabbit) as opened:
        opened.exchange_delete(name)


# -- faults -------------------------------------------------------------------------------


async def test_cut_connections_are_no_gap(rabbit: RabbitMQ) -> None:
    key = unique("cut")
    kept = rule(f"/topic/{key}")
    async with (
        proxied(rabbit) as proxy,
        retaining(through(proxy, rabbit.url), kept) as broker,
        numbers(rabbit.url, "amq.topic", key) as publishing,
    ):
        reader, sink = await open_feed(broker, f"/topic/{key}")
        for _ in range(5):
            await publishing.more(200)
            taken = proxy.accepted
            proxy.cut()
            await eventually(lambda taken=taken: proxy.accepted >= taken + 3, "connections")  # type: ignore[misc]
            await eventually(lambda: broker.ready, "reconnected")
        await publishing.more(200)
        last = await publishing.stop()
        await sink.until(b"%d" % last)
        assert sink.gaps == []
        first = int(sink.bodies[0])
        assert sink.bodies == [b"%d" % n for n in range(first, last + 1)]
        on = await read(reader, FIRST)
        assert (on.bodies, on.gaps) == ([b"%d" % n for n in range(last + 1)], [])
    delete(rabbit, kept)


def check(sink: Sink, publishing: Numbers) -> None:
    """Every confirmed number once, in order, without a gap."""
    got = [int(body) for body in sink.bodies]
    assert sink.gaps == []
    assert got == sorted(set(got))
    assert not set(publishing.confirmed).difference(got, range(got[0]))


async def back(broker: RabbitBroker, patience: float = 120.0) -> None:
    """Wait until a broker is ready again; fails with its status."""
    try:
        await eventually(lambda: broker.ready, "ready again", patience)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {broker.status}") from None


async def test_a_broker_killed_under_load_is_no_gap(rabbit_fresh: RabbitServer) -> None:
    key = unique("killed")
    kept = rule(f"/topic/{key}")
    async with (
        retaining(rabbit_fresh.url, kept) as a,
        retaining(rabbit_fresh.url, kept) as b,
        # A broker that has just started confirms messages that reach no queue yet.
        numbers(rabbit_fresh.url, "amq.topic", key, mandatory=True) as publishing,
    ):
        (reader, one), (_, two) = [await open_feed(each, f"/topic/{key}") for each in (a, b)]
        await asyncio.to_thread(rabbit_fresh.flush)
        for _ in range(2):
            await publishing.more(300)
            await asyncio.to_thread(rabbit_fresh.kill)
            await asyncio.to_thread(rabbit_fresh.start)
            await back(a)
            await back(b)
        await publishing.more(300)
        last = await publishing.stop()
        for sink in (one, two):
            await sink.until(b"%d" % last)
            check(sink, publishing)
        everything = await read(reader, FIRST)
        assert everything.gaps == []
        assert everything.bodies[-len(one.bodies) :] == one.bodies
    async with retaining(rabbit_fresh.url, kept) as c:
        reader, _ = await open_feed(c, f"/topic/{key}")
        assert (await read(reader, FIRST)).bodies == everything.bodies
    delete(rabbit_fresh, kept)


async def test_a_stream_that_rabbitmq_lost_is_named_and_the_rest_works(
    rabbit_fresh: RabbitServer,
) -> None:
    key = unique("lost")
    kept = rule(f"/topic/{key}")
    name = stream_name(kept)
    async with retaining(rabbit_fresh.url, kept) as broker:
        _, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit_fresh, key, [b"1"])
        await sink.until(b"1")
        await asyncio.to_thread(rabbit_fresh.flush)
        await asyncio.to_thread(rabbit_fresh.kill)
        rabbit_fresh.forget_streams()
        await asyncio.to_thread(rabbit_fresh.start)
        await eventually(
            lambda: f"knows the stream {name!r} and cannot reach it" in broker.status, "status", 60
        )
        assert not broker.ready
        other = ListFeed()
        await broker.open_feed(D(f"/topic/other-{key}"), other)
        await broker.publish(D(f"/topic/other-{key}"), b"works")
        await other.until(1)
        with pytest.raises(Unavailable, match="cannot reach it"):
            await broker.publish(D(f"/topic/{key}"), b"2")
        # A gateway that starts meanwhile serves the others, too.
        late = RabbitBroker(rabbit_fresh.url, retain=[kept])
        try:
            await late.start()
            with pytest.raises(Unavailable, match="cannot reach it"):
                await late.declare()
            await late.publish(D(f"/topic/other-{key}"), b"works")
            await other.until(2)
        finally:
            await late.close()
        # What docs/rabbitmq.md says to do about it.
        await asyncio.to_thread(rabbit_fresh.ctl, "eval", removal(name))
        await back(broker)
        await broker.publish(D(f"/topic/{key}"), b"3")
        await sink.until(b"3")
        assert sink.start is not None
        assert len(sink.gaps) == 1
        assert sink.gaps[0][1].epoch != sink.start.epoch
        assert sink.bodies == [b"1", b"3"]


def removal(stream: str) -> str:
    """Return the expression in docs/rabbitmq.md, for this stream."""
    text = (Path(__file__).parents[2] / "docs" / "rabbitmq.md").read_text()
    (command,) = re.findall(r"rabbitmqctl eval '\n(.*?)'\n", text, re.DOTALL)
    expression: str = command.replace("NAME", stream)
    assert expression != command
    return expression


async def test_a_silent_broker_is_asked_again(
    rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = unique("silent")
    kept = rule(f"/topic/{key}")
    asked = 0

    async def declare(*args: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            await asyncio.Event().wait()
        await declare_stream(*args)

    async with proxied(rabbit) as proxy, retaining(through(proxy, rabbit.url), kept) as broker:
        monkeypatch.setattr(stream_reader, "declare_stream", declare)
        monkeypatch.setattr(stream_reader, "ANSWERS", 2.0)
        asked = 1
        proxy.cut()
        await eventually(lambda: "does not answer" in broker.status, "status", 60)
        monkeypatch.setattr(stream_reader, "ANSWERS", 60.0)
        await back(broker)
        assert asked > 2
    delete(rabbit, kept)


# -- bounds -------------------------------------------------------------------------------


def consumers(rabbit: RabbitMQ, kept: RetainRule) -> int:
    """Return how many consumers the broker counts at a rule's stream."""
    return rabbit.list_queues()[stream_name(kept)].consumers


async def test_retention_under_a_sleeper_is_a_gap_with_what_is_known(rabbit: RabbitMQ) -> None:
    key = unique("evicted")
    kept = rule(f"/topic/{key}.#", size=1 << 20)
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}.a")
        quiet, _ = await open_feed(broker, f"/topic/{key}.quiet")
        publish(rabbit, f"{key}.quiet", [b"quiet"])
        publish(rabbit, f"{key}.a", [b"%06d" % n for n in range(20)])
        await sink.until(b"%06d" % 19)
        assert sink.start is not None
        asleep = Mark(sink.start.epoch, sink.messages[9].offset or 0)
        publish(rabbit, f"{key}.a", [b"%06d" % n + bytes(2000) for n in range(20, 2500)])
        last = b"%06d" % 2499 + bytes(2000)
        await sink.until(last)
        assert sink.gaps == []
        on = await read(reader, asleep)
        assert [gap for gap, _ in on.gaps] == ["evicted"]
        numbers = [int(body[:6]) for body in on.bodies]
        assert numbers[0] > 20
        assert numbers == list(range(numbers[0], 2500))
        assert on.gaps[0][1].offset < (on.messages[0].offset or 0)
        # Who asks for the first, or for more than there is, has no gap.
        for start in (FIRST, Start("last", count=5000)):
            everything = await read(reader, start)
            assert everything.gaps == []
            assert everything.bodies == on.bodies
        # A destination of which nothing was lost has none either, and `last=1` finds nothing.
        resumed = await read(quiet, Mark(asleep.epoch, asleep.offset))
        assert (resumed.bodies, resumed.gaps) == ([], [])
        gone = await read(quiet, Start("last", count=1))
        assert (gone.bodies, gone.gaps) == ([], [])
    delete(rabbit, kept)


async def test_age_holds_although_no_segment_was_deleted(rabbit: RabbitMQ) -> None:
    key = unique("aged")
    kept = rule(f"/topic/{key}", age=3.0)
    async with retaining(rabbit.url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{key}")
        publish(rabbit, key, [b"old"])
        await sink.until(b"old")
        assert sink.start is not None
        assert (await read(reader, FIRST)).bodies == [b"old"]
        await asyncio.sleep(6.0)
        publish(rabbit, key, [b"new"])
        await sink.until(b"new")
        async with retaining(rabbit.url, kept) as late:
            other, _ = await open_feed(late, f"/topic/{key}")
            for each in (reader, other):
                assert (await read(each, FIRST)).bodies == [b"new"]
                assert (await read(each, Start("last", count=5))).bodies == [b"new"]
                on = await read(each, sink.start)
                assert on.bodies == [b"new"]
                assert [gap for gap, _ in on.gaps] == ["evicted"]
    delete(rabbit, kept)


async def test_a_thousand_pages_at_a_thousand_positions_are_two_consumers(
    rabbit: RabbitMQ,
) -> None:
    key = unique("thousand")
    kept = rule(f"/topic/{key}.#")
    count = 5_000
    with channel(rabbit, confirms=False) as opened:
        opened.queue_declare(stream_name(kept), durable=True, arguments=stream_arguments(kept))
        opened.queue_bind(stream_name(kept), "amq.topic", f"{key}.#")
        for number in range(count):
            opened.basic_publish("amq.topic", f"{key}.{number % 10}", b"%05d" % number + bytes(195))
    async with retaining(rabbit.url, kept) as broker:
        readers = [(await open_feed(broker, f"/topic/{key}.{n}"))[0] for n in range(10)]
        (start,) = await readers[0].locate(FIRST)
        most = 0
        done = asyncio.Event()

        async def watch() -> None:
            # Now and then only: rabbitmqctl takes as much of the processor as all the readers.
            nonlocal most
            while not done.is_set():
                most = max(most, await asyncio.to_thread(consumers, rabbit, kept))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), 2.0)

        async def resume(page: int) -> None:
            on = await read(readers[page % 10], Mark(start.epoch, start.offset + page * 5), 1 << 16)
            assert on.gaps == []
            got = [int(body[:5]) for body in on.bodies]
            assert got == list(range(got[0], count, 10)), page
            assert (count - len(got) * 10) <= page * 5 + 10, (page, len(got))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(resume(page) for page in range(1000)))
        done.set()
        await watching
        assert 1 <= most <= 2
        reader = broker._retained._readers[stream_name(kept)]
        assert reader.past.history.attached < 200
        # Nobody is behind any more: the second goes away.
        await settled(lambda: consumers(rabbit, kept), 1, 120.0)
    delete(rabbit, kept)


async def test_5000_destinations_are_one_stream(rabbit: RabbitMQ) -> None:
    key = unique("many")
    kept = rule(f"/topic/{key}.#")
    async with retaining(rabbit.url, kept) as broker:
        feeds = [await open_feed(broker, f"/topic/{key}.{n}") for n in range(5000)]
        with channel(rabbit, confirms=False) as opened:
            for number in range(5000):
                opened.basic_publish("amq.topic", f"{key}.{number}", b"%d" % number)
        await feeds[4999][1].until(b"4999")
        for number, (_, sink) in enumerate(feeds):
            assert sink.bodies == [b"%d" % number]
        assert await asyncio.to_thread(consumers, rabbit, kept) == 1
        bindings = [
            row
            for row in await asyncio.to_thread(rabbit.list_bindings)
            if row["destination_name"] == stream_name(kept) and row["source_name"]
        ]
        assert len(bindings) == 2  # the rule's own, and the identity's
    # After a restart each page asks for its last result; none of them reads the stream alone.
    async with retaining(rabbit.url, kept) as broker:
        readers = [(await open_feed(broker, f"/topic/{key}.{n}"))[0] for n in range(5000)]
        last = Start("last", count=1)
        found = await asyncio.gather(*(read(reader, last) for reader in readers))
        for number, on in enumerate(found):
            assert on.bodies == [b"%d" % number]
        assert await asyncio.to_thread(consumers, rabbit, kept) <= 2
    delete(rabbit, kept)
