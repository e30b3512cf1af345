"""A STOMP session over a fake socket, broker and loop, and frames as tests read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from queuecast.auth.identity import Identity
from queuecast.codecs.websocket import frame
from queuecast.delivery import Delivery, DeliverySink
from queuecast.destination import Destination
from queuecast.errors import QueuecastError, Refused
from queuecast.hub.feed import Feed
from queuecast.hub.hub import CloseReader, Hub
from queuecast.message import Message, Properties
from queuecast.queuespec import PLAIN, ConsumeSpec, Owner, QueueSpec
from queuecast.sessions.services import Account, Services, SessionLimits
from queuecast.sessions.stomp import Peer, StompSession
from queuecast.sessions.stomp_link import Link, RawLink, WebSocketLink, choose_subprotocol
from tests.support.fake_runtime import FakePromise, FakeRuntime

SECRET = Destination.parse("/topic/secret.name")
HERE = Peer(True, frozenset(("gateway.example",)))
ELSEWHERE = Peer(False, frozenset(("gateway.example",)))


@dataclass(frozen=True)
class Got:
    """A frame that the client got."""

    command: str
    headers: dict[str, str]
    body: bytes


class FakeTransport:
    """Records what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.writes: list[bytes] = []
        self.closed = self.aborted = self.ended = False
        self.reading = True

    def write(self, data: bytes, /) -> None:
        assert not self.closed
        assert not self.ended
        self.writes.append(data)
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True


@dataclass
class FakeConsumer:
    """A consumer that notes what is settled."""

    destination: Destination
    sink: DeliverySink
    prefetch: int
    spec: ConsumeSpec = PLAIN
    outstanding: set[int] = field(default_factory=set)
    settled: list[tuple[str, int]] = field(default_factory=list)
    closed: bool = False
    paused: bool = False
    last: int = 0

    def deliver(self, body: bytes, *, redelivered: bool = False) -> None:
        self.last += 1
        self.outstanding.add(self.last)
        message = Message(body, "", self.destination.name, redelivered=redelivered)
        self.sink.deliver(Delivery(message, self.last))

    def lose(self) -> None:
        self.outstanding.clear()
        self.sink.reset()

    def ack(self, tag: int) -> bool:
        return self._settle("ack", tag)

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        return self._settle("requeue" if requeue else "reject", tag)

    def _settle(self, how: str, tag: int) -> bool:
        if tag not in self.outstanding:
            return False
        self.outstanding.discard(tag)
        self.settled.append((how, tag))
        return True

    def pause(self) -> None:
        self.paused = True

    def suspend(self, tags: Sequence[int]) -> None:
        self.paused = True
        for tag in tags:
            self._settle("requeue", tag)

    def resume(self) -> None:
        self.paused = False

    async def close(self) -> None:
        self.closed = True


class FakeQueues:
    """Notes what sessions declare for themselves."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.declared: list[QueueSpec] = []
        self.refuse: QueuecastError | None = None

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        self.calls.append(("declare", queue.name))
        if self.refuse is not None:
            raise self.refuse
        self.declared.append(queue)

    async def delete_own(self, name: str, owner: Owner) -> None:
        self.calls.append(("delete", name))
        if self.refuse is not None:
            raise self.refuse

    async def release(self, owner: Owner) -> None:
        assert owner.gone
        self.calls.append(("release", ""))


@dataclass
class Published:
    """A publish that waits for the broker's answer."""

    destination: str
    body: bytes
    properties: Properties
    confirm: FakePromise


