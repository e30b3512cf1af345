"""The watch of exchanges at a real RabbitMQ: deleted, declared again, restarted, cut off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pika
import pytest

from queuecast.brokers.rabbitmq.address import Address
from queuecast.brokers.rabbitmq.connection import Link
from queuecast.brokers.rabbitmq.exchange_watch import ExchangeWatch, Following
from queuecast.brokers.rabbitmq.hosts import Hosts
from queuecast.brokers.rabbitmq.supervisor import Supervisor
from tests.support.rabbit import proxied, through
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(300)]


async def at(rabbit: RabbitMQ, *calls: Callable[[Any], object]) -> None:
    """Do what an operator does, on one channel."""

    def work() -> None:
        with pika.BlockingConnection(pika.URLParameters(rabbit.url)) as connection:
            channel = connection.channel()
            for call in calls:
                call(channel)

    await asyncio.to_thread(work)


def declare(name: str, kind: str = "topic", *, durable: bool = True) -> Callable[[Any], object]:
    return lambda channel: channel.exchange_declare(name, kind, durable=durable)


def delete(name: str) -> Callable[[Any], object]:
    return lambda channel: channel.exchange_delete(name)


class Watching:
    """A gateway's watch, and what it told of one exchange."""

    def __init__(self, watch: ExchangeWatch, supervisor: Supervisor) -> None:
        self.watch = watch
        self.supervisor = supervisor
        self.lost: list[str] = []
        self.back: list[str] = []
        self.following: Following | None = None

    @property
    def epoch(self) -> str:
        assert self.following is not None
        return self.following.epoch

    async def told(self, losses: int) -> None:
        """Return when it has told of so many losses."""
        await eventually(lambda: len(self.lost) >= losses, "the loss was noticed")

    async def is_back(self) -> None:
        await eventually(lambda: bool(self.back), "its return was noticed")

    async def follow(self, exchange: str) -> Following:
        self.following = await self.watch.follow(exchange, self.lost.append, self.back.append)
        return self.following


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncIterator[Watching]:
    async def on_up(link: Link) -> None:
        watch.on_up(link)

    address = Address.parse(url)
    supervisor = Supervisor(
        address,
        "queuecast test consuming",
        hosts=Hosts(address),
        on_up=on_up,
        on_down=lambda _why: watch.on_down(),
        last_delay=0.5,
    )
    watch = ExchangeWatch(supervisor)
    await supervisor.start()
    try:
        yield Watching(watch, supervisor)
    finally:
        await watch.close()
        await supervisor.close()


def again(name: str) -> list[str]:
    return [f"the exchange {name!r} was deleted and declared again"]


async def later(looks: float = 2.5) -> None:
    """Wait for some looks, for what must not happen."""
    await asyncio.sleep(looks)


@pytest.mark.parametrize("kind", ["topic", "fanout"])
async def test_deleted_and_declared_at_once(
    rabbit: RabbitMQ, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = unique("watched")
    await at(rabbit, declare(name))
    async with watching(rabbit.url) as one, watching(rabbit.url) as two:
        epoch = (await one.follow(name)).epoch
        assert epoch
        assert (await two.follow(name)).epoch == epoch
        await later()
        assert one.lost == two.lost == []
        for turn in (1, 2):
            with caplog.at_level(logging.WARNING):
                await at(rabbit, delete(name), declare(name, kind))
                for each in (one, two):
                    await each.told(turn)
            assert one.lost == two.lost == again(name) * turn
            assert one.back == two.back == []
            assert one.epoch == two.epoch != epoch
            epoch = one.epoch
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len([each for each in warnings if name in each.getMessage()]) == 4
        await later()
        assert one.watch.losses == two.watch.losses == 2
        await at(rabbit, delete(name))
    assert not [each for each in rabbit.list_bindings() if name in str(each)]


async def test_missing_for_a_while(rabbit: RabbitMQ) -> None:
    name = unique("watched")
    await at(rabbit, declare(name))
    async with watching(rabbit.url) as one:
        await one.follow(name)
        await at(rabbit, delete(name))
        await one.told(1)
        assert one.lost == [f"the exchange {name!r} is missing"]
        assert not one.epoch
        await later()
        await at(rabbit, declare(name))
        await one.is_back()
        assert one.epoch
        assert (len(one.lost), one.back) == (1, [f"the exchange {name!r} was missing"])
        await at(rabbit, delete(name))


async def test_missing_from_the_beginning(rabbit: RabbitMQ) -> None:
    name = unique("watched")
    async with watching(rabbit.url) as one:
        await one.follow(name)
        await later()
        assert not one.lost
        assert not one.epoch
        await at(rabbit, declare(name))
        await one.is_back()
        assert one.epoch
        assert not one.lost
        await at(rabbit, delete(name), declare(name))
        await one.told(1)
        await at(rabbit, delete(name))


async def test_deleted_while_the_connection_was_away(rabbit: RabbitMQ) -> None:
    name, kept = unique("watched"), unique("kept")
    await at(rabbit, declare(name), declare(kept))
    async with (
        proxied(rabbit) as proxy,
        watching(through(proxy, rabbit.url)) as one,
        watching(rabbit.url) as two,
    ):
        await one.follow(name)
        await one.watch.follow(kept, one.lost.append)
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not one.supervisor.ready, "away")
        await at(rabbit, delete(name), declare(name))
        # Another gateway has made everything again before this one is back.
        await two.follow(name)
        await proxy.accept()
        await one.told(1)
        await later()
        assert one.lost == again(name)
        assert not two.lost
        await at(rabbit, delete(name), delete(kept))


