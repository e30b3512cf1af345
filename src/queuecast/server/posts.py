"""Small publishes over HTTP, answered without aiohttp on the connections that begin with one.

The law of a connection: one request after another, each answered when the broker has taken it
and before the next one is published, so that the order of messages is that of the requests
(RFC 9112 section 9.3.2). Requests that came in one read are answered with one write, as far as
publishes end at once. The first request that has no plan goes to aiohttp with everything behind
it, for good.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import time
from collections.abc import Callable
from email.utils import formatdate

from ..auth.identity import ANONYMOUS
from ..codecs.http1 import HeadError, HeadParser, RequestHead, response
from ..errors import BadRequest, QueuecastError
from ..sessions.services import Services
from . import answers
from .answers import Answer
from .gate import Cors
from .limits import ServerLimits
from .plan import Plan, Plans
from .sockets import Sockets
from .uploads import Uploads

logger = logging.getLogger(__name__)

# Publishes of one client before the event loop has its turn: a read can hold thousands.
_A_TURN = 64
# Bytes kept for a client whose turn it is not: its publish is not confirmed yet, or it does not
# read its answers. Beyond them it is read no more.
_AHEAD = 64 * 1024
_POST = b"POST "
_END = b"\r\n\r\n"


class State(enum.IntEnum):
    """What is waited for: a request, the rest of its head or body, our own doing, the end."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    BUSY = 3
    CLOSING = 4


class _Next(enum.Enum):
    """What is to be done where no request follows."""

    HAND_OVER = enum.auto()
    CLOSE = enum.auto()


