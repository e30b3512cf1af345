"""BEGIN, COMMIT and ABORT."""

from __future__ import annotations

import pytest

from queuecast.errors import (
    PublishFailed,
    Unavailable,
)
from tests.unit.sessions.stomp_rig import (
    Client,
    error,
    logged_in,
    stomp,
    work,
)


def test_a_transaction_is_replayed_at_commit() -> None:
    house, client, consumer = work(ack="client")
    consumer.deliver(b"x")
    house.runtime.settle()
    ack = client.got()[0].headers["ack"]
    assert client.say("BEGIN", transaction="t", receipt="b")[0].command == "RECEIPT"
    client.say("SEND", b"1", destination="/topic/a", transaction="t", receipt="s")
    (receipt,) = client.say("ACK", id=ack, transaction="t", receipt="a")
    assert receipt.headers["receipt-id"] == "a"
    assert (house.published, consumer.settled) == ([], [])
    house.confirm_at_once = False
    assert client.say("COMMIT", transaction="t", receipt="c") == []
    assert consumer.settled == [("ack", 1)]
    house.published[0].confirm.set_result(None)
    house.runtime.settle()
    assert [each.headers["receipt-id"] for each in client.got()] == ["s", "c"]


def test_a_commit_that_the_broker_refuses_in_part_says_so() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    for n in range(3):
        client.say("SEND", b"%d" % n, destination="/topic/a", transaction="t")
    house.refuse_publish = PublishFailed("nacked")
    got = client.say("COMMIT", transaction="t", receipt="c")
    messages = ["Publish failed"] * 3
    assert [each.headers["message"] for each in got] == [*messages, "Transaction failed"]
    assert got[-1].headers["receipt-id"] == "c"


def test_abort_and_beginning_anew_forget() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"1", destination="/topic/a", transaction="t")
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"2", destination="/topic/a", transaction="t")
    client.say("COMMIT", transaction="t")
    assert [each.body for each in house.published] == [b"2"]
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"3", destination="/topic/a", transaction="t")
    assert client.say("ABORT", transaction="t", receipt="1")[0].command == "RECEIPT"
    assert error(client, "COMMIT", transaction="t")["message"] == "Bad transaction"
    assert len(house.published) == 1


@pytest.mark.parametrize("command", ["BEGIN", "COMMIT", "ABORT"])
def test_transactions_need_a_name(command: str) -> None:
    _, client = logged_in()
    assert error(client, command)["message"] == "Missing transaction"


def test_transactions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = logged_in()
    for n in range(16):
        assert client.say("BEGIN", transaction=f"t{n}") == []
    assert error(client, "BEGIN", transaction="t16")["message"] == "Transaction limit exceeded"
    one = stomp("SEND", b"x", destination="/topic/a", transaction="t0")
    assert client.raw(one * 1024) == []
    (got,) = client.raw(one)
    assert got.headers["message"] == "Transaction too large"
    monkeypatch.setattr("queuecast.sessions.stomp_transactions.MAX_BYTES", 1000)
    failed = error(client, "SEND", b"x" * 1000, destination="/topic/a", transaction="t1")
    assert failed["message"] == "Transaction too large"


def refused(client: Client, receipt: str = "c") -> str:
    """Commit what must fail; the ERROR's body."""
    failed = error(client, "COMMIT", transaction="t", receipt=receipt)
    assert (failed["message"], failed["receipt-id"]) == ("Transaction failed", receipt)
    return failed["body"]


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({"destination": "/queue/a/b"}, b"x", "Invalid destination"),
        ({"destination": "/nowhere/a"}, b"x", "Unknown destination"),
        ({"destination": "/topic/a.#"}, b"x", "Processing error"),
        ({}, b"x", "Missing destination"),
        ({"destination": "/topic/a", "priority": "high"}, b"x", "Processing error"),
        ({"destination": "/topic/a", "message_id": "1"}, b"x", "Invalid header"),
        ({"destination": "/topic/a"}, b"x" * 101, "Message too large"),
    ],
)
def test_a_refused_send_fails_the_commit(
    headers: dict[str, str], body: bytes, message: str
) -> None:
    house, client = logged_in(message=100)
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"before", destination="/topic/a", transaction="t")
    assert error(client, "SEND", body, transaction="t", **headers)["message"] == message
    assert client.say("SEND", b"after", destination="/topic/a", transaction="t") == []
    assert f"SEND was refused: {message}" in refused(client)
    assert house.published == []
    # The name is free, and a transaction of that name begins with nothing.
    assert error(client, "COMMIT", transaction="t")["message"] == "Bad transaction"
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"again", destination="/topic/a", transaction="t")
    assert [each.command for each in client.say("COMMIT", transaction="t", receipt="d")] == [
        "RECEIPT"
    ]
    assert [each.body for each in house.published] == [b"again"]


def test_every_receipt_of_a_failed_transaction_is_answered() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"1", destination="/topic/a", transaction="t", receipt="1")
    wrong = error(client, "SEND", b"2", destination="/topic", transaction="t", receipt="2")
    assert wrong["receipt-id"] == "2"
    late = error(client, "SEND", b"3", destination="/topic/a", transaction="t", receipt="3")
    assert (late["message"], late["receipt-id"]) == ("Transaction failed", "3")
    got = client.say("COMMIT", transaction="t", receipt="c")
    assert [(each.command, each.headers["receipt-id"]) for each in got] == [
        ("ERROR", "1"),
        ("ERROR", "c"),
    ]
    assert house.published == []


