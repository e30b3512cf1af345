"""SUBSCRIBE to feeds, what it refuses, and how a subscription ends."""

from __future__ import annotations

import pytest

from queuecast.errors import (
    Conflict,
    Locked,
    NotFound,
    QueuecastError,
    Refused,
    Unavailable,
)
from queuecast.message import Message
from tests.unit.sessions.stomp_rig import (
    error,
    logged_in,
    stomp,
)


def test_a_feed() -> None:
    house, client = logged_in()
    (receipt,) = client.say("SUBSCRIBE", id="7", destination="/topic/a", receipt="r")
    assert receipt.command == "RECEIPT"
    assert receipt.headers["receipt-id"] == "r"
    house.append("/topic/a", b"one", b"")
    one, empty = client.got()
    feed = house.feeds["/topic/a"]
    assert one.headers == {
        "subscription": "7",
        "destination": "/topic/a",
        "message-id": one.headers["message-id"],
        "redelivered": "false",
        "content-length": "3",
    }
    assert (one.body, empty.body) == (b"one", b"")
    assert empty.headers["message-id"] == str(feed.position())
    assert client.say("UNSUBSCRIBE", id="7", receipt="u")[0].command == "RECEIPT"
    house.append("/topic/a", b"two")
    assert client.got() == []


def test_resuming_after_a_message() -> None:
    house, client = logged_in()
    client.say("SUBSCRIBE", id="7", destination="/topic/a")
    house.append("/topic/a", b"1", b"2", b"3")
    since = client.got()[0].headers["message-id"]
    other = house.open()
    other.log_in()
    got = other.say("SUBSCRIBE", id="7", destination="/topic/a", since=since)
    assert [each.body for each in got] == [b"2", b"3"]
    last = house.open()
    last.log_in()
    got = last.say("SUBSCRIBE", id="7", destination="/topic/a", last="1")
    assert [each.body for each in got] == [b"3"]


def test_a_gap_is_a_message_of_headers_only() -> None:
    house, client = logged_in()
    client.say("SUBSCRIBE", id="7", destination="/topic/a")
    house.feeds["/topic/a"].gap("lost")
    house.runtime.settle()
    (got,) = client.got()
    assert (got.command, got.body) == ("MESSAGE", b"")
    assert got.headers["gap"] == "lost"
    assert got.headers["subscription"] == "7"
    assert got.headers["destination"] == "/topic/a"
    assert got.headers["message-id"] == str(house.feeds["/topic/a"].position())


def test_an_alias_hides_the_brokers_names() -> None:
    house, client = logged_in()
    client.say("SUBSCRIBE", id="7", destination="/nice")
    house.append("/topic/secret.name", b"x", key="secret.name")
    assert client.got()[0].headers["destination"] == "/nice"
    assert house.asked[-1] == ("guest", "subscribe", "/topic/secret.name")
    house.feeds["/topic/secret.name"].fail(NotFound("no exchange 'secret'"))
    house.runtime.settle()
    (got,) = client.got()
    assert (got.headers["subscription"], b"secret" in got.body) == ("7", False)
    house.refuse_feed = NotFound("no exchange 'secret'")
    house.runtime.run(house.hub.sweep())
    failed = error(house.fresh(), "SUBSCRIBE", id="1", destination="/nice")
    assert "secret" not in failed["body"]


def test_a_publisher_cannot_forge_server_headers() -> None:
    house, client = logged_in()
    client.say("SUBSCRIBE", id="7", destination="/topic/a")
    client.say("SEND", b"x", destination="/topic/b", subscription="9", ack="1", redelivered="true")
    properties = house.published[0].properties
    house.feeds["/topic/a"].append([Message(b"x", "amq.topic", "a", properties)])
    house.runtime.settle()
    (got,) = client.got()
    assert got.headers["subscription"] == "7"
    assert got.headers["redelivered"] == "false"
    assert "ack" not in got.headers


def test_subscriptions_without_an_id() -> None:
    house, client = logged_in("1.0")
    client.say("SUBSCRIBE", destination="/topic/a")
    house.append("/topic/a", b"x")
    assert "subscription" not in client.got()[0].headers
    assert client.say("UNSUBSCRIBE", destination="/topic/a", receipt="1")[0].command == "RECEIPT"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"id": "1"}, "Missing destination"),
        ({"id": "/temp-queue/x", "destination": "/topic/a"}, "Invalid id"),
        ({"id": "1", "destination": "/topic/a", "ack": "maybe"}, "Processing error"),
        ({"id": "1", "destination": "/topic/a", "since": "rubbish"}, "Processing error"),
        ({"id": "1", "destination": "/queue/a", "since": "first"}, "Processing error"),
        (
            {"id": "1", "destination": "/queue/a", "ack": "client", "prefetch_count": "x"},
            "Processing error",
        ),
        ({"destination": "/topic/a", "durable": "true"}, "Missing Header"),
    ],
)
def test_what_subscribe_refuses(headers: dict[str, str], message: str) -> None:
    house, client = logged_in()
    failed = error(client, "SUBSCRIBE", receipt="7", **headers)
    assert failed["message"] == message
    assert failed["receipt-id"] == "7"
    assert not client.gone
    assert house.feeds == {}
    assert house.consumers == []


