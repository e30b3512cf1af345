"""The receivers of SockJS sessions: answers that go on, and answers to polls."""

from __future__ import annotations

from typing import Final, Protocol

from ..codecs import sockjs
from ..codecs.sockjs import Wire
from ..disconnect import Disconnect
from ..runtime import Promise, Runtime, Timer
from .services import Transport
from .sockjs import SockJsSession

# A browser keeps the whole of an answer in memory, so after so many bytes another begins.
RESPONSE: Final = 128 * 1024
# A poll takes no more messages than this and one write.
POLL: Final = 64 * 1024


class StreamTransport(Transport, Protocol):
    """A socket that says how much of what was written is still here; asyncio's do."""

    def get_write_buffer_size(self) -> int: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class StreamReceiver:
    """An answer that goes on: xhr_streaming, eventsource, htmlfile.

    It is the session of its connection (server.connection.Session), and a receiver. It ends in
    order only once the socket has all of it: a client like EventSource cannot tell an end from a
    cut, and would go on behind a hole.
    """

    __slots__ = (
        "_done",
        "_draining",
        "_head",
        "_paused",
        "_sent",
        "_session",
        "_transport",
        "wire",
    )

    kind = "sockjs-stream"
    polls = False
    holds = False

    def __init__(
        self, transport: StreamTransport, session: SockJsSession, wire: Wire, head: bytes
    ) -> None:
        """head: the head of the answer and its prelude."""
        self.wire = wire
        self._transport = transport
        self._session = session
        self._head = head
        self._paused = False
        self._sent = 0
        # Long enough, but not all of it has left.
        self._draining = False
        self._done = False

    @property
    def session(self) -> SockJsSession:
        """The session that it is a receiver of."""
        return self._session

    @property
    def paused(self) -> bool:
        """Whether the socket takes no more, or the answer is long enough."""
        return self._paused or self._draining

    # -- the session's calls --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write frames; the answer ends once it is long enough."""
        self._transport.write(data)
        self._sent += len(data)
        if self._sent < RESPONSE or self._draining or self._done:
            return
        if self._transport.get_write_buffer_size() == 0:
            self._end()
            self._session.detach(self)
            return
        self._draining = True
        # So that it is told when nothing is left.
        self._transport.set_write_buffer_limits(high=0)

    def last(self, frame: bytes) -> None:
        """Write one frame and end."""
        if self._done:
            return
        if not self._transport.is_closing():
            self._transport.write(self.wire.wrap(frame))
        self._end()

    def abort(self) -> None:
        """Cut the client off."""
        self._done = True
        self._transport.abort()

    def _end(self) -> None:
        self._done = True
        self._transport.close()

    # -- the connection's calls -----------------------------------------------------------

    def start(self) -> None:
        """Answer, and become the session's receiver."""
        self._transport.write(self._head)
        self._session.attach(self)

    def receive_data(self, data: bytes) -> None:
        """What follows such a request is answered by nobody: the answer ends the connection."""

    def eof_received(self) -> None:
        """The client is leaving."""
        self._transport.close()

    def pause_writing(self) -> None:
        """The socket is full."""
        self._paused = True
        self._session.flow()

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._paused = False
        if self._draining and not self._done:
            self._end()
            self._session.detach(self)
            return
        self._session.flow()

    def heartbeat(self, now: float) -> None:
        """Give a sign of life."""
        if not self.paused and not self._done:
            self._transport.write(self.wire.wrap(sockjs.HEARTBEAT))

    def disconnect(self, reason: Disconnect) -> None:
        """End the session that the answer belongs to."""
        self._session.disconnect(reason)

    def connection_lost(self) -> None:
        """The socket is gone."""
        if not self._done:
            self._done = True
            self._session.interrupted(self)


class PollReceiver:
    """A poll: its answer is one frame, with all messages of a turn of the loop.

    answer: the frame, without a wire.
    """

    __slots__ = ("_parts", "_runtime", "_session", "_size", "_timer", "answer", "wire")

    polls = True

    def __init__(self, runtime: Runtime, session: SockJsSession, heartbeat: float) -> None:
        """heartbeat: seconds until an answer without messages is given."""
        self.wire = Wire.XHR
        self.answer: Promise = runtime.promise()
        self._runtime = runtime
        self._session = session
        # At most POLL bytes and one write.
        self._parts: list[bytes] = []
        self._size = 0
        self._timer: Timer = runtime.call_later(heartbeat, self._beat)

    @property
    def paused(self) -> bool:
        """Whether the answer is long enough."""
        return self._size >= POLL

    @property
    def holds(self) -> bool:
        """Whether there are messages in it."""
        return bool(self._parts)

    def write(self, data: bytes) -> None:
        """Take frames; they go out at the end of this turn of the loop."""
        if not self._parts:
            self._runtime.call_soon(self._send)
        self._parts.append(data)
        self._size += len(data)

    def last(self, frame: bytes) -> None:
        """Answer with this frame."""
        self._timer.cancel()
        if not self.answer.done():
            self.answer.set_result(frame)

    def abort(self) -> None:
        """The conversation was cut off: what is held is not worth sending."""
        self.last(sockjs.HEARTBEAT)

    def cancelled(self) -> None:
        """The client went."""
        self._timer.cancel()
        self._session.interrupted(self)

    def _send(self) -> None:
        if self.answer.done():
            return
        self.last(sockjs.merge(b"".join(self._parts)))
        self._session.detach(self)

    def _beat(self) -> None:
        if not self.answer.done() and not self._parts:
            self.last(sockjs.HEARTBEAT)
            self._session.detach(self)
