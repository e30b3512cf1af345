"""What stands at both sides of a connection that publishes: a paper socket, a broker's ear."""

import asyncio
import re
import socket
import struct
from typing import Any

from queuecast.destination import Destination
from queuecast.message import Properties
from queuecast.server.poster import Poster
from queuecast.server.posts import Posts
from tests.server.house import Client, House, request

_DATE = re.compile(rb"\r\nDate: [^\r]*")


class Wire(asyncio.Transport):
    """A socket whose other end is the test: what is written gathers, nothing is sent."""

    def __init__(self, house: House, peer: str = "127.0.0.1") -> None:
        super().__init__()
        self._peer = peer
        self.written: list[bytes] = []
        self.reading = True
        self.closed = False
        doors = house.server._doors
        assert doors is not None
        self.protocol: asyncio.BaseProtocol = doors()
        self.protocol.connection_made(self)

    @classmethod
    def answers(cls, house: House, data: bytes) -> list[bytes]:
        """Return what a connection says to some requests that are answered at once."""
        wire = cls(house)
        wire.feed(data)
        wire.lose()
        return wire.written

    def feed(self, data: bytes) -> None:
        """Let the server read."""
        assert self.reading
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.data_received(data)

    def lose(self) -> None:
        """Let the connection be lost, once."""
        self.closed = True
        self.protocol.connection_lost(None)

    @property
    def poster(self) -> Poster:
        assert isinstance(self.protocol, Poster)
        return self.protocol

    @property
    def said(self) -> bytes:
        """All that was written, without the time."""
        return _DATE.sub(b"", b"".join(self.written))

    # What asyncio and aiohttp call.

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._peer, 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def can_write_eof(self) -> bool:
        return False


class Ear:
    """Notes what the broker is given, and may refuse it or let it wait.

    seen: destination, body, properties, mandatory. outcomes: what is raised for a body. hold:
    what publishes wait for; without one the broker is as prompt as it is.
    """

    def __init__(self, house: House) -> None:
        self.seen: list[tuple[str, bytes, Properties, bool | None]] = []
        self.outcomes: dict[bytes, Exception] = {}
        self.hold: asyncio.Event | None = None
        services = house.gateway.services
        self._publish = services.publish
        self._at_once = services.at_once
        assert self._at_once is not None
        services.publish = self.publish
        services.at_once = self.at_once

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body, _, _ in self.seen]

    def _note(self, destination: Destination, body: bytes, properties: Properties, m: Any) -> None:
        self.seen.append((str(destination), body, properties, m))
        if body in self.outcomes:
            raise self.outcomes[body]

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> None:
        self._note(destination, body, properties, mandatory)
        if self.hold is not None:
            await self.hold.wait()
        await self._publish(destination, body, properties, mandatory=mandatory)

    def at_once(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        if self.hold is not None:
            return False
        self._note(destination, body, properties, mandatory)
        assert self._at_once is not None
        return self._at_once(destination, body, properties, mandatory=mandatory)


def post(target: str = "/topic/a", *lines: str, body: bytes = b"x") -> bytes:
    return request("POST", f"/publish{target}", *lines, body=body)


def posts_of(house: House) -> Posts:
    posts = house.server._posts
    assert posts is not None
    return posts


def aiohttps(house: House) -> int:
    """Count the connections that aiohttp has."""
    assert house.server._http is not None
    return len(house.server._http.connections)


async def reset(client: Client) -> None:
    """End a connection the hard way."""
    linger = struct.pack("ii", 1, 0)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.writer.transport.abort()