class Posts:
    """What all connections that publish share; called, it makes one.

    All that wait for the same have the same time for it, so the order of arrival is that of the
    deadlines, and one look at the oldest replaces a timer per connection.
    """

    def __init__(
        self,
        services: Services,
        plans: Plans,
        uploads: Uploads,
        hand_over: Callable[[], asyncio.Protocol],
        sockets: Sockets,
        limits: ServerLimits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """hand_over: makes the protocol for whatever has no plan."""
        self.services = services
        self.plans = plans
        self.uploads = uploads
        self.hand_over = hand_over
        self.sockets = sockets
        self.limits = limits
        self.loop = loop
        self.closed = False
        # Of a publish the broker says when it has taken too long.
        self._seconds = (
            limits.keepalive,
            limits.head_seconds,
            limits.body_seconds,
            math.inf,
            limits.heartbeat,
        )
        # By what is waited for, with the time at which that is over.
        self._waiting: tuple[dict[Poster, float], ...] = tuple({} for _ in State)
        self._empty: asyncio.Event | None = None
        self._date = ""
        self._second = 0

    def __len__(self) -> int:
        return sum(len(each) for each in self._waiting)

    def take(self, transport: asyncio.Transport, head: RequestHead) -> bool:
        """Take a connection over if its first request has a plan; returns whether it has."""
        data = head.raw.lstrip(b"\r\n")  # RFC 9112 section 2.2
        plan = self.plans.read(head, data[: len(data) - len(head.rest)], transport)
        if plan is None:
            return False
        poster = Poster(self, transport, plan)
        self._waiting[State.IDLE][poster] = self.loop.time() + self._seconds[State.IDLE]
        transport.set_protocol(poster)
        poster.data_received(data)
        return True

    def wait(self, poster: Poster, state: State) -> None:
        """Begin the time limit of a state."""
        del self._waiting[poster.state][poster]
        poster.state = state
        self._waiting[state][poster] = self.loop.time() + self._seconds[state]

    def left(self, poster: Poster) -> None:
        """Forget a connection that is gone, or another's."""
        self._waiting[poster.state].pop(poster, None)
        if self._empty is not None and not len(self):
            self._empty.set()

    def sweep(self, now: float) -> None:
        """End those whose time is over; called about once a second. now: monotonic seconds."""
        for waiting in self._waiting:
            late = []
            for poster, deadline in waiting.items():
                if deadline > now:
                    break
                late.append(poster)
            for poster in late:
                poster.expire()

    def close(self) -> None:
        """Close whoever asks for nothing; requests under way are answered, each the last."""
        self.closed = True
        for state in (State.IDLE, State.HEAD):
            for poster in list(self._waiting[state]):
                poster.close()

    async def emptied(self, timeout: float) -> None:
        """Wait until nobody is left, for `timeout` seconds; then cut off who still is there."""
        if not len(self):
            return
        self._empty = asyncio.Event()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            for each in self._waiting:
                for poster in list(each):
                    poster.abort()

    # -- answers --------------------------------------------------------------------------

    def published(self, plan: Plan) -> bytes:
        """Return the answer to a publish that the broker has taken."""
        date = self.date()
        if plan.date is not date or self.closed:
            assert plan.wanted is not None
            plan.success = self.answer(answers.value(plan.wanted.answer), plan.cors, plan.last)
            plan.date = date
        return plan.success

    def answer(self, answer: Answer, cors: Cors, last: bool) -> bytes:
        """Return an answer as it is on the wire."""
        headers = (*answer.headers, answers.SERVER, *cors, ("Date", self.date()))
        return response(answer.status, headers, answer.body, last=last or self.closed)

    def date(self) -> str:
        """Return the time for a header; the same object for a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True)
        return self._date


class Poster(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_at",
        "_counted",
        "_data",
        "_ended",
        "_gone",
        "_more",
        "_needed",
        "_paused",
        "_plan",
        "_posts",
        "_stopped",
        "_transport",
        "state",
    )

    def __init__(self, posts: Posts, transport: asyncio.Transport, plan: Plan) -> None:
        self.state = State.IDLE
        self._posts = posts
        self._transport = transport
        # Of the last request: the next one is likely to begin with the same bytes.
        self._plan = plan
        # What came: from _at on not served yet, with _more behind it; and how much is needed to
        # go on. Bounded by one request, or _AHEAD, and one read.
        self._data = b""
        self._at = 0
        self._more = bytearray()
        self._needed = 0
        # Of it, what Uploads knows of.
        self._counted = 0
        # The client: does not read, is read no more, has sent all it will, is served no more.
        self._paused = False
        self._stopped = False
        self._ended = False
        self._gone = False

    # -- the transport's calls ------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        if self._at == len(self._data) and not self._more:
            self._data, self._at = data, 0
        else:
            self._more += data
        if self._is_held:
            self._hold()
        elif len(self._data) - self._at + len(self._more) >= self._needed:
            self._serve()
        elif not self._hold():
            self._hand_over()

    def eof_received(self) -> bool:
        # Who has said all may still listen: what it asked for is answered first.
        self._ended = True
        return self._is_held

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.state is not State.BUSY and not self._gone:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        self._posts.sockets.leave()
        self._leave()

    # -- requests -------------------------------------------------------------------------

    @property
    def _is_held(self) -> bool:
        """Whether nothing more may be served now."""
        return self._paused or self.state is State.BUSY

    def _serve(self) -> None:
        """Serve what came, as far as that goes, and write all answers at once."""
        if self._more:
            self._data = self._data[self._at :] + bytes(self._more)
            self._at = 0
            self._more.clear()
        found: list[bytes] = []
        following = self._advance(found)
        if found:
            self._transport.write(found[0] if len(found) == 1 else b"".join(found))
        if following is _Next.CLOSE:
            self.close()
        elif isinstance(following, State):
            self._wait(following, afresh=bool(found))
        elif self._paused:
            # aiohttp would not know that the client does not read.
            self._wait(State.IDLE, afresh=True)
        else:
            self._hand_over()

    def _advance(self, found: list[bytes]) -> State | _Next:
        """Publish request after request; their answers are added to `found`."""
        posts = self._posts
        services = posts.services
        data, size = self._data, len(self._data)
        for _ in range(_A_TURN):
            start = self._at
            if start == size:
                return State.IDLE
            plan = self._plan
            if not data.startswith(plan.head, start):
                read = self._read(data, start)
                if not isinstance(read, Plan):
                    return read
                plan = read
            end = start + plan.size
            if end > size:
                self._needed = plan.size
                return State.BODY
            self._at = end
            wanted = plan.wanted
            if wanted is None:
                assert plan.refused is not None
                found.append(posts.answer(plan.refused, plan.cors, plan.last))
            else:
                body = data[start + len(plan.head) : end]
                try:
                    if not services.publish_at_once(
                        ANONYMOUS,
                        wanted.destination,
                        body,
                        wanted.properties,
                        mandatory=wanted.mandatory,
                    ):
                        services.runtime.spawn(self._publish(plan, body), "publish")
                        return State.BUSY
                except Exception as error:
                    found.append(self._failed(plan, error))
                else:
                    found.append(posts.published(plan))
            if plan.last or posts.closed:
                return _Next.CLOSE
        posts.loop.call_soon(self._go_on)
        return State.BUSY

    def _read(self, data: bytes, start: int) -> Plan | State | _Next:
        """Return the plan of the request that begins there, as far as it has one."""
        limits = self._posts.limits
        if not data.startswith(_POST, start) and not _POST.startswith(data[start : start + 5]):
            return _Next.HAND_OVER
        end = data.find(_END, start, start + limits.head)
        if end < 0:
            held = len(data) - start
            self._needed = held + 1
            return State.HEAD if held < limits.head else _Next.HAND_OVER
        raw = data[start : end + len(_END)]
        try:
            head = HeadParser(limits.head, limits.headers).receive_data(raw)
            if head is None or head.rest:
                return _Next.HAND_OVER
            plan = self._posts.plans.read(head, raw, self._transport)
        except HeadError:
            return _Next.HAND_OVER  # there it is explained
        except Exception:
            logger.exception("reading the head of a publish failed")
            return _Next.HAND_OVER
        if plan is None:
            return _Next.HAND_OVER
        self._plan = plan
        return plan

    async def _publish(self, plan: Plan, body: bytes) -> None:
        """Publish where the broker has to be waited for; it does not end with the connection."""
        posts = self._posts
        wanted = plan.wanted
        assert wanted is not None
        try:
            await posts.services.publish_once(
                ANONYMOUS,
                wanted.destination,
                body,
                wanted.properties,
                mandatory=wanted.mandatory,
            )
        except Exception as error:
            answer = self._failed(plan, error)
        else:
            answer = posts.published(plan)
        if self._gone:
            return
        self._transport.write(answer)
        if plan.last or posts.closed:
            self.close()
        else:
            self._go_on()

    def _failed(self, plan: Plan, error: Exception) -> bytes:
        if isinstance(error, QueuecastError):
            answer = answers.refusal(error)
        else:
            assert plan.wanted is not None
            logger.error("publishing to %s failed", plan.wanted.destination, exc_info=error)
            answer = answers.internal()
        return self._posts.answer(answer, plan.cors, plan.last)

    def _go_on(self) -> None:
        if self._gone:
            return
        if self._paused:
            self._wait(State.IDLE, afresh=True)
        else:
            self._serve()

    # -- waiting --------------------------------------------------------------------------

    def _wait(self, state: State, *, afresh: bool) -> None:
        """Wait for what comes. afresh: for something else than before."""
        if self._ended and state is not State.BUSY and not self._paused:
            # It sends nothing more, so that what is not whole now will never be.
            self.close()
            return
        if afresh or state is not self.state:
            self._posts.wait(self, state)
        if self._at == len(self._data):
            self._data, self._at = b"", 0
            self._needed = 0
        elif state is State.HEAD or state is State.BODY:
            # A short rest must not keep a long read in memory.
            self._data, self._at = self._data[self._at :], 0
        if not self._hold() and not self._is_held:
            self._hand_over()

    def _hold(self) -> bool:
        """Count what is kept here, and stop reading a client that is far ahead.

        Returns whether there is room for more.
        """
        held = len(self._data) + len(self._more)
        if held == self._counted == 0 and not self._stopped:
            return True
        has_room = self._posts.uploads.hold(held - self._counted)
        self._counted = held
        is_ahead = self._is_held and (held > _AHEAD or not has_room)
        if is_ahead is not self._stopped:
            self._stopped = is_ahead
            self._read_on(not is_ahead)
        return has_room or not held

    def _read_on(self, on: bool) -> None:
        transport = self._transport
        if self._ended or transport.is_closing():
            return
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _hand_over(self) -> None:
        posts = self._posts
        if posts.closed:
            self.close()
            return
        transport = self._transport
        rest = self._data[self._at :] + bytes(self._more)
        if self._stopped:
            self._read_on(True)
        self._leave()
        handler = posts.hand_over()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(rest)

    def _leave(self) -> None:
        self._posts.left(self)
        self._end()

    def _end(self) -> None:
        """Serve nothing more, and keep nothing."""
        self._gone = True
        self._posts.uploads.hold(-self._counted)
        self._counted = 0
        self._data, self._at = b"", 0
        self._more.clear()

    # -- ends -----------------------------------------------------------------------------

    def expire(self) -> None:
        """The time is over: between requests, or for the rest of one."""
        posts = self._posts
        if self._paused or self.state is State.CLOSING:
            # Who does not read would keep what is written to it for ever.
            self.abort()
            return
        if self.state is State.IDLE:
            self.close()
            return
        if self.state is State.HEAD:
            seconds = posts.limits.head_seconds
            text = f"the request head was not complete after {seconds:g} s"
            answer, cors = answers.problem(408, "timeout", text), ()
        else:
            seconds = posts.limits.body_seconds
            error = BadRequest(f"the body was not complete after {seconds:g} s")
            answer, cors = answers.refusal(error), self._plan.cors
        self._transport.write(posts.answer(answer, cors, True))
        self.close()

    def close(self) -> None:
        """End the connection once what is written is sent."""
        if self._gone:
            return
        self._end()
        self._posts.wait(self, State.CLOSING)
        self._transport.close()

    def abort(self) -> None:
        """Cut the client off."""
        self._gone = True
        self._transport.abort()
