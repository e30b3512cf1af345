"""Who starts something ends it: what the benchmark's contexts have in common."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Owner:
    """`with` one of these: what it put on its stack is gone afterwards, the last one first."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
