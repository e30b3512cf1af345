"""The view of one process: this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..metrics import Family
from ..sessions.roll import Present
from .collect import Collector
from .listing import furthest_behind
from .view import Readiness, Row


class LocalView:
    """roll: yields everybody who is here. ready: see server.web.Web."""

    def __init__(
        self,
        collector: Collector,
        roll: Callable[[], Iterator[Present]],
        ready: Callable[[], tuple[bool, str]],
    ) -> None:
        self._collector = collector
        self._roll = roll
        self._ready = ready

    async def metrics(self) -> list[Family]:
        """See View."""
        return await self._collector.families()

    async def connections(self, count: int) -> list[Row]:
        """See View."""
        return await furthest_behind(self._roll(), count)

    async def readiness(self) -> Readiness:
        """See View."""
        return Readiness(*self._ready())

    async def alive(self) -> bool:
        """See View."""
        return True
