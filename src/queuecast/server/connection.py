"""A push connection: a socket that belongs to a session; and the registry of all of them.

There are many and most are idle, so a connection has no timer and no task of its own: one
wheel, turned by the server once a second, gives each its heartbeat in turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from ..disconnect import Disconnect
from .drain import spread_over
from .sockets import Sockets

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What the kernel does not take at once and we hold for a client; beyond it the session stands
# still. A client that never reads costs this much and one write (64 KB or one message).
WRITE_BUFFER = 64 * 1024


class Session(Protocol):
    """What a connection needs of sessions.base.Session."""

    @property
    def kind(self) -> str: ...
    def start(self) -> None: ...
    def receive_data(self, data: bytes, /) -> None: ...
    def eof_received(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def heartbeat(self, now: float, /) -> None: ...
    def disconnect(self, reason: Disconnect, /) -> None: ...
    def connection_lost(self) -> None: ...


class Nobody:
    """The session of a socket whose client has not said yet what it wants."""

    __slots__ = ()

    kind = "nobody"

    def start(self) -> None: ...
    def receive_data(self, data: bytes, /) -> None: ...
    def eof_received(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def heartbeat(self, now: float, /) -> None: ...
    def disconnect(self, reason: Disconnect, /) -> None: ...
    def connection_lost(self) -> None: ...


NOBODY = Nobody()


class Connection(asyncio.Protocol):
    """Hands what happens on a socket to its session."""

    __slots__ = ("_connections", "closing", "session", "slot", "transport")

    transport: asyncio.Transport

    def __init__(self, connections: Connections) -> None:
        """transport: the socket's, set by who has it, before the session is."""
        self._connections = connections
        self.session: Session = NOBODY
        self.slot = 0
        self.closing = False

    def data_received(self, data: bytes) -> None:
        self.session.receive_data(data)

    def eof_received(self) -> None:
        # Returning nothing closes the transport: a push stream is of no use to a client that
        # has gone, and one that only half-closes cannot be told from it.
        self.session.eof_received()

    def pause_writing(self) -> None:
        self.session.pause_writing()

    def resume_writing(self) -> None:
        self.session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self.session.connection_lost()


class Connections:
    """All push connections of this process."""

    def __init__(self, sockets: Sockets, slots: int = 25) -> None:
        """slots: turns of the wheel between two heartbeats of a connection."""
        self._sockets = sockets
        self._wheel: list[dict[Connection, None]] = [{} for _ in range(max(1, slots))]
        self._next_slot = 0
        self._turn = 0
        self._empty: asyncio.Event | None = None
        # Open connections by the kind of their sessions.
        self.kinds: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._wheel)

    def __iter__(self) -> Iterator[Connection]:
        for slot in self._wheel:
            yield from list(slot)

    def adopt(
        self,
        transport: asyncio.Transport,
        session: Session,
        rest: bytes = b"",
        *,
        paused: bool = False,
        release: Callable[[], None] | None = None,
    ) -> Connection:
        """Make the transport the session's, start it, and give it the bytes that came already.

        paused: the transport's buffer is full from what was there before. release: called
        before the session starts, it ends who had the transport before.
        """
        connection = Connection(self)
        connection.transport = transport
        transport.set_protocol(connection)
        if release is not None:
            release()
        self.settle(connection, session, rest, paused=paused)
        return connection

    def settle(
        self, connection: Connection, session: Session, rest: bytes = b"", *, paused: bool = False
    ) -> None:
        """Give a connection that has its socket already its session; as `adopt`.

        A socket's protocol is changed only where it must be: uvloop stops reading for it and
        begins again, which is two calls of the kernel.
        """
        connection.session = session
        connection.slot = self._next_slot
        # Round robin: heartbeats stay spread evenly even when everybody came at once.
        self._next_slot = (self._next_slot + 1) % len(self._wheel)
        self._wheel[connection.slot][connection] = None
        self.kinds[session.kind] = self.kinds.get(session.kind, 0) + 1
        connection.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if paused:
            session.pause_writing()
        session.start()
        if rest:
            session.receive_data(rest)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        del self._wheel[connection.slot][connection]
        self.kinds[connection.session.kind] -= 1
        self._sockets.leave()
        if self._empty is not None and not len(self):
            self._empty.set()

    async def emptied(self, timeout: float) -> bool:
        """Wait until nobody is left, for `timeout` seconds; returns whether that came true."""
        if not len(self):
            return True
        self._empty = asyncio.Event()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def beat(self, now: float) -> None:
        """Turn the wheel by one slot. now: monotonic seconds."""
        slot = self._wheel[self._turn]
        self._turn = (self._turn + 1) % len(self._wheel)
        for connection in list(slot):
            if connection.transport.is_closing():
                # It is closed but the client does not read the rest: it has had one round.
                if connection.closing:
                    connection.transport.abort()
                connection.closing = True
                continue
            try:
                connection.session.heartbeat(now)
            except Exception:
                logger.exception("a heartbeat failed, its connection is closed")
                connection.transport.abort()

    async def disconnect_all(self, reason: Disconnect, spread: float) -> None:
        """Close everybody, evenly over `spread` seconds: their reconnects come as spread."""

        def send_away(connection: Connection) -> None:
            if connection.transport.is_closing():
                return
            try:
                connection.session.disconnect(reason)
            except BaseException:
                connection.transport.abort()
                raise

        await spread_over(list(self), spread, send_away)

    def abort_all(self) -> None:
        """Cut off whoever is still there."""
        for connection in self:
            connection.transport.abort()
