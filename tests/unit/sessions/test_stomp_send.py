"""What SEND does, what it refuses, and when it is answered."""

from __future__ import annotations

import pytest

from queuecast.errors import (
    NotFound,
    OutcomeUnknown,
    PublishFailed,
    QueuecastError,
    Refused,
    Unavailable,
    Unroutable,
)
from tests.unit.sessions.stomp_rig import (
    error,
    logged_in,
    stomp,
)


def test_a_receipt_comes_after_the_confirm() -> None:
    house, client = logged_in()
    house.confirm_at_once = False
    assert client.say("SEND", b"x", destination="/exchange/e/k", receipt="r1", custom="1") == []
    sent = house.published[0]
    assert (sent.destination, sent.body) == ("/exchange/e/k", b"x")
    assert sent.properties.headers["custom"] == "1"
    sent.confirm.set_result(None)
    house.runtime.settle()
    (got,) = client.got()
    assert (got.command, got.headers) == ("RECEIPT", {"receipt-id": "r1"})


def test_order_is_kept_and_reading_stops_at_the_limit() -> None:
    house, client = logged_in(publishing=3)
    house.confirm_at_once = False
    burst = b"".join(stomp("SEND", b"%d" % n, destination="/topic/a") for n in range(10))
    client.raw(burst)
    assert [each.body for each in house.published] == [b"0", b"1", b"2"]
    assert not client.transport.reading
    while len([each for each in house.published if each.confirm.done()]) < 10:
        next(each for each in house.published if not each.confirm.done()).confirm.set_result(None)
        house.runtime.settle()
    assert [each.body for each in house.published] == [b"%d" % n for n in range(10)]
    assert client.transport.reading


@pytest.mark.parametrize(
    ("failure", "message", "closes"),
    [
        (PublishFailed("nacked"), "Publish failed", False),
        (Unroutable("no queue"), "not_found", False),
        (OutcomeUnknown("lost"), "Outcome unknown", False),
        (Unavailable("away"), "Broker unavailable", False),
        (NotFound("no exchange 'e'"), "not_found", True),
        (Refused("no"), "access_refused", True),
        (QueuecastError("odd"), "Internal error", False),
    ],
)
def test_a_failed_send_is_answered(failure: QueuecastError, message: str, closes: bool) -> None:
    house, client = logged_in()
    house.refuse_publish = failure
    failed = error(client, "SEND", b"x", destination="/queue/a", receipt="7")
    assert failed["message"] == message
    assert failed["receipt-id"] == "7"
    assert client.gone is closes
    assert client.transport.ended is closes


def test_a_message_to_a_missing_queue_without_receipt_is_dropped() -> None:
    house, client = logged_in()
    house.refuse_publish = Unroutable("no queue")
    assert client.say("SEND", b"x", destination="/reply-queue/amq.gen-1") == []
    house.refuse_publish = PublishFailed("nacked")
    assert error(client, "SEND", b"x", destination="/reply-queue/amq.gen-1")["message"]


def test_receipts_under_way_come_before_the_error_that_closes() -> None:
    house, client = logged_in()
    house.confirm_at_once = False
    client.say("SEND", b"1", destination="/topic/a", receipt="1")
    house.refuse_publish = NotFound("no exchange")
    assert client.say("SEND", b"2", destination="/exchange/none", receipt="2") == []
    assert client.gone
    house.published[0].confirm.set_result(None)
    house.runtime.settle()
    assert [(each.command, each.headers["receipt-id"]) for each in client.got()] == [
        ("RECEIPT", "1"),
        ("ERROR", "2"),
    ]
    house.runtime.advance(2)
    assert client.transport.closed


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "Missing destination"),
        ({"destination": ""}, "Invalid destination"),
        ({"destination": "/queue/a/b"}, "Invalid destination"),
        ({"destination": "/queue"}, "Invalid destination"),
        ({"destination": "/exchange//x"}, "Invalid destination"),
        ({"destination": "/nowhere/a"}, "Unknown destination"),
        ({"destination": "/temp-queue/a"}, "Invalid destination"),
        ({"destination": "/topic/a", "message_id": "1"}, "Invalid header"),
        ({"destination": "/topic/a", "priority": "x"}, "Processing error"),
        ({"destination": "/topic/a.*"}, "Processing error"),
        ({"destination": "/queue/a", "reply_to": "/temp-queue/x"}, "Not supported"),
        ({"destination": "/queue/a", "x_message_ttl": "5"}, "Not supported"),
        ({"destination": "/queue/a", "auto_delete": "true"}, "Not supported"),
        ({"destination": "/topic/a", "transaction": "none"}, "Bad transaction"),
    ],
)
def test_what_send_refuses(headers: dict[str, str], message: str) -> None:
    house, client = logged_in()
    failed = error(client, "SEND", b"x", receipt="7", **headers)
    assert failed["message"] == message
    assert failed["receipt-id"] == "7"
    assert not client.gone
    assert house.published == []


def test_what_send_accepts() -> None:
    house, client = logged_in()
    client.say("SEND", b"x", destination="bare")
    client.say("SEND", b"x", destination="/queue/a", durable="true", persistent="true")
    client.say("SEND", b"x", destination="/nice")
    client.say("SEND", b"x", destination="/topic/ends.")
    client.say("SEND", b"x", destination="/queue/a", x_custom="1")
    assert [each.destination for each in house.published] == [
        "/queue/bare",
        "/queue/a",
        "/topic/secret.name",
        "/topic/ends.",
        "/queue/a",
    ]
    assert house.published[1].properties.persistent


def test_a_body_over_the_limit() -> None:
    house, client = logged_in(message=10)
    assert error(client, "SEND", b"x" * 11, destination="/topic/a")["message"] == (
        "Message too large"
    )
    assert house.published == []


def test_the_policy_is_asked_by_the_login() -> None:
    house, client = logged_in()
    house.denied.add("/topic/secret")
    failed = error(client, "SEND", b"x", destination="/topic/secret")
    assert failed["message"] == "access_refused"
    assert ("guest", "publish", "/topic/secret") in house.asked
    assert client.gone
    other = house.open()
    other.log_in()
    assert error(other, "SUBSCRIBE", id="1", destination="/topic/secret")["message"] == (
        "access_refused"
    )
    assert house.feeds == {}
