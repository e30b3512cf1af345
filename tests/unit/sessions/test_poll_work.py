"""Long polls on queues with client acks: sessions that live on between polls."""

from __future__ import annotations

from queuecast.errors import NotFound
from queuecast.sessions.acks import Acks
from tests.unit.sessions.stomp_rig import House
from tests.unit.sessions.work_rig import Stream, answer, poll, refusal, settle


def test_a_chain_of_polls() -> None:
    house = House()
    task = poll(house, "prefetch=2")
    (consumer,) = house.consumers
    assert consumer.prefetch == 2
    assert not task.done
    consumer.deliver(b"1")
    house.runtime.settle()
    first = answer(task)
    assert [each["body"] for each in first["messages"]] == ["1"]
    assert consumer.settled == []
    # Between polls nothing is handed out; then it comes at once.
    consumer.deliver(b"2")
    house.runtime.settle()
    task = poll(house, f"session={first['session']}")
    second = answer(task)
    assert [each["body"] for each in second["messages"]] == ["2"]
    assert second["session"] != first["session"]
    assert len(house.consumers) == 1
    assert settle(house, ack=[each["messages"][0]["ack"] for each in (first, second)]) == []
    assert consumer.settled == [("ack", 1), ("ack", 2)]
    # Nothing came: the session's name is the same.
    task = poll(house, f"session={second['session']}")
    house.runtime.advance(25.0)
    assert answer(task) == {**second, "messages": []}


def test_an_answer_that_was_not_seen_comes_again() -> None:
    house = House()
    task = poll(house)
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    consumer.deliver(b"2")
    house.runtime.settle()
    first = answer(task)
    assert settle(house, ack=first["messages"][0]["ack"]) == []
    task = poll(house, f"session={first['session']}")
    consumer.deliver(b"3")
    house.runtime.settle()
    lost = answer(task)
    assert consumer.settled == [("ack", 1)]
    # The second answer was lost on its way: what was in it goes back, not what was in the first.
    task = poll(house, f"session={first['session']}")
    assert consumer.settled == [("ack", 1), ("requeue", 3)]
    assert settle(house, ack=lost["messages"][0]["ack"]) == ["returned"]
    consumer.deliver(b"3", redelivered=True)
    house.runtime.settle()
    third = answer(task)
    assert [each["body"] for each in third["messages"]] == ["3"]
    assert third["session"] != lost["session"]


def test_a_session_ends_when_its_client_stays_away() -> None:
    house = House(poll_idle=60.0)
    task = poll(house)
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    house.runtime.settle()
    first = answer(task)
    assert house.services.polls
    house.runtime.advance(59.0)
    # An ack is a sign of life, even one that comes too late.
    assert settle(house, ack=[first["messages"][0]["ack"]] * 2) == ["settled"]
    house.runtime.advance(59.0)
    assert not consumer.closed
    house.runtime.advance(1.0)
    assert consumer.closed
    assert not house.services.polls
    assert settle(house, ack=first["messages"][0]["ack"]) == ["not_found"]
    # It is begun anew, under another name.
    task = poll(house, f"session={first['session']}")
    assert len(house.consumers) == 2
    house.consumers[1].deliver(b"1", redelivered=True)
    house.runtime.settle()
    assert answer(task)["session"].split(".")[1] != first["session"].split(".")[1]


def test_a_client_that_breaks_off_gives_everything_back() -> None:
    house = House()
    task = poll(house)
    house.consumers[0].deliver(b"1")
    house.runtime.settle()
    first = answer(task)
    task = poll(house, f"session={first['session']}")
    task.cancel()
    house.runtime.settle()
    assert house.consumers[0].closed
    assert not house.services.polls
    house.runtime.advance(1000.0)


def test_a_second_poll_takes_the_place_of_the_first() -> None:
    house = House()
    task = poll(house)
    house.consumers[0].deliver(b"1")
    house.runtime.settle()
    first = answer(task)
    waiting = poll(house, f"session={first['session']}")
    second = poll(house, f"session={first['session']}")
    assert refusal(waiting).code == "conflict"
    assert not second.done
    house.consumers[0].deliver(b"2")
    house.runtime.settle()
    assert [each["body"] for each in answer(second)["messages"]] == ["2"]
    house.runtime.advance(59.0)
    assert not house.consumers[0].closed
    house.runtime.advance(1.0)
    assert house.consumers[0].closed


def test_a_lease_runs_from_the_answer_and_a_poll_is_a_sign_of_life() -> None:
    house = House()
    task = poll(house, "lease=10s")
    (consumer,) = house.consumers
    consumer.deliver(b"1")
    house.runtime.settle()
    first = answer(task)
    house.runtime.advance(10.0)
    assert consumer.settled == [("requeue", 1)]
    assert consumer.paused
    assert settle(house, ack=first["messages"][0]["ack"]) == ["returned"]
    task = poll(house, f"session={first['session']}")
    assert not consumer.paused
    assert not task.done
    task.cancel()
    house.runtime.settle()


def test_refusals() -> None:
    house = House(poll_sessions=1)
    assert refusal(poll(house, path="/topic/a")).code == "bad_request"
    assert refusal(poll(house, "session=x")).code == "bad_request"
    task = poll(house)
    house.consumers[0].deliver(b"1")
    house.runtime.settle()
    session = answer(task)["session"]
    assert refusal(poll(house)).code == "limit"
    assert refusal(poll(house, f"session={session}", path="/queue/b")).code == "bad_request"
    foreign = ".".join(("other-node", *session.split(".")[1:]))
    away = refusal(poll(house, f"session={foreign}"))
    assert away.code == "elsewhere"
    assert "other-node" in away.text
    house.services.drain.begun = True
    assert refusal(poll(house, f"session={session}")).code == "unavailable"
    assert house.services.polls, "acks still find it"


def test_a_queue_that_is_deleted_ends_the_session() -> None:
    house = House()
    task = poll(house)
    house.consumers[0].sink.cancelled(NotFound("the queue 'a' was deleted"))
    house.runtime.settle()
    assert refusal(task).code == "not_found"
    assert not house.services.polls
    task = poll(house)
    house.consumers[1].deliver(b"1")
    house.runtime.settle()
    session = answer(task)["session"]
    house.consumers[1].sink.cancelled(NotFound("the queue 'a' was deleted"))
    assert refusal(poll(house, f"session={session}")).code == "not_found"
    assert not house.services.polls


def test_sessions_of_other_kinds_are_not_polled() -> None:
    house = House()
    house.services.acks = Acks("one")
    stream = Stream(house, "/queue/a")
    task = poll(house, f"session={stream.session.ack_name}.0")
    assert not task.done
    assert len(house.consumers) == 2
    task.cancel()
    house.runtime.settle()
