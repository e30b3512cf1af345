"""SockJS sessions over HTTP as their clients have them: requests that come and go."""

from __future__ import annotations

import itertools
import json

from queuecast.codecs.sockjs import Wire
from queuecast.sessions.sockjs import SockJsSession, SockJsSessions
from queuecast.sessions.sockjs_receivers import PollReceiver, StreamReceiver
from queuecast.sessions.stomp import Peer
from tests.support.fake_runtime import Task
from tests.unit.sessions.stomp_rig import HERE, FakeTransport, Got, House, frames, stomp

LOGIN = stomp("CONNECT", accept_version="1.2", login="guest", passcode="guest")
HEAD = b"head|"
_ids = itertools.count(1)


class Rig:
    """A house, and its SockJS sessions."""

    def __init__(self, limit: int = 2000, **limits: int) -> None:
        self.house = House(**limits)
        self.runtime = self.house.runtime
        self.sessions = SockJsSessions(self.house.services, limit, heartbeat=25.0)

    def open(self, wire: Wire = Wire.XHR, peer: Peer = HERE, origin: str | None = None) -> Browser:
        id = f"s{next(_ids)}"
        return Browser(self, self.sessions.open(id, wire, peer, origin), wire)

    def pass_time(self, seconds: float) -> None:
        """Let time pass as the server does: timers, and a sweep a second."""
        for _ in range(round(seconds)):
            self.runtime.advance(1.0)
            self.sessions.sweep(self.runtime.now())
            self.runtime.settle()


class StreamSocket(FakeTransport):
    """A socket with a buffer. stuck: bytes in it that the other side does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = 0
        self.high: int | None = 64 * 1024

    def get_write_buffer_size(self) -> int:
        return self.stuck

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high


class Stream:
    """A streaming request: its socket, and what of it was read."""

    def __init__(self, browser: Browser) -> None:
        self.wire = browser.wire
        self.transport = StreamSocket()
        self.receiver = StreamReceiver(self.transport, browser.session, browser.wire, HEAD)
        self.receiver.start()
        browser.rig.runtime.settle()
        head, self.transport.written = self.transport.written, b""
        assert head.startswith(HEAD)
        self.transport.written = head.removeprefix(HEAD)

    def cut(self) -> None:
        """The socket breaks."""
        self.transport.closed = True
        self.receiver.connection_lost()

    def take(self) -> list[object]:
        """Return the frames that came: "o" and "h", ["a", texts] and ["c", [code, reason]]."""
        data, self.transport.written = self.transport.written, b""
        assert self.wire is Wire.XHR
        return [frame(line) for line in data.splitlines()]


class Browser:
    """One client of one session."""

    def __init__(self, rig: Rig, session: SockJsSession, wire: Wire) -> None:
        self.rig = rig
        self.session = session
        self.wire = wire
        self.waiting: PollReceiver | None = None

    def ask(self) -> PollReceiver:
        """Begin a poll."""
        receiver = PollReceiver(self.rig.runtime, self.session, 25.0)
        self.session.attach(receiver)
        self.rig.runtime.settle()
        return receiver

    def poll(self) -> object:
        """Poll; returns the answer's frame, None when there is nothing to say yet."""
        self.waiting = self.ask()
        return self.answered()

    def answered(self) -> object:
        """Return what the poll that waits was answered, None when it still waits."""
        self.rig.runtime.settle()
        assert self.waiting is not None
        if not self.waiting.answer.done():
            return None
        return frame(self.rig.runtime.run(result(self.waiting)))

    def stream(self) -> Stream:
        return Stream(self)

    def send(self, *messages: bytes) -> Task:
        """Send messages with a request of their own; returns it."""
        task = self.rig.runtime.start(self.session.receive([each.decode() for each in messages]))
        self.rig.runtime.settle()
        return task

    def log_in(self) -> None:
        """Open the session and log in, by polls."""
        assert self.poll() == "o"
        self.send(LOGIN)
        (connected,) = stomp_frames(self.poll())
        assert connected.command == "CONNECTED"


async def result(receiver: PollReceiver) -> bytes:
    found: bytes = await receiver.answer
    return found


def frame(data: bytes) -> object:
    """Read one SockJS frame."""
    if data in (b"o", b"h"):
        return data.decode()
    return [data[:1].decode(), json.loads(data[1:])]


def stomp_frames(found: object) -> list[Got]:
    """Return the STOMP frames in an `a` frame."""
    assert isinstance(found, list)
    assert found[0] == "a", found
    return frames("".join(found[1]).encode())


def bodies(found: object) -> list[bytes]:
    return [each.body for each in stomp_frames(found)]
