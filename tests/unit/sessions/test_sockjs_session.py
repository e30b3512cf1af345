"""SockJS sessions over HTTP: receivers come and go, the conversation stands still between."""

from __future__ import annotations

import pytest

from queuecast.codecs.sockjs import Wire
from queuecast.sessions.sockjs_receivers import RESPONSE
from tests.unit.sessions.sockjs_rig import (
    LOGIN,
    Browser,
    Rig,
    Stream,
    bodies,
    stomp_frames,
)
from tests.unit.sessions.stomp_rig import stomp

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


# -- polling ------------------------------------------------------------------------------


def test_a_poll_waits_for_messages_and_gets_all_of_a_turn() -> None:
    rig = Rig()
    browser = subscribed(rig)
    assert browser.poll() is None
    rig.house.append("/topic/a", b"1", b"2", b"3")
    assert bodies(browser.answered()) == [b"1", b"2", b"3"]
    assert browser.poll() is None
    rig.house.append("/topic/a", b"4")
    assert bodies(browser.answered()) == [b"4"]


def test_a_session_without_a_receiver_is_a_paused_cursor() -> None:
    rig = Rig()
    browser = subscribed(rig)
    for n in range(1000):
        rig.house.append("/topic/a", b"%d" % n)
    assert browser.session._held_bytes == 0, "the log holds them, not the session"
    got: list[bytes] = []
    while len(got) < 1000:
        got += bodies(browser.poll())
    assert got == [b"%d" % n for n in range(1000)]
    assert browser.poll() is None


def test_a_queues_messages_stay_there_between_receivers() -> None:
    rig = Rig(held=1000)
    browser = subscribed(rig, "/queue/q")
    (consumer,) = rig.house.consumers
    for _ in range(20):
        consumer.deliver(b"x" * 100)
    rig.runtime.settle()
    assert consumer.settled == [], "nothing is acked that was not written"
    assert consumer.paused, "more than that stays at the broker"
    got: list[bytes] = []
    while len(got) < 20:
        got += bodies(browser.poll())
    assert [how for how, _ in consumer.settled] == ["ack"] * 20
    assert not consumer.paused


def test_a_client_that_leaves_its_receiver_gets_its_unacked_messages_back_into_the_queue() -> None:
    rig = Rig()
    browser = subscribed(rig, "/queue/q", ack="client")
    (consumer,) = rig.house.consumers
    consumer.deliver(b"mine")
    assert bodies(browser.poll()) == [b"mine"]
    rig.pass_time(6)
    assert consumer.closed
    assert consumer.settled == []


def test_what_a_client_sends_between_polls_is_done_at_once() -> None:
    """A page that sends and is closed has no poll any more."""
    rig = Rig()
    browser = subscribed(rig)
    browser.send(stomp("SEND", b"last words", destination="/topic/b", receipt="1"))
    assert [each.body for each in rig.house.published] == [b"last words"]
    (receipt,) = stomp_frames(browser.poll())
    assert receipt.headers["receipt-id"] == "1"


def test_an_idle_poll_is_answered_with_a_heartbeat() -> None:
    rig = Rig()
    browser = subscribed(rig)
    assert browser.poll() is None
    rig.pass_time(25)
    assert browser.answered() == "h"
    assert browser.poll() is None


def test_frames_may_be_cut_and_joined_in_any_way() -> None:
    rig = Rig()
    browser = rig.open()
    assert browser.poll() == "o"
    frame = stomp("SEND", "größer".encode(), destination="/topic/b").decode()
    browser.send(LOGIN + frame.encode() + frame.encode())
    parts = [part.encode() for part in frame]
    for part in parts:
        browser.send(part)
    assert [each.body.decode() for each in rig.house.published] == ["größer"] * 3


# -- streaming ----------------------------------------------------------------------------


