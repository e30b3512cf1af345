"""Who comes to an open feed is answered in the call that asks, without a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from queuecast.destination import Destination
from queuecast.position import Position, Start
from queuecast.sessions.base import Session
from queuecast.sessions.request import SubscribeRequest
from queuecast.sessions.services import Account
from queuecast.sessions.sse import SseSession
from queuecast.sessions.websocket import WebSocketSession

from .stomp_rig import FakeTransport, House, frames, logged_in, stomp

A = Destination.parse("/topic/a")
BARE = SubscribeRequest((A,), in_path=True)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="

Make = Callable[[House, SubscribeRequest], Session]


def websocket(house: House, request: SubscribeRequest) -> Session:
    return WebSocketSession(house.services, FakeTransport(), request, key=KEY)


def sse(house: House, request: SubscribeRequest) -> Session:
    return SseSession(house.services, FakeTransport(), request)


BOTH = pytest.mark.parametrize("make", [websocket, sse])


def started(
    house: House, make: Make, request: SubscribeRequest = BARE
) -> tuple[Session, FakeTransport]:
    """A session in the moment in which its request was read; no turn of the loop has passed."""
    session = make(house, request)
    session.start()
    assert isinstance(session.transport, FakeTransport)
    return session, session.transport


def opened(make: Make) -> House:
    """A house with an open feed of /topic/a."""
    house = House()
    _, transport = started(house, make)
    assert transport.written == b"", "nothing is open yet"
    house.runtime.settle()
    assert transport.written
    return house


@BOTH
def test_an_open_feed_is_joined_in_the_same_call(make: Make) -> None:
    house = opened(make)
    tasks = len(house.runtime.tasks)
    session, transport = started(house, make)
    answer = transport.written
    assert answer.startswith(b"HTTP/1.1 101 " if make is websocket else b"HTTP/1.1 200 ")
    assert transport.reading
    assert session.subscriptions[0].live
    assert len(house.runtime.tasks) == tasks
    house.append("/topic/a", b"one")
    assert b"one" in transport.written[len(answer) :]
    assert house.hub.stats.encodes == 1
    session.connection_lost()
    assert house.feeds["/topic/a"].subscribers.isdisjoint(session.subscriptions)


@BOTH
def test_both_ways_answer_alike(make: Make) -> None:
    house = House()
    _, waited = started(house, make)
    house.runtime.settle()
    _, at_once = started(house, make)
    assert at_once.written == waited.written


@BOTH
def test_a_place_is_resumed_at_once(make: Make) -> None:
    house = opened(make)
    seen = house.feeds["/topic/a"].position()
    house.append("/topic/a", b"missed")
    request = SubscribeRequest((A,), Start("since", position=seen), in_path=True)
    _, transport = started(house, make, request)
    assert transport.written.count(b"missed") == 1
    assert len(transport.writes) == 1, "what was missed comes with the answer"
    house.runtime.settle()
    assert len(transport.writes) == 1
    strange = Start("since", position=Position.parse("0a0b-7"))
    session, transport = started(house, make, SubscribeRequest((A,), strange, in_path=True))
    assert transport.written.count(b"gap") == 1, "it is told at once, with the answer"
    house.runtime.settle()
    assert session.subscriptions[0].live


@BOTH
@pytest.mark.parametrize("why", ["policy", "drain", "room"])
def test_who_is_refused_is_refused_as_ever(make: Make, why: str) -> None:
    house = opened(make)
    if why == "policy":
        house.denied.add("/topic/a")
    elif why == "drain":
        house.services.drain.begun = True
    else:
        house.services.limits = replace(house.services.limits, subscriptions=0)
    session, transport = started(house, make)
    assert not session.subscriptions
    assert transport.written == b""
    house.runtime.settle()
    assert not session.subscriptions
    assert session.closed
    assert b"one" not in transport.written


def test_stomp_subscribes_at_once() -> None:
    house, first = logged_in()
    first.say("SUBSCRIBE", id="1", destination="/topic/a", receipt="r")
    client = house.fresh()
    tasks = len(house.runtime.tasks)
    client.session.receive_data(
        stomp("SUBSCRIBE", id="1", destination="/topic/a", receipt="r")
        + stomp("SUBSCRIBE", id="1", destination="/topic/a", receipt="again")
    )
    receipt, error = client.got()
    assert (receipt.command, error.command) == ("RECEIPT", "ERROR"), "in the client's order"
    assert receipt.headers["position"]
    assert len(house.runtime.tasks) == tasks
    other = house.fresh()
    house.denied.add("/topic/a")
    assert other.say("SUBSCRIBE", id="1", destination="/topic/a")[0].command == "ERROR"


def test_a_login_that_is_recalled_needs_no_turn() -> None:
    house = House()
    asked = []

    def recall(user: str, passcode: str, host: str | None, *, loopback: bool) -> Account | None:
        asked.append((user, passcode, host, loopback))
        return Account(user, house.services, lambda: None) if passcode == "guest" else None

    house.services.recall = recall
    client = house.open()
    connect = stomp("CONNECT", accept_version="1.2", login="app", passcode="guest")
    client.session.receive_data(connect + stomp("SEND", b"x", destination="/topic/a"))
    assert [frame.command for frame in frames(client.transport.written)] == ["CONNECTED"]
    assert client.transport.reading
    assert client.session.identity.name == "app"
    assert house.logins == []
    wrong = house.open()
    (refused,) = wrong.say("CONNECT", accept_version="1.2", login="app", passcode="no")
    assert refused.command == "ERROR"
    assert house.logins == [("app", "no", None, True)] == asked[1:]


def test_stomp_gets_what_it_missed_with_the_receipt() -> None:
    house, first = logged_in()
    (receipt,) = first.say("SUBSCRIBE", id="1", destination="/topic/a", receipt="r")
    house.append("/topic/a", b"missed")
    client = house.fresh()
    writes = len(client.transport.writes)
    client.session.receive_data(
        stomp(
            "SUBSCRIBE",
            id="1",
            destination="/topic/a",
            receipt="r",
            since=receipt.headers["position"],
        )
    )
    answer, message = client.got()
    assert (answer.command, message.command, message.body) == ("RECEIPT", "MESSAGE", b"missed")
    assert answer.headers["position"] == receipt.headers["position"], "where it began"
    assert len(client.transport.writes) == writes + 1
    house.append("/topic/a", b"next")
    assert [frame.body for frame in client.got()] == [b"next"]
