"""STOMP sessions with queues of their own, frame by frame, over a fake broker."""

from __future__ import annotations

import pytest

from queuecast.errors import Conflict, Locked, NotFound, QueuecastError, Refused, Unavailable
from queuecast.queuespec import QueueSpec
from queuecast.sessions.stomp_own import MAX_DECLARED
from tests.unit.sessions.stomp_rig import Client, FakeConsumer, Got, House, logged_in


def error(got: list[Got]) -> str:
    (only,) = got
    assert only.command == "ERROR"
    return only.headers["message"]


def subscribed(
    client: Client, destination: str = "/topic/a", id: str = "1", **headers: str
) -> FakeConsumer:
    """Subscribe with headers that need a queue; the consumer that was opened."""
    (got,) = client.say("SUBSCRIBE", id=id, destination=destination, receipt="r", **headers)
    assert got.command == "RECEIPT", got
    return client.house.consumers[-1]


def queue(consumer: FakeConsumer) -> QueueSpec:
    assert consumer.spec.queue is not None
    return consumer.spec.queue


def test_client_acks_on_a_topic() -> None:
    house, client = logged_in()
    consumer = subscribed(client, ack="client", prefetch_count="7")
    assert house.feeds == {}
    assert (consumer.prefetch, str(consumer.destination)) == (7, "/topic/a")
    consumer.deliver(b"1")
    consumer.deliver(b"2", redelivered=True)
    house.runtime.settle()
    first, second = client.got()
    assert first.headers["message-id"].startswith("T_1@@session-")
    assert (first.headers["redelivered"], second.headers["redelivered"]) == ("false", "true")
    client.say("ACK", id=second.headers["ack"])
    assert consumer.settled == [("ack", 1), ("ack", 2)]
    client.say("UNSUBSCRIBE", id="1")
    assert consumer.closed


def test_a_receipt_comes_before_the_first_delivery() -> None:
    house, client = logged_in()
    got = client.say("SUBSCRIBE", id="1", destination="/topic/a", ack="client")
    assert got == []
    house.consumers[0].deliver(b"x")
    house.runtime.settle()
    assert [each.body for each in client.got()] == [b"x"]


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_a_durable_subscription_is_deleted_when_the_frame_says_so(version: str) -> None:
    house, client = logged_in(version)
    durable = {"durable": "true", "auto_delete": "false"}
    name = queue(subscribed(client, **durable)).name
    assert client.say("UNSUBSCRIBE", id="1", receipt="u")[0].command == "RECEIPT"
    assert house.queues.calls == []
    subscribed(client, **durable)
    (got,) = client.say("UNSUBSCRIBE", id="1", persistent="true", receipt="u")
    assert got.command == "RECEIPT"
    assert house.queues.calls == [("delete", name)]
    assert all(consumer.closed for consumer in house.consumers)


def test_the_recorded_queue_is_deleted_without_repeating_its_name() -> None:
    house, client = logged_in()
    subscribed(client, x_queue_name="mine", durable="true")
    client.say("UNSUBSCRIBE", id="1", durable="true")
    assert house.queues.calls == [("delete", "mine")]


@pytest.mark.parametrize("destination", ["/exchange/e/k", "/queue/q"])
def test_only_a_topic_s_queue_is_deleted(destination: str) -> None:
    house, client = logged_in()
    subscribed(client, destination, durable="true", x_max_length="1")
    assert client.say("UNSUBSCRIBE", id="1", durable="true", receipt="u")[0].command == "RECEIPT"
    assert house.queues.calls == []


def test_deleting_asks_the_policy_and_can_fail() -> None:
    house, client = logged_in()
    consumer = subscribed(client, durable="true")
    house.denied.add("/topic/a")
    assert error(client.say("UNSUBSCRIBE", id="1", durable="true")) == "access_refused"
    assert house.queues.calls == [("release", "")]
    assert client.gone
    house, client = logged_in()
    consumer = subscribed(client, durable="true")
    house.queues.refuse = Unavailable("away")
    got = client.say("UNSUBSCRIBE", id="1", durable="true", receipt="u")
    assert error(got) == "Broker unavailable"
    assert got[0].headers["receipt-id"] == "u"
    assert consumer.closed
    assert not client.gone


