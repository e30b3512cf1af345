"""Everybody who publishes without aiohttp: their limits of time, their answers, their end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from email.utils import formatdate

from ..codecs.http1 import RequestHead, response
from ..sessions.services import Services
from . import answers
from .answers import Answer
from .gate import Cors
from .handler import Handler
from .limits import ServerLimits
from .plan import Plan, Plans
from .poster import Poster, State
from .publish import Wanted
from .sockets import Sockets
from .uploads import Uploads

# Publishes of one client before the event loop has its turn: a read can hold thousands. Where
# many have more to say each has its share of _OF_ALL, though not less than _AT_LEAST: hundreds
# of them with 64 publishes each would keep everybody else waiting for tenths of a second.
_A_TURN, _OF_ALL, _AT_LEAST = 64, 1024, 8


class Posts:
    """What all connections that publish share.

    All that wait for the same have the same time for it, so the order of arrival is that of the
    deadlines, and one look at the oldest replaces a timer per connection.
    """

    def __init__(
        self,
        services: Services,
        plans: Plans,
        uploads: Uploads,
        hand_over: Callable[[], Handler],
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

    @property
    def turn(self) -> int:
        """Publishes that a client may have done now, before it is the others' turn."""
        return min(_A_TURN, max(_AT_LEAST, _OF_ALL // (1 + len(self._waiting[State.BUSY]))))

    def take(self, transport: asyncio.Transport, head: RequestHead) -> bool:
        """Take a connection over if its first request has a plan; returns whether it has."""
        data = head.raw.lstrip(b"\r\n")  # RFC 9112 section 2.2
        raw = data[: len(data) - len(head.rest)]
        request = self.plans.known(raw) or self.plans.read(head, raw, transport)
        if request is None:
            return False
        poster = Poster(self, transport, request)
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

    def close(self, seconds: float) -> None:
        """Answer what is under way, each the last of its connection, and close the others.

        They have `seconds` for a request that is on its way already: its client would not know
        whether it was taken, and those who publish all the time always have one there.
        """
        self.closed = True
        self.loop.call_later(seconds, self._close_silent)

    def _close_silent(self) -> None:
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

    def published(self, plan: Plan, wanted: Wanted) -> bytes:
        """Return the answer to a publish that the broker has taken."""
        date = self.date()
        if plan.date is not date or self.closed:
            plan.success = self.answer(answers.value(wanted.answer), plan)
            plan.date = date
        return plan.success

    def answer(self, answer: Answer, plan: Plan | None = None, *, last: bool = False) -> bytes:
        """Return an answer as it is on the wire. plan: of the request, as far as it is known."""
        cors: Cors = ()
        if plan is not None:
            cors, last = plan.cors, plan.last or last
        headers = (*answer.headers, answers.SERVER, *cors, ("Date", self.date()))
        return response(answer.status, headers, answer.body, last=last or self.closed)

    def date(self) -> str:
        """Return the time for a header; the same object for a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True)
        return self._date
