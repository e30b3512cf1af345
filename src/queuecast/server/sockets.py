"""Counts the open client connections against their limit."""

from __future__ import annotations


class Sockets:
    """The number of open connections, whatever protocol holds them now.

    accepted: all that ever came. refused: those of them beyond the limit.
    """

    __slots__ = ("accepted", "limit", "open", "refused")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open = 0
        self.accepted = 0
        self.refused = 0

    def enter(self) -> bool:
        """Count one more; returns whether it is within the limit. `leave` follows either way."""
        self.open += 1
        self.accepted += 1
        if self.open <= self.limit:
            return True
        self.refused += 1
        return False

    def leave(self) -> None:
        """Count one less."""
        self.open -= 1
