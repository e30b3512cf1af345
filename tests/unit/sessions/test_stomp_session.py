"""STOMP sessions, command by command, over a fake broker."""

from __future__ import annotations

from typing import Any

import pytest

from queuecast.disconnect import SHUTDOWN
from queuecast.errors import (
    Conflict,
    Locked,
    NotFound,
    OutcomeUnknown,
    PublishFailed,
    QueuecastError,
    Refused,
    Unavailable,
    Unroutable,
)
from queuecast.message import Message
from tests.unit.sessions.stomp_rig import ELSEWHERE, Client, House, logged_in, stomp


def error(client: Client, command: str, body: bytes = b"", /, **headers: str) -> dict[str, str]:
    """Say something that fails; the ERROR's headers and its body."""
    (got,) = client.say(command, body, **headers)
    assert got.command == "ERROR"
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["version"] == "1.0,1.1,1.2"
    return {**got.headers, "body": got.body.decode()}


# -- CONNECT ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "version"),
    [(None, "1.0"), ("1.0", "1.0"), ("1.0,1.1", "1.1"), ("1.2,1.1,9.9", "1.2")],
)
@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
def test_connected(command: str, offered: str | None, version: str) -> None:
    client = House().open()
    headers = {} if offered is None else {"accept_version": offered}
    (got,) = client.say(command, login="guest", passcode="guest", **headers)
    assert got.command == "CONNECTED"
    assert got.headers["version"] == version
    assert got.headers["heart-beat"] == "0,0"
    assert got.headers["session"].startswith("session-")
    assert got.headers["server"].startswith("Queuecast/")


def test_versions_without_a_common_one() -> None:
    client = House().open()
    failed = error(client, "CONNECT", accept_version="2.0", login="guest", passcode="guest")
    assert failed["message"] == "Version mismatch"
    assert failed["body"] == "Supported versions are 1.0,1.1,1.2\n"
    client.log_in()


def test_a_wrong_passcode_is_refused_and_the_connection_stays() -> None:
    client = House().open()
    failed = error(client, "CONNECT", login="guest", passcode="wrong")
    assert failed["message"] == "Bad CONNECT"
    assert failed["body"] == "Access refused for user 'guest'\n"
    assert not client.gone
    assert error(client, "SEND", destination="/topic/a")["message"] == "Illegal command"
    client.log_in()


def test_the_default_user_is_for_this_machine_only() -> None:
    house = House()
    (got,) = house.open().say("CONNECT")
    assert got.command == "CONNECTED"
    assert house.logins == [("guest", "guest", None, True)]
    stranger = house.open(peer=ELSEWHERE)
    assert error(stranger, "CONNECT")["body"] == "Missing login or passcode header(s)\n"
    assert len(house.logins) == 1


@pytest.mark.parametrize("headers", [{"login": "guest"}, {"passcode": "guest"}])
def test_half_a_login(headers: dict[str, str]) -> None:
    failed = error(House().open(), "CONNECT", **headers)
    assert failed["body"] == "Missing login or passcode header(s)\n"


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("/", "/"),
        ("prod", "prod"),
        ("gateway.example", None),
        ("GATEWAY.example:15674", None),
        ("", None),
    ],
)
def test_the_name_that_was_dialled_is_the_default_virtual_host(
    host: str, asked: str | None
) -> None:
    house = House()
    house.open().log_in(host=host.replace(":", "\\c"))
    assert house.logins[0][2] == asked


def test_names_that_are_too_long_never_reach_the_broker() -> None:
    house = House()
    client = house.open()
    long = "x" * 256
    assert error(client, "CONNECT", login=long, passcode="p")["message"] == "Bad CONNECT"
    failed = error(client, "CONNECT", login="guest", passcode="guest", host=long)
    assert failed["message"] == "Bad CONNECT"
    assert house.logins == []


def test_connecting_twice() -> None:
    _, client = logged_in()
    assert error(client, "CONNECT", login="guest", passcode="guest")["message"] == "Illegal command"


@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE", "DISCONNECT", "ACK"])
def test_nothing_before_connect(command: str) -> None:
    house = House()
    client = house.open()
    failed = error(client, command, destination="/queue/a", receipt="7")
    assert failed["message"] == "Illegal command"
    assert failed["body"] == "You must log in using CONNECT first\n"
    assert failed["receipt-id"] == "7"
    assert not client.gone
    assert house.published == []


def test_a_page_cannot_speak_stomp_through_its_browsers_http() -> None:
    house = House()
    client = house.open()
    body = stomp("CONNECT") + stomp("SEND", b"x", destination="/topic/a")
    head = b"POST / HTTP/1.1\r\nHost: localhost:61613\r\nContent-Length: 99\r\n\r\n"
    assert client.raw(head + b"\0" + body) == []
    assert client.gone
    assert (house.logins, house.published) == ([], [])


def test_frames_behind_connect_wait_for_the_login() -> None:
    house = House()
    house.login_waits = house.runtime.promise()
    client = house.open()
    login = stomp("CONNECT", login="guest", passcode="guest")
    assert client.raw(login + stomp("SEND", b"x", destination="/topic/a", receipt="1")) == []
    assert not client.transport.reading
    house.login_waits.set_result(None)
    house.runtime.settle()
    assert [each.command for each in client.got()] == ["CONNECTED", "RECEIPT"]
    assert client.transport.reading


