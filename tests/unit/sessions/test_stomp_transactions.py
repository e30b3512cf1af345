"""BEGIN, COMMIT and ABORT."""

from __future__ import annotations

import pytest

from queuecast.errors import (
    PublishFailed,
)
from tests.unit.sessions.stomp_rig import (
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


def test_a_commit_that_fails_in_part_says_so() -> None:
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
