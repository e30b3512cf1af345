"""Leases: what a client holds for too long goes back, and a sleeping client gets nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from queuecast.auth.identity import Identity
from queuecast.codecs.websocket import PONG, TEXT
from queuecast.errors import BadRequest, QueuecastError
from queuecast.sessions.acks import AckId, Acks, parse_command, settle_all
from queuecast.sessions.lease import Lease, parse_lease
from queuecast.sessions.websocket import WebSocketSession
from tests.support.fake_runtime import FakeRuntime
from tests.unit.sessions.stomp_rig import FakeTransport, House, error, masked, work
from tests.unit.sessions.work_rig import Stream, asked, settle


def test_sse_with_acks_and_post_ack() -> None:
    house = House()
    stream = Stream(house, "/queue/a", "ack=client&envelope=json&prefetch=3")
    (consumer,) = house.consumers
    assert consumer.prefetch == 3
    for body in (b"1", b"2", b"3"):
        consumer.deliver(body)
    got = stream.got()
    assert [each["body"] for each in got] == ["1", "2", "3"]
    assert consumer.settled == []
    ids = [each["ack"] for each in got]
    assert settle(house, ack=ids[1]) == []
    assert settle(house, nack=ids[0]) == []
    assert settle(house, nack=[ids[2]], requeue=False) == []
    assert consumer.settled == [("ack", 2), ("requeue", 1), ("reject", 3)]
    assert settle(house, ack=ids) == ["returned", "settled", "settled"]


def test_ids_that_nobody_gave_out() -> None:
    house = House()
    stream = Stream(house, "/queue/a")
    house.consumers[0].deliver(b"1")
    (got,) = stream.got()
    id = got["ack"]
    node, secret, number, tag = id.split(".")
    assert len(secret) == 22
    assert node == house.services.acks.node
    for wrong, code in (
        (f"{node}.{secret}.{number}.{int(tag) + 1}", "not_found"),
        (f"{node}.{secret}.{number}.0", "not_found"),
        (f"{node}.{secret}.99.{tag}", "not_found"),
        (f"{node}.{'A' * 22}.{number}.{tag}", "not_found"),
        (f"elsewhere.{secret}.{number}.{tag}", "elsewhere"),
        ("1.1", "bad_request"),
        (f"{id}1234567890123456789", "bad_request"),
        (f"{id}\n", "bad_request"),
        ("", "bad_request"),
        (7, "bad_request"),
        (None, "bad_request"),
        ([id], "bad_request"),
    ):
        assert settle(house, ack=[wrong]) == [code], wrong
    # Another identity's session does not exist for it.
    failed = settle_all(house.services.acks, Identity("eve"), parse_command({"ack": id}, 1))
    assert [found.code for _, found in failed] == ["not_found"]
    house.denied.add("/queue/a")
    assert settle(house, ack=id) == ["refused"]
    house.denied.clear()
    assert house.consumers[0].settled == []
    assert settle(house, ack=id) == []
    stream.session.connection_lost()
    assert settle(house, ack=id) == ["not_found"]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"ack": "x", "nack": "x"},
        {"ack": "x", "requeue": True},
        {"nack": "x", "requeue": "yes"},
        {"ack": []},
        {"ack": ["x"] * 4},
        {"ack": "x", "more": 1},
    ],
)
def test_commands_that_make_no_sense(said: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        parse_command(said, 3)


def test_numbers_are_not_used_again() -> None:
    """A late ack must not settle another subscription's message."""
    house = House()
    transport = FakeTransport()
    session = WebSocketSession(
        house.services, transport, asked(house, "/queue/a", "ack=client&envelope=json"), key="k"
    )
    session.start()
    house.runtime.settle()
    house.consumers[0].deliver(b"1")
    house.runtime.settle()
    session.drop_work(session.work[0])
    house.runtime.start(
        session.consume(asked(house, "/queue/b").work[0], _Encoding(), ack=True, prefetch=1)
    )
    house.runtime.settle()
    assert session.work[0].number == 2