def test_who_does_not_log_in_is_closed_silently() -> None:
    house = House()
    silent, slow, fine = house.open(), house.open(), house.open()
    fine.log_in()
    house.login_waits = house.runtime.promise()
    slow.say("CONNECT", login="guest", passcode="guest")
    house.runtime.advance(10)
    assert silent.gone
    assert slow.gone
    assert not fine.gone
    assert silent.got() == []
    assert house.login_waits.done(), "nobody waits for that verdict any more"
    house.runtime.advance(2)
    assert silent.transport.closed
    assert house.accounts == 1, "the login that came too late holds nothing"


def test_the_account_is_left_once() -> None:
    house, client = logged_in()
    assert house.accounts == 1
    client.say("DISCONNECT")
    client.session.connection_lost()
    assert house.accounts == 0


def test_1_0_values_are_trimmed() -> None:
    house = House()
    client = house.open()
    client.raw(b"CONNECT\nlogin: guest\npasscode: guest\n\n\0")
    assert house.logins == [("guest", "guest", None, True)]
    client.raw(b"SEND\ndestination: /topic/a\n\nx\0")
    assert house.published[0].destination == "/topic/a"


# -- heart-beats --------------------------------------------------------------------------


def test_we_beat_twice_as_often_as_promised() -> None:
    house = House()
    client = house.open()
    assert client.log_in(heart_beat="0,4000").headers["heart-beat"] == "4000,0"
    client.transport.writes.clear()
    for _ in range(4):
        house.runtime.advance(1)
    assert client.transport.writes == [b"\n", b"\n"]
    client.session.pause_writing()
    house.runtime.advance(2)
    assert len(client.transport.writes) == 2, "nothing is added to what is not read"
    client.session.connection_lost()
    house.runtime.advance(10)
    assert len(client.transport.writes) == 2


def test_a_client_without_a_sign_of_life_is_closed_without_an_error() -> None:
    house = House()
    quiet, beating = house.open(), house.open()
    quiet.log_in(heart_beat="1000,0")
    beating.log_in(heart_beat="1000,0")
    for _ in range(4):
        beating.raw(b"\n")
        house.runtime.advance(1)
    assert quiet.gone
    assert quiet.got() == []
    assert not beating.gone


def test_a_client_that_is_not_read_from_is_not_silent() -> None:
    house = House(publishing=1)
    client = house.open()
    client.log_in(heart_beat="1000,0")
    house.confirm_at_once = False
    client.say("SEND", b"x", destination="/topic/a")
    assert not client.transport.reading
    for _ in range(10):
        house.runtime.advance(1)
    assert not client.gone


# -- SEND ---------------------------------------------------------------------------------


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


# -- SUBSCRIBE to feeds -------------------------------------------------------------------


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


# -- work queues --------------------------------------------------------------------------


def work(version: str = "1.2", **headers: str) -> tuple[House, Client, Any]:
    house, client = logged_in(version)
    client.say("SUBSCRIBE", id="1", destination="/queue/a", **headers)
    return house, client, house.consumers[0]


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


# -- transactions -------------------------------------------------------------------------


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


# -- the end ------------------------------------------------------------------------------


def test_disconnect_is_answered_after_everything_before_it() -> None:
    house, client = logged_in()
    house.confirm_at_once = False
    client.raw(stomp("SEND", b"1", destination="/topic/a") + stomp("DISCONNECT", receipt="bye"))
    assert client.got() == []
    house.published[0].confirm.set_result(None)
    house.runtime.settle()
    (got,) = client.got()
    assert (got.command, got.headers["receipt-id"]) == ("RECEIPT", "bye")
    assert client.transport.ended
    house.runtime.advance(2)
    assert client.transport.closed


def test_an_unknown_command() -> None:
    _, client = logged_in()
    failed = error(client, "DANCE", receipt="1")
    assert failed["message"] == "Bad command"
    assert failed["body"] == 'Could not interpret command "DANCE"\n'
    assert not client.gone


@pytest.mark.parametrize(
    "garbage",
    [
        b"SEND\nno colon\n\n\0",
        b"SEND\nbad:\\t\n\n\0",
        b"\xff\xfe\xfd\n\n\0",
        b"x" * 100,
        b"SEND\n" + b"a:b\n" * 200 + b"\n\0",
        b"SEND\ncontent-length:1\n\nxx\0",
    ],
)
def test_garbage_closes_without_an_error(garbage: bytes) -> None:
    house, client = logged_in()
    assert client.raw(garbage) == []
    assert client.gone
    assert client.transport.ended
    assert client.raw(b"more") == []
    house.runtime.advance(2)
    assert client.transport.closed


def test_a_stranger_cannot_send_a_large_frame() -> None:
    client = House().open()
    client.raw(b"SEND\n\n" + b"x" * 70_000)
    assert client.gone
    _, known = logged_in()
    known.raw(b"SEND\ndestination:/topic/a\n\n" + b"x" * 70_000 + b"\0")
    assert not known.gone


def test_a_shutdown_is_told() -> None:
    _, client = logged_in()
    client.session.disconnect(SHUTDOWN)
    (got,) = client.got()
    assert (got.command, got.headers["message"]) == ("ERROR", "shutdown")


def test_a_client_that_does_not_read_is_cut_off() -> None:
    _, client = logged_in()
    client.session.pause_writing()
    client.session.disconnect(SHUTDOWN)
    assert client.transport.aborted


def test_answers_do_not_gather_for_who_does_not_read() -> None:
    _, client = logged_in()
    client.session.pause_writing()
    assert client.raw(stomp("DANCE") * 1000) == []
    assert not client.transport.reading
    client.session.resume_writing()
    assert len(client.got()) == 1000
