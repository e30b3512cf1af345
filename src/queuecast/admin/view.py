"""What the admin listener shows, of one process or of several together."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ..metrics import Family

# One line of the list of connections; see listing.py.
Row = dict[str, Any]


class Readiness(NamedTuple):
    """Whether clients should come, and why not, for people."""

    ready: bool
    status: str


class View(Protocol):
    """Raises nothing: what cannot be seen is left out, or said."""

    async def metrics(self) -> list[Family]:
        """Return everything that is measured."""

    async def connections(self, count: int) -> list[Row]:
        """Return the connections that are furthest behind, the worst first."""

    async def readiness(self) -> Readiness:
        """Tell whether clients should come."""

    async def alive(self) -> bool:
        """Tell whether anybody serves."""
