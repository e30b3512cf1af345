"""What the benchmark's subscribers notice: a figure never comes from a stream that is not right."""

import select
import socket
import threading

import pytest

from benchmarks import message
from benchmarks.receiver import Receiver
from benchmarks.reference import Reference
from benchmarks.wire import WIRES
from queuecast.codecs.websocket import text_frame

NS = 1_000_000_000


def stream(*numbers: int, stamped: bool = False) -> bytes:
    """Return messages as they are on a WebSocket; each is due at its number, in seconds."""
    bodies = [message.body(each, 100, stamped=stamped, due=float(each)) for each in numbers]
    return b"".join(map(text_frame, bodies))


class Crowd:
    """A receiver with connections that say what they are told."""

    def __init__(self, count: int, *, stamped: bool = False) -> None:
        self.receiver = Receiver()
        self.servers = []
        for _ in range(count):
            server, client = socket.socketpair()
            client.setblocking(False)
            self.servers.append(server)
            self.receiver._sockets[client.fileno()] = client
            self.receiver._topics[client.fileno()] = (0,)
            self.receiver._epoll.register(client.fileno(), select.EPOLLIN)
        self.receiver.begin(stamped=stamped)

    def finish(self, messages: int, **more: object) -> object:
        return self.receiver.finish(messages, messages, silence=0.2, **more)  # type: ignore[arg-type]

    def close(self) -> None:
        self.receiver.close()
        for server in self.servers:
            server.close()


def test_equal_streams_in_any_pieces_are_a_run() -> None:
    crowd = Crowd(3)
    data = stream(*range(20))
    for server, size in zip(crowd.servers, (len(data), 47, 333), strict=True):
        for place in range(0, len(data), size):
            server.sendall(data[place : place + size])
    answer = crowd.finish(20)
    assert answer["bytes"] == 3 * len(data)  # type: ignore[index]
    crowd.close()


@pytest.mark.parametrize(
    "other",
    [
        stream(0, 1, 2, 4, 5),
        stream(0, 1, 2, 2, 3, 4),
        stream(0, 1, 3, 2, 4),
        stream(0, 1, 2, 3, 4).replace(b"$00000000003", b"$00000000007"),
        stream(0, 1) + b"\x89\x00" + stream(2, 3, 4),
        stream(0, 1, 2, 3),
    ],
    ids=["lost", "repeated", "out of order", "another", "a ping", "the last is missing"],
)
@pytest.mark.parametrize("wrong", [0, 1])
def test_one_that_gets_something_else_fails_the_run(other: bytes, wrong: int) -> None:
    crowd = Crowd(2)
    # In turns, so that either is ahead of the other somewhere.
    streams = [stream(*range(5))] * 2
    streams[wrong] = other
    for place in range(0, len(streams[0]), 60):
        for server, data in zip(crowd.servers, streams, strict=True):
            server.sendall(data[place : place + 60])
        while crowd.receiver._receive(0.01):
            pass
    with pytest.raises(ValueError, match=r"were due|other bytes|in order"):
        crowd.finish(5)
    crowd.close()


def test_what_all_get_wrong_is_found_too() -> None:
    crowd = Crowd(2)
    for server in crowd.servers:
        server.sendall(stream(0, 1, 3, 2))
    with pytest.raises(ValueError, match="in order"):
        crowd.finish(4)
    crowd.close()


def test_under_overload_it_is_a_loss() -> None:
    crowd = Crowd(2)
    crowd.servers[0].sendall(stream(0, 1, 2))
    crowd.servers[1].sendall(stream(0, 2))
    answer = crowd.finish(3, lossy=True)
    assert answer["lost"] > 0  # type: ignore[index]
    crowd.close()


def test_a_reference_knows_its_messages_and_their_stamps() -> None:
    reference = Reference(stamped=True)
    data = stream(*range(4), stamped=True)
    each = len(data) // 4
    assert reference.take(0, memoryview(data[: each + 20])) == (0, 2)
    # The second one's stamp is not whole yet.
    assert [reference.stamp(index) for index in range(2)] == [0, None]
    assert reference.take(each + 20, memoryview(data[each + 20 :])) == (2, 2)
    assert [reference.stamp(index) for index in range(5)] == [0, NS, 2 * NS, 3 * NS, None]
    assert reference.take(each // 2, memoryview(data[each // 2 : each + 1])) == (1, 0)
    assert reference.take(each, memoryview(data[each:])) == (1, 3)
    assert reference.take(each, memoryview(b"\x81\x64" + bytes(each - 2))) is None


@pytest.mark.parametrize("alike", [True, False])
def test_workers_have_positions_of_their_own(alike: bool) -> None:
    receiver = Receiver()
    served: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                client = listener.accept()[0]
                served.append(client)
                client.recv(65536)
                client.sendall(WIRES["sse"].usual[0].answer)

        server = threading.Thread(target=serve)
        server.start()
        receiver.open(listener.getsockname()[1], "sse", 2, alike=alike)
        server.join()
    receiver.begin(stamped=False)
    for number, client in enumerate(served):
        for each in range(3):
            client.sendall(
                b"id: worker%d-%d\ndata: %b\n\n" % (number, each, message.body(each, 50))
            )
    if alike:
        with pytest.raises(ValueError, match="other bytes"):
            receiver.finish(3, 3, silence=0.2)
    else:
        receiver.finish(3, 3, silence=0.2)
    receiver.close()
    for client in served:
        client.close()


def test_only_peers_streams_differ() -> None:
    assert all(wire.alike for wire in WIRES.values())
