"""Publishes batch by batch, one per turn of the event loop, paced by the slowest subscriber.

The same for both servers. Without the pacing a figure would say how fast messages can be thrown
away; with it every message has to arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from .child import Answer, usage

# How often a paced producer looks whether it may go on. The kernel holds far more than arrives
# meanwhile, so nobody runs dry.
_LOOK_AGAIN = 0.001

# Bytes that one subscriber may get in a run, because the streams of some are kept and checked; and
# what a message has around its body at most.
_STREAM = 48 << 20
_FRAMING = 250

Publish = Callable[[int], Awaitable[None]]


def most(size: int, subscriptions: int = 1) -> int:
    """Return how many messages of a size a run may have for each subscription of a connection."""
    return max(1, _STREAM // (size + _FRAMING) // subscriptions)


async def as_fast_as_possible(
    publish: Publish, is_held: Callable[[], bool], seconds: float, batch: int, bound: int
) -> Answer:
    """Publish for some seconds. publish: a batch, given the number of its first message.

    bound: messages after which the run is over before its time.

    Returns the messages published and the start (monotonic seconds).
    """
    started = time.monotonic()
    before = usage()["cpu"]
    deadline = started + seconds
    messages = 0
    while not messages or (messages < bound and time.monotonic() < deadline):
        if is_held():
            await asyncio.sleep(_LOOK_AGAIN)
            continue
        await publish(messages)
        messages += batch
        await asyncio.sleep(0)
    return {"messages": messages, "started": started, "cpu_before": before}


async def at_a_rate(publish: Publish, rate: float, messages: int) -> Answer:
    """Publish `messages` messages, one each 1/rate seconds."""
    started = time.monotonic()
    for number in range(messages):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        await publish(number)
    return {"messages": messages, "started": started}
