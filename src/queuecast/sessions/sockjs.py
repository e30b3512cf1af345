"""SockJS sessions over HTTP: a conversation whose client comes and goes, request by request.

A session is the transport of a STOMP session. What that one writes goes to the *receiver*, the
request that waits for it: one that is answered at once (polling) or one whose answer goes on
(streaming). Between two receivers the STOMP session is paused, as if its socket were full: its
feeds stand still as cursors, its queues keep their messages. Only answers to what the client sent
meanwhile are kept, up to a bound.

A session without a receiver for 5 seconds is over. So is one whose receiver was cut: nobody knows
what of its answer arrived, and going on would be a silent hole. Over, it goes on saying so for
another 5 seconds to whoever asks.

The address of a session is all that its client proves itself by, and the client chose it
(sockjs-client: 40 bits). So a session answers only requests of the origin that opened it, and none
from elsewhere if it was opened on this machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from ..codecs import sockjs
from ..codecs.sockjs import Wire
from ..disconnect import Disconnect
from ..errors import BadRequest, LimitExceeded, NotFound
from ..runtime import Promise
from .services import Services
from .sockjs_link import SockJsLink
from .stomp import Peer, StompSession

# Seconds without a receiver.
TIMEOUT: Final = 5.0
# Bytes of answers kept between two receivers; then the client is not listened to.
STALLED: Final = 16 * 1024
# What was under way by then may come as well; beyond this the session is closed.
HELD: Final = 1 << 20
# Requests that wait until their messages are taken, each of which holds its body.
SENDERS: Final = 8

GO_AWAY: Final = sockjs.close(3000, "Go away!")
ANOTHER: Final = sockjs.close(2010, "Another connection still open")
INTERRUPTED: Final = sockjs.close(1002, "Connection interrupted")


class Receiver(Protocol):
    """A request that waits for what its session has to say.

    polls: it is answered with one frame. paused: it takes no more messages now. holds: it has
    messages that are not on their way yet.
    """

    wire: Wire
    polls: bool

    @property
    def paused(self) -> bool: ...
    @property
    def holds(self) -> bool: ...

    def write(self, data: bytes, /) -> None:
        """Take frames as they lie on the wire."""

    def last(self, frame: bytes, /) -> None:
        """Take one frame and end the answer."""

    def abort(self) -> None:
        """End the answer without a word."""


class _Stomp(StompSession):
    """The conversation that a session carries."""

    __slots__ = ("_session",)

    def __init__(
        self, services: Services, session: SockJsSession, link: SockJsLink, peer: Peer
    ) -> None:
        super().__init__(services, session, link, peer)
        self._session = session

    @property
    def stalled(self) -> bool:
        # Between two receivers it is paused, but not deaf.
        return self._session.full


class SockJsSession:
    """One session. It is a services.Transport to its STOMP session."""

    __slots__ = (
        "_ending",
        "_flowing",
        "_fresh",
        "_held",
        "_held_bytes",
        "_link",
        "_origin",
        "_peer",
        "_reading",
        "_receiver",
        "_senders",
        "_sessions",
        "_stomp",
        "id",
    )

    def __init__(
        self, sessions: SockJsSessions, id: str, wire: Wire, peer: Peer, origin: str | None
    ) -> None:
        """See SockJsSessions.open."""
        services = sessions.services
        self.id = id
        self._sessions = sessions
        self._peer = peer
        self._origin = origin
        self._link = SockJsLink(services.limits.frame, wire)
        self._receiver: Receiver | None = None
        self._fresh = True
        # The frame that says why it is over.
        self._ending: bytes | None = None
        # What the next receiver gets first; at most HELD bytes and one write.
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flowing = True
        self._reading = True
        # At most SENDERS.
        self._senders: deque[Promise] = deque()
        self._stomp = _Stomp(services, self, self._link, peer)
        self._stomp.start()

    @property
    def conversation(self) -> StompSession:
        """The STOMP session that it carries."""
        return self._stomp

    @property
    def over(self) -> bool:
        """Whether the conversation has ended; what is left to say may still be fetched."""
        return self._ending is not None

    @property
    def limit(self) -> int:
        """How many bytes of messages a request may bring."""
        return self._link.limit

    @property
    def full(self) -> bool:
        """Whether answers would gather: the client is not listened to then."""
        if self._receiver is not None:
            return self._receiver.paused
        return self._held_bytes >= STALLED

    def admits(self, peer: Peer, origin: str | None) -> bool:
        """Tell whether a request may be its client's."""
        if peer.loopback != self._peer.loopback:
            return False
        if origin is None:
            return True  # browsers leave it out of a GET to the page's own server
        if self._origin is None:
            self._origin = origin
        return origin == self._origin

    # -- receivers ------------------------------------------------------------------------

    def attach(self, receiver: Receiver) -> bool:
        """Give a receiver what there is, and what comes; returns whether it is the session's now.

        Otherwise it has its answer already.
        """
        if self._receiver is not None:
            receiver.last(ANOTHER)
            return False
        if self._fresh:
            self._fresh = False
            if receiver.polls:
                receiver.last(sockjs.OPEN)
                self._leave_alone()
                return False
            receiver.write(receiver.wire.wrap(sockjs.OPEN))
        held, self._held = self._held, []
        self._held_bytes = 0
        if self._ending is not None and not (held and receiver.polls):
            if held:
                receiver.write(b"".join(held))
            receiver.last(self._ending)
            return False
        self._receiver = receiver
        self._sessions.attended(self)
        if held:
            receiver.write(b"".join(held))
        self.flow()
        return True

    def check_wire(self, wire: Wire) -> None:
        """Raise BadRequest for a receiver whose wire is not the session's."""
        if wire is not self._link.wire:
            raise BadRequest(
                f"this session began with the wire of {self._link.wire.value}",
                "a session keeps to its transport",
            )

    def detach(self, receiver: Receiver) -> None:
        """The receiver's answer ended in order; another will come."""
        if self._receiver is receiver:
            self._receiver = None
            self._leave_alone()

    def interrupted(self, receiver: Receiver) -> None:
        """The receiver was cut off: what of its answer arrived is not known."""
        if self._receiver is receiver:
            self._receiver = None
        elif self.over:
            return
        self._held.clear()
        self._held_bytes = 0
        if not self.over:
            self._finish(INTERRUPTED)
            self._stomp.connection_lost()

    def flow(self) -> None:
        """Let the conversation stand still or go on, as the receiver takes messages or not."""
        flowing = self._receiver is not None and not self._receiver.paused
        if flowing == self._flowing or self.over:
            return
        self._flowing = flowing
        if flowing:
            self._stomp.resume_writing()
        else:
            self._stomp.pause_writing()

    def _leave_alone(self) -> None:
        self._sessions.unattended(self)
        self.flow()

    # -- from the client ------------------------------------------------------------------

    async def receive(self, texts: list[str]) -> None:
        """Take a request's messages once they can be taken; raises NotFound, LimitExceeded."""
        if self._senders or not self._reading:
            await self._turn()
        if self.over:
            raise NotFound("the session is over")
        try:
            self._stomp.receive_data("".join(texts).encode())
        finally:
            self._wake()

    async def _turn(self) -> None:
        if len(self._senders) >= SENDERS:
            raise LimitExceeded(f"{SENDERS} requests wait to send for this session already")
        turn = self._sessions.services.runtime.promise()
        self._senders.append(turn)
        try:
            await turn
        except BaseException:
            if turn in self._senders:
                self._senders.remove(turn)
            else:
                self._wake()  # it was somebody's turn, who is gone
            raise

    def _wake(self) -> None:
        """Let the next request have its turn, all of them when it is over."""
        while self._senders and (self._reading or self.over):
            turn = self._senders.popleft()
            if not turn.done():
                turn.set_result(None)
                if not self.over:
                    return

    # -- the STOMP session's transport ----------------------------------------------------

    def write(self, data: bytes, /) -> None:
        """Give bytes to the receiver, or keep them for the next one."""
        if self.over:
            return
        ending = self._link.ending
        if ending:
            wrapped = self._link.wire.wrap(ending)
            if data.endswith(wrapped):
                self._put(data[: -len(wrapped)])
                self._finish(ending)
                return
        self._put(data)

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._receiver is not None:
            self._receiver.write(data)
            self.flow()
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD:
            self.abort()

    def close(self) -> None:
        """End the session; what was written can still be fetched."""
        if not self.over:
            self._finish(GO_AWAY)
            self._sessions.services.runtime.call_soon(self._stomp.connection_lost)

    def abort(self) -> None:
        """End the session and forget what was written."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.abort()
        self._held.clear()
        self._held_bytes = 0
        if not self.over:
            self._finish(self._link.ending or INTERRUPTED)
            # As sockets do it: not within the call that wrote.
            self._sessions.services.runtime.call_soon(self._stomp.connection_lost)

    def is_closing(self) -> bool:
        """See services.Transport."""
        return self.over

    def can_write_eof(self) -> bool:
        """See services.Transport."""
        return False

    def write_eof(self) -> None:
        """Nothing: the end is a frame."""

    def pause_reading(self) -> None:
        """Let requests that bring messages wait."""
        self._reading = False

    def resume_reading(self) -> None:
        """Take what they brought."""
        self._reading = True
        self._wake()

    # -- the end --------------------------------------------------------------------------

    def _finish(self, ending: bytes) -> None:
        self._ending = ending
        receiver = self._receiver
        if receiver is not None and not receiver.holds:
            self._receiver = None
            receiver.last(ending)
        if self._receiver is None:
            self._sessions.unattended(self)
        self._wake()

    def timed_out(self) -> None:
        """Nobody has asked for so long."""
        if not self.over:
            self._finish(GO_AWAY)
            self._stomp.connection_lost()

    def disconnect(self, reason: Disconnect) -> None:
        """Tell the client why, and end the session."""
        self._stomp.disconnect(reason)

    def heartbeat(self, now: float) -> None:
        """Let the conversation see that time passes. now: monotonic seconds."""
        self._stomp.heartbeat(now)


class SockJsSessions:
    """All sessions over HTTP of this process, by their ids."""

    def __init__(self, services: Services, limit: int, heartbeat: float) -> None:
        """limit: how many may be open at once: between two receivers they have no socket that is
        counted. heartbeat: seconds between two signs of life."""
        self.services = services
        self.heartbeat = heartbeat
        self._limit = limit
        self._sessions: dict[str, SockJsSession] = {}
        # Without a receiver, with the time at which that is too long; all have the same patience,
        # so they stand in order.
        self._unattended: dict[SockJsSession, float] = {}
        self._next_beat = services.runtime.now() + heartbeat

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, id: str, peer: Peer, origin: str | None) -> SockJsSession | None:
        """Return the session of a request; None when there is none, or it is somebody else's."""
        session = self._sessions.get(id)
        if session is None or not session.admits(peer, origin):
            return None
        return session

    def open(self, id: str, wire: Wire, peer: Peer, origin: str | None) -> SockJsSession:
        """Begin a session; attach its receiver next. Raises NotFound, LimitExceeded.

        origin: of the page that asks, where its browser says so.
        """
        if id in self._sessions:
            raise NotFound("there is no such session")  # it is somebody else's
        if len(self._sessions) >= self._limit:
            raise LimitExceeded(
                f"{self._limit} SockJS sessions are open, that is the limit",
                "limits.sockjs_sessions raises it",
            )
        session = self._sessions[id] = SockJsSession(self, id, wire, peer, origin)
        self.unattended(session)
        return session

    def attended(self, session: SockJsSession) -> None:
        """Note that a session has a receiver."""
        self._unattended.pop(session, None)

    def unattended(self, session: SockJsSession) -> None:
        """Note that it has none, from now on."""
        self._unattended.pop(session, None)
        self._unattended[session] = self.services.runtime.now() + TIMEOUT

    def sweep(self, now: float) -> None:
        """End those whose time is over; called about once a second. now: monotonic seconds."""
        late = []
        for session, deadline in self._unattended.items():
            if deadline > now:
                break
            late.append(session)
        for session in late:
            # Nobody fetches its last word any more: it is told to nobody twice.
            session.timed_out()
            del self._unattended[session]
            del self._sessions[session.id]
        if now >= self._next_beat:
            self._next_beat = now + self.heartbeat
            for session in self:
                session.heartbeat(now)

    def __iter__(self) -> Iterator[SockJsSession]:
        yield from list(self._sessions.values())
