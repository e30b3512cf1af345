"""Rules of docs/stomp-conformance.md that no other test is about."""

from __future__ import annotations

import pytest

from tests.unit.sessions.stomp_rig import House, error, logged_in, work


def test_the_virtual_host_counts_in_1_0_too() -> None:
    house = House()
    house.open().log_in("1.0", host="prod")
    assert house.logins[0][2] == "prod"


def test_a_malformed_heart_beat_is_answered() -> None:
    client = House().open()
    failed = error(client, "CONNECT", login="guest", passcode="guest", heart_beat="often")
    assert failed["message"] == "Processing error"
    client.log_in()


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_every_command_has_its_receipt(version: str) -> None:
    house, client, consumer = work(version, ack="client-individual")
    consumer.deliver(b"1")
    consumer.deliver(b"2")
    house.runtime.settle()
    first, second = (each.headers["message-id"] for each in client.got())
    key = "id" if version == "1.2" else "message_id"
    frames: list[tuple[str, dict[str, str]]] = [
        ("SUBSCRIBE", {"id": "2", "destination": "/topic/a"}),
        ("SEND", {"destination": "/topic/b"}),
        ("ACK", {key: first}),
        ("NACK", {key: second}),
        ("BEGIN", {"transaction": "t"}),
        ("COMMIT", {"transaction": "t"}),
        ("BEGIN", {"transaction": "t"}),
        ("ABORT", {"transaction": "t"}),
        ("UNSUBSCRIBE", {"id": "2"}),
        ("DISCONNECT", {}),
    ]
    for number, (command, headers) in enumerate(frames):
        (got,) = client.say(command, receipt=str(number), **headers)
        assert (got.command, got.headers["receipt-id"]) == ("RECEIPT", str(number)), command
    assert client.gone


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("", "Invalid destination"),
        ("/queue", "Invalid destination"),
        ("/queue/", "Invalid destination"),
        ("/queue/a/b", "Invalid destination"),
        ("/amq/queue/a/b", "Invalid destination"),
        ("/topic/a/b", "Invalid destination"),
        ("/exchange//x", "Invalid destination"),
        ("/exchange/a/b/c", "Invalid destination"),
        ("/nowhere/a", "Unknown destination"),
        ("a/b", "Unknown destination"),
    ],
)
@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE"])
def test_destinations_that_are_none(command: str, destination: str, message: str) -> None:
    house, client = logged_in()
    failed = error(client, command, id="1", destination=destination)
    assert failed["message"] == message
    assert not client.gone
    assert (house.published, house.consumers, house.feeds) == ([], [], {})


def test_a_bare_name_is_a_queues() -> None:
    house, client = logged_in()
    client.say("SUBSCRIBE", destination="orders")
    assert str(house.consumers[0].destination) == "/queue/orders"
    house.consumers[0].deliver(b"x")
    house.runtime.settle()
    assert client.got()[0].headers["message-id"].startswith("Q_orders@@")
    (got,) = client.say("UNSUBSCRIBE", destination="orders", receipt="1")
    assert got.command == "RECEIPT"


def test_an_encoded_slash_is_part_of_a_name() -> None:
    house, client = logged_in()
    client.say("SEND", b"x", destination="/queue/a%2Fb")
    client.say("SEND", b"x", destination="/exchange/e%2fx/100%25")
    client.say("SEND", b"x", destination="/reply-queue/amq.gen/1")
    client.say("SUBSCRIBE", id="1", destination="/amq/queue/a%2Fb")
    assert [each.destination for each in house.published] == [
        "/queue/a%2Fb",
        "/exchange/e%2Fx/100%25",
        "/reply-queue/amq.gen/1",
    ]
    assert house.consumers[0].destination.name == "a/b"


def test_a_prefetch_is_one_subscriptions() -> None:
    house, client = logged_in(prefetch=77)
    client.say("SUBSCRIBE", id="1", destination="/queue/a", ack="client", prefetch_count="3")
    client.say("SUBSCRIBE", id="2", destination="/queue/b", ack="client")
    client.say("SUBSCRIBE", id="3", destination="/queue/c", prefetch_count="3")
    assert [each.prefetch for each in house.consumers] == [3, 77, 77]


def test_cumulative_acks_cover_one_subscription() -> None:
    house, client, first = work(ack="client")
    client.say("SUBSCRIBE", id="2", destination="/queue/b", ack="client")
    second = house.consumers[1]
    first.deliver(b"1")
    second.deliver(b"2")
    second.deliver(b"3")
    house.runtime.settle()
    last = client.got()[-1]
    assert last.body == b"3"
    client.say("ACK", id=last.headers["ack"])
    assert second.settled == [("ack", 1), ("ack", 2)]
    assert first.settled == []


def test_the_session_in_an_ack_is_not_looked_at() -> None:
    house, client, consumer = work("1.1", ack="client-individual")
    consumer.deliver(b"x")
    house.runtime.settle()
    assert client.say("ACK", message_id="T_1@@another@@1", subscription="9") != []
    assert consumer.settled == [("ack", 1)]


@pytest.mark.parametrize(
    ("headers", "how"),
    [
        ({}, "requeue"),
        ({"requeue": "True"}, "requeue"),
        ({"requeue": "False"}, "reject"),
        ({"requeue": "perhaps"}, "requeue"),
    ],
)
@pytest.mark.parametrize(("version", "header"), [("1.0", "message_id"), ("1.2", "id")])
def test_what_a_nack_does(version: str, header: str, headers: dict[str, str], how: str) -> None:
    house, client, consumer = work(version, ack="client-individual")
    consumer.deliver(b"x")
    house.runtime.settle()
    client.say("NACK", **{header: client.got()[0].headers["message-id"]}, **headers)
    assert consumer.settled == [(how, 1)]


def test_unsubscribing_gives_back_what_was_not_acked() -> None:
    house, client, consumer = work(ack="client")
    consumer.deliver(b"x")
    house.runtime.settle()
    (got,) = client.got()
    client.say("UNSUBSCRIBE", id="1")
    assert consumer.closed
    assert error(client, "ACK", id=got.headers["ack"])["message"] == "Subscription not found"
    assert not client.gone


def test_a_transaction_ends_with_its_session() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t")
    client.session.connection_lost()
    house.runtime.settle()
    assert house.published == []


def test_an_ack_of_nothing_is_found_out_at_commit() -> None:
    _, client, _ = work(ack="client")
    client.say("BEGIN", transaction="t")
    (receipt,) = client.say("ACK", id="T_1@@s@@9", transaction="t", receipt="a")
    assert receipt.command == "RECEIPT"
    got = client.say("COMMIT", transaction="t", receipt="c")
    assert [each.headers["message"] for each in got] == ["Transaction failed"]
    assert got[0].headers["receipt-id"] == "c"
    assert b"Message not found" in got[0].body


def test_a_user_id_is_the_login() -> None:
    house, client = logged_in()
    client.say("SEND", b"x", destination="/topic/a", user_id="guest")
    assert house.published[0].properties.user_id == "guest"
    failed = error(client, "SEND", b"x", destination="/topic/a", user_id="root")
    assert failed["message"] == "precondition_failed"
    assert client.gone
    assert len(house.published) == 1


def test_a_receipt_and_a_transaction_travel_with_the_message() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t", receipt="r", own="1")
    client.say("COMMIT", transaction="t")
    assert house.published[0].properties.headers == {"transaction": "t", "receipt": "r", "own": "1"}
