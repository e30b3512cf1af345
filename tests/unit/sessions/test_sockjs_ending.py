"""How SockJS sessions over HTTP end, what bounds them, and whose they are."""

from __future__ import annotations

import pytest

from queuecast.codecs.sockjs import Wire
from queuecast.disconnect import SHUTDOWN
from queuecast.errors import BadRequest, LimitExceeded, NotFound
from queuecast.sessions.sockjs import SENDERS, STALLED
from tests.unit.sessions.sockjs_rig import (
    LOGIN,
    Browser,
    Rig,
    Stream,
    bodies,
    stomp_frames,
)
from tests.unit.sessions.stomp_rig import ELSEWHERE, HERE, stomp

INTERRUPTED = ["c", [1002, "Connection interrupted"]]
ANOTHER = ["c", [2010, "Another connection still open"]]
GO_AWAY = ["c", [3000, "Go away!"]]


def subscribed(rig: Rig, destination: str = "/topic/a", **headers: str) -> Browser:
    browser = rig.open()
    browser.log_in()
    headers = {"id": "sub-0", "receipt": "r", **headers}
    browser.send(stomp("SUBSCRIBE", destination=destination, **headers))
    (receipt,) = stomp_frames(browser.poll())
    assert receipt.command == "RECEIPT"
    return browser


def streaming(rig: Rig, wire: Wire = Wire.XHR) -> tuple[Browser, Stream]:
    browser = rig.open(wire)
    stream = browser.stream()
    browser.send(LOGIN, stomp("SUBSCRIBE", id="sub-0", destination="/topic/a"))
    rig.runtime.settle()
    stream.transport.written = b""
    stream.transport.writes.clear()
    return browser, stream


# -- one receiver at a time ---------------------------------------------------------------


def test_a_second_receiver_is_told_of_the_first() -> None:
    rig = Rig()
    browser = subscribed(rig)
    assert browser.poll() is None
    first = browser.waiting
    assert browser.poll() == ANOTHER
    stream = browser.stream()
    assert stream.take() == [ANOTHER]
    assert stream.transport.closed
    stream.receiver.connection_lost()
    browser.waiting = first
    rig.house.append("/topic/a", b"x")
    assert bodies(browser.answered()) == [b"x"], "the first goes on"


def test_a_receiver_of_another_wire_is_refused() -> None:
    rig = Rig()
    browser, _ = streaming(rig, Wire.EVENTSOURCE)
    with pytest.raises(BadRequest, match="eventsource"):
        browser.session.check_wire(Wire.XHR)
    browser.session.check_wire(Wire.EVENTSOURCE)


# -- the end ------------------------------------------------------------------------------


def test_a_receiver_that_is_cut_ends_the_session() -> None:
    """What was on its way may be lost: to go on would be a silent hole."""
    rig = Rig()
    browser, stream = streaming(rig)
    assert rig.house.accounts == 1
    stream.cut()
    rig.runtime.settle()
    assert rig.house.accounts == 0, "the conversation is over"
    assert browser.poll() == INTERRUPTED
    assert browser.poll() == INTERRUPTED
    rig.pass_time(6)
    assert len(rig.sessions) == 0


def test_a_poll_that_is_cut_ends_the_session() -> None:
    rig = Rig()
    browser = subscribed(rig)
    waiting = browser.ask()
    waiting.cancelled()
    rig.runtime.settle()
    assert rig.house.accounts == 0
    assert browser.poll() == INTERRUPTED


def test_an_answer_that_ended_in_order_may_be_cut() -> None:
    rig = Rig()
    browser, stream = streaming(rig)
    while not stream.transport.closed:
        rig.house.append("/topic/a", b"x" * 50_000)
    stream.receiver.connection_lost()
    assert not browser.session.over


