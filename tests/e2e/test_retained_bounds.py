"""Retained destinations at RabbitMQ: what is kept, and what many readers cost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from queuecast.brokers.rabbitmq.streams import stream_arguments, stream_name
from queuecast.position import Mark, Start
from queuecast.retention import RetainRule
from tests.support.retained import FIRST, channel, delete, open_feed, publish, read, retaining, rule
from tests.support.servers import RabbitMQ, unique
from tests.support.streams import settled

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]


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
