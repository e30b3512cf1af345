"""What clients may cost before they are anybody's session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of the sockets; sizes in bytes, times in seconds.

    connections: open at once, of every kind. head, headers: a request head's size and count of
    header lines. head_seconds: time to finish a head; it stops a client that sends a byte a
    second. body_seconds: the same for a body. batch, batch_messages: a JSON batch. uploads: all
    bodies on their way in, together; it stops many large ones at once. keepalive: an idle
    connection between requests (longer than the 60 s after which proxies give theirs up).
    heartbeat: interval of a session's sign of life.
    """

    connections: int = 100_000
    head: int = 16 * 1024
    headers: int = 100
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    batch: int = 8 << 20
    batch_messages: int = 1000
    uploads: int = 256 << 20
    keepalive: float = 75.0
    heartbeat: float = 25.0
