"""Calls before the broker was first reached: they wait, for a time, in their order."""

from typing import Any, cast

import pytest

from queuecast.brokers.base import Broker
from queuecast.destination import Destination
from queuecast.errors import Conflict, Unavailable
from queuecast.message import NO_PROPERTIES, Properties
from queuecast.starting import Starting, StartingBroker
from tests.support.fake_runtime import FakePromise, FakeRuntime

TOPIC = Destination.parse("/topic/a")


class FakeBroker:
    """Takes publishes once it is open, and notes them."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.opened: FakePromise = runtime.promise()
        self.attempts = 0
        self.taken: list[bytes] = []
        self.is_open = False

    async def connect(self) -> None:
        self.attempts += 1
        await self.opened
        self.is_open = True

    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> None:
        if not self.is_open:
            raise Unavailable("not open")
        self.taken.append(body)


class Rig:
    def __init__(self, **options: Any) -> None:
        self.runtime = FakeRuntime()
        self.fake = FakeBroker(self.runtime)
        self.starting = Starting(self.runtime, "fake", self.fake.connect, patience=10.0, **options)
        self.broker = StartingBroker(cast(Broker, self.fake), self.starting)
        self.reaching = self.runtime.start(self.starting.reach(60.0))
        self.runtime.settle()

    def publish(self, body: bytes) -> Any:
        async def publish() -> None:
            await self.broker.publish(TOPIC, body)

        task = self.runtime.start(publish())
        self.runtime.settle()
        return task


def test_what_waited_comes_first_and_in_order() -> None:
    rig = Rig()
    waiting = [rig.publish(b"%d" % number) for number in range(3)]
    rig.runtime.advance(9.0)
    assert not rig.fake.taken
    assert not rig.starting.is_over

    async def publish() -> None:
        await rig.broker.publish(TOPIC, b"later")

    rig.fake.opened.set_result(None)
    while not rig.starting._is_over:
        rig.runtime.turn()
    # The start is over, and those that waited have not had their turn.
    assert not rig.fake.taken
    rig.runtime.start(publish())
    rig.runtime.settle()
    rig.runtime.advance(0.0)
    assert rig.fake.taken == [b"0", b"1", b"2", b"later"]
    assert all(task.done for task in waiting)
    assert rig.starting.is_over


def test_publishing_at_once_waits_too() -> None:
    rig = Rig()
    taken: list[bytes] = []

    def at_once(
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        taken.append(body)
        return True

    publish = rig.starting.at_once_of(at_once)
    assert publish is not None
    assert not publish(TOPIC, b"1", NO_PROPERTIES)
    rig.publish(b"2")
    rig.fake.opened.set_result(None)
    rig.runtime.settle()
    assert publish(TOPIC, b"3", NO_PROPERTIES)
    assert (rig.fake.taken, taken) == ([b"2"], [b"3"])
    assert rig.starting.at_once_of(None) is None


def test_a_start_that_takes_too_long_is_the_brokers_to_refuse() -> None:
    rig = Rig()
    early = rig.publish(b"early")
    rig.runtime.advance(5.0)
    late = rig.publish(b"late")
    rig.runtime.advance(5.1)
    with pytest.raises(Unavailable, match="not open"):
        early.result()
    # Each has the time for itself: nothing has failed yet.
    assert not late.done
    rig.runtime.advance(5.0)
    with pytest.raises(Unavailable):
        late.result()


def test_a_broker_that_is_away_is_waited_for_once() -> None:
    rig = Rig()
    rig.fake.opened.set_exception(Unavailable("refused"))
    rig.runtime.settle()
    rig.runtime.advance(8.0)
    assert rig.starting.is_patient
    waiting = rig.publish(b"first")
    assert not waiting.done
    rig.runtime.advance(2.1)
    with pytest.raises(Unavailable):
        waiting.result()
    # From now on a client hears at once what is the matter, as in any other outage.
    assert not rig.starting.is_patient
    with pytest.raises(Unavailable):
        rig.publish(b"second").result()
    assert rig.fake.attempts > 1


def test_bodies_that_wait_are_bounded() -> None:
    rig = Rig(held_bytes=10)
    waiting = rig.publish(b"1234567")
    with pytest.raises(Unavailable):
        rig.publish(b"1234").result()
    assert not waiting.done
    rig.runtime.advance(10.1)
    # What gave up is no longer counted.
    assert waiting.done
    assert not rig.publish(b"1234567").done


def test_what_is_no_outage_ends_the_attempts() -> None:
    rig = Rig()
    rig.fake.opened.set_exception(Conflict("another type"))
    rig.runtime.settle()
    with pytest.raises(Conflict):
        rig.reaching.result()


def test_the_time_to_reach_the_broker_ends() -> None:
    runtime = FakeRuntime()

    async def away() -> None:
        raise Unavailable("refused")

    starting = Starting(runtime, "fake", away, patience=10.0)
    reaching = runtime.start(starting.reach(3.0))
    runtime.settle()
    runtime.advance(0.5)
    assert not reaching.done
    # The next attempt would come after the time is over.
    runtime.advance(1.0)
    with pytest.raises(Unavailable):
        reaching.result()


def test_trying_on_survives_refusals_and_defects() -> None:
    runtime = FakeRuntime()
    errors: list[Exception] = [Unavailable("away"), Conflict("another type"), ValueError("defect")]

    async def connect() -> None:
        if errors:
            raise errors.pop(0)

    starting = Starting(runtime, "fake", connect, patience=10.0)
    trying = runtime.run(starting.reach_or_go_on())
    assert trying is not None
    task = runtime.start(trying)
    for _ in range(4):
        runtime.settle()
        runtime.advance(16.0)
    task.result()
    assert starting.is_over