def test_a_commit_without_a_receipt_is_told_that_it_failed() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    error(client, "SEND", b"2", destination="/topic", transaction="t")
    failed = error(client, "COMMIT", transaction="t")
    assert failed["message"] == "Transaction failed"
    assert "receipt-id" not in failed
    assert house.published == []


def test_an_abort_after_a_refusal_works() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"1", destination="/topic/a", transaction="t")
    error(client, "SEND", b"2", destination="/topic", transaction="t")
    assert client.say("ABORT", transaction="t", receipt="a")[0].command == "RECEIPT"
    assert error(client, "COMMIT", transaction="t")["message"] == "Bad transaction"
    # Beginning again forgets the refusal as well.
    client.say("BEGIN", transaction="t")
    error(client, "SEND", b"2", destination="/topic", transaction="t")
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"3", destination="/topic/a", transaction="t")
    client.say("COMMIT", transaction="t")
    assert [each.body for each in house.published] == [b"3"]


def test_other_transactions_and_sends_go_on() -> None:
    house, client = logged_in()
    for name in ("t", "u"):
        client.say("BEGIN", transaction=name)
        client.say("SEND", name.encode(), destination="/topic/a", transaction=name)
    error(client, "SEND", b"2", destination="/topic", transaction="t")
    error(client, "SEND", b"2", destination="/topic")
    client.say("SEND", b"alone", destination="/topic/a")
    client.say("COMMIT", transaction="u")
    refused(client)
    assert [each.body for each in house.published] == [b"alone", b"u"]


def test_what_the_policy_refuses_by_then_fails_the_commit() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    for name in ("a", "b", "c"):
        client.say("SEND", b"x", destination=f"/topic/{name}", transaction="t")
    house.denied.add("/topic/b")
    assert "SEND was refused: access_refused: guest may not publish /topic/b" in refused(client)
    assert house.published == []
    assert not client.gone


def test_what_the_policy_refuses_at_once_ends_all_of_it() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t")
    house.denied.add("/topic/b")
    failed = error(client, "SEND", b"x", destination="/topic/b", transaction="t")
    assert failed["message"] == "access_refused"
    assert client.gone
    assert house.published == []


def test_a_queue_that_cannot_be_declared_fails_the_commit() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t")
    house.queues.refuse = Unavailable("away")
    got = client.say("SEND", b"x", destination="/queue/q", durable="false", transaction="t")
    assert [each.headers["message"] for each in got] == ["Broker unavailable"]
    assert "SEND was refused: Broker unavailable: away" in refused(client)
    assert house.published == []


def test_too_much_fails_the_commit() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.raw(stomp("SEND", b"x", destination="/topic/a", transaction="t") * 1024)
    failed = error(client, "SEND", b"x", destination="/topic/a", transaction="t")
    assert failed["message"] == "Transaction too large"
    refused(client)
    assert house.published == []


@pytest.mark.parametrize("mode", ["client", "client-individual"])
def test_an_ack_that_fails_fails_the_commit(mode: str) -> None:
    house, client, consumer = work(ack=mode)
    for body in (b"1", b"2", b"3"):
        consumer.deliver(body)
    house.runtime.settle()
    first, second, third = [each.headers["ack"] for each in client.got()]
    # The second one settles the first as well where acks are cumulative.
    again = first if mode == "client" else second
    client.say("BEGIN", transaction="t")
    client.say("ACK", id=second, transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t")
    client.say("NACK", id=again, transaction="t")
    assert "NACK was refused: Message not found" in refused(client)
    assert (house.published, consumer.settled) == ([], [])
    # Nothing was settled, so all of it can be.
    client.say("BEGIN", transaction="t")
    for id in (first, second, third):
        client.say("ACK", id=id, transaction="t")
    assert client.say("COMMIT", transaction="t", receipt="d")[0].command == "RECEIPT"
    assert consumer.settled == [("ack", 1), ("ack", 2), ("ack", 3)]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "Missing header"),
        ({"id": "x"}, "Invalid header"),
        ({"id": "T_9@@s@@1"}, "Subscription not found"),
        ({"id": "T_1@@s@@9"}, "Message not found"),
    ],
)
@pytest.mark.parametrize("command", ["ACK", "NACK"])
def test_an_ack_of_nothing_fails_the_commit(
    command: str, headers: dict[str, str], message: str
) -> None:
    house, client, _ = work(ack="client")
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t")
    client.say(command, transaction="t", **headers)
    assert f"{command} was refused: {message}" in refused(client)
    assert house.published == []


def test_an_ack_whose_subscription_has_gone_fails_the_commit() -> None:
    house, client, consumer = work(ack="client")
    consumer.deliver(b"1")
    house.runtime.settle()
    (got,) = client.got()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/topic/a", transaction="t")
    client.say("ACK", id=got.headers["ack"], transaction="t")
    client.say("UNSUBSCRIBE", id="1")
    assert "Subscription not found" in refused(client)
    assert house.published == []
