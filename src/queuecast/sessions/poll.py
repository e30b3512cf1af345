"""Long poll: one request waits for the next messages and answers them as a JSON batch.

    GET /poll/topic/prices?since=ID  →  {"messages": [envelope, …], "next": "ID"}

A gap stands among the messages as {"gap": {…}, "position": …}. Between two polls the feed lives
on (it lingers), so `since` finds what came meanwhile. With `ack=client` see poll_work.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..auth.identity import Identity
from ..disconnect import Disconnect
from ..errors import QueuecastError, Unavailable
from ..hub.subscription import Subscription
from .base import Session
from .encodings import PollEncoding, naming
from .envelope import encode_json
from .request import SubscribeRequest
from .services import Services

# Seconds between two looks whether a poll whose time is over has all that is there.
_LOOK: Final = 0.02
# Seconds that a queue gets at least: brokers hand over what it holds right behind their answer.
_HANDOVER: Final = 0.25


class NoTransport:
    """A poll has no socket of its own: its answer is collected."""

    def write(self, data: bytes, /) -> None:
        raise RuntimeError("a poll is collected, not written")

    def close(self) -> None: ...
    def abort(self) -> None: ...
    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return False


class PollSession(Session):
    """Takes one write, then is full: the rest is for the next poll."""

    __slots__ = ("_answer", "_wake")

    def __init__(self, services: Services, identity: Identity) -> None:
        super().__init__(services, NoTransport(), identity)
        self.write: Callable[[bytes], None] = self._collect
        self._answer: list[bytes] = []
        self._wake = services.runtime.promise()

    @property
    def behind(self) -> bool:
        """Whether something that is there may still be on its way to it."""
        if self._answer:
            return False
        return any(not (each.live or each.closed) for each in self.subscriptions)

    async def woken(self, seconds: float) -> None:
        """Return when something came or `seconds` are over; raises what befell the session."""
        try:
            await self.services.runtime.within(seconds, self._wake)
        except TimeoutError:
            self._wake = self.services.runtime.promise()  # the other one was cancelled

    def _collect(self, data: bytes) -> None:
        self._answer.append(data)
        self.pause_writing()
        if not self._wake.done():
            self._wake.set_result(None)

    def disconnect(self, reason: Disconnect) -> None:
        if not self._wake.done():
            self._wake.set_exception(Unavailable(reason.text))

    def feed_failed(self, subscription: Subscription, error: QueuecastError) -> None:
        if not self._wake.done():
            self._wake.set_exception(error)

    def work_cancelled(self, work: object, error: QueuecastError) -> None:
        if not self._wake.done():
            self._wake.set_exception(error)

    def body(self) -> bytes:
        """Return the answer's JSON."""
        messages = b"".join(self._answer).removesuffix(b",")
        rest: dict[str, object] = {"next": None, "positions": [], "wait": self.services.limits.poll}
        for subscription in self.subscriptions:  # one, if any: queues have no positions
            rest["next"] = str(subscription.position())
            rest["positions"] = [str(each) for each in subscription.positions()]
        return b'{"messages":[%b],%b' % (messages, encode_json(rest)[1:])


def patience(services: Services, request: SubscribeRequest) -> float:
    """Return how many seconds a poll may take."""
    most = services.limits.poll
    least = _HANDOVER if request.work else 0.0
    return most if request.wait is None else max(least, min(request.wait, most))


async def poll(services: Services, request: SubscribeRequest) -> bytes:
    """Answer one poll: as soon as there is something, or empty when its time is over.

    Messages of queues are acked when they are handed over to be written: at most once.
    Raises what the subscription raises.
    """
    timeout = patience(services, request)
    session = PollSession(services, request.identity)
    begun = services.runtime.now()
    try:
        try:
            await services.runtime.within(services.live_within, _open(session, request))
        except TimeoutError:
            raise Unavailable("the broker does not answer") from None
        for subscription in session.subscriptions:
            subscription.flow()
        for work in session.work:
            work.flow()
        await session.woken(timeout)
        # What is there, in the log or the broker's history, is read in ticks and pages.
        while session.behind and services.runtime.now() - begun < services.limits.live_within:
            await session.woken(_LOOK)
        # Where nothing came: an empty batch and the present position.
        return session.body()
    finally:
        session.end()


async def _open(session: PollSession, request: SubscribeRequest) -> None:
    rules = session.services.binary
    if request.shared:
        binary = rules.of(*request.shared, always=request.binary)
        encoding = PollEncoding(naming(*request.shared), binary)
        await session.subscribe(request.shared, encoding, request.start)
    for destination in request.work:
        binary = rules.of(destination, always=request.binary)
        encoding = PollEncoding(naming(destination), binary)
        await session.consume(destination, encoding, ack=False, prefetch=request.prefetch)