def test_an_answer_that_is_long_enough_ends_and_the_next_goes_on() -> None:
    rig = Rig()
    browser, stream = streaming(rig)
    sent = 0
    got: list[bytes] = []
    while not stream.transport.closed:
        rig.house.append("/topic/a", b"%05d" % sent + b"x" * 5000)
        sent += 1
    assert len(stream.transport.written) >= RESPONSE
    assert len(stream.transport.written) < RESPONSE + 10_000
    for found in stream.take():
        got += bodies(found)
    for _ in range(3):
        rig.house.append("/topic/a", b"%05d" % sent + b"x" * 5000)
        sent += 1
    stream.receiver.connection_lost()
    again = browser.stream()
    for found in again.take():
        got += bodies(found)
    assert [int(body[:5]) for body in got] == list(range(sent))
    assert not browser.session.over


def test_an_answer_ends_only_when_the_socket_has_all_of_it() -> None:
    """An EventSource cannot tell the end of an answer from a cut."""
    rig = Rig()
    for cut in (False, True):
        browser, stream = streaming(rig)
        stream.transport.stuck = 1
        while stream.transport.high != 0:
            rig.house.append("/topic/a", b"x" * 50_000)
        written = len(stream.transport.written)
        assert written >= RESPONSE
        stream.receiver.pause_writing()
        rig.house.append("/topic/a", b"next")
        assert len(stream.transport.written) == written, "it takes no more"
        assert not stream.transport.closed
        if cut:
            stream.cut()
            assert browser.session.over
            continue
        stream.transport.stuck = 0
        stream.receiver.resume_writing()
        assert stream.transport.closed
        stream.receiver.connection_lost()
        (found,) = browser.stream().take()
        assert bodies(found) == [b"next"]


def test_a_full_socket_pauses_the_conversation() -> None:
    rig = Rig()
    _, stream = streaming(rig)
    stream.receiver.pause_writing()
    rig.house.append("/topic/a", b"1")
    assert stream.take() == []
    stream.receiver.resume_writing()
    rig.runtime.settle()
    (found,) = stream.take()
    assert bodies(found) == [b"1"]


def test_a_stream_has_heartbeats() -> None:
    rig = Rig()
    _, stream = streaming(rig)
    stream.receiver.heartbeat(0.0)
    assert stream.take() == ["h"]
    stream.receiver.pause_writing()
    stream.receiver.heartbeat(0.0)
    assert stream.take() == []


# -- encodes ------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", Wire)
def test_a_thousand_streams_share_one_encode_and_get_one_write(wire: Wire) -> None:
    rig = Rig()
    streams = [streaming(rig, wire)[1] for _ in range(1000)]
    rig.house.append("/topic/a", b"warm up")
    for stream in streams:
        stream.transport.writes.clear()
    before = rig.house.hub.stats.encodes
    rig.house.append("/topic/a", *[b"%d" % n for n in range(50)])
    assert rig.house.hub.stats.encodes - before == 1
    (first,) = streams[0].transport.writes
    for stream in streams:
        (data,) = stream.transport.writes
        assert data is first, "the very object"


def test_a_thousand_polls_share_one_encode() -> None:
    rig = Rig()
    browsers = [subscribed(rig) for _ in range(1000)]
    rig.house.append("/topic/a", b"warm up")
    for browser in browsers:
        assert bodies(browser.poll()) == [b"warm up"]
    for browser in browsers:
        assert browser.poll() is None
    before = rig.house.hub.stats.encodes
    rig.house.append("/topic/a", *[b"%d" % n for n in range(50)])
    assert rig.house.hub.stats.encodes - before == 1
    for browser in browsers:
        assert len(bodies(browser.answered())) == 50
    # Those who come late read on from the log, and share as well.
    rig.house.append("/topic/a", b"late")
    before = rig.house.hub.stats.encodes
    for browser in browsers:
        assert bodies(browser.poll()) == [b"late"]
    assert rig.house.hub.stats.encodes - before <= 1


def test_what_differs_on_the_wire_is_not_shared() -> None:
    rig = Rig()
    for wire in Wire:
        for _ in range(3):
            streaming(rig, wire)
    rig.house.append("/topic/a", b"warm up")
    before = rig.house.hub.stats.encodes
    rig.house.append("/topic/a", b"x")
    assert rig.house.hub.stats.encodes - before == 3