def test_a_session_without_a_receiver_is_over_after_five_seconds() -> None:
    rig = Rig()
    browser = subscribed(rig)
    other = subscribed(rig)
    assert other.poll() is None
    rig.pass_time(4)
    assert rig.sessions.find(browser.session.id, HERE, None) is browser.session
    rig.pass_time(2)
    assert rig.sessions.find(browser.session.id, HERE, None) is None
    assert rig.house.accounts == 1, "whoever waits stays"
    assert not other.session.over
    task = browser.send(b"x")
    with pytest.raises(NotFound):
        task.result()


def test_an_error_is_told_before_the_end() -> None:
    rig = Rig()
    browser = subscribed(rig)
    browser.send(stomp("SUBSCRIBE", id="sub-0", destination="/topic/b", receipt="2"))
    (error,) = stomp_frames(browser.poll())
    assert error.command == "ERROR"
    assert error.headers["receipt-id"] == "2"
    ending = ["c", [1000, error.headers["message"]]]
    assert browser.poll() == ending
    assert browser.poll() == ending
    rig.pass_time(6)
    assert len(rig.sessions) == 0


def test_a_stream_gets_the_error_and_the_end() -> None:
    rig = Rig()
    browser, stream = streaming(rig)
    browser.send(stomp("SUBSCRIBE", id="sub-0", destination="/topic/b"))
    error, ending = stream.take()
    assert stomp_frames(error)[0].command == "ERROR"
    assert ending == ["c", [1000, stomp_frames(error)[0].headers["message"]]]
    assert stream.transport.closed
    assert not stream.transport.aborted


def test_a_poll_that_waits_gets_the_error() -> None:
    rig = Rig()
    browser = subscribed(rig)
    assert browser.poll() is None
    browser.send(stomp("SUBSCRIBE", id="sub-0", destination="/topic/b"))
    assert stomp_frames(browser.answered())[0].command == "ERROR"
    found = browser.poll()
    assert isinstance(found, list)
    assert found[0] == "c"


def test_a_client_that_leaves_in_order() -> None:
    rig = Rig()
    browser = subscribed(rig)
    assert browser.poll() is None
    browser.send(stomp("DISCONNECT", receipt="bye"))
    (receipt,) = stomp_frames(browser.answered())
    assert receipt.headers["receipt-id"] == "bye"
    assert browser.poll() == ["c", [1000, "bye"]]


def test_what_is_no_stomp_ends_the_session_with_a_reason() -> None:
    rig = Rig()
    browser = rig.open()
    assert browser.poll() == "o"
    assert browser.poll() is None
    browser.send(b"CONNECT\nno colon\n\n\0")
    found = browser.answered()
    assert isinstance(found, list)
    assert found[0] == "c"
    assert found[1][0] == 1007


def test_nobody_logged_in() -> None:
    rig = Rig(login=10)
    browser = rig.open()
    stream = browser.stream()
    rig.pass_time(11)
    assert stream.take() == ["o", ["c", [1000, "nobody logged in"]]]
    assert stream.transport.closed


def test_the_gateway_stops() -> None:
    rig = Rig()
    browser = subscribed(rig)
    assert browser.poll() is None
    _, stream = streaming(rig)
    resting = subscribed(rig)
    for session in rig.sessions:
        session.disconnect(SHUTDOWN)
    (error,) = stomp_frames(browser.answered())
    assert error.headers["message"] == "shutdown"
    assert browser.poll() == ["c", [1012, SHUTDOWN.text]]
    assert stream.take()[1] == ["c", [1012, SHUTDOWN.text]]
    assert stomp_frames(resting.poll())[0].command == "ERROR"
    for session in rig.sessions:
        session.disconnect(SHUTDOWN)
    assert rig.house.accounts == 0


# -- bounds -------------------------------------------------------------------------------


