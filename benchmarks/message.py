"""The benchmark's message: a marker to count by, a number for the order, a time for the latency.

    $00000000042@0000000001234567890.........................

The marker is one byte, so that it is never split between two reads, and neither the rest of a
body nor any framing contains it: 0x7E would stand in the head of every WebSocket frame of 126
bytes and more. A size at which a frame's length is the marker is caught: nothing adds up then.
"""

from __future__ import annotations

import re
import time

MARKER = b"$"
DESTINATION = "/topic/benchmark"
# A marker, 11 digits, "@", 20 digits.
MIN_SIZE = 33
NUMBER = slice(1, 12)
# From the marker to the time stamp, and its end.
STAMP = slice(13, 33)

_BODY = re.compile(rb"\$(\d{11})@(\d{20})\.*")


def body(number: int, size: int, *, stamped: bool = False, due: float | None = None) -> bytes:
    """Return a body of `size` bytes. stamped: with the present time, or `due` (monotonic s)."""
    if size < MIN_SIZE:
        raise ValueError(f"a body has at least {MIN_SIZE} bytes")
    stamp = 0
    if stamped:
        stamp = time.monotonic_ns() if due is None else int(due * 1e9)
    return (b"$%011d@%020d" % (number, stamp)).ljust(size, b".")


def number_of(text: bytes) -> int | None:
    """Return the number of a whole body, None if it is not one."""
    found = _BODY.fullmatch(text)
    return None if found is None else int(found[1])
