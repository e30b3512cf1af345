"""Sending clients away over a time, so that they do not all come back, anywhere, at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two groups of clients.
STEP = 0.05


async def spread_over(everybody: Sequence[T], seconds: float, call: Callable[[T], object]) -> None:
    """Call once for each, in groups of equal size over `seconds`; few do not take that long."""
    rounds = max(1, int(seconds / STEP))
    share = max(1, -(-len(everybody) // rounds))
    for start in range(0, len(everybody), share):
        if start:
            await asyncio.sleep(STEP)
        for each in everybody[start : start + share]:
            try:
                call(each)
            except Exception:
                logger.exception("a client could not be sent away")