class House:
    """Everything around the sessions."""

    def __init__(self, **limits: Any) -> None:
        self.runtime = FakeRuntime()
        self.feeds: dict[str, Feed] = {}
        self.published: list[Published] = []
        self.consumers: list[FakeConsumer] = []
        self.queues = FakeQueues()
        self.confirm_at_once = True
        self.refuse_feed: QueuecastError | None = None
        self.refuse_consume: QueuecastError | None = None
        self.refuse_publish: QueuecastError | None = None
        self.denied: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.logins: list[tuple[str, str, str | None, bool]] = []
        self.login_waits: FakePromise | None = None
        self.accounts = 0
        self.hub = Hub(self.runtime, self._open_feed)
        self.services = Services(
            self.runtime,
            self.hub,
            self._publish,
            self._consume,
            self._allow,
            Destination.from_url,
            SessionLimits(**limits),
            alias=self._alias,
            login=self._login,
            queues=self.queues,
        )

    def open(self, link: Link | None = None, peer: Peer = HERE) -> Client:
        return Client(self, link or RawLink(self.services.limits.frame), peer)

    def fresh(self) -> Client:
        client = self.open()
        client.log_in()
        return client

    def websocket(
        self,
        offered: tuple[str, ...] = (),
        peer: Peer = HERE,
        *,
        extension: str | None = None,
        binary: bool = False,
    ) -> Client:
        link = WebSocketLink(
            self.services.limits.frame,
            "dGhlIHNhbXBsZSBub25jZQ==",
            choose_subprotocol(offered),
            extension=extension,
            binary=binary,
        )
        return Client(self, link, peer)

    def append(self, destination: str, *bodies: bytes, key: str = "a") -> None:
        """Let a feed get messages and the tick run."""
        self.feeds[destination].append([Message(body, "amq.topic", key) for body in bodies])
        self.runtime.settle()

    async def _open_feed(self, destination: Destination, feed: Feed) -> CloseReader:
        if self.refuse_feed is not None:
            raise self.refuse_feed
        self.feeds[str(destination)] = feed
        feed.begin(None)

        async def close() -> None:
            del self.feeds[str(destination)]

        return close

    async def _publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> None:
        confirm = FakePromise()
        self.published.append(Published(str(destination), body, properties, confirm))
        if self.refuse_publish is not None:
            raise self.refuse_publish
        if not self.confirm_at_once:
            await confirm

    async def _consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int,
        spec: ConsumeSpec = PLAIN,
    ) -> FakeConsumer:
        if self.refuse_consume is not None:
            raise self.refuse_consume
        made = FakeConsumer(destination, sink, prefetch, spec)
        self.consumers.append(made)
        return made

    def _allow(self, identity: Identity, verb: str, destination: Destination) -> None:
        self.asked.append((identity.name, verb, str(destination)))
        if str(destination) in self.denied:
            raise Refused(f"{identity.name} may not {verb} {destination}")

    @staticmethod
    def _alias(path: str) -> Destination | None:
        return replace(SECRET, alias=path) if path == "/nice" else None

    async def _login(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Account:
        self.logins.append((user, passcode, host, loopback))
        if self.login_waits is not None:
            await self.login_waits
        if passcode != "guest":
            raise Refused(f"Access refused for user '{user}'")
        self.accounts += 1
        return Account(user, self.services, self._left)

    def _left(self) -> None:
        self.accounts -= 1


class Client:
    """The other end of one session."""

    def __init__(self, house: House, link: Link, peer: Peer) -> None:
        self.house = house
        self.transport = FakeTransport()
        self.session = StompSession(house.services, self.transport, link, peer)
        self.session.start()

    def raw(self, data: bytes) -> list[Got]:
        """Send bytes and return the frames that came since the last time."""
        self.session.receive_data(data)
        self.house.runtime.settle()
        return self.got()

    def say(self, command: str, body: bytes = b"", /, **headers: str) -> list[Got]:
        """Send one frame; a header's name has its hyphens written as underscores."""
        return self.raw(stomp(command, body, **headers))

    def log_in(self, version: str = "1.2", **headers: str) -> Got:
        (connected,) = self.say(
            "CONNECT", accept_version=version, login="guest", passcode="guest", **headers
        )
        assert connected.command == "CONNECTED"
        return connected

    def got(self) -> list[Got]:
        data, self.transport.written = self.transport.written, b""
        return frames(data)

    @property
    def gone(self) -> bool:
        return self.session.closed


def logged_in(version: str = "1.2", **limits: Any) -> tuple[House, Client]:
    house = House(**limits)
    client = house.open()
    client.log_in(version)
    return house, client


def error(client: Client, command: str, body: bytes = b"", /, **headers: str) -> dict[str, str]:
    """Say something that fails; the ERROR's headers and its body."""
    (got,) = client.say(command, body, **headers)
    assert got.command == "ERROR"
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["version"] == "1.0,1.1,1.2"
    return {**got.headers, "body": got.body.decode()}


def work(version: str = "1.2", **headers: str) -> tuple[House, Client, Any]:
    house, client = logged_in(version)
    client.say("SUBSCRIBE", id="1", destination="/queue/a", **headers)
    return house, client, house.consumers[0]


def stomp(command: str, body: bytes = b"", /, **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}:{value}" for name, value in headers.items()]
    return "\n".join([command, *lines, "", ""]).encode() + body + b"\0"


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's WebSocket frame (of up to 125 bytes), masked with zeros."""
    head = frame(opcode, payload)
    assert len(payload) <= 125
    return bytes((head[0] & (0xFF if fin else 0x7F), head[1] | 0x80)) + bytes(4) + payload


_FRAME = re.compile(rb"([A-Z]+)\n((?:[^\n]+\n)*)\n")


def frames(data: bytes) -> list[Got]:
    """Read our frames, independently of the codec."""
    found = []
    while data := data.lstrip(b"\n"):
        head = _FRAME.match(data)
        assert head is not None, data
        headers: dict[str, str] = {}
        for line in head[2].decode().splitlines():
            name, _, value = line.partition(":")
            assert name not in headers, f"{name} twice"
            headers[name] = value.replace("\\c", ":").replace("\\n", "\n").replace("\\\\", "\\")
        length = int(headers.get("content-length", "0"))
        end = head.end() + length
        assert data[end : end + 1] == b"\0", data
        found.append(Got(head[1].decode(), headers, data[head.end() : end]))
        data = data[end + 1 :]
    return found