class _Encoding:
    def encode_delivery(self, message: object, ack: str | None) -> bytes:
        return b"."

    def encode_loss(self, reason: str, destination: str, id: str) -> bytes:
        return f"[{reason}]".encode()


def test_a_lease_that_ends_gives_back_and_puts_the_consumer_to_sleep() -> None:
    house = House()
    stream = Stream(house, "/queue/a", "ack=client&envelope=json&lease=30s")
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    (one,) = stream.got()
    house.runtime.advance(20.0)
    consumer.deliver(b"2")
    (two,) = stream.got()
    house.runtime.advance(9.9)
    assert consumer.settled == []
    # The second one's lease goes on; the client still holds it.
    house.runtime.advance(0.2)
    assert consumer.settled == [("requeue", 1)]
    assert consumer.paused
    consumer.deliver(b"3")
    assert stream.got() == []
    assert settle(house, ack=one["ack"]) == ["returned"]
    # That was a sign of life.
    assert not consumer.paused
    assert [each["body"] for each in stream.got()] == ["3"]
    assert settle(house, ack=two["ack"]) == []
    house.runtime.advance(30.0)
    assert consumer.settled == [("requeue", 1), ("ack", 2), ("requeue", 3)]


def test_what_waits_behind_a_full_connection_goes_back_too() -> None:
    house = House()
    stream = Stream(house, "/queue/a", "ack=client&envelope=json&lease=1s")
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    stream.got()
    stream.session.pause_writing()
    consumer.deliver(b"2")
    consumer.deliver(b"3")
    house.runtime.advance(1.0)
    assert consumer.settled == [("requeue", 1), ("requeue", 2), ("requeue", 3)]
    stream.session.resume_writing()
    assert stream.got() == []
    assert consumer.paused


def test_no_lease_is_for_ever() -> None:
    house = House()
    stream = Stream(house, "/queue/a")
    house.consumers[0].deliver(b"1")
    (got,) = stream.got()
    house.runtime.advance(100_000.0)
    assert settle(house, ack=got["ack"]) == []


def test_the_setting_is_the_default_and_the_bound() -> None:
    house = House(lease=5.0, max_lease=60.0)
    Stream(house, "/queue/a")
    house.consumers[0].deliver(b"1")
    house.runtime.settle()
    house.runtime.advance(5.0)
    assert house.consumers[0].settled == [("requeue", 1)]
    for lease in ("0", "61s", "2m", "1ms"):
        stream = Stream(house, "/queue/a", f"ack=client&envelope=json&lease={lease}")
        assert b"400" in stream.transport.written.split(b"\r\n")[0], lease
    assert len(house.consumers) == 1
    for text in ("soon", "-1", "1d", "", "1e3", "٣s"):
        with pytest.raises(BadRequest):
            parse_lease(text)
    with pytest.raises(BadRequest):
        asked(house, "/queue/a", "lease=1s")


def test_a_websocket_page_lives_by_its_frames_not_by_its_browser_s_pongs() -> None:
    house = House()
    transport = FakeTransport()
    session = WebSocketSession(
        house.services,
        transport,
        asked(house, "/queue/a", "ack=client&envelope=json&lease=1s"),
        key="k",
    )
    session.start()
    house.runtime.settle()
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    house.runtime.settle()
    house.runtime.advance(1.0)
    assert consumer.paused
    session.receive_data(masked(PONG, b""))
    house.runtime.settle()
    assert consumer.paused
    session.receive_data(masked(TEXT, json.dumps({"publish": "/topic/a", "body": ""}).encode()))
    house.runtime.settle()
    assert not consumer.paused


