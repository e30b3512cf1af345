"""Work queues over STOMP: deliveries, ACK and NACK."""

from __future__ import annotations

import pytest

from tests.unit.sessions.stomp_rig import (
    error,
    stomp,
    work,
)


def test_auto_acks_when_written() -> None:
    house, client, consumer = work()
    consumer.deliver(b"x", redelivered=True)
    house.runtime.settle()
    (got,) = client.got()
    assert got.headers == {
        "subscription": "1",
        "destination": "/queue/a",
        "message-id": f"T_1@@{client.session.id}@@1",
        "redelivered": "true",
        "content-length": "1",
    }
    assert consumer.settled == [("ack", 1)]


@pytest.mark.parametrize(("version", "header"), [("1.0", "message_id"), ("1.2", "id")])
@pytest.mark.parametrize("mode", ["client", "client-individual"])
def test_acks(version: str, header: str, mode: str) -> None:
    house, client, consumer = work(version, ack=mode, prefetch_count="20")
    assert consumer.prefetch == 20
    for body in (b"1", b"2", b"3", b"4"):
        consumer.deliver(body)
    house.runtime.settle()
    ids = [each.headers["message-id"] for each in client.got()]
    assert consumer.settled == []
    (receipt,) = client.say("ACK", receipt="r", **{header: ids[1]})
    assert receipt.command == "RECEIPT"
    cumulative = [("ack", 1), ("ack", 2)]
    assert consumer.settled == (cumulative if mode == "client" else [("ack", 2)])
    consumer.settled.clear()
    client.say("NACK", **{header: ids[3]})
    expected = [3, 4] if mode == "client" else [4]
    assert consumer.settled == [("requeue", tag) for tag in expected]
    failed = error(client, "ACK", **{header: ids[1]})
    assert failed["message"] == "Message not found"
    assert not client.gone


def test_the_ack_header_is_for_1_2_clients_that_ack() -> None:
    for version, mode, has in (("1.2", "client", True), ("1.1", "client", False)):
        house, client, consumer = work(version, ack=mode)
        consumer.deliver(b"x")
        house.runtime.settle()
        headers = client.got()[0].headers
        assert ("ack" in headers) is has
        if has:
            assert headers["ack"] == headers["message-id"]


def test_a_nack_can_discard() -> None:
    house, client, consumer = work(ack="client-individual")
    consumer.deliver(b"x")
    house.runtime.settle()
    client.say("NACK", id=client.got()[0].headers["ack"], requeue="false")
    assert consumer.settled == [("reject", 1)]


@pytest.mark.parametrize("command", ["ACK", "NACK"])
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "Missing header"),
        ({"message_id": "T_1@@s@@1"}, "Missing header"),
        ({"id": "rubbish"}, "Invalid header"),
        ({"id": "T_1@@s@@x"}, "Invalid header"),
        ({"id": "T_9@@s@@1"}, "Subscription not found"),
        ({"id": "T_1@@s@@99"}, "Message not found"),
        ({"id": "T_1@@s@@0"}, "Message not found"),
    ],
)
def test_acks_of_nothing(command: str, headers: dict[str, str], message: str) -> None:
    _, client, consumer = work(ack="client")
    failed = error(client, command, receipt="7", **headers)
    assert (failed["message"], failed["receipt-id"]) == (message, "7")
    assert consumer.settled == []
    assert not client.gone


def test_an_ack_after_the_broker_was_away_is_harmless() -> None:
    house, client, consumer = work(ack="client")
    consumer.deliver(b"x")
    house.runtime.settle()
    old = client.got()[0].headers["ack"]
    consumer.lose()
    consumer.deliver(b"x", redelivered=True)
    house.runtime.settle()
    (again,) = client.got()
    assert client.say("ACK", id=old) == []
    assert consumer.settled == []
    client.say("ACK", id=again.headers["ack"])
    assert consumer.settled == [("ack", 2)]


def test_a_client_that_does_not_read_gets_no_more() -> None:
    house, client, consumer = work(ack="client")
    client.session.pause_writing()
    consumer.deliver(b"x")
    house.runtime.settle()
    assert client.got() == []
    client.session.resume_writing()
    house.runtime.settle()
    assert len(client.got()) == 1


def test_nothing_is_written_after_the_end() -> None:
    house, client, consumer = work(ack="client")
    consumer.deliver(b"x")
    client.session.receive_data(stomp("DISCONNECT", receipt="1"))
    house.runtime.settle()
    assert [each.command for each in client.got()] == ["RECEIPT"]


def test_consumers_close_with_the_session_and_on_unsubscribe() -> None:
    house, client, consumer = work(ack="client")
    client.say("SUBSCRIBE", id="2", destination="/queue/b")
    client.say("UNSUBSCRIBE", id="1")
    assert consumer.closed
    client.session.connection_lost()
    house.runtime.settle()
    assert house.consumers[1].closed


def test_a_late_ack_never_means_a_message_of_the_next_subscription() -> None:
    house, client, first = work(ack="client")
    first.deliver(b"x")
    house.runtime.settle()
    (old,) = client.got()
    client.say("UNSUBSCRIBE", id="1")
    client.say("SUBSCRIBE", id="1", destination="/queue/a", ack="client")
    second = house.consumers[1]
    second.deliver(b"x", redelivered=True)
    house.runtime.settle()
    (again,) = client.got()
    assert again.headers["message-id"] != old.headers["message-id"]
    assert error(client, "ACK", id=old.headers["ack"])["message"] == "Message not found"
    assert second.settled == []
    client.say("ACK", id=again.headers["ack"])
    assert second.settled == [("ack", 1)]
