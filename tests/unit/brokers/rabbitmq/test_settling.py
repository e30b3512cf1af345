"""One look at a queue for all who wait for it."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from queuecast.brokers.rabbitmq.settling import Settling
from queuecast.errors import Unavailable


class Looks:
    """Looks that last until they are told to end."""

    def __init__(self) -> None:
        self.begun: list[asyncio.Future[None]] = []
        self.ends: list[float] = []

    async def __call__(self, ends: float) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun.append(answer)
        self.ends.append(ends)
        await answer


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_ask_before_a_look_begins_share_it() -> None:
    looks = Looks()
    settling = Settling(looks, 5.0)
    early = [asyncio.create_task(settling.wait()) for _ in range(1000)]
    await turns()
    assert len(looks.begun) == 1
    late = [asyncio.create_task(settling.wait()) for _ in range(1000)]
    await turns()
    assert len(looks.begun) == 1, "one at a time"
    looks.begun[0].set_result(None)
    await asyncio.gather(*early)
    await turns()
    assert not any(task.done() for task in late), "the first look began before they asked"
    assert len(looks.begun) == 2
    looks.begun[1].set_exception(Unavailable("away"))
    ends = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(end, Unavailable) for end in ends)


async def test_whoever_waits_for_a_look_does_not_wait_twice_as_long() -> None:
    looks = Looks()
    settling = Settling(looks, 5.0)
    loop = asyncio.get_running_loop()
    early = asyncio.create_task(settling.wait())
    await turns()
    before = loop.time()
    late = asyncio.create_task(settling.wait())
    await turns()
    after = loop.time()
    await asyncio.sleep(0.02)
    later = asyncio.create_task(settling.wait())
    await turns()
    looks.begun[0].set_exception(Unavailable("not read yet"))
    await turns()
    looks.begun[1].set_result(None)
    results = await asyncio.gather(early, late, later, return_exceptions=True)
    assert isinstance(results[0], Unavailable)
    assert not any(results[1:])
    # From when the first of them asked, not from when its look began.
    assert before + 5.0 <= looks.ends[1] <= after + 5.0


async def test_whoever_leaves_disturbs_nobody() -> None:
    looks = Looks()
    settling = Settling(looks, 5.0)
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    leaving, staying = (asyncio.create_task(settling.wait()) for _ in range(2))
    await turns()
    leaving.cancel()
    await turns()
    looks.begun[0].set_result(None)
    await staying
    alone = asyncio.create_task(settling.wait())
    await turns()
    alone.cancel()
    await turns()
    looks.begun[1].set_exception(Unavailable("away, and nobody is left to hear it"))
    await turns()
    assert alone.cancelled()
    looks.begun.clear()
    gc.collect()
    await turns()
    assert complaints == []
