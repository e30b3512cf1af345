"""An event loop turned by hand: its clock stands still and its ticks run when a test says so."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Cancelled(BaseException):
    """Thrown into a task that is cancelled."""


class FakePromise:
    """A value to be set later; tasks that await it go on in the next turn."""

    def __init__(self) -> None:
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self.on_done: Callable[[], object] = lambda: None

    def set_result(self, result: Any, /) -> None:
        assert not self._done, "a promise is kept once"
        self._done, self._value = True, result
        self.on_done()

    def set_exception(self, exception: BaseException, /) -> None:
        assert not self._done, "a promise is kept once"
        self._done, self._error = True, exception
        self.on_done()

    def done(self) -> bool:
        return self._done

    def __await__(self) -> Generator[FakePromise, None, Any]:
        if not self._done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value


class Task:
    """A running coroutine; `result` raises what it raised."""

    def __init__(self, runtime: FakeRuntime, work: Coroutine[Any, Any, Any], name: str) -> None:
        self.name = name
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.on_done: Callable[[], object] = lambda: None
        self._runtime = runtime
        self._work = work
        self._waits: FakePromise | None = None
        runtime.call_soon(self._step, None)

    def cancel(self) -> None:
        if self.done:
            return
        if self._waits is not None:
            # As asyncio does: the awaited future counts as done from now on.
            self._waits.on_done = lambda: None
            if not self._waits.done():
                self._waits.set_exception(Cancelled())
        self._runtime.call_soon(self._step, Cancelled())

    def result(self) -> Any:
        assert self.done, f"{self.name} is still running"
        if self.error is not None:
            raise self.error
        return self.value

    def _step(self, error: BaseException | None) -> None:
        if self.done:
            return
        self._waits = None
        try:
            waits = self._work.throw(error) if error else self._work.send(None)
        except StopIteration as stop:
            self.done, self.value = True, stop.value
            self.on_done()
        except BaseException as caught:  # noqa: BLE001 kept for result()
            self.done, self.error = True, caught
            self.on_done()
        else:
            assert isinstance(waits, FakePromise)
            self._waits = waits
            waits.on_done = lambda: self._runtime.call_soon(self._step, None)


class _FakeTimer:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class FakeRuntime:
    """See queuecast.runtime.Runtime."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.tasks: list[Task] = []
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._later: list[tuple[float, int, _FakeTimer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        self._soon.append((call, args))

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> _FakeTimer:
        timer = _FakeTimer(lambda: call(*args))
        heapq.heappush(self._later, (self.time + delay, next(self._order), timer))
        return timer

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> Callable[[], object]:
        return self.start(work, name).cancel

    def promise(self) -> FakePromise:
        return FakePromise()

    async def sleep(self, delay: float) -> None:
        promise = FakePromise()
        self.call_later(delay, promise.set_result, None)
        await promise

    async def within(self, seconds: float, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        task = self.start(run(), "within")
        over = FakePromise()

        def end(in_time: bool) -> None:
            if not over.done():
                over.set_result(in_time)

        task.on_done = lambda: end(True)
        timer = self.call_later(seconds, end, False)
        try:
            if not await over:
                raise TimeoutError
        finally:
            timer.cancel()
            task.cancel()
            self.tasks.remove(task)
        value: T = task.result()
        return value

    # -- for tests ------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the next turn."""
        return not self._soon

    def turn(self) -> None:
        """Run one turn of the loop."""
        soon, self._soon = self._soon, []
        for call, args in soon:
            call(*args)

    def settle(self, most: int = 100_000) -> None:
        """Run turns until nothing is left to do."""
        for _ in range(most):
            if not self._soon:
                return
            self.turn()
        raise AssertionError("the loop never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass and timers run."""
        self.time += seconds
        while self._later and self._later[0][0] <= self.time:
            call = heapq.heappop(self._later)[2].call
            if call is not None:
                call()
            self.settle()

    def start(self, work: Coroutine[Any, Any, Any], name: str = "test") -> Task:
        """Run a coroutine in the background and keep its task."""
        task = Task(self, work, name)
        self.tasks.append(task)
        return task

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its value."""
        task = self.start(work)
        self.settle()
        value: T = task.result()
        return value