async def test_a_gateway_that_ends_disturbs_no_other(rabbit: RabbitMQ) -> None:
    name = unique("watched")
    await at(rabbit, declare(name))
    async with watching(rabbit.url) as one:
        await one.follow(name)
        async with watching(rabbit.url) as two:
            following = await two.follow(name)
            await following.close()
            await at(rabbit, delete(name), declare(name))
            await one.told(1)
            assert not two.lost
        await later()
        assert one.lost == again(name)
        await at(rabbit, delete(name))


async def test_without_the_right_to_write(
    rabbit: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    name, user = unique("watched"), unique("reader")
    await at(rabbit, declare(name))
    url = rabbit.add_user(user, "pw", configure="queuecast.*", write="queuecast.*", read=".*")
    async with watching(url) as one:
        for _ in range(2):
            following = await one.follow(name)
            assert following.is_watchable
            assert not following.epoch
        told = [each.getMessage() for each in caplog.records if name in each.getMessage()]
        assert len(told) == 1
        assert "not watched" in told[0]
        assert user in told[0]
        # What is missing for longer than a look is noticed all the same.
        await at(rabbit, delete(name))
        await one.told(1)
        await at(rabbit, declare(name))
        await one.is_back()
        await at(rabbit, delete(name))
    rabbit.delete_users(user)


@pytest.mark.parametrize("durable", [True, False])
async def test_a_killed_broker(rabbit_own: RabbitServer, durable: bool) -> None:
    name = unique("watched")
    await at(rabbit_own, declare(name, durable=durable))
    async with watching(rabbit_own.url) as one, watching(rabbit_own.url) as two:
        for each in (one, two):
            await each.follow(name)
        for turn in (1, 2):
            await asyncio.to_thread(rabbit_own.flush)
            await asyncio.to_thread(rabbit_own.kill)
            await asyncio.to_thread(rabbit_own.start)
            await at(rabbit_own, declare(name, durable=durable))
            for each in (one, two):
                await eventually(
                    lambda each=each: each.supervisor.ready,  # type: ignore[misc]
                    "connected",
                    60,
                )
                if not durable:
                    await each.told(turn)
            await later()
            if durable:
                assert one.lost == two.lost == []
        await at(rabbit_own, delete(name), declare(name, durable=durable))
        for each in (one, two):
            await each.told(1 if durable else 3)
        await at(rabbit_own, delete(name))


async def test_what_cannot_be_deleted_is_not_watched(rabbit: RabbitMQ) -> None:
    async with watching(rabbit.url) as one:
        for name in ("", "amq.topic", "amq.direct"):
            following = await one.watch.follow(name, one.lost.append)
            assert not following.is_watchable
            assert not following.epoch
            await following.close()


async def test_many_exchanges_of_which_some_are_deleted(rabbit: RabbitMQ) -> None:
    names = [unique("watched") for _ in range(60)]
    await at(rabbit, *map(declare, names))
    async with watching(rabbit.url) as one:
        await asyncio.gather(*(one.watch.follow(name, one.lost.append) for name in names))
        gone = names[::3]
        await at(rabbit, *(call(name) for name in gone for call in (delete, declare)))
        await eventually(lambda: len(one.lost) >= len(gone), "noticed", 20)
        await later()
        assert sorted(one.lost) == sorted(why for name in gone for why in again(name))
        await at(rabbit, *map(delete, names))
