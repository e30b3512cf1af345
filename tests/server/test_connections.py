"""The registry: its wheel, spread shutdown, and those who never read their last words."""

import asyncio
from typing import Any, cast

from queuecast.disconnect import SHUTDOWN, Disconnect
from queuecast.server.connection import Connection, Connections
from queuecast.server.sockets import Sockets
from queuecast.server.throttle import Throttle


class FakeTransport:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.closing = False
        self.protocol: asyncio.BaseProtocol | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        self.calls.append("set_protocol")

    def set_write_buffer_limits(self, high: int) -> None:
        self.calls.append(f"high {high}")

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True
        self.calls.append("abort")


class FakeSession:
    kind = "fake"

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.beats: list[float] = []
        self.broken = False

    def start(self) -> None:
        self.calls.append("start")

    def receive_data(self, data: bytes) -> None:
        self.calls.append(f"data {data.decode()}")

    def eof_received(self) -> None:
        self.calls.append("eof")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def heartbeat(self, now: float) -> None:
        if self.broken:
            raise ValueError("broken")
        self.beats.append(now)

    def disconnect(self, reason: Disconnect) -> None:
        self.calls.append(reason.name)

    def connection_lost(self) -> None:
        self.calls.append("lost")


def adopt(connections: Connections, **options: Any) -> tuple[FakeTransport, FakeSession]:
    transport = FakeTransport()
    session = FakeSession(transport.calls)
    connections.adopt(cast(asyncio.Transport, transport), session, **options)
    return transport, session


def test_a_session_starts_once_the_transport_is_its_own() -> None:
    connections = Connections(Sockets(10))
    calls: list[str] = []
    transport, _ = adopt(
        connections, rest=b"rest", paused=True, release=lambda: calls.append("release")
    )
    assert transport.calls == ["set_protocol", "high 65536", "pause", "start", "data rest"]
    assert calls == ["release"]


def test_each_gets_one_heartbeat_a_round() -> None:
    connections = Connections(Sockets(10), slots=5)
    sessions = [adopt(connections)[1] for _ in range(12)]
    for now in range(10):
        connections.beat(float(now))
        share = sum(session.beats.count(float(now)) for session in sessions)
        assert share in (2, 3)
    for session in sessions:
        first, second = session.beats
        assert second - first == 5


def test_one_broken_heartbeat_costs_only_its_own_connection() -> None:
    connections = Connections(Sockets(10), slots=1)
    transport, session = adopt(connections)
    session.broken = True
    _, other = adopt(connections)
    connections.beat(1.0)
    assert transport.calls[-1] == "abort"
    assert other.beats == [1.0]


def test_one_that_does_not_read_its_last_words_is_cut_off() -> None:
    connections = Connections(Sockets(10), slots=1)
    transport, session = adopt(connections)
    transport.closing = True
    connections.beat(1.0)
    assert "abort" not in transport.calls
    connections.beat(2.0)
    assert "abort" in transport.calls
    assert session.beats == []


async def test_a_shutdown_reaches_everybody_and_knows_when_they_are_gone() -> None:
    sockets = Sockets(100)
    connections = Connections(sockets, slots=3)
    everybody = []
    for _ in range(10):
        sockets.enter()
        everybody.append(adopt(connections))
    everybody[0][0].closing = True
    await connections.disconnect_all(SHUTDOWN, spread=0.1)
    assert "shutdown" not in everybody[0][0].calls
    assert all(transport.calls[-1] == "shutdown" for transport, _ in everybody[1:])
    assert not await connections.emptied(0)
    for transport, _ in everybody:
        cast(asyncio.Protocol, transport.protocol).connection_lost(None)
    assert await connections.emptied(0)
    assert (len(connections), sockets.open) == (0, 0)


def test_a_throttle_says_what_it_left_out(caplog: Any) -> None:
    import logging

    now = 0.0
    throttle = Throttle(logging.getLogger("test"), 5.0, lambda: now)
    for _ in range(4):
        throttle.warning("refused")
    now = 5.0
    throttle.warning("refused")
    assert [record.message for record in caplog.records] == [
        "refused",
        "refused (and 3 more since the last such line)",
    ]


def test_a_throttle_lets_no_refusal_hide_another(caplog: Any) -> None:
    import logging

    throttle = Throttle(logging.getLogger("test"), 5.0, lambda: 0.0)
    throttle.warning("refused: Host")
    throttle.warning("refused: Origin")
    assert [record.message for record in caplog.records] == ["refused: Host", "refused: Origin"]
    for number in range(1000):
        throttle.warning(f"refused: {number}")
    assert len(caplog.records) < 10


def test_who_has_its_socket_already_changes_no_protocol() -> None:
    sockets = Sockets(10)
    sockets.enter()
    connections = Connections(sockets)
    connection = Connection(connections)
    transport = FakeTransport()
    connection.transport = cast(asyncio.Transport, transport)
    # What happens before anybody is there happens to nobody.
    connection.data_received(b"x")
    connection.pause_writing()
    connection.resume_writing()
    connection.eof_received()
    session = FakeSession(transport.calls)
    connections.settle(connection, session, b"rest")
    assert transport.protocol is None
    assert transport.calls == ["high 65536", "start", "data rest"]
    assert list(connections) == [connection]
    connection.data_received(b"more")
    connection.connection_lost(None)
    assert transport.calls[3:] == ["data more", "lost"]
    assert len(connections) == sockets.open == 0
    assert connections.kinds == {"fake": 0}
