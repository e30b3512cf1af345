"""Long poll on queues with client acks: a session that lives on between its polls.

    GET /poll/queue/orders?ack=client             →  {"messages": […], "session": "NODE.….1"}
    POST /ack {"ack": …}
    GET /poll/queue/orders?ack=client&session=NODE.….1

`session` counts the answers. A poll that does not come with the latest has not seen it: what was
in that answer goes back to the queue and comes again. A session whose client does not come back
in time ends, and so does one whose client breaks off a poll, as a WebSocket does.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

from ..auth.identity import Identity
from ..destination import Destination
from ..disconnect import Disconnect
from ..errors import (
    BadRequest,
    Conflict,
    Elsewhere,
    LimitExceeded,
    QueuecastError,
    Unavailable,
)
from ..runtime import Promise, Timer
from .base import Session
from .encodings import PollEncoding, naming
from .envelope import encode_json
from .poll import NoTransport, patience
from .request import SubscribeRequest
from .services import RESTARTING, Services
from .work import WorkSubscription

_NAME = re.compile(r"([A-Za-z0-9_-]{1,32})\.([A-Za-z0-9_-]{22})\.([0-9]{1,9})")


class _Name(NamedTuple):
    node: str
    secret: str
    answer: int


class _Superseded(Conflict):
    """Another poll of the session came while this one waited."""


class AckingPoll(Session):
    """Takes one write for each poll; between polls it is full."""

    __slots__ = (
        "_answer",
        "_failure",
        "_given",
        "_idle",
        "_polling",
        "_said",
        "_wake",
        "destinations",
    )

    kind = "poll"

    def __init__(self, services: Services, identity: Identity, asked: SubscribeRequest) -> None:
        super().__init__(services, NoTransport(), identity)
        self.write: Callable[[bytes], None] = self._collect
        self.destinations = asked.destinations
        self._answer: list[bytes] = []
        # What stood in the last answer: one write, so it is bounded. _said: answers that had any.
        self._given: list[tuple[WorkSubscription, int]] = []
        self._said = 0
        self._polling = False
        self._wake: Promise | None = None
        self._failure: QueuecastError | None = None
        self._idle: Timer | None = None
        self.paused = True

    async def open(self, request: SubscribeRequest) -> None:
        """Become a consumer of every queue; raises what the broker raises."""
        polls, most = self.services.polls, self.services.limits.poll_sessions
        if len(polls) >= most:
            raise LimitExceeded(
                f"{most} clients poll queues with ack=client, that is the limit",
                "limits.poll_sessions raises it",
            )
        polls.add(self)
        self.ack_name = self.services.acks.enter(self)
        lease = self.lease(request.lease, ack=True)
        for destination in request.work:
            binary = self.services.binary.of(destination, always=request.binary)
            encoding = PollEncoding(naming(destination), binary)
            work = _PolledWork(self, destination, encoding, self.new_number(), lease)
            await self.open_work(work, request.prefetch)
            work.flow()

    # -- polls ----------------------------------------------------------------------------

    async def next(self, answer: int, timeout: float) -> bytes:
        """Answer a poll as soon as there is something, or empty after `timeout` seconds.

        answer: the number of the last one that the client saw. Raises what befell the session
        meanwhile; _Superseded when another poll takes over.
        """
        self._take_over()
        wake = self._wake = self.services.runtime.promise()
        self._polling = True
        try:
            if self._failure is not None:
                raise self._failure
            given, self._given = self._given, []
            if answer != self._said:
                # Its messages go back, and come again.
                for work, tag in given:
                    work.settle(tag, ack=False)
            self.alive()
            self.resume_writing()
            with contextlib.suppress(TimeoutError):
                await self.services.runtime.within(timeout, wake)
            return self._body()
        except _Superseded:
            raise
        except BaseException:
            # Its client has gone, or has nothing to come back to.
            self.end()
            raise
        finally:
            if self._wake is wake:
                self._rest()

    def _take_over(self) -> None:
        """End a poll that waits: its client must have given it up. Raises Conflict."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._polling:
            return
        if self._wake is None or self._wake.done():
            raise Conflict("another poll of this session is just being answered")
        self._wake.set_exception(_Superseded("another poll of this session took its place"))

    def _rest(self) -> None:
        """Stand still until the next poll."""
        self._polling = False
        self._wake = None
        if self.closed:
            return
        self.pause_writing()
        self._wait()

    def _wait(self) -> None:
        """Give the client its time to come back."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.services.runtime.call_later(self.services.limits.poll_idle, self.end)

    def alive(self) -> None:
        super().alive()
        if self._idle is not None:
            self._wait()

    def _body(self) -> bytes:
        parts, self._answer = self._answer, []
        if parts:
            self._said += 1
        return b'{"messages":[%b],"next":null,"positions":[],"wait":%b,"session":%b}' % (
            b"".join(parts).removesuffix(b","),
            encode_json(self.services.limits.poll),
            encode_json(f"{self.ack_name}.{self._said}"),
        )

    # -- what comes -----------------------------------------------------------------------

    def gave(self, work: WorkSubscription, tag: int) -> None:
        """Note what stands in the answer that is being collected."""
        self._given.append((work, tag))

    def _collect(self, data: bytes) -> None:
        self._answer.append(data)
        self.pause_writing()
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _fail(self, error: QueuecastError) -> None:
        self._failure = error
        if self._wake is not None and not self._wake.done():
            self._wake.set_exception(error)

    def heartbeat(self, now: float) -> None:
        """A poll's answer is the sign of life."""

    def disconnect(self, reason: Disconnect) -> None:
        self._fail(Unavailable(reason.text))

    def work_cancelled(self, work: object, error: QueuecastError) -> None:
        self._fail(error)

    def end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self.services.polls.discard(self)
        super().end()


