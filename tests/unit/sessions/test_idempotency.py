"""A key publishes once: while its answer is under way, after it, and not after a failure."""

from __future__ import annotations

from typing import Any

import pytest

from queuecast.auth.identity import Identity
from queuecast.destination import Destination
from queuecast.errors import BadRequest, Conflict, OutcomeUnknown, QueuecastError, Unavailable
from queuecast.hub.hub import Hub
from queuecast.message import Properties
from queuecast.runtime import Promise
from queuecast.sessions.idempotency import HEADER, IdempotencyKeys
from queuecast.sessions.services import Services
from tests.support.fake_runtime import FakeRuntime, Task

A = Destination.parse("/topic/a")
B = Destination.parse("/topic/b")
ANNA, BEN = Identity("anna"), Identity("ben")


class House:
    """Services whose broker answers when the test says so."""

    def __init__(self, **options: Any) -> None:
        self.runtime = FakeRuntime()
        self.calls: list[tuple[bytes, Promise]] = []
        self.keys = IdempotencyKeys(self.runtime, **options)

        async def publish(
            destination: Destination,
            body: bytes,
            properties: Properties,
            *,
            mandatory: bool | None = None,
        ) -> None:
            answer = self.runtime.promise()
            self.calls.append((body, answer))
            await answer

        async def unused(*args: Any, **options: Any) -> Any:
            raise AssertionError

        self.services = Services(
            self.runtime,
            Hub(self.runtime, unused),
            publish,
            unused,
            lambda identity, verb, destination: None,
            Destination.parse,
            keys=self.keys,
        )

    def publish(
        self,
        key: Any,
        body: bytes = b"x",
        destination: Destination = A,
        identity: Identity = ANNA,
    ) -> Task:
        properties = Properties(headers={} if key is None else {HEADER: key})
        task = self.runtime.start(
            self.services.publish_once(identity, destination, body, properties)
        )
        self.runtime.settle()
        return task

    def answer(self, index: int, error: QueuecastError | None = None) -> None:
        promise = self.calls[index][1]
        if error is None:
            promise.set_result(None)
        else:
            promise.set_exception(error)
        self.runtime.settle()


def test_a_key_that_was_answered_is_not_published_again() -> None:
    house = House()
    first = house.publish("k")
    house.answer(0)
    assert first.result() is None
    assert house.publish("k").result() is None
    assert len(house.calls) == 1


def test_who_comes_while_it_is_under_way_gets_the_same_answer() -> None:
    house = House()
    first, second, third = (house.publish("k") for _ in range(3))
    assert (len(house.calls), second.done, third.done) == (1, False, False)
    house.answer(0)
    assert [each.result() for each in (first, second, third)] == [None] * 3


@pytest.mark.parametrize("error", [Unavailable("away"), OutcomeUnknown("lost")])
def test_a_failure_is_everybodys_and_forgotten(error: QueuecastError) -> None:
    house = House()
    tasks = [house.publish("k"), house.publish("k")]
    house.answer(0, error)
    for task in tasks:
        with pytest.raises(type(error)):
            task.result()
    again = house.publish("k")
    house.answer(1)
    assert again.result() is None
    assert len(house.calls) == 2


def test_a_publish_that_is_cancelled_leaves_an_unknown_outcome() -> None:
    house = House()
    first, second = house.publish("k"), house.publish("k")
    first.cancel()
    house.runtime.settle()
    with pytest.raises(OutcomeUnknown):
        second.result()
    assert len(house.keys) == 0


def test_keys_are_of_one_identity_and_one_destination() -> None:
    house = House()
    for destination, identity in ((A, ANNA), (B, ANNA), (A, BEN)):
        house.publish("k", b"x", destination, identity)
    assert len(house.calls) == 3


def test_another_body_under_the_same_key_is_a_conflict() -> None:
    house = House()
    house.publish("k", b"one")
    with pytest.raises(Conflict, match="'k' was used for another message"):
        house.publish("k", b"two").result()


def test_without_a_key_everything_is_published() -> None:
    house = House()
    house.publish(None)
    house.publish(None)
    assert (len(house.calls), len(house.keys)) == (2, 0)


def test_the_window_ends() -> None:
    house = House(window=60)
    house.publish("k")
    house.answer(0)
    house.runtime.advance(59)
    house.publish("k")
    assert len(house.calls) == 1
    house.runtime.advance(2)
    house.publish("k")
    assert len(house.calls) == 2


def test_the_oldest_keys_go_first_and_who_waits_for_one_is_told() -> None:
    house = House(most=3)
    house.publish("0")
    waiting = house.publish("0")
    for number in range(1, 10):
        house.publish(str(number))
        assert len(house.keys) <= 3
    with pytest.raises(OutcomeUnknown):
        waiting.result()
    house.answer(0)  # its own publish ends as it ends


@pytest.mark.parametrize("key", ["", "x" * 256, 7, None, ["k"]])
def test_keys_that_are_none(key: Any) -> None:
    house = House()
    if key is None:
        assert house.publish(key).done is False
        return
    with pytest.raises(BadRequest, match="1 to 255"):
        house.publish(key).result()
    assert not house.calls


def test_it_can_be_turned_off() -> None:
    house = House(window=0)
    house.publish("k")
    house.publish("k")
    assert len(house.calls) == 2


def test_at_once_is_for_messages_without_a_key() -> None:
    house = House()
    seen: list[bytes] = []
    outcome: list[bool | QueuecastError] = [True, False, Unavailable("away")]

    def at_once(
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        seen.append(body)
        found = outcome[len(seen) - 1]
        if isinstance(found, QueuecastError):
            raise found
        return found

    services = house.services
    assert not services.publish_at_once(ANNA, A, b"0", Properties())
    services.at_once = at_once
    assert not services.publish_at_once(ANNA, A, b"k", Properties(headers={HEADER: "k"}))
    with pytest.raises(BadRequest):
        services.publish_at_once(ANNA, A, b"k", Properties(headers={HEADER: ""}))
    assert services.publish_at_once(ANNA, A, b"1", Properties())
    assert not services.publish_at_once(ANNA, A, b"2", Properties())
    with pytest.raises(Unavailable):
        services.publish_at_once(ANNA, A, b"3", Properties())
    assert seen == [b"1", b"2", b"3"]
    counted = {"confirmed": 1, "bad_request": 1, "unavailable": 1}
    assert services.counts.publishes == counted
