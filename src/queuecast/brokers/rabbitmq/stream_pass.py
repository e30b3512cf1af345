"""The history pass: one consumer that reads a stream for all who are behind, however many.

It sweeps upwards. Whoever waits for messages ahead of it is served when it comes by, and it jumps
over what nobody waits for; those below wait for the next sweep, which starts at the lowest of
them. What it read last stays in a window, so that somebody who comes back for the next page a
moment later does not need another sweep. A long run yields to others after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime

import pika.exceptions

from ...errors import QueuecastError, Unavailable
from ...message import Message
from ..matching import matcher
from .connection import Channel, Link
from .failures import of_channel
from .stream_holes import Hole, Holes, hole_of
from .stream_index import Window
from .stream_request import Request, keys_of, size_of, take_offset
from .stream_run import Run

log = logging.getLogger(__name__)

Offset = int | str | datetime  # what x-stream-offset takes

PREFETCH = 500  # messages; what the broker may send ahead of our acks
_ACKS = 100  # messages that are acked together
# Bytes of the window. It stops a crowd that reads page by page from making a sweep of each page.
WINDOW = 8 << 20
# Requests so far ahead take part in a run. More than can arrive between two looks.
_AHEAD = 2 * PREFETCH
# Messages that are rather read and thrown away than jumped over: a jump takes that long. No more
# than _AHEAD: who is read on to takes part, else the run would go past it.
_NEAR = _AHEAD // 2
# Messages after which a run lets others have the consumer, if any wait.
_QUANTUM = 5_000
# … and after which a page ends in any case: whoever asked does not wait for ever for the messages
# of a rare key.
_LONGEST = 50_000
_LINGER = 2.0  # seconds that the consumer stays when nobody waits
_SILENCE = 30.0  # seconds without a message that has to come; the consumer is opened anew then
_PATIENCE = 10.0  # seconds of failures in a row after which those who wait are told
_NO_SUCH_TIME = 3.0  # seconds without a message of a time
_RETRY = 0.2  # seconds between attempts


class _NoLink(Unavailable):
    """There is no connection, and none came within the time that a call waits for one."""


class StreamPass:
    """The pass over one stream.

    marks: the exchange of messages that are our own. wait: returns the link, waiting for it;
    raises Unavailable. holes: of the stream, where those that are read are noted.
    """

    def __init__(
        self,
        stream: str,
        marks: str,
        wait: Callable[[], Awaitable[Link]],
        *,
        window: int = WINDOW,
        holes: Holes | None = None,
    ) -> None:
        self._stream = stream
        self._marks = marks
        self._wait = wait
        self.window = Window(window)
        self.holes = Holes() if holes is None else holes
        self._waiting: set[Request] = set()
        self._rested: set[Request] = set()  # of the waiting, those whose run was cut short
        self._active = Run()
        self._idle_work: Request | None = None
        self._probes: deque[tuple[Offset, asyncio.Future[int]]] = deque()
        self._channel: Channel | None = None
        self._arrived: deque[tuple[int, int, Message]] = deque()  # tag, offset, message
        self._event = asyncio.Event()
        self._position: int | None = None  # the last offset handed over in this run
        self._run_length = 0
        self._acked = 0  # the delivery tag up to which
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.attached = 0
        """How often a consumer was opened, for tests and measurements."""

    # -- asking ---------------------------------------------------------------------------

    async def ask(self, request: Request) -> None:
        """Return when the request was served; raises Unavailable."""
        self._waiting.add(request)
        self._wake()
        try:
            await request.done
        finally:
            self._leave(request)

    async def probe(self, spec: Offset) -> int:
        """Return the offset of the first message that RabbitMQ has for "first" or a time.

        There must be one. Raises Unavailable.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._probes.append((spec, answer))
        self._wake()
        return await answer

    def when_idle(self, request: Request) -> None:
        """Serve a request whenever nobody else waits."""
        self._idle_work = request
        self._wake()

    def reset(self, error: QueuecastError) -> None:
        """Fail everybody: the stream is another one, or away for too long."""
        self._detach()
        for request in [*self._waiting, *self._active]:
            if not request.done.done():
                request.done.set_exception(error)
        while self._probes:
            _, answer = self._probes.popleft()
            if not answer.done():
                answer.set_exception(error)
        if self._idle_work is not None:
            self._idle_work.done.cancel()
            self._idle_work = None
        for request in self._active:
            self._leave(request)
        self._waiting.clear()
        self._rested.clear()

    def _wake(self) -> None:
        if self._closed:
            raise Unavailable("the gateway is closing")
        self._event.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"history of {self._stream}"
            )

    # -- the task -------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failing: float | None = None
        while True:
            try:
                if not await self._turn():
                    await self._leave_broker()
                    if not self._is_wanted:  # somebody may have come while it left
                        return
                failing = None
                continue
            except _NoLink as error:
                self.reset(Unavailable(error.text))
                continue
            except (QueuecastError, pika.exceptions.AMQPError) as error:
                problem: Exception = error
            except Exception as error:
                log.exception("reading the history of %s failed", self._stream)
                problem = error
            self._suspend()
            self._detach()
            failing = failing or loop.time()
            if loop.time() - failing < _PATIENCE:
                # After a broker's start a stream may take a moment to be there.
                await asyncio.sleep(_RETRY)
                continue
            failure = of_channel(problem)
            log.warning("the history of %s: %s", self._stream, failure)
            self.reset(Unavailable(f"history cannot be read: {failure.text}"))
            failing = None

    @property
    def _is_wanted(self) -> bool:
        return bool(self._waiting or self._probes or self._idle_work)

    async def _turn(self) -> bool:
        """Do one thing for somebody; False when nobody has waited for a while."""
        self._event.clear()
        others = bool(self._waiting or self._probes)
        backfilling = self._idle_work in self._active
        long = self._run_length >= (_QUANTUM if others else _LONGEST)
        if self._active and (long or (others and backfilling)):
            self._suspend()
            self._run_length = 0
        if self._active:
            await self._read()
        elif self._probes:
            await self._probe()
        elif self._waiting:
            await self._serve(self._target())
        elif self._idle_work is not None:
            self._idle_work.at = self._idle_work.want
            await self._serve(self._idle_work)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    await self._event.wait()
            return self._is_wanted
        return True

    def _target(self) -> Request:
        """Return who is next on the way up, else the lowest of all: a new sweep."""
        at = self._position
        ahead = [each for each in self._waiting - self._rested if at is not None and each.want > at]
        if not ahead:
            self._rested.clear()
        return min(ahead or self._waiting, key=lambda each: each.want)

    async def _serve(self, target: Request) -> None:
        self._admit()
        if target not in self._waiting and target is not self._idle_work:
            return
        at = self._position
        if self._channel is None or at is None or not at < target.want <= at + _NEAR:
            await self._attach(target.at)
            await self._first(target.at)
            self._admit()
        if target is self._idle_work and not self._active:
            self._start(target)

    def _admit(self) -> None:
        """Serve from the window who can be; let those take part whose turn comes soon."""
        at = self._position
        if at is None:
            return
        for request in list(self._waiting):
            if request.want <= at and self.window.covers(request.want):
                self._serve_from_window(request, at)
            if at < request.want <= at + _AHEAD and request in self._waiting:
                self._start(request)

    def _serve_from_window(self, request: Request, after: int) -> None:
        """Hand over what the window has; what is missing comes with the run."""
        matches = _matcher(request.pattern)
        hole = self.holes.next(request.want, after)
        for offset, message in self.window.read(request.want):
            while hole is not None and hole.offset < offset:
                if self._ends_before(request, hole):
                    return
                hole = self.holes.next(hole.offset + 1, after)
            if matches(message) and request.take(offset, message):
                self._waiting.discard(request)
                request.finish(offset + 1)
                return
        while hole is not None:
            if self._ends_before(request, hole):
                return
            hole = self.holes.next(hole.offset + 1, after)
        request.want, request.at = after + 1, after
        if request.head <= after:
            self._waiting.discard(request)
            request.finish(after + 1)

    def _ends_before(self, request: Request, hole: Hole) -> bool:
        if not request.meet(hole):
            return False
        self._waiting.discard(request)
        request.finish(hole.offset)
        return True

    # -- runs -----------------------------------------------------------------------------

    async def _attach(self, spec: Offset) -> None:
        """Have the consumer begin there; never two of them at a time.

        Who takes part in the run waits again: from there on it would miss what lies between.
        """
        self._suspend()
        old, self._channel = self._channel, None
        self._arrived.clear()
        self._position = None
        self._run_length = 0
        self._acked = 0
        self.window.clear()
        if old is not None and old.is_open:
            await old.close()
        try:
            link = await self._wait()
        except Unavailable as error:
            raise _NoLink(error.text) from None
        try:
            async with asyncio.timeout(_SILENCE):
                await self._consume(link, spec)
        except TimeoutError:
            raise Unavailable(f"RabbitMQ does not open {self._stream}") from None
        self.attached += 1

    async def _consume(self, link: Link, spec: Offset) -> None:
        channel = await link.channel()
        try:
            await channel.qos(PREFETCH)
            self._channel = channel
            channel.on_closed = lambda _why: self._event.set()
            channel.on_cancel = lambda _tag: channel.abandon()

            def on_message(message: Message, tag: int) -> None:
                if channel is self._channel:
                    self._arrived.append((tag, take_offset(message), message))
                    self._event.set()

            await channel.consume(
                self._stream, "history", on_message, arguments={"x-stream-offset": spec}
            )
        except BaseException:
            self._channel = None
            channel.abandon()
            raise

    async def _first(self, at: int) -> None:
        """Look at the first message that came: what is missing before it was deleted."""
        await self._arrival(_SILENCE)
        first = self._arrived[0][1]
        self._position = first - 1
        self.window.clear(first)
        for request in self._waiting:
            if at <= request.want < first:
                request.lose(first)
        work = self._idle_work
        if work is not None and at <= work.want < first:
            work.lose(first)

    async def _arrival(self, patience: float) -> None:
        channel = self._channel
        try:
            async with asyncio.timeout(patience):
                while not self._arrived:
                    if channel is None or not channel.is_open:
                        raise Unavailable("the connection to RabbitMQ was lost")
                    self._event.clear()
                    await self._event.wait()
        except TimeoutError:
            raise Unavailable(f"RabbitMQ sends nothing of {self._stream}") from None

    async def _probe(self) -> None:
        spec = self._probes[0][0]
        if all(answer.done() for _, answer in self._probes):
            self._probes.clear()
            return
        await self._attach(spec)
        try:
            # Of a time there need not be a message if the clocks differ: then the first will do.
            await self._arrival(_NO_SUCH_TIME if isinstance(spec, datetime) else _SILENCE)
        except Unavailable:
            if not isinstance(spec, datetime) or self._channel is None:
                raise
            await self._attach("first")
            await self._arrival(_SILENCE)
        first = self._arrived[0][1]
        self._position = first - 1
        self.window.clear(first)
        while self._probes and self._probes[0][0] == spec:
            _, answer = self._probes.popleft()
            if not answer.done():
                answer.set_result(first)

    def _start(self, request: Request) -> None:
        self._waiting.discard(request)
        self._rested.discard(request)
        self._active.add(request)

    def _leave(self, request: Request) -> None:
        self._waiting.discard(request)
        self._rested.discard(request)
        self._active.discard(request)

    def _suspend(self) -> None:
        """Put the run's requests back among those who wait."""
        after = (self._position or 0) + 1
        for request in self._active:
            self._leave(request)
            moved = request.want < after and self._position is not None
            if moved:
                request.want, request.at = after, after - 1
            if request.done.done():
                continue
            if moved and request.pause(after):
                request.finish(after)
            elif request is not self._idle_work:
                self._waiting.add(request)
                self._rested.add(request)

    async def _read(self) -> None:
        """Hand over what came, up to what anybody in the run wants; ack that."""
        if not self._arrived:
            await self._arrival(_SILENCE)
        channel = self._channel
        tag = 0
        limit = max(request.head for request in self._active)
        passed = self._position or 0
        while self._arrived and self._active:
            if self._arrived[0][1] > limit:
                passed = self._arrived[0][1] - 1
                break
            tag, passed, message = self._arrived.popleft()
            self._hand(passed, message)
            self._run_length += 1
        if tag >= self._acked + _ACKS and channel is not None:
            self._acked = tag
            channel.ack(tag, multiple=True)
        after = (self._position or 0) + 1
        for request in self._active:
            if request.done.done():
                self._leave(request)
            elif request.head <= passed:
                # Not beyond: the live reader may not have come as far as this one.
                self._end(request, max(after, request.head + 1))
        self._admit()
        await asyncio.sleep(0)

    def _hand(self, offset: int, message: Message) -> None:
        self._position = offset
        if message.exchange == self._marks:
            hole = hole_of(message, offset)
            if hole is not None and self.holes.note(hole):
                for request in self._active.meet(hole):
                    self._end(request, offset)
            return
        self.window.add(offset, message, size_of(message))
        for request in self._active.hand(offset, message):
            self._end(request, offset + 1)

    def _end(self, request: Request, after: int) -> None:
        self._leave(request)
        if request is self._idle_work:
            self._idle_work = None
        request.finish(after)

    # -- the end --------------------------------------------------------------------------

    def _detach(self) -> None:
        channel, self._channel = self._channel, None
        self._arrived.clear()
        self._position = None
        self.window.clear()
        if channel is not None:
            channel.abandon()

    async def _leave_broker(self) -> None:
        channel, self._channel = self._channel, None
        self._arrived.clear()
        self._position = None
        if channel is not None and channel.is_open:
            await channel.close()

    async def close(self) -> None:
        """Stop; who waits gets Unavailable."""
        self._closed = True
        self.reset(Unavailable("the gateway is closing"))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def _matcher(pattern: str | None) -> Callable[[Message], bool]:
    if pattern is None:
        return lambda _message: True
    matches = matcher("topic", pattern)
    return lambda message: any(matches(key) for key in keys_of(message))
