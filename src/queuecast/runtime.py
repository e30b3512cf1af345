"""What the hub and the sessions need of an event loop, so that they need not know one.

The gateway passes an adapter over asyncio; tests pass a fake whose clock and ticks they turn by
hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forget the call; harmless when it has happened."""


class Promise(Protocol):
    """A value that is not there yet (asyncio.Future fits). One awaiter each."""

    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...
    def done(self) -> bool: ...
    def __await__(self) -> Any: ...


class Runtime(Protocol):
    """The event loop, as far as the inner floors see it. Times are seconds, monotonic."""

    def now(self) -> float:
        """Return the monotonic clock in seconds."""

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        """Run `call` in the next turn of the loop (a tick)."""

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        """Run `call` after `delay` seconds."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> Callable[[], object]:
        """Run a coroutine in the background; its failure is logged under `name`.

        Returns what cancels it.
        """

    def promise(self) -> Promise:
        """Return a value to be set later."""

    async def sleep(self, delay: float) -> None:
        """Wait `delay` seconds."""

    async def within(self, seconds: float, work: Awaitable[T]) -> T:
        """Await with a limit; raises TimeoutError, cancelling the work."""
