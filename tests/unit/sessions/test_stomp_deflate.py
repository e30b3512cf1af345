"""permessage-deflate and binary messages under STOMP."""

from __future__ import annotations

import os
import zlib

import pytest

from queuecast.codecs import deflate
from queuecast.codecs.websocket import BINARY, CLOSE, RSV1, TEXT, frame_header
from queuecast.sessions.stomp_framing import WebSocketFraming
from tests.unit.sessions.stomp_rig import Client, Got, House, frames, stomp

EXTENSION = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LOGIN = stomp("CONNECT", accept_version="1.2", login="guest", passcode="guest")
TAIL = b"\x00\x00\xff\xff"


def squeezed(payload: bytes) -> bytes:
    """A client's compressed text message, masked with zeros."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
    head = frame_header(TEXT | RSV1, len(data))
    return bytes((head[0], head[1] | 0x80)) + head[2:] + bytes(4) + data


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """Cut our WebSocket frames into first byte (without FIN) and inflated payload."""
    found = []
    while data:
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        payload = data[start : start + length]
        if data[0] & RSV1:
            payload = zlib.decompressobj(-15).decompress(payload + TAIL)
        found.append((data[0] & 0x7F, payload))
        data = data[start + length :]
    return found


def opened(house: House, *, binary: bool = False, extension: str | None = EXTENSION) -> Client:
    client = house.websocket(extension=extension, binary=binary)
    head, _, rest = client.transport.written.partition(b"\r\n\r\n")
    assert (b"Sec-WebSocket-Extensions: " in head) is (extension is not None)
    client.transport.written = rest
    return client


def say(client: Client, *payloads: bytes) -> list[tuple[int, Got]]:
    client.session.receive_data(b"".join(squeezed(payload) for payload in payloads))
    client.house.runtime.settle()
    return got(client)


def got(client: Client) -> list[tuple[int, Got]]:
    data, client.transport.written = client.transport.written, b""
    return [(first, frames(payload)[0]) for first, payload in messages(data)]


def subscribed(house: House, count: int, *, extension: str | None = EXTENSION) -> list[Client]:
    made = []
    for _ in range(count):
        client = opened(house, extension=extension)
        wrap = squeezed if extension is not None else plain
        client.session.receive_data(wrap(LOGIN))
        client.session.receive_data(wrap(stomp("SUBSCRIBE", id="1", destination="/topic/a")))
        house.runtime.settle()
        client.transport.written = b""
        client.transport.writes.clear()
        made.append(client)
    return made


def plain(payload: bytes) -> bytes:
    head = frame_header(TEXT, len(payload))
    return bytes((head[0], head[1] | 0x80)) + head[2:] + bytes(4) + payload


def test_a_thousand_pages_share_one_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed: list[int] = []
    compress = deflate.compress

    def counted(data: bytes) -> bytes:
        compressed.append(len(data))
        return compress(data)

    monkeypatch.setattr(deflate, "compress", counted)
    house = House()
    clients = subscribed(house, 1000)
    bare = subscribed(house, 3, extension=None)
    house.append("/topic/a", b"warm up")
    compressed.clear()
    encodes, encoded = house.hub.stats.encodes, house.hub.stats.encoded
    for client in (*clients, *bare):
        client.transport.writes.clear()
        client.transport.written = b""
    bodies = [b"%d" % n * 300 for n in range(20)]
    house.append("/topic/a", *bodies)
    assert house.hub.stats.encodes - encodes == 2, "with and without the extension"
    assert house.hub.stats.encoded - encoded == 2 * 20
    assert len(compressed) == 20, "once for each message, whoever gets it"
    first = clients[0].transport.writes[0]
    assert all(client.transport.writes == [first] for client in clients)
    assert all(client.transport.writes[0] is first for client in clients)
    assert [(kind, each.body) for kind, each in got(clients[0])] == [
        (TEXT | RSV1, body) for body in bodies
    ]
    assert [(kind, each.body) for kind, each in got(bare[0])] == [(TEXT, body) for body in bodies]


def test_what_is_for_one_client_is_not_compressed() -> None:
    house = House()
    client = opened(house)
    ((kind, connected),) = say(client, LOGIN)
    assert (kind, connected.command) == (TEXT, "CONNECTED")
    say(client, stomp("SUBSCRIBE", id="q", destination="/queue/a"))
    house.consumers[0].deliver(b"x" * 5000)
    house.runtime.settle()
    ((kind, message),) = got(client)
    assert (kind, message.body) == (TEXT, b"x" * 5000)


def test_a_body_that_is_not_utf8_is_a_compressed_binary_message() -> None:
    house = House()
    (client,) = subscribed(house, 1)
    house.append("/topic/a", b"\xff" * 500)
    assert [(kind, each.body) for kind, each in got(client)] == [(BINARY | RSV1, b"\xff" * 500)]


def test_what_does_not_get_smaller_goes_as_it_is() -> None:
    house = House()
    (client,) = subscribed(house, 1)
    noise = os.urandom(20_000)
    house.append("/topic/a", noise)
    assert [(kind, each.body) for kind, each in got(client)] == [(BINARY, noise)]


def test_binary_only() -> None:
    house = House()
    client = opened(house, binary=True)
    assert [kind for kind, _ in say(client, LOGIN)] == [BINARY]
    say(client, stomp("SUBSCRIBE", id="1", destination="/topic/a"))
    say(client, stomp("SUBSCRIBE", id="2", destination="/queue/a"))
    house.append("/topic/a", b"text" * 100)
    house.consumers[0].deliver(b"text")
    house.runtime.settle()
    assert [kind for kind, _ in got(client)] == [BINARY | RSV1, BINARY]


def test_binary_pages_are_a_cohort_of_their_own() -> None:
    values = {
        WebSocketFraming(binary=binary, deflate=packed)
        for binary in (False, True)
        for packed in (False, True)
    }
    assert len(values) == 4
    assert WebSocketFraming(deflate=True) == WebSocketFraming(deflate=True)


@pytest.mark.parametrize("logged_in", [False, True])
def test_a_small_bomb_is_refused(logged_in: bool) -> None:
    house = House(frame=256 * 1024)
    client = opened(house)
    if logged_in:
        say(client, LOGIN)
    bomb = squeezed(bytes(50 << 20))
    assert len(bomb) < 60_000
    client.session.receive_data(bomb)
    ((kind, payload),) = messages(client.transport.written)
    limit = 256 * 1024 if logged_in else 64 * 1024
    assert (kind, payload[:2]) == (CLOSE, (1009).to_bytes(2, "big"))
    assert payload[2:] == b"message over %d bytes" % limit
    assert client.gone


def test_no_deflate_data() -> None:
    client = opened(House())
    client.session.receive_data(bytes((0x80 | TEXT | RSV1, 0x84)) + bytes(4) + b"\xff" * 4)
    ((kind, payload),) = messages(client.transport.written)
    assert (kind, payload[:2]) == (CLOSE, (1007).to_bytes(2, "big"))


def test_many_large_messages_in_few_bytes_are_inflated_by_turns() -> None:
    """All that one read holds arrives, in order, though never all at once."""
    house = House(frame=128 * 1024)
    client = opened(house)
    say(client, LOGIN)
    sends = [stomp("SEND", b"%d " % n + b"x" * 100_000, destination="/topic/a") for n in range(30)]
    client.session.receive_data(b"".join(map(squeezed, sends)))
    assert len(house.published) < 3, "the rest of the read is not inflated yet"
    assert not client.transport.reading
    house.runtime.settle()
    assert [int(each.body.split()[0]) for each in house.published] == list(range(30))
    assert client.transport.reading


def test_what_came_with_the_login_is_not_forgotten_when_the_limits_rise() -> None:
    house = House()
    house.login_waits = house.runtime.promise()
    client = opened(house)
    padding = b"\n" * 65_000
    sends = [stomp("SEND", b"%d" % n, destination="/topic/a") + padding for n in range(5)]
    client.session.receive_data(b"".join(map(squeezed, [LOGIN + padding, *sends])))
    house.runtime.settle()
    assert house.published == []
    house.login_waits.set_result(None)
    house.runtime.settle()
    assert [each.body for each in house.published] == [b"0", b"1", b"2", b"3", b"4"]
    assert client.transport.reading


def test_after_the_end_nothing_large_is_inflated() -> None:
    house = House()
    client = opened(house)
    say(client, LOGIN)
    client.session.receive_data(squeezed(stomp("DISCONNECT")))
    house.runtime.settle()
    assert not client.transport.closed
    client.session.receive_data(squeezed(b"\n" * (2 << 20)) * 2)
    assert client.transport.closed, "not for the answer to our close"
