"""A session that handles what its client says in order, and reads no more while something waits.

What one read completed is a short queue of events. An event waits while an earlier one is not
answered (`busy`), while the client does not read from us, or while too many publishes are under
way; as long as one waits nothing more is read, so that the queue stays as short as one read.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from ..auth.identity import Identity
from ..disconnect import TIMEOUT
from .publisher import PublishingSession
from .services import Services, Transport

# Seconds that a client has to read our last bytes and to close its side: closing with unread
# bytes would make the kernel send a reset, which can destroy them (RFC 6455, section 7.1.1).
CLOSE_WITHIN = 2.0
# Heartbeats that may pass without a byte from the client.
_ALIVE = 2

Event = TypeVar("Event")


class OrderedSession(PublishingSession, Generic[Event]):
    """What plain WebSockets and STOMP share. busy: an earlier event is not answered yet.

    closing: our last bytes are written, or never will be.
    """

    __slots__ = ("_alive", "_events", "_farewell", "_reading", "busy", "closing")

    def __init__(self, services: Services, transport: Transport, identity: Identity) -> None:
        super().__init__(services, transport, identity)
        # Events not handled yet: those of one read at the most, because reading pauses.
        self._events: deque[Event] | None = None
        # What to write last, once the publishes under way are answered.
        self._farewell: bytes | None = None
        self._alive = _ALIVE
        self._reading = True
        self.busy = False
        self.closing = False

    # -- what a protocol says -------------------------------------------------------------

    def parse(self, data: bytes) -> list[Event]:
        """Return what these bytes complete."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """Whether `parse` left something for a call of its own, with no bytes."""
        raise NotImplementedError

    def handle(self, event: Event) -> None:
        """Do what one event asks for."""
        raise NotImplementedError

    def is_barrier(self, event: Event) -> bool:
        """Tell whether an event waits until everything before it is published."""
        raise NotImplementedError

    def receive_parting(self, data: bytes) -> None:
        """Take what comes after our last bytes."""
        raise NotImplementedError

    def ping(self) -> bytes:
        """Return what a client must answer to show that it is there, b"" for nothing."""
        raise NotImplementedError

    @property
    def half_closes(self) -> bool:
        """Whether the end of what we write is shown by the socket itself."""
        return False

    # -- events in ------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        self._alive = _ALIVE
        if self.closing:
            self.receive_parting(data)
            return
        events = self.parse(data)
        if self._events is None:
            self._events = deque(events)
            self.process()
        else:
            self._events.extend(events)

    def process(self) -> None:
        """Handle what has come, in order, until something must wait."""
        events = self._events
        while events and self._takes(events[0]):
            self.handle(events.popleft())
        if not events or self.closed:
            self._events = None
            if self.pending and not self.closed:
                # In a turn of its own: others' bytes are not kept waiting while we inflate.
                self.services.runtime.call_soon(self._go_on)
        self.update_reading()

    def _go_on(self) -> None:
        """Parse what a read left; some other call may have done it already."""
        if self.pending and self._events is None and not self.closed:
            self._events = deque(self.parse(b""))
            self.process()

    def _takes(self, event: Event) -> bool:
        # Not while it does not read either: the answers would gather here.
        if self.busy or self.stalled or self.closed:
            return False
        return self.publishing == 0 if self.is_barrier(event) else not self.full

    def publish_answered(self) -> None:
        if self._farewell is not None and self.publishing == 0:
            self._finish()
        else:
            self.process()

    # -- backpressure ---------------------------------------------------------------------

    def update_reading(self) -> None:
        """Read from the client only while it reads from us and we are not behind with it.

        Otherwise one that sends and never reads would fill the memory with answers.
        """
        wanted = self.closing or not (
            self.busy or self.stalled or self._events or self.pending or self.full
        )
        if wanted == self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    @property
    def stalled(self) -> bool:
        """Whether answers would gather, because the client does not read."""
        return self.paused

    @property
    def reading(self) -> bool:
        """Whether a client can give a sign of life: otherwise its bytes are not read."""
        return self._reading

    def pause_writing(self) -> None:
        super().pause_writing()
        self.update_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.process()

    # -- the end --------------------------------------------------------------------------

    def heartbeat(self, now: float) -> None:
        if self._farewell is not None:
            # The broker has not confirmed for so long: the client shall try elsewhere.
            self._finish()
            return
        if self.paused or self.closing:
            return
        ping = self.ping()
        if not ping:
            return
        if self._alive == 0 and self._reading:
            self.disconnect(TIMEOUT)
            return
        self._alive = max(0, self._alive - 1)
        self.write(ping)

    @property
    def leaving(self) -> bool:
        """Whether the conversation is over, but for what is under way."""
        return self.closing or self._farewell is not None

    def leave(self, last: bytes) -> None:
        """End the conversation: what is under way is answered, then `last` is written."""
        if self.leaving:
            return
        stalled = self.stalled
        self.end()
        if stalled or self.transport.is_closing():
            self.cut_off()
            return
        self._farewell = last
        if self.publishing == 0:
            self._finish()

    def cut_off(self) -> None:
        """End the connection without a word."""
        self.closing = True
        self.transport.abort()

    def answer_leave(self, last: bytes) -> None:
        """The client ended the conversation: write our part of the ending, close the socket."""
        self.closing = True
        self.end()
        if last:
            self.write(last)
        self.transport.close()

    def _finish(self) -> None:
        if self.closing:
            return
        self.closing = True
        self._events = None
        if self.transport.is_closing():
            return
        if self._farewell:
            self.write(self._farewell)
        self.services.runtime.call_later(CLOSE_WITHIN, self.transport.close)
        if self.half_closes and self.transport.can_write_eof():
            self.transport.write_eof()
        self.update_reading()