def test_properties_that_ask_for_nothing_else_are_accepted() -> None:
    _, client = logged_in()
    client.say("SUBSCRIBE", id="1", destination="/topic/a", durable="false", auto_delete="true")
    client.say("SUBSCRIBE", id="2", destination="/queue/a", durable="true", auto_delete="false")
    assert client.say("SUBSCRIBE", id="3", destination="/amq/queue/a", receipt="1") != []
    assert not client.gone


def test_a_subscription_twice_ends_the_connection() -> None:
    _, client = logged_in()
    client.say("SUBSCRIBE", id="1", destination="/topic/a")
    failed = error(client, "SUBSCRIBE", id="1", destination="/topic/b")
    assert failed["message"] == "Duplicated subscription identifier"
    assert failed["body"] == "A subscription identified by 'T_1' already exists.\n"
    assert client.gone


@pytest.mark.parametrize(
    ("failure", "message", "closes"),
    [
        (NotFound("no exchange"), "not_found", True),
        (Refused("no"), "access_refused", True),
        (Conflict("other properties"), "precondition_failed", True),
        (Locked("queue in exclusive use"), "resource_locked", True),
        (Unavailable("away"), "Broker unavailable", False),
    ],
)
@pytest.mark.parametrize("destination", ["/topic/a", "/queue/a"])
def test_a_subscription_that_the_broker_refuses(
    destination: str, failure: QueuecastError, message: str, closes: bool
) -> None:
    house, client = logged_in()
    house.refuse_feed = house.refuse_consume = failure
    failed = error(client, "SUBSCRIBE", id="1", destination=destination, receipt="9")
    assert (failed["message"], failed["receipt-id"]) == (message, "9")
    assert client.gone is closes
    if not closes:
        house.refuse_feed = house.refuse_consume = None
        again = client.say("SUBSCRIBE", id="1", destination=destination, receipt="9")
        assert again[0].command == "RECEIPT"


def test_a_thousand_subscriptions_of_one_client() -> None:
    house, client = logged_in(subscriptions=5)
    many = [stomp("SUBSCRIBE", id=str(n), destination=f"/topic/t{n}") for n in range(1000)]
    got = client.raw(b"".join(many))
    assert {each.headers["message"] for each in got} == {"Limit exceeded"}
    assert len(got) == 995
    assert len(house.feeds) == 5
    assert not client.gone


def test_a_feed_that_ends_names_its_subscription() -> None:
    house, client = logged_in()
    client.say("SUBSCRIBE", id="1", destination="/topic/a")
    client.say("SUBSCRIBE", id="2", destination="/queue/b")
    house.feeds["/topic/a"].fail(NotFound("the exchange was deleted"))
    house.consumers[0].sink.cancelled(NotFound("the queue was deleted"))
    house.runtime.settle()
    for got, id in zip(client.got(), ("1", "2"), strict=True):
        assert got.headers["message"] == "Server cancelled subscription"
        assert got.headers["subscription"] == id
    assert not client.gone
    assert error(client, "UNSUBSCRIBE", id="1")["message"] == "No subscription found"


def test_unsubscribing_from_nothing() -> None:
    _, client = logged_in()
    assert error(client, "UNSUBSCRIBE")["message"] == "Missing destination or id"
    assert error(client, "UNSUBSCRIBE", destination="/topic/a")["message"] == (
        "No subscription found"
    )


def test_subscribe_waits_for_what_was_sent_before() -> None:
    house, client = logged_in()
    house.confirm_at_once = False
    both = stomp("SEND", b"x", destination="/topic/a")
    client.raw(both + stomp("SUBSCRIBE", id="1", destination="/topic/a", receipt="1"))
    assert house.feeds == {}
    house.published[0].confirm.set_result(None)
    house.runtime.settle()
    assert client.got()[0].command == "RECEIPT"


@pytest.mark.parametrize("destination", ["/topic/a", "/queue/a", "/exchange/e/k"])
@pytest.mark.parametrize("ack", ["auto", "client"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("selector", "type = 'x'"),
        ("selector", "1"),
        ("no_local", "true"),
        ("activemq.noLocal", "true"),
    ],
)
def test_what_would_leave_out_messages_is_refused(
    destination: str, ack: str, name: str, value: str
) -> None:
    house, client = logged_in()
    headers = {"id": "1", "destination": destination, "ack": ack, "receipt": "r", name: value}
    failed = error(client, "SUBSCRIBE", **headers)
    assert (failed["message"], failed["receipt-id"]) == ("Not supported", "r")
    assert name.replace("_", "-") in failed["body"]
    assert (house.consumers, house.feeds) == ([], {})
    assert not client.gone
    # The id is free.
    (receipt,) = client.say("SUBSCRIBE", id="1", destination=destination, ack=ack, receipt="s")
    assert receipt.command == "RECEIPT"


@pytest.mark.parametrize(
    ("name", "value"), [("selector", ""), ("selector", "  "), ("no_local", "false")]
)
def test_what_leaves_out_nothing_is_accepted(name: str, value: str) -> None:
    house, client = logged_in()
    headers = {"id": "1", "destination": "/topic/a", "receipt": "r", name: value}
    (receipt,) = client.say("SUBSCRIBE", **headers)
    assert receipt.command == "RECEIPT"
    house.append("/topic/a", b"x")
    (got,) = client.got()
    assert got.body == b"x"
