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

    async def __call__(self) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun.append(answer)
        await answer


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_ask_before_a_look_begins_share_it() -> None:
    looks = Looks()
    settling = Settling(looks)
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


async def test_whoever_leaves_disturbs_nobody() -> None:
    looks = Looks()
    settling = Settling(looks)
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
