"""Telling repeated messages from new ones: against a model of a queue and its lost connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from queuecast.brokers.rabbitmq.content import fingerprint
from queuecast.brokers.rabbitmq.recovery import RESTARTED, UNFINISHED, UNSURE, Restarted, Resumed
from queuecast.brokers.rabbitmq.tail import Tail
from queuecast.message import Message, Properties


def messages(bodies: list[int], *, redelivered: bool = False) -> list[Message]:
    return [Message(b"%d" % body, "e", "k", redelivered=redelivered) for body in bodies]


def bodies(found: list[Message]) -> list[int]:
    return [int(message.body) for message in found]


def tail_of(handed_on: list[int], settled: int) -> Tail:
    tail = Tail()
    for message in messages(handed_on):
        tail.add(fingerprint(message))
    tail.settled(settled)
    return tail


@given(data=st.data())
def test_distinct_messages_are_never_lost_repeated_or_doubted(data: st.DataObject) -> None:
    handed_on = list(range(data.draw(st.integers(0, 30), "handed on")))
    acked = data.draw(st.integers(0, len(handed_on)), "acks that arrived")
    settled = data.draw(st.integers(0, acked), "acks known to have arrived")
    flying = [100 + n for n in range(data.draw(st.integers(0, 10), "on their way"))]
    new = [200 + n for n in range(data.draw(st.integers(0, 10), "new"))]
    redelivered = handed_on[acked:] + flying
    queue = messages(redelivered, redelivered=True) + messages(new)
    if not queue:
        return
    recovery = Resumed(tail_of(handed_on, settled), len(queue), limit=2000)
    got: list[Message] = []
    while queue:
        size = data.draw(st.integers(1, len(queue)), "in one tick")
        chunk, queue = queue[:size], queue[size:]
        verdict = recovery.take(chunk)
        got += verdict.messages
        if verdict.done:
            assert verdict.gap is None
            got += queue
            break
        assert not verdict.ack
    else:
        raise AssertionError("the recovery did not come to an end")
    assert bodies(got) == flying + new


@given(
    handed_on=st.lists(st.integers(0, 2), max_size=8),
    acked=st.integers(0, 8),
    flying=st.lists(st.integers(0, 2), max_size=4),
    new=st.lists(st.integers(0, 2), max_size=3),
)
def test_a_stream_that_repeats_itself_is_right_or_a_gap(
    handed_on: list[int], acked: int, flying: list[int], new: list[int]
) -> None:
    before = [0, 1, 2, 0, 1, 2]
    handed_on = before + handed_on
    acked = min(acked + len(before), len(handed_on))
    queue = messages(handed_on[acked:] + flying, redelivered=True) + messages(new)
    if not queue:
        return
    verdict = Resumed(tail_of(handed_on, len(before)), len(queue), limit=2000).take(queue)
    assert verdict.done
    assert verdict.gap == UNSURE or bodies(verdict.messages) == flying + new


def test_equal_messages_with_ids_of_their_own_are_told_apart() -> None:
    def tick(number: int, *, redelivered: bool) -> Message:
        return Message(b"", "e", "k", Properties(message_id=str(number)), redelivered)

    tail = Tail()
    for number in range(5):
        tail.add(fingerprint(tick(number, redelivered=False)))
    queue = [tick(number, redelivered=True) for number in range(3, 8)]
    verdict = Resumed(tail, 5, limit=2000).take(queue)
    assert verdict.gap is None
    assert [message.properties.message_id for message in verdict.messages] == ["5", "6", "7"]


def test_what_does_not_continue_what_we_had_is_a_gap() -> None:
    tail = tail_of([1, 2, 3], 0)
    verdict = Resumed(tail, 3, limit=2000).take(messages([1, 2, 9], redelivered=True))
    assert verdict.gap == UNSURE
    assert bodies(verdict.messages) == [9]


def test_a_queue_that_does_not_deliver_is_given_up_with_a_gap() -> None:
    recovery = Resumed(tail_of([1, 2], 0), 5, limit=2000)
    assert not recovery.take(messages([2, 3], redelivered=True)).done
    verdict = recovery.give_up()
    assert (bodies(verdict.messages), verdict.gap) == ([3], UNFINISHED)


def test_no_more_than_the_prefetch_is_waited_for() -> None:
    verdict = Resumed(tail_of([1], 0), 10_000, limit=2).take(messages([1, 2], redelivered=True))
    assert verdict.done
    assert bodies(verdict.messages) == [2]


@given(data=st.data())
def test_a_restarted_broker_repeats_nothing(data: st.DataObject) -> None:
    handed_on = list(range(data.draw(st.integers(0, 30), "handed on")))
    # Acks are forgotten here and there, transient messages are gone.
    again = [body for body in handed_on if data.draw(st.booleans(), f"{body} comes again")]
    new = [200 + n for n in range(data.draw(st.integers(0, 10), "new"))]
    queue = messages(again) + messages(new)
    recovery = Restarted(tail_of(handed_on, len(handed_on)), len(queue))
    got: list[Message] = []
    gaps = 0
    for at, message in enumerate(queue):
        verdict = recovery.take([message])
        if verdict.done:
            gaps += 1
            assert verdict.gap == RESTARTED
            got += verdict.messages + queue[at + 1 :]
            break
        assert verdict.messages == []
    assert bodies(got) == new
    assert gaps == bool(queue)


def test_pending_counts_what_the_broker_may_repeat() -> None:
    tail = Tail(memory=4)
    for number in range(10):
        tail.add(number)
    assert tail.pending == 10
    assert tail.repeated([8, 9, 10]) == (2, True)
    tail.settled(9)
    assert tail.pending == 1
    assert tail.repeated([8, 9]) == (0, False)
    assert tail.repeated([9]) == (1, True)
    assert tail.repeated([11]) == (0, True)