def test_stomp_leases() -> None:
    house, client, consumer = work(ack="client", lease="10s")
    for body in (b"1", b"2", b"3"):
        consumer.deliver(body)
    house.runtime.settle()
    ids = [each.headers["ack"] for each in client.got()]
    assert client.say("NACK", id=ids[0]) == []
    house.runtime.advance(10.0)
    assert consumer.settled == [("requeue", 1), ("requeue", 2), ("requeue", 3)]
    assert consumer.paused
    client.raw(b"\n")
    assert consumer.paused, "a heart-beat is the library's"
    late = error(client, "ACK", id=ids[1])
    assert late["message"] == "Message not found"
    assert "went back" in late["body"]
    assert not consumer.paused
    assert not client.gone
    # What comes now is acked as ever, together with nothing of before.
    consumer.settled.clear()
    consumer.deliver(b"4", redelivered=True)
    house.runtime.settle()
    (again,) = client.got()
    client.say("ACK", id=again.headers["ack"])
    assert consumer.settled == [("ack", 4)]


def test_stomp_refuses_leases_without_acks_and_on_streams() -> None:
    house, client, _ = work()
    for headers in (
        {"lease": "10s"},
        {"lease": "10s", "ack": "client", "x_stream_offset": "first", "prefetch_count": "1"},
        {"lease": "x", "ack": "client"},
        {"lease": "0.01s", "ack": "client"},
    ):
        failed = error(client, "SUBSCRIBE", id="2", destination="/queue/b", **headers)
        assert "lease" in failed["body"]
    assert len(house.consumers) == 1


def test_the_broker_s_reset_ends_leases() -> None:
    house = House()
    stream = Stream(house, "/queue/a", "ack=client&envelope=json&lease=1s")
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    (old,) = stream.got()
    consumer.lose()
    assert settle(house, ack=old["ack"]) == ["returned"]
    house.runtime.advance(5.0)
    assert not consumer.paused
    assert consumer.settled == []


def test_a_record_costs_one_timer_however_many_messages_it_has() -> None:
    timers: list[float] = []

    class Counting(FakeRuntime):
        def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Any:
            timers.append(delay)
            return super().call_later(delay, call, *args)

    runtime = Counting()
    late: list[int] = []
    lease = Lease(runtime, 10.0, lambda ended: late.extend(tag for tag, _ in ended))
    for tag in range(1, 1001):
        lease.hand(tag)
        runtime.time += 0.001
    for tag in range(1, 1000):
        assert lease.take(tag) is not None
    assert len(timers) == 1
    runtime.advance(9.5)
    assert late == []
    runtime.advance(1.0)
    assert late == [1000]
    assert len(timers) == 2
    # Only so many are remembered.
    for tag in range(1001, 3001):
        lease.hand(tag)
        lease.give_back(tag)
    codes = {lease.why_not(tag).code for tag in (2900, 3000)}
    assert codes == {"returned"}
    assert lease.why_not(1500).code == "settled"


def test_ack_ids_are_unguessable_and_their_node_is_named() -> None:
    house = House()
    acks = Acks("edge-1")
    session = Stream(house, "/queue/a").session
    names = {acks.enter(session) for _ in range(100)}
    assert len(names) == 100
    assert all(AckId.parse(f"{name}.1.1").node == "edge-1" for name in names)
    assert Acks().node != Acks().node
    for name in names:
        acks.leave(name)
    with pytest.raises(QueuecastError):
        acks.settle(session.identity, parse_command({"ack": "x"}, 1), f"{names.pop()}.1.1")


def test_draining_stops_deliveries_and_subscriptions_but_not_acks() -> None:
    house = House()
    stream = Stream(house, "/queue/a")
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    (got,) = stream.got()
    house.services.drain.begun = True
    consumer.deliver(b"2")
    assert stream.got() == []
    assert settle(house, ack=got["ack"]) == []
    assert consumer.settled == [("ack", 1)]
    assert stream.got() == []
    refused = Stream(house, "/queue/a")
    # Dropped, not refused: a status would stop an EventSource for good.
    assert refused.transport.closed
    assert b"restarting" in refused.transport.written
    assert len(house.consumers) == 1