@pytest.mark.parametrize("command", ["SUBSCRIBE", "UNSUBSCRIBE"])
def test_durable_without_an_id(command: str) -> None:
    _, client = logged_in("1.0")
    got = client.say(command, destination="/topic/a", durable="true")
    assert error(got) == "Missing Header"
    assert not client.gone


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Locked("exclusive"), "resource_locked"),
        (Conflict("inequivalent arg 'exclusive'"), "precondition_failed"),
        (NotFound("no exchange"), "not_found"),
        (Refused("no"), "access_refused"),
    ],
)
def test_what_the_broker_refuses_ends_the_connection(failure: QueuecastError, message: str) -> None:
    house, client = logged_in()
    house.refuse_consume = failure
    got = client.say("SUBSCRIBE", id="1", destination="/topic/a", ack="client", receipt="r")
    assert error(got) == message
    assert client.gone
    house, client = logged_in()
    house.queues.refuse = failure
    got = client.say("SEND", b"x", destination="/queue/a", durable="false", receipt="r")
    assert error(got) == message
    assert client.gone
    assert house.published == []


def test_exclusive_queues_end_with_the_session() -> None:
    house, client = logged_in()
    consumer = subscribed(client, exclusive="true", x_queue_name="q")
    assert consumer.spec.owner is not None
    other = house.fresh()
    assert subscribed(other, ack="client").spec.owner is not consumer.spec.owner
    client.session.connection_lost()
    assert consumer.spec.owner.gone
    house.runtime.settle()
    assert house.queues.calls == [("release", "")]
    plain = house.fresh()
    subscribed(plain, "/queue/q")
    plain.session.connection_lost()
    house.runtime.settle()
    assert house.queues.calls == [("release", "")], "nothing was declared"


def test_a_gap_is_told_before_what_follows() -> None:
    house, client = logged_in()
    consumer = subscribed(client, ack="client-individual")
    consumer.deliver(b"before")
    house.runtime.settle()
    (before,) = client.got()
    consumer.lose()
    consumer.sink.gap("the queue was lost")
    consumer.deliver(b"after")
    house.runtime.settle()
    gap, after = client.got()
    assert gap.headers["gap"] == "the queue was lost"
    assert gap.headers["subscription"] == "1"
    assert gap.headers["destination"] == "/topic/a"
    assert (gap.body, "ack" in gap.headers) == (b"", False)
    assert after.body == b"after"
    # What was acked too late is harmless, and the gap's id acks nothing.
    assert client.say("ACK", id=before.headers["ack"]) == []
    assert error(client.say("ACK", id=gap.headers["message-id"])) == "Message not found"


def test_a_gap_waits_for_a_client_that_does_not_read() -> None:
    house, client = logged_in()
    consumer = subscribed(client, ack="client")
    client.session.pause_writing()
    consumer.sink.gap("first")
    consumer.sink.gap("second")
    house.runtime.settle()
    assert client.got() == []
    client.session.resume_writing()
    house.runtime.settle()
    assert [each.headers["gap"] for each in client.got()] == ["second"]


def test_positions_are_for_feeds() -> None:
    house, client = logged_in()
    for headers in ({"since": "first"}, {"last": "1"}):
        got = client.say("SUBSCRIBE", id="1", destination="/topic/a", ack="client", **headers)
        assert error(got) == "Processing error"
    assert house.consumers == []


def test_every_queue_counts_as_a_subscription() -> None:
    house, client = logged_in(subscriptions=2)
    subscribed(client, id="1", ack="client")
    client.say("SEND", b"x", destination="/queue/q", reply_to="/temp-queue/a")
    assert len(house.consumers) == 2
    got = client.say("SUBSCRIBE", id="3", destination="/topic/a", durable="true")
    assert error(got) == "Limit exceeded"
    got = client.say("SEND", b"x", destination="/queue/q", reply_to="/temp-queue/b", receipt="s")
    assert error(got) == "Limit exceeded"
    assert got[0].headers["receipt-id"] == "s"
    assert len(house.published) == 1
    assert not client.gone


