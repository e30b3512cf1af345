"""The RabbitMQ broker when connections are cut and brokers killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest

from queuecast.brokers.base import SettlingReader
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.brokers.rabbitmq.feedkind import FeedKind
from queuecast.destination import Destination
from queuecast.errors import OutcomeUnknown, QueuecastError, Refused, Unavailable
from queuecast.message import Properties
from tests.support.rabbit import cuttable, proxied, started, through
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import ListDeliveries, ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse
# From this version on RabbitMQ has its bindings again before it takes messages.
KHEPRI = (4, 3)


class Publishing:
    """Publishes numbers to a key until told to stop, from a connection of its own."""

    def __init__(self, broker: RabbitBroker, destination: str, *, persistent: bool = False) -> None:
        self._broker = broker
        self._destination = D(destination)
        self._properties = Properties(persistent=persistent)
        self.sent = 0
        self.confirmed: list[bytes] = []
        self.unknown: set[bytes] = set()
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stop:
            bodies = [b"%d" % (self.sent + step) for step in range(20)]
            self.sent += len(bodies)
            results = await asyncio.gather(
                *(
                    self._broker.publish(self._destination, body, self._properties)
                    for body in bodies
                ),
                return_exceptions=True,
            )
            for body, result in zip(bodies, results, strict=True):
                if result is None:
                    self.confirmed.append(body)
                elif isinstance(result, OutcomeUnknown):
                    self.unknown.add(body)
                elif not isinstance(result, Unavailable):
                    raise AssertionError(result)
            await asyncio.sleep(0.002)

    async def until(self, count: int) -> None:
        """Wait for so many more confirms."""
        target = len(self.confirmed) + count
        await eventually(lambda: self._task.done() or len(self.confirmed) >= target, "confirms")
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        self._stop = True
        await self._task


def survives_restart(broker: RabbitBroker) -> bool:
    """Return whether feeds miss nothing when the whole broker restarts."""
    link = broker._consuming.link
    assert link is not None
    return link.version >= KHEPRI


def assert_in_order(events: Sequence[bytes | str]) -> None:
    """Bodies are rising numbers: nothing repeated, nothing out of order."""
    numbers = [int(event) for event in events if isinstance(event, bytes)]
    assert numbers == sorted(set(numbers)), Counter(numbers).most_common(3)


async def test_a_cut_connection_loses_and_repeats_nothing(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        key = unique("cut")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        publishing = Publishing(other, f"/topic/{key}")
        for _ in range(5):
            await publishing.until(300)
            taken = proxy.accepted
            proxy.cut()
            await eventually(lambda taken=taken: proxy.accepted >= taken + 2, "a new connection")  # type: ignore[misc]
            await eventually(lambda: broker.ready, "reconnected")
        await publishing.until(300)
        await publishing.stop()
        await sink.until(len(publishing.confirmed))
        assert sink.gaps == []
        assert sink.bodies == publishing.confirmed
        assert not publishing.unknown


async def test_a_stalled_connection_is_cut_in_the_middle_of_unacked_messages(
    rabbit: RabbitMQ,
) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        key = unique("stalled")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        publishing = Publishing(other, f"/topic/{key}")
        for _ in range(3):
            await publishing.until(200)
            proxy.stall()
            await publishing.until(500)
            proxy.cut()
            proxy.unstall()
            await publishing.until(200)
        await publishing.stop()
        await sink.until(len(publishing.confirmed))
        assert sink.gaps == []
        assert sink.bodies == publishing.confirmed


async def test_equal_messages_that_cannot_be_told_apart_are_a_gap_not_a_hole(
    rabbit: RabbitMQ,
) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        key = unique("same")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        for _ in range(50):
            await other.publish(D(f"/topic/{key}"), b"tick")
        await sink.until(50)
        proxy.stall()
        for _ in range(50):
            await other.publish(D(f"/topic/{key}"), b"tick")
        proxy.cut()
        proxy.unstall()
        await eventually(lambda: broker.ready, "reconnected")
        await other.publish(D(f"/topic/{key}"), b"end")
        await eventually(lambda: bool(sink.bodies) and sink.bodies[-1] == b"end", "the end")
        assert sink.gaps or sink.bodies == [b"tick"] * 100 + [b"end"]


async def test_a_queue_that_expired_is_a_gap(rabbit: RabbitMQ) -> None:
    node = unique("expired")
    async with (
        started(rabbit.url) as other,
        cuttable(rabbit, node=node, expires=1000) as (broker, proxy),
    ):
        key = unique("expired")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await other.publish(D(f"/topic/{key}"), b"1")
        await sink.until(1)
        await proxy.refuse()
        proxy.cut()
        await other.publish(D(f"/topic/{key}"), b"2")

        def is_there() -> bool:
            return any(name.startswith(f"queuecast.{node}.amq.topic.") for name in names())

        def names() -> list[str]:
            return list(rabbit.list_queues())

        async with asyncio.timeout(30):
            while await asyncio.to_thread(is_there):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await proxy.accept()
        await eventually(lambda: bool(sink.gaps), "the gap")
        await other.publish(D(f"/topic/{key}"), b"3")
        await sink.until(2)
        assert sink.bodies == [b"1", b"3"]
        assert sink.events[1] == sink.gaps[0]
        assert len(sink.gaps) == 1
        assert "expired" in sink.gaps[0]


async def test_without_the_right_to_a_canary_each_reconnect_is_a_gap(rabbit: RabbitMQ) -> None:
    url = await asyncio.to_thread(
        lambda: rabbit.add_user(unique("nocanary"), "secret", write="^(queuecast|amq.topic$)")
    )
    async with started(rabbit.url) as other, cuttable(rabbit, url=url) as (broker, proxy):
        key = unique("nocanary")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        for turn in range(3):
            await other.publish(D(f"/topic/{key}"), b"%d" % turn)
            await sink.until(turn + 1)
            proxy.cut()
            await eventually(lambda turn=turn: len(sink.gaps) == turn + 1, "the gap")  # type: ignore[misc]
        assert sink.bodies == [b"0", b"1", b"2"]


@pytest.mark.parametrize("goes", [True, False])
async def test_an_old_connection_that_the_broker_still_believes_in(
    rabbit: RabbitMQ, goes: bool
) -> None:
    node = unique("zombie")
    async with (
        started(rabbit.url) as other,
        cuttable(rabbit, node=node, zombie_patience=1.5) as (broker, proxy),
    ):
        key = unique("zombie")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await other.publish(D(f"/topic/{key}"), b"1")
        await sink.until(1)
        names = await asyncio.to_thread(rabbit.list_queues)
        (queue,) = [name for name in names if name.startswith(f"queuecast.{node}.amq.topic.")]
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not broker.ready, "noticed")
        # Stands for the old connection: it has the messages, unacked.
        zombie = pika.BlockingConnection(pika.URLParameters(rabbit.url))
        taken: list[bytes] = []
        zombie.channel().basic_consume(queue, lambda _c, _m, _p, body: taken.append(body))
        await other.publish(D(f"/topic/{key}"), b"2")
        await asyncio.to_thread(zombie.process_data_events, 0.5)
        assert taken == [b"2"]
        await other.publish(D(f"/topic/{key}"), b"3")
        await proxy.accept()
        await eventually(lambda: broker._feeds.link is not None, "reconnected")
        assert sink.bodies == [b"1"]
        assert not broker.ready
        if goes:
            zombie.close()
            await sink.until(3)
            assert sink.events == [b"1", b"2", b"3"]
            return
        await eventually(lambda: bool(sink.gaps), "the gap")
        await other.publish(D(f"/topic/{key}"), b"4")
        await sink.until(2)
        assert sink.events == [b"1", sink.gaps[0], b"4"]
        with contextlib.suppress(pika.exceptions.AMQPError):
            zombie.close()


@pytest.mark.slow
async def test_a_broker_killed_while_the_connection_is_cut_again_and_again(
    rabbit_own: RabbitServer,
) -> None:
    async with started(rabbit_own.url) as other, cuttable(rabbit_own) as (broker, proxy):
        key = unique("mayhem")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await asyncio.to_thread(rabbit_own.flush)
        publishing = Publishing(other, f"/topic/{key}", persistent=True)
        await publishing.until(300)
        proxy.stall()
        await publishing.until(300)
        await asyncio.to_thread(rabbit_own.kill)
        proxy.cut()
        proxy.unstall()
        await asyncio.to_thread(rabbit_own.start)
        for _ in range(4):
            accepted = proxy.accepted
            await eventually(lambda n=accepted: proxy.accepted > n, "an attempt", 60)  # type: ignore[misc]
            proxy.cut()
        await eventually(lambda: broker.ready and other.ready, "reconnected", 60)
        await publishing.until(300)
        await publishing.stop()
        last = publishing.confirmed[-1]
        await eventually(lambda: last in sink.bodies, "the last", 30)
        assert_in_order(sink.events)
        if survives_restart(broker):
            assert not sink.gaps
            assert set(publishing.confirmed) <= set(sink.bodies)
        else:
            assert sink.gaps


@pytest.mark.both_loops
async def test_a_connection_that_the_loop_gave_up_is_made_anew(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as broker:
        key = unique("given-up")
        await broker.publish(D(f"/topic/{key}"), b"1")
        link = broker._publishing.link
        assert link is not None

        def gone(*_: object) -> None:
            raise RuntimeError("the handler is closed")

        link._raw._transport._nbio.set_writer = gone
        with contextlib.suppress(OutcomeUnknown, Unavailable):
            await broker.publish(D(f"/topic/{key}"), b"2")
        # At once, not after the 60 s of a heartbeat.
        await asyncio.wait_for(asyncio.shield(link.lost), 30)
        await eventually(lambda: broker.ready, "reconnected")
        await broker.publish(D(f"/topic/{key}"), b"3")


async def test_a_deleted_feed_queue_is_made_again_with_a_gap(rabbit: RabbitMQ) -> None:
    node = unique("node")
    async with started(rabbit.url, node=node) as broker:
        key = unique("deleted")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        names = await asyncio.to_thread(rabbit.list_queues)
        (queue,) = [name for name in names if name.startswith(f"queuecast.{node}.amq.topic.")]
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as raw:
            raw.channel().queue_delete(queue)
        await eventually(lambda: bool(sink.gaps), "the gap")
        await broker.publish(D(f"/topic/{key}"), b"after")
        await sink.until(1)
        assert sink.events == [sink.gaps[0], b"after"]


@pytest.mark.parametrize("how", ["deleted", "cut"])
async def test_a_queue_that_is_lost_while_it_is_asked_is_asked_again(
    rabbit: RabbitMQ, how: str
) -> None:
    node = unique("node")
    async with cuttable(rabbit, node=node, patience=60.0) as (broker, proxy):
        sink = ListFeed()
        reader = await broker.open_feed(D(f"/topic/{unique('lost')}"), sink)
        assert isinstance(reader, SettlingReader)
        answered = 0

        async def ask() -> None:
            nonlocal answered
            while not lost or answered < 2000:
                await reader.settle()
                answered += 1

        lost = False
        asking = [asyncio.create_task(ask()) for _ in range(20)]
        for _ in range(3 if how == "cut" else 1):
            if how == "cut":
                taken = proxy.accepted
                proxy.cut()
                await eventually(lambda taken=taken: proxy.accepted >= taken + 2, "reconnects")  # type: ignore[misc]
            else:
                names = await asyncio.to_thread(rabbit.list_queues)
                (queue,) = [name for name in names if f".{node}.amq.topic." in name]
                with contextlib.closing(
                    pika.BlockingConnection(pika.URLParameters(rabbit.url))
                ) as raw:
                    raw.channel().queue_delete(queue)
                await eventually(lambda: bool(sink.gaps), "the gap")
        lost = True
        await asyncio.gather(*asking)


async def test_calls_while_away_are_bounded_and_work_after(rabbit: RabbitMQ) -> None:
    async with cuttable(rabbit, patience=0.3) as (broker, proxy):
        key = unique("away")
        queue = f"/queue/{key}"
        await broker.publish(D(queue), b"before")
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not broker.ready, "noticed")
        with pytest.raises(Unavailable):
            await broker.publish(D(f"/topic/{key}"), b"1")
        with pytest.raises(Unavailable):
            await broker.open_feed(D(f"/topic/{key}"), ListFeed())
        with pytest.raises(Unavailable):
            await broker.consume(D(queue), ListDeliveries())
        assert "next in" in broker.status
        await proxy.accept()
        await eventually(lambda: broker.ready, "reconnected")
        assert broker.status == "connected"
        sink = ListDeliveries()
        consumer = await broker.consume(D(queue), sink)
        await sink.until(1)
        assert consumer.ack(sink.deliveries[0].tag)
        await consumer.close()


async def test_a_consumer_s_unacked_come_again_after_a_cut(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        queue = f"/queue/{unique('again')}"
        sink = ListDeliveries()
        consumer = await broker.consume(D(queue), sink, prefetch=3)
        for number in range(5):
            await other.publish(D(queue), b"%d" % number)
        await sink.until(3)
        old = [delivery.tag for delivery in sink.deliveries]
        assert consumer.ack(old[0])
        await sink.until(4)
        proxy.cut()
        await eventually(lambda: sink.resets == 1, "the reset")
        assert not consumer.ack(old[1])
        await sink.until(7)
        again = sink.deliveries[4:]
        assert [delivery.message.body for delivery in again] == [b"1", b"2", b"3"]
        assert all(delivery.message.redelivered for delivery in again)
        assert not {delivery.tag for delivery in again} & set(old)
        for delivery in again:
            assert consumer.ack(delivery.tag)
        await sink.until(8)
        assert consumer.ack(sink.deliveries[7].tag)
        await consumer.close()


async def test_publishes_at_a_cut_have_a_known_or_an_unknown_outcome(rabbit: RabbitMQ) -> None:
    async with started(rabbit.url) as other, cuttable(rabbit) as (broker, proxy):
        key = unique("outcome")
        sink = ListFeed()
        await other.open_feed(D(f"/topic/{key}"), sink)
        publishing = Publishing(broker, f"/topic/{key}")
        await publishing.until(200)
        proxy.stall()
        await asyncio.sleep(0.1)
        proxy.cut()
        proxy.unstall()
        await publishing.until(200)
        await publishing.stop()
        await other.publish(D(f"/topic/{key}"), b"999999")
        await eventually(lambda: b"999999" in sink.bodies, "the last")
        assert publishing.unknown
        assert_in_order(sink.events)
        got = set(sink.bodies) - {b"999999"}
        assert set(publishing.confirmed) <= got <= set(publishing.confirmed) | publishing.unknown


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.slow
async def test_a_killed_broker_repeats_nothing_and_loses_nothing_silently(
    rabbit_own: RabbitServer, persistent: bool
) -> None:
    async with started(rabbit_own.url) as broker:
        key = unique("killed")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await asyncio.to_thread(rabbit_own.flush)
        publishing = Publishing(broker, f"/topic/{key}", persistent=persistent)
        await publishing.until(500)
        await asyncio.to_thread(rabbit_own.kill)
        await asyncio.to_thread(rabbit_own.start)
        await eventually(lambda: broker.ready, "reconnected", 60)
        await publishing.until(500)
        await publishing.stop()
        last = publishing.confirmed[-1]
        await eventually(lambda: last in sink.bodies, "the last", 30)
        assert_in_order(sink.events)
        if survives_restart(broker):
            assert not sink.gaps
            assert set(publishing.confirmed) <= set(sink.bodies)
            return
        assert len(sink.gaps) == 1
        if persistent:
            return
        # What came after the gap is complete.
        after = sink.events[sink.events.index(sink.gaps[0]) + 1 :]
        start = publishing.confirmed.index(next(b for b in after if b in publishing.confirmed))
        assert [b for b in after if b in set(publishing.confirmed)] == publishing.confirmed[start:]


@pytest.mark.slow
async def test_a_queue_that_the_broker_has_in_name_only_is_given_up(
    rabbit_own: RabbitServer,
) -> None:
    async with started(rabbit_own.url) as broker:
        link = broker._consuming.link
        assert link is not None
        if not FeedKind.of(link).is_quorum:
            return  # a classic queue is written with its name
        key = unique("named")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await asyncio.to_thread(rabbit_own.kill)
        rabbit_own.forget_quorum_queues()
        await asyncio.to_thread(rabbit_own.start)
        await eventually(lambda: bool(sink.gaps), "the gap", 60)
        await eventually(lambda: broker.ready, "ready", 60)
        async with asyncio.timeout(60):
            while not sink.bodies:
                # Until the old queue is deleted RabbitMQ may refuse what is routed to it.
                with contextlib.suppress(QueuecastError):
                    await broker.publish(D(f"/topic/{key}"), b"1")
                await asyncio.sleep(0.1)
        names = await asyncio.to_thread(rabbit_own.list_queues)
        assert len([name for name in names if ".amq.topic." in name]) == 1


@pytest.mark.slow
async def test_a_stopped_broker_loses_nothing_silently(rabbit_own: RabbitServer) -> None:
    async with started(rabbit_own.url) as broker:
        key = unique("stopped")
        sink = ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await broker.publish(D(f"/topic/{key}"), b"1")
        await sink.until(1)
        await asyncio.to_thread(rabbit_own.restart)
        await eventually(lambda: not broker.ready, "noticed", 60)
        await eventually(lambda: broker.ready, "reconnected", 60)
        await broker.publish(D(f"/topic/{key}"), b"2")
        await sink.until(2)
        if survives_restart(broker):
            assert sink.events == [b"1", b"2"]
        else:
            assert sink.events == [b"1", sink.gaps[0], b"2"]


async def test_start_says_why_it_failed(rabbit: RabbitMQ) -> None:
    parts = urlsplit(rabbit.url)
    wrong = parts._replace(netloc=f"guest:wrong@{parts.netloc.rpartition('@')[2]}").geturl()
    with pytest.raises(Refused) as caught:
        await RabbitBroker(wrong).start()
    assert "login" in str(caught.value)
    assert "wrong" not in str(caught.value)
    with pytest.raises(QueuecastError) as missing:
        await RabbitBroker(parts._replace(path=f"/{unique('nowhere')}").geturl()).start()
    assert "virtual host" in str(missing.value)


async def test_start_can_be_called_again(rabbit: RabbitMQ) -> None:
    async with proxied(rabbit) as proxy:
        await proxy.refuse()
        broker = RabbitBroker(through(proxy, rabbit.url))
        with pytest.raises(Unavailable):
            await broker.start()
        assert not broker.ready
        await proxy.accept()
        await broker.start()
        assert broker.ready
        await broker.close()
        assert not broker.ready
