"""The benchmark's message: a marker to count by, a number for the order, a time for the latency.

    $00000000042@0000000001234567890#000007....................

After the number come the time stamp and the number of the destination, as far as the size allows.
The marker is one byte, so that it is never split between two reads, and neither the rest of a
body nor any framing contains it: 0x7E would stand in the head of every WebSocket frame of 126
bytes and more. A size at which a frame's length is the marker is caught: nothing adds up then.
"""

from __future__ import annotations

import re
import time

MARKER = b"$"
DESTINATION = "/topic/benchmark"
# A marker and 11 digits; then "@" and 20 digits; then "#" and 6 digits.
MIN_SIZE = 12
STAMPED_SIZE = 33
TOPIC_SIZE = 40
NUMBER = slice(1, 12)
# From the marker to the time stamp, and its end.
STAMP = slice(13, 33)

_BODY = re.compile(rb"\$(\d{11})(?:@\d{20})?(?:#(\d{6}))?\.*")


def destination(topic: int | None) -> str:
    """Return the name of one of many destinations, or of the only one; all are equally long."""
    return DESTINATION if topic is None else f"/topic/t.{topic:07}"


def body(
    number: int, size: int, *, topic: int = 0, stamped: bool = False, due: float | None = None
) -> bytes:
    """Return a body of `size` bytes. stamped: with the present time, or `due` (monotonic s)."""
    if size < (STAMPED_SIZE if stamped else MIN_SIZE):
        raise ValueError(f"a body has at least {STAMPED_SIZE if stamped else MIN_SIZE} bytes")
    text = b"$%011d" % number
    if size >= STAMPED_SIZE:
        stamp = 0
        if stamped:
            stamp = time.monotonic_ns() if due is None else int(due * 1e9)
        text += b"@%020d" % stamp
    if size >= TOPIC_SIZE:
        text += b"#%06d" % topic
    return text.ljust(size, b".")


def parse(text: bytes) -> tuple[int, int] | None:
    """Return number and destination of a whole body, None if it is not one."""
    found = _BODY.fullmatch(text)
    return None if found is None else (int(found[1]), int(found[2] or 0))
