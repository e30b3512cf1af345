"""Clients that leave at the worst moment: nothing of theirs may stay behind."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from queuecast.auth.identity import ANONYMOUS
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.delivery import Consumer, DeliverySink
from queuecast.destination import Destination
from queuecast.queuespec import PLAIN, ConsumeSpec
from queuecast.server.loop import LoopRuntime
from queuecast.sessions.base import Session
from queuecast.sessions.encodings import WebSocketEncoding
from queuecast.sessions.work import WorkSubscription
from tests.server.house import House, running

QUEUE = Destination.parse("/queue/jobs")


class Socket:
    """A transport that takes everything."""

    def write(self, data: bytes, /) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return False


def session_in(house: House) -> Session:
    return Session(house.gateway.services, Socket(), ANONYMOUS)


async def test_a_cancellation_in_the_turn_in_which_the_work_is_done_is_not_lost() -> None:
    runtime = LoopRuntime(asyncio.get_running_loop())
    live = asyncio.Event()
    went_on = False

    async def begin() -> None:
        nonlocal went_on
        await runtime.within(10.0, live.wait())
        went_on = True

    task = asyncio.create_task(begin())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    live.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on


async def test_what_a_session_starts_is_not_even_made_when_it_ends_before() -> None:
    made: list[str] = []

    def make(name: str) -> Coroutine[Any, Any, None]:
        made.append(name)
        return asyncio.sleep(0)

    async with running() as house:
        session = session_in(house)
        session.spawn(partial(make, "left"), "left at once")
        session.end()
        staying = session_in(house)
        staying.spawn(partial(make, "stayed"), "stayed")
        await house.eventually(lambda: made)
        staying.end()
    assert made == ["stayed"]


async def test_a_consumer_that_opens_as_its_client_leaves_is_closed() -> None:
    async with running() as house:
        services = house.gateway.services
        consume = services.consume
        session = session_in(house)
        work = WorkSubscription(session, QUEUE, WebSocketEncoding(), 1, client_acks=False)

        async def leaves_meanwhile(
            destination: Destination,
            sink: DeliverySink,
            *,
            prefetch: int,
            spec: ConsumeSpec = PLAIN,
        ) -> Consumer:
            consumer = await consume(destination, sink, prefetch=prefetch, spec=spec)
            # Runs after this has returned, and before the one who waits for it.
            asyncio.get_running_loop().call_soon(opening.cancel)
            return consumer

        services.consume = leaves_meanwhile
        opening = asyncio.create_task(work.open(1))
        with pytest.raises(asyncio.CancelledError):
            await opening
        broker = house.gateway.broker
        assert isinstance(broker, EmbeddedBroker)
        assert "jobs" in broker.counts().queues
        await house.eventually(lambda: broker.counts().queues["jobs"].consumers == 0)