class _PolledWork(WorkSubscription):
    """Tells its session what it writes."""

    __slots__ = ("_poll",)

    def __init__(
        self,
        session: AckingPoll,
        destination: Destination,
        encoding: PollEncoding,
        number: int,
        lease: float,
    ) -> None:
        super().__init__(session, destination, encoding, number, client_acks=True, lease=lease)
        self._poll = session

    def ack_id(self, tag: int) -> str | None:
        self._poll.gave(self, tag)
        return super().ack_id(tag)


async def poll_with_acks(services: Services, request: SubscribeRequest) -> bytes:
    """Answer one poll with `ack=client`; see AckingPoll.next.

    A session that has ended is begun anew, which its new name tells. Raises what its consumers
    raise, BadRequest, Elsewhere (the session is another node's), LimitExceeded, Unavailable.
    """
    if not request.ack:
        raise BadRequest("session is for polls with ack=client", "add ack=client, or leave it out")
    if request.shared:
        raise BadRequest(
            f"ack=client is for queues, {request.shared[0].shown} is not one",
            "poll queues by themselves",
        )
    timeout = patience(services, request)
    name = _parse(request.session)
    session = None if name is None else _find(services, request, name)
    if name is not None and session is not None:
        if services.drain.begun:
            raise Unavailable(RESTARTING)
        return await session.next(name.answer, timeout)
    session = AckingPoll(services, request.identity, request)
    try:
        await services.runtime.within(services.live_within, session.open(request))
    except TimeoutError:
        session.end()
        raise Unavailable("the broker does not answer") from None
    except BaseException:
        session.end()
        raise
    return await session.next(0, timeout)


def _parse(text: str) -> _Name | None:
    if not text:
        return None
    found = _NAME.fullmatch(text)
    if found is None:
        raise BadRequest(f"session={text[:80]!r} is none", "give back an answer's `session`")
    return _Name(found[1], found[2], int(found[3]))


def _find(services: Services, request: SubscribeRequest, name: _Name) -> AckingPoll | None:
    if name.node != services.acks.node:
        raise Elsewhere(
            f"the session is node {name.node!r}'s, this is {services.acks.node!r}",
            "a load balancer must bring a client back to the same node",
        )
    session = services.acks.session(name.secret)
    if not isinstance(session, AckingPoll) or session.identity != request.identity:
        return None
    if session.destinations != request.destinations:
        raise BadRequest("the session has other destinations", "poll with the same URL")
    return session
