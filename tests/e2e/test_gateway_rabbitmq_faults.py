"""The whole gateway while RabbitMQ is cut off, stopped, killed: what browsers see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter

import aiohttp
import pika
import pytest

from tests.support.proxy import TcpProxy
from tests.support.rabbit import proxied, through
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import eventually
from tests.support.streams import (
    GAP,
    Enveloped,
    Stream,
    audience,
    check_complete,
    check_honest,
    numbers,
    ready,
    running,
    settled,
)

# Versions that lose what the broker held or had no bindings for when it was restarted.
MNESIA = ("3.10", "4.0")

pytestmark = pytest.mark.rabbitmq


async def cut(proxy: TcpProxy) -> None:
    """Cut both connections of the gateway and wait until they came back."""
    taken = proxy.accepted
    proxy.cut()
    await eventually(lambda: proxy.accepted >= taken + 2, "two new connections")


@pytest.mark.slow
async def test_a_cut_to_the_broker_is_no_gap_for_anybody(rabbit: RabbitMQ) -> None:
    key = unique("cut")
    async with (
        proxied(rabbit) as proxy,
        running(broker={"url": through(proxy, rabbit.url)}) as gw,
        audience(gw.url, f"/topic/{key}", 40) as streams,
        numbers(rabbit.url, "amq.topic", key) as publishing,
    ):
        for _ in range(3):
            await publishing.more(150)
            await cut(proxy)
            await ready(gw)
        # As a firewall does it: nothing passes, then the connection is gone.
        await publishing.more(150)
        proxy.stall()
        await publishing.more(300)
        taken = proxy.accepted
        proxy.cut()
        proxy.unstall()
        await eventually(lambda: proxy.accepted >= taken + 2, "two new connections")
        await ready(gw)
        await publishing.more(150)
        last = await publishing.stop()
        assert publishing.confirmed == list(range(last + 1))
        for stream in streams:
            await stream.until(str(last))
        for stream in streams:
            check_complete(stream, range(last + 1))


@pytest.mark.parametrize(
    ("how", "count"),
    # The last: more than the broker sends ahead of the acks.
    [("stalled", 20), ("cut", 20), ("away", 20), ("stalled", 5000)],
)
async def test_a_page_of_another_gateway_waits_for_what_it_has_already(
    rabbit: RabbitMQ, how: str, count: int
) -> None:
    key = unique("moved")
    topic = f"/topic/{key}?envelope=json"
    async with (
        proxied(rabbit) as proxy,
        running(broker={"url": rabbit.url}) as one,
        running(broker={"url": through(proxy, rabbit.url)}) as two,
        aiohttp.ClientSession() as session,
    ):

        async def publish(body: str) -> None:
            async with session.post(f"{one.url}/publish/topic/{key}", data=body) as answer:
                assert answer.status == 200, await answer.text()

        async def publish_many(count: int) -> None:
            for first in range(0, count, 500):
                many = range(first, min(first + 500, count))
                batch = [{"destination": f"/topic/{key}", "body": str(each)} for each in many]
                async with session.post(f"{one.url}/publish", json={"messages": batch}) as answer:
                    assert answer.status == 200, await answer.text()

        moving = await Enveloped.open(one.url, topic)
        staying = await Enveloped.open(two.url, topic)
        await publish("before")
        await asyncio.gather(moving.until(1), staying.until(1))
        proxy.stall()
        await publish_many(count)
        await moving.until(count + 1)
        place = moving.deliveries[-1]["position"]
        await moving.close()
        if how != "stalled":
            await proxy.refuse()
            proxy.cut()
            await eventually(lambda: not two.gateway.broker.ready, "the cut noticed")
        if how == "away":
            poll = f"{two.url}/poll/topic/{key}?since={place}"
            async with session.get(poll) as answer:
                assert answer.status == 503, await answer.text()
                assert (await answer.json())["retry"] is True
            live = await Enveloped.open(two.url, topic)
            await live.close()
        moved = asyncio.create_task(Enveloped.open(two.url, f"{topic}&since={place}"))
        await asyncio.sleep(0.3)
        assert not moved.done()
        proxy.unstall()
        await proxy.accept()
        there = await moved
        await publish("after")
        await asyncio.gather(there.until(1), staying.until(count + 2))
        assert there.bodies == ["after"]
        assert (await there.notice("gap"))["gap"]["reason"] == "epoch"
        assert staying.bodies == ["before", *map(str, range(count)), "after"]
        assert not [each for each in staying.notices if "gap" in each]
        await there.close()
        await staying.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_200_clients_stay_while_the_broker_is_restarted(
    rabbit_own: RabbitServer, how: str
) -> None:
    key = unique(how)
    async with (
        running(broker={"url": rabbit_own.url}) as gw,
        audience(gw.url, f"/topic/{key}", 200) as streams,
        numbers(rabbit_own.url, "amq.topic", key) as publishing,
    ):
        await publishing.more(300)
        await asyncio.to_thread(rabbit_own.flush)
        await asyncio.to_thread(getattr(rabbit_own, how))
        await eventually(lambda: not gw.gateway.broker.ready, "noticed")
        await asyncio.to_thread(rabbit_own.start)
        await ready(gw)
        await publishing.more(300)
        last = await publishing.stop()
        for stream in streams:
            await stream.until(str(last))
        for stream in streams:
            check_honest(stream, publishing.confirmed)
            # What the broker did not have or route is missing: it has to be said, once.
            assert stream.events.count(GAP) == (1 if rabbit_own.version in MNESIA else 0)
        assert all(stream.events == streams[0].events for stream in streams)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_bridge_loses_no_persistent_message_over_a_restart(
    rabbit_own: RabbitServer, how: str
) -> None:
    orders, audit = unique("orders"), unique("audit")
    topic = unique("topic")
    async with (
        running(
            broker={"url": rabbit_own.url},
            queue=[
                {"name": orders},
                {"name": audit, "bindings": [{"exchange": "amq.topic", "key": topic}]},
            ],
            bridge=[{"from": f"/queue/{orders}", "to": f"/topic/{topic}"}],
        ) as gw,
        audience(gw.url, f"/topic/{topic}", 4) as streams,
        numbers(rabbit_own.url, "", orders, persistent=True) as publishing,
    ):
        await publishing.more(200)
        await asyncio.to_thread(getattr(rabbit_own, how))
        await asyncio.to_thread(rabbit_own.start)
        await ready(gw)
        await publishing.more(200)
        last = await publishing.stop()
        for stream in streams:
            await stream.until(str(last))
        await settled(lambda: no_messages(rabbit_own, orders), True)
        # Given to nobody twice unless it says so; the audit queue sees the broker's truth.
        copies = await asyncio.to_thread(drain, rabbit_own, audit)
        assert set(publishing.confirmed) <= {number for number, _ in copies}
        unmarked = Counter(number for number, redelivered in copies if not redelivered)
        assert not [number for number, count in unmarked.items() if count > 1]
        for stream in streams:
            assert stream.ended is None
            assert stream.events == streams[0].events
            # What is missing here was told: its place is at the gap.
            if GAP not in stream.events:
                assert set(publishing.confirmed) <= set(stream.numbers)


def no_messages(rabbit: RabbitMQ, queue: str) -> bool:
    info = rabbit.list_queues()[queue]
    return info.messages == 0


def drain(rabbit: RabbitMQ, queue: str) -> list[tuple[int, bool]]:
    """Take everything from a queue: numbers, and whether they were announced as repeated."""
    taken: list[tuple[int, bool]] = []
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        channel = connection.channel()
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return taken
            marked = bool((properties.headers or {}).get("redelivered"))
            taken.append((int(body), marked))


async def test_a_bridge_in_front_of_a_broker_that_is_cut_off_again_and_again(
    rabbit: RabbitMQ,
) -> None:
    orders, topic = unique("orders"), unique("topic")
    async with (
        proxied(rabbit) as proxy,
        running(
            broker={"url": through(proxy, rabbit.url)},
            queue=[{"name": orders}],
            bridge=[{"from": f"/queue/{orders}", "to": f"/topic/{topic}", "prefetch": 20}],
        ) as gw,
        audience(gw.url, f"/topic/{topic}?envelope=json", 1) as (stream,),
        numbers(rabbit.url, "", orders, persistent=True) as publishing,
    ):
        for _ in range(3):
            await publishing.more(100)
            await cut(proxy)
            await ready(gw)
        await publishing.more(100)
        last = await publishing.stop()
        await settled(lambda: no_messages(rabbit, orders), True)
        await eventually(lambda: last in [n for n, _ in seen(stream)], "the last")
        got = seen(stream)
        assert GAP not in stream.events
        assert {number for number, _ in got} == set(range(last + 1))
        unmarked = Counter(number for number, redelivered in got if not redelivered)
        assert not [number for number, count in unmarked.items() if count > 1]
    await asyncio.to_thread(delete, rabbit, orders)


def seen(stream: Stream) -> list[tuple[int, bool]]:
    messages = [json.loads(body) for body in stream.bodies]
    return [
        (int(each["body"]), bool(each["headers"].get("redelivered", False))) for each in messages
    ]


def delete(rabbit: RabbitMQ, queue: str) -> None:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        connection.channel().queue_delete(queue)
