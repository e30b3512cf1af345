"""Messages that nobody can handle: rejected after so many redeliveries."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from queuecast.delivery import Delivery
from queuecast.message import Message, Properties
from queuecast.sessions.returns import Returns
from tests.unit.sessions.stomp_rig import FakeConsumer, House
from tests.unit.sessions.work_rig import Stream, settle


def hand(consumer: FakeConsumer, message: Message) -> None:
    consumer.last += 1
    consumer.outstanding.add(consumer.last)
    consumer.sink.deliver(Delivery(message, consumer.last))


def again(message: Message, count: int | None = None) -> Message:
    headers = dict(message.properties.headers)
    if count is not None:
        headers["x-delivery-count"] = count
    properties = replace(message.properties, headers=headers)
    return Message(message.body, message.exchange, message.routing_key, properties, True)


def house_with(limit: int) -> House:
    house = House()
    house.services.returns = Returns(0, {"a": limit}, now=house.runtime.now)
    return house


@pytest.mark.parametrize("properties", [Properties(), Properties(message_id="7")])
def test_after_so_many_redeliveries_it_is_rejected(
    properties: Properties, caplog: pytest.LogCaptureFixture
) -> None:
    house = house_with(2)
    stream = Stream(house, "/queue/a")
    (consumer,) = house.consumers
    message = Message(b"bad", "", "a", properties)
    hand(consumer, message)
    for _ in range(3):
        (got,) = stream.got()
        assert settle(house, nack=got["ack"]) == []
        hand(consumer, again(message))
    with caplog.at_level(logging.WARNING):
        assert stream.got() == []
    assert [how for how, _ in consumer.settled] == ["requeue"] * 3 + ["reject"]
    assert "queue 'a'" in caplog.text
    # One that was dead-lettered and comes back by that way begins anew.
    hand(consumer, message)
    assert len(stream.got()) == 1


def test_other_queues_have_no_bound() -> None:
    house = house_with(1)
    stream = Stream(house, "/queue/b")
    message = Message(b"bad", "", "b")
    for _ in range(10):
        hand(house.consumers[0], again(message, 99))
        (got,) = stream.got()
        settle(house, nack=got["ack"])


def test_the_broker_s_own_count_decides_where_there_is_one() -> None:
    house = house_with(3)
    stream = Stream(house, "/queue/a")
    (consumer,) = house.consumers
    message = Message(b"bad", "", "a")
    hand(consumer, again(message, 3))
    assert len(stream.got()) == 1
    hand(consumer, again(message, 4))
    assert stream.got() == []
    assert consumer.settled == [("reject", 2)]
    # Not what a publisher claims of a message that is delivered for the first time.
    first = again(message, 4)
    first.redelivered = False
    hand(consumer, first)
    assert len(stream.got()) == 1


@pytest.mark.parametrize("way", ["lease", "close", "reset"])
def test_what_went_back_in_any_way_counts(way: str) -> None:
    house = house_with(1)
    message = Message(b"bad", "", "a")
    for _ in range(2):
        stream = Stream(house, "/queue/a", "ack=client&envelope=json&lease=1s")
        consumer = house.consumers[-1]
        hand(consumer, again(message))
        assert len(stream.got()) == 1
        if way == "lease":
            house.runtime.advance(1.0)
        elif way == "close":
            stream.session.connection_lost()
        else:
            consumer.lose()
        house.runtime.settle()
    stream = Stream(house, "/queue/a")
    hand(house.consumers[-1], again(message))
    assert stream.got() == []


def test_what_was_never_shown_does_not_count() -> None:
    house = house_with(1)
    message = Message(b"good", "", "a")
    for _ in range(5):
        stream = Stream(house, "/queue/a")
        stream.session.pause_writing()
        hand(house.consumers[-1], again(message))
        stream.session.connection_lost()
        house.runtime.settle()
    stream = Stream(house, "/queue/a")
    hand(house.consumers[-1], again(message))
    assert len(stream.got()) == 1


def test_an_ack_forgets() -> None:
    house = house_with(1)
    message = Message(b"same body", "", "a")
    stream = Stream(house, "/queue/a")
    for verb in ("nack", "ack") * 3:
        hand(house.consumers[0], again(message))
        (got,) = stream.got()
        assert settle(house, **{verb: got["ack"]}) == []


def test_counts_are_bounded_and_warnings_rare(caplog: pytest.LogCaptureFixture) -> None:
    time = 0.0
    returns = Returns(1, now=lambda: time, most=10)
    messages = [Message(b"%d" % number, "", "a") for number in range(20)]
    for message in messages:
        returns.came_back(returns.key("a", message))
    counts = [returns.count(returns.key("a", each), again(each)) for each in messages]
    assert counts == [0] * 10 + [1] * 10
    for _ in range(100):
        returns.report("a", messages[0], 2)
    assert len(caplog.records) == 1
    time = 61.0
    returns.report("a", messages[0], 2)
    assert len(caplog.records) == 2


def test_a_key_is_the_message_s_own() -> None:
    returns = Returns(1)
    one = Message(b"x", "e", "k", Properties(headers={"a": 1, "b": [2, {"c": b"3"}]}))
    assert returns.key("a", one) == returns.key("a", again(one, 5))
    assert returns.key("a", one) != returns.key("b", one)
    assert returns.key("a", one) != returns.key("a", Message(b"x", "e", "l", one.properties))
    named = Properties(message_id="1")
    assert returns.key("a", Message(b"x", "", "a", named)) == returns.key(
        "a", Message(b"y", "", "a", named)
    )
