"""The run's clock, so that what failed can be found among the faults and in the logs."""

from __future__ import annotations

import time

_BEGAN = time.monotonic()


def now() -> float:
    """Return the seconds since the program began."""
    return time.monotonic() - _BEGAN


def stamp() -> str:
    """Return the time of the day, as the gateways' logs have it, and the seconds."""
    return f"{time.strftime('%H:%M:%S')} {now():7.2f}"
