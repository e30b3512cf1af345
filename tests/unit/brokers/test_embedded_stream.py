"""The embedded broker's streams: what is kept, who reads what, and what it costs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from queuecast.brokers.embedded.age import AgeClock
from queuecast.brokers.embedded.memory import Memory, weight
from queuecast.brokers.embedded.stream import BURST, Stream, StreamConsumer
from queuecast.brokers.embedded.turn import Turn
from queuecast.delivery import Delivery
from queuecast.errors import BadRequest, NotFound
from queuecast.message import Message, Properties
from queuecast.queuespec import QueueSpec, Timestamp
from tests.support.sinks import DeliveryList
from tests.unit.brokers.hand_clock import HandClock

KIND = {"x-queue-type": "stream"}


class Rig:
    """One stream, its clock and its budget."""

    def __init__(self, **arguments: Any) -> None:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.time = 1000.0
        self.clock = HandClock()
        self.ages = AgeClock(lambda: self.time, lambda: self.time, lambda: "")
        self.memory = Memory(1 << 30)
        spec = QueueSpec("s", arguments={**KIND, **named})
        self.stream = Stream(spec, turn=Turn(self.clock), memory=self.memory, ages=self.ages)

    def put(self, *bodies: bytes, **headers: Any) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for body in bodies:
            message = Message(body, "e", "k", Properties(headers=named))
            self.stream.put(message, weight(message))

    def read(self, start: object = "first", prefetch: int = 100, **arguments: Any) -> DeliveryList:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        sink = DeliveryList()
        consumer = StreamConsumer(self.stream, sink, prefetch, {"x-stream-offset": start, **named})
        sink.consumer = consumer
        self.stream.attach(consumer)
        consumer.start()
        self.clock.turn()
        return sink


def test_what_is_too_much_goes_from_the_front() -> None:
    one = weight(Message(b"x", "e", "k"))
    rig = Rig(x_max_length_bytes=3 * one)
    slow = rig.read(prefetch=1)
    rig.put(b"0", b"1", b"2", b"3", b"4")
    assert rig.stream.ready == 3
    assert rig.memory.used == 3 * one
    assert rig.read().bodies == [b"2", b"3", b"4"]
    assert rig.read(0).bodies == [b"2", b"3", b"4"], "an offset that is gone means the first"
    assert rig.read(3).bodies == [b"3", b"4"]
    assert rig.read(99).bodies == []
    # A reader that is behind goes on with what there is.
    assert slow.bodies == [b"0"]
    assert slow.ack()
    assert slow.bodies == [b"0", b"2"]
    rig.stream.delete(NotFound("deleted"))
    assert rig.memory.used == 0
    assert isinstance(slow.error, NotFound)


def test_what_is_too_old_goes() -> None:
    rig = Rig(x_max_age="10s")
    rig.put(b"0")
    rig.time += 6
    rig.put(b"1")
    assert rig.read().bodies == [b"0", b"1"]
    rig.time += 6
    assert rig.read().bodies == [b"1"]
    rig.time += 6
    assert rig.read().bodies == []
    assert rig.memory.used == 0
    rig.put(b"2")
    (kept,) = rig.read().deliveries
    assert kept.message.properties.headers["x-stream-offset"] == 2, "offsets are never used twice"


def test_an_unlimited_stream_is_bounded() -> None:
    rig = Rig()
    body = b"x" * (1 << 20)
    for _ in range(80):
        rig.put(body)
    assert rig.memory.used <= 64 << 20
    assert rig.stream.ready > 60


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("first", [b"0", b"1", b"2"]),
        ("last", [b"2"]),
        ("next", []),
        (None, []),
        (1, [b"1", b"2"]),
        (Timestamp(0), [b"0", b"1", b"2"]),
        (Timestamp(1001), [b"1", b"2"]),
        (Timestamp(1003), []),
    ],
)
def test_where_to_begin(start: object, expected: list[bytes]) -> None:
    rig = Rig()
    for body in (b"0", b"1", b"2"):
        rig.put(body)
        rig.time += 1
    sink = rig.read(start)
    assert sink.bodies == expected
    rig.put(b"new")
    assert sink.bodies == [*expected, b"new"]


@pytest.mark.parametrize("start", ["somewhere", True, 1.5, ["first"]])
def test_where_nobody_can_begin(start: object) -> None:
    with pytest.raises(BadRequest, match="x-stream-offset"):
        Rig().read(start)


def test_an_empty_stream_has_no_last_message() -> None:
    rig = Rig()
    sink = rig.read("last")
    rig.put(b"0")
    assert sink.bodies == [b"0"]


def test_filters() -> None:
    rig = Rig()
    rig.put(b"a", x_stream_filter_value="a")
    rig.put(b"b", x_stream_filter_value="b")
    rig.put(b"none")
    assert rig.read(x_stream_filter=["a"]).bodies == [b"a"]
    assert rig.read(x_stream_filter="b").bodies == [b"b"]
    assert rig.read(x_stream_filter=["a"], x_stream_match_unfiltered=True).bodies == [b"a", b"none"]
    assert rig.read(x_stream_match_unfiltered=False).bodies == [b"a", b"b", b"none"]
    # What is filtered out takes no place in the prefetch.
    assert rig.read(prefetch=1, x_stream_filter=["b"]).bodies == [b"b"]


def test_the_stream_s_message_is_nobody_s_to_change() -> None:
    rig = Rig()
    message = Message(b"x", "e", "k", Properties(headers={"own": "1"}))
    rig.stream.put(message, 1)
    (got,) = rig.read().deliveries
    assert got.message.properties.headers == {"own": "1", "x-stream-offset": 0}
    assert message.properties.headers == {"own": "1"}


def test_a_paused_reader_and_a_fast_one_share_nothing() -> None:
    rig = Rig()
    paused, fast = rig.read(), rig.read()
    assert paused.consumer is not None
    paused.consumer.pause()
    rig.put(*(b"%d" % number for number in range(3 * BURST)))
    for _ in range(10):
        while fast.outstanding:
            fast.ack()
        rig.clock.turn()
    assert len(fast.bodies) == 3 * BURST
    assert paused.bodies == []
    paused.consumer.resume()
    rig.clock.turn()
    assert paused.bodies == fast.bodies[:100]


def test_a_sink_that_fails_ends_its_reader_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(DeliveryList):
        def deliver(self, delivery: Delivery) -> None:
            raise RuntimeError("broken on purpose")

    rig = Rig()
    sink = Broken()
    consumer = StreamConsumer(rig.stream, sink, 5, {})
    rig.stream.attach(consumer)
    consumer.start()
    good = rig.read()
    with caplog.at_level(logging.CRITICAL):
        rig.put(b"x")
    assert sink.error is not None
    assert rig.stream.consumers == 1
    assert good.bodies == [b"x"]