def test_a_client_that_sends_and_never_polls_is_not_listened_to_and_closed() -> None:
    rig = Rig()
    browser = subscribed(rig)
    unknown = stomp("NONSENSE" * 3, receipt="r" * 1000)
    tasks = [browser.send(unknown) for _ in range(100)]
    done = [task for task in tasks if task.done and task.error is None]
    refused = [task for task in tasks if isinstance(task.error, LimitExceeded)]
    waiting = [task for task in tasks if not task.done]
    assert len(waiting) == SENDERS
    assert len(done) + len(refused) + len(waiting) == 100
    assert browser.session._held_bytes < STALLED + 5000
    rig.pass_time(6)
    assert all(isinstance(task.error, NotFound) for task in waiting)
    assert len(rig.sessions) == 0
    assert rig.house.accounts == 0


def test_one_that_polls_again_is_listened_to_again() -> None:
    rig = Rig()
    browser = subscribed(rig)
    unknown = stomp("NONSENSE" * 3, receipt="r" * 1000)
    tasks = [browser.send(unknown) for _ in range(24)]
    waiting = [task for task in tasks if not task.done]
    assert waiting
    errors = 0
    for _ in range(50):
        found = browser.poll()
        if found is None:
            break
        errors += len(stomp_frames(found))
    assert all(task.done and task.error is None for task in waiting)
    accepted = [task for task in tasks if task.error is None]
    assert errors == len(accepted)


def test_a_sender_that_goes_while_it_waits_gives_its_turn_away() -> None:
    rig = Rig()
    browser = subscribed(rig)
    unknown = stomp("NONSENSE" * 3, receipt="r" * 1000)
    while (gone := browser.send(unknown)).done:
        pass
    last = browser.send(stomp("SEND", b"x", destination="/topic/b"))
    gone.cancel()
    rig.runtime.settle()
    while browser.poll() is not None:
        pass
    assert last.done
    assert [each.body for each in rig.house.published] == [b"x"]


def test_answers_that_come_all_at_once_are_bounded() -> None:
    rig = Rig(publishing=5000, publishing_bytes=1 << 30)
    rig.house.confirm_at_once = False
    browser = subscribed(rig)
    for n in range(200):
        browser.send(stomp("SEND", b"x", destination="/topic/b", receipt=f"{n}" + "r" * 10_000))
    assert len(rig.house.published) == 200
    for published in rig.house.published:
        published.confirm.set_result(None)
    rig.runtime.settle()
    assert browser.session.over
    assert browser.session._held_bytes == 0
    assert browser.poll() == INTERRUPTED
    assert rig.house.accounts == 0


def test_sessions_are_counted() -> None:
    rig = Rig(limit=2)
    first, _ = rig.open(), rig.open()
    with pytest.raises(LimitExceeded, match="2 SockJS sessions"):
        rig.open()
    assert first.poll() == "o"
    rig.pass_time(6)
    assert rig.sessions.find(first.session.id, HERE, None) is None


def test_a_session_whose_receiver_never_came_times_out_too() -> None:
    rig = Rig()
    rig.open()
    rig.pass_time(6)
    assert len(rig.sessions) == 0


# -- whose it is --------------------------------------------------------------------------


def test_a_session_is_its_origins() -> None:
    rig = Rig()
    browser = rig.open(origin="http://a.example")
    id = browser.session.id
    assert rig.sessions.find(id, HERE, "http://a.example") is browser.session
    assert rig.sessions.find(id, HERE, None) is browser.session, "a GET to its own server"
    assert rig.sessions.find(id, HERE, "http://b.example") is None
    assert rig.sessions.find(id, ELSEWHERE, "http://a.example") is None
    with pytest.raises(NotFound):
        rig.sessions.open(id, Wire.XHR, ELSEWHERE, "http://b.example")


def test_the_first_origin_that_shows_counts() -> None:
    rig = Rig()
    browser = rig.open()
    id = browser.session.id
    assert rig.sessions.find(id, HERE, "http://a.example") is browser.session
    assert rig.sessions.find(id, HERE, "http://b.example") is None
