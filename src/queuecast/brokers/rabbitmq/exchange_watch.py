"""Stand-in."""

from __future__ import annotations

from collections.abc import Callable

from .connection import Link
from .supervisor import Supervisor


class Following:
    async def close(self) -> None:
        pass


class ExchangeWatch:
    def __init__(self, supervisor: Supervisor) -> None:
        pass

    async def follow(self, exchange: str, on_lost: Callable[[str], None]) -> Following:
        return Following()

    def on_up(self, link: Link) -> None:
        pass

    def on_down(self) -> None:
        pass

    async def close(self) -> None:
        pass