# -- the policy ---------------------------------------------------------------------------


def test_the_policy_is_asked_for_everything_that_a_queue_can_do() -> None:
    house, client = logged_in()
    house.asked.clear()
    subscribed(
        client,
        durable="true",
        x_queue_name="orders",
        x_dead_letter_exchange="amq.topic",
        x_dead_letter_routing_key="dead",
    )
    assert house.asked == [
        ("guest", "subscribe", "/amq/queue/orders"),
        ("guest", "publish", "/topic/dead"),
        ("guest", "subscribe", "/topic/a"),
    ]


@pytest.mark.parametrize(
    ("denied", "headers"),
    [
        ({"/topic/a"}, {}),
        ({"/queue/orders", "/amq/queue/orders"}, {"x_queue_name": "orders"}),
        ({"/exchange/e/#"}, {"x_dead_letter_exchange": "e"}),
        ({"/queue/#"}, {"x_dead_letter_exchange": ""}),
    ],
)
def test_what_the_policy_refuses(denied: set[str], headers: dict[str, str]) -> None:
    house, client = logged_in()
    house.denied = denied
    got = client.say("SUBSCRIBE", id="1", destination="/topic/a", ack="client", **headers)
    assert error(got) == "access_refused"
    assert house.consumers == []


@pytest.mark.parametrize("denied", ["/queue/q", "/exchange/e/#"])
def test_a_send_that_the_policy_refuses_declares_nothing(denied: str) -> None:
    house, client = logged_in()
    house.denied.add(denied)
    got = client.say("SEND", b"x", destination="/queue/q", x_dead_letter_exchange="e")
    assert error(got) == "access_refused"
    assert house.queues.calls == []
    assert house.published == []


def test_a_reply_queue_that_the_policy_refuses() -> None:
    house, client = logged_in()
    house.denied.add("/temp-queue/a")
    got = client.say("SEND", b"x", destination="/queue/q", reply_to="/temp-queue/a")
    assert error(got) == "access_refused"
    assert house.published == []


# -- SEND ---------------------------------------------------------------------------------


def test_a_queue_is_declared_once_in_a_session() -> None:
    house, client = logged_in()
    client.say("SEND", b"1", destination="/queue/q", x_max_length="5")
    client.say("SEND", b"2", destination="/queue/q", x_max_length="6")
    client.say("SEND", b"3", destination="/queue/plain")
    client.say("SEND", b"4", destination="/queue/plain", x_max_length="6")
    assert house.queues.declared == [QueueSpec("q", arguments={"x-max-length": 5})]
    assert [each.body for each in house.published] == [b"1", b"2", b"3", b"4"]
    # A SUBSCRIBE is for the queue as it was declared, and would declare it again so.
    assert queue(subscribed(client, "/queue/q", x_max_length="7")).arguments == {"x-max-length": 5}
    assert subscribed(client, "/queue/plain", id="2", x_max_length="7").spec.queue is None


def test_what_follows_a_declaration_does_not_overtake_it() -> None:
    house, client = logged_in()
    got = client.raw(
        b"SEND\ndestination:/queue/q\nreceipt:1\nauto-delete:true\n\none\0"
        b"SEND\ndestination:/topic/t\nreceipt:2\n\ntwo\0"
    )
    assert [each.headers["receipt-id"] for each in got] == ["1", "2"]
    assert [each.body for each in house.published] == [b"one", b"two"]


def test_a_transaction_declares_at_once_and_publishes_later() -> None:
    house, client = logged_in()
    client.say("BEGIN", transaction="t")
    client.say("SEND", b"x", destination="/queue/q", durable="false", transaction="t")
    assert [each.name for each in house.queues.declared] == ["q"]
    assert house.published == []
    client.say("COMMIT", transaction="t")
    assert [each.body for each in house.published] == [b"x"]


def test_the_names_that_are_remembered_are_bounded() -> None:
    house, client = logged_in()
    for number in range(MAX_DECLARED + 1):
        client.say("SEND", b"", destination=f"/queue/q{number}")
    client.say("SEND", b"", destination="/queue/q1", x_max_length="1")
    assert house.queues.declared == []
    client.say("SEND", b"", destination="/queue/q0", x_max_length="1")
    assert [each.name for each in house.queues.declared] == ["q0"]


# -- reply queues -------------------------------------------------------------------------


def test_a_reply_queue_is_made_once() -> None:
    house, client = logged_in()
    for correlation in ("1", "2"):
        headers = {"reply_to": "/temp-queue/a", "correlation_id": correlation}
        client.say("SEND", b"?", destination="/queue/q", **headers)
    (consumer,) = house.consumers
    name = queue(consumer).name
    assert [each.properties.reply_to for each in house.published] == [name, name]
    consumer.deliver(b"!")
    house.runtime.settle()
    (got,) = client.got()
    assert got.headers["subscription"] == "/temp-queue/a"
    assert (got.body, "ack" in got.headers) == (b"!", False)
    assert consumer.settled == [("ack", 1)]
    client.say("SEND", b"?", destination="/queue/q", reply_to="/temp-queue/b")
    assert len(house.consumers) == 2
    for header in ("id", "destination"):
        got_error = client.say("UNSUBSCRIBE", **{header: "/temp-queue/a"})
        assert error(got_error) in ("Invalid id", "No subscription found")
    assert not consumer.closed


@pytest.mark.parametrize("reply_to", ["/temp-queue/", "/temp-queue/a/b", "/temp-queue"])
def test_reply_queues_that_are_none(reply_to: str) -> None:
    house, client = logged_in()
    got = client.say("SEND", b"?", destination="/queue/q", reply_to=reply_to)
    if reply_to == "/temp-queue":
        # No destination at all, but a name that somebody may know.
        assert house.published[0].properties.reply_to == reply_to
    else:
        assert error(got) == "Invalid destination"
        assert house.published == []


def test_a_reply_queue_is_no_destination() -> None:
    house, client = logged_in()
    got = client.say("SUBSCRIBE", id="1", destination="/temp-queue/a")
    assert error(got) == "Invalid destination"
    assert house.consumers == []
    assert not client.gone


def test_a_cancelled_reply_queue_is_made_anew() -> None:
    house, client = logged_in()
    client.say("SEND", b"?", destination="/queue/q", reply_to="/temp-queue/a")
    house.consumers[0].sink.cancelled(NotFound("deleted"))
    (got,) = client.got()
    assert got.headers["message"] == "Server cancelled subscription"
    assert got.headers["subscription"] == "/temp-queue/a"
    client.say("SEND", b"?", destination="/queue/q", reply_to="/temp-queue/a")
    assert len(house.consumers) == 2
    assert house.published[1].properties.reply_to == queue(house.consumers[1]).name


def test_a_reply_to_of_another_kind_travels_as_it_is() -> None:
    house, client = logged_in()
    for reply_to in ("/queue/answers", "/reply-queue/amq.gen-x", "plain"):
        client.say("SEND", b"?", destination="/queue/q", reply_to=reply_to)
        assert house.published[-1].properties.reply_to == reply_to
    assert house.consumers == []


def test_an_alias_hides_the_queue_s_broker_names() -> None:
    house, client = logged_in()
    consumer = subscribed(client, "/nice", ack="client")
    consumer.deliver(b"x")
    consumer.sink.gap("lost")
    house.runtime.settle()
    assert {each.headers["destination"] for each in client.got()} == {"/nice"}


def test_a_client_that_leaves_while_its_queue_is_opened() -> None:
    house = House()
    client = house.fresh()
    client.session.receive_data(b"SUBSCRIBE\nid:1\nack:client\ndestination:/topic/a\n\n\0")
    client.session.connection_lost()
    house.runtime.settle()
    assert all(consumer.closed for consumer in house.consumers)
