"""How a STOMP session ends, and what it does with garbage."""

from __future__ import annotations

import pytest

from queuecast.disconnect import SHUTDOWN
from tests.unit.sessions.stomp_rig import (
    House,
    error,
    logged_in,
    stomp,
)


def test_disconnect_is_answered_after_everything_before_it() -> None:
    house, client = logged_in()
    house.confirm_at_once = False
    client.raw(stomp("SEND", b"1", destination="/topic/a") + stomp("DISCONNECT", receipt="bye"))
    assert client.got() == []
    house.published[0].confirm.set_result(None)
    house.runtime.settle()
    (got,) = client.got()
    assert (got.command, got.headers["receipt-id"]) == ("RECEIPT", "bye")
    assert client.transport.ended
    house.runtime.advance(2)
    assert client.transport.closed


def test_an_unknown_command() -> None:
    _, client = logged_in()
    failed = error(client, "DANCE", receipt="1")
    assert failed["message"] == "Bad command"
    assert failed["body"] == 'Could not interpret command "DANCE"\n'
    assert not client.gone


@pytest.mark.parametrize(
    "garbage",
    [
        b"SEND\nno colon\n\n\0",
        b"SEND\nbad:\\t\n\n\0",
        b"\xff\xfe\xfd\n\n\0",
        b"x" * 100,
        b"SEND\n" + b"a:b\n" * 200 + b"\n\0",
        b"SEND\ncontent-length:1\n\nxx\0",
    ],
)
def test_garbage_closes_without_an_error(garbage: bytes) -> None:
    house, client = logged_in()
    assert client.raw(garbage) == []
    assert client.gone
    assert client.transport.ended
    assert client.raw(b"more") == []
    house.runtime.advance(2)
    assert client.transport.closed


def test_a_stranger_cannot_send_a_large_frame() -> None:
    client = House().open()
    client.raw(b"SEND\n\n" + b"x" * 70_000)
    assert client.gone
    _, known = logged_in()
    known.raw(b"SEND\ndestination:/topic/a\n\n" + b"x" * 70_000 + b"\0")
    assert not known.gone


def test_a_shutdown_is_told() -> None:
    _, client = logged_in()
    client.session.disconnect(SHUTDOWN)
    (got,) = client.got()
    assert (got.command, got.headers["message"]) == ("ERROR", "shutdown")


def test_a_client_that_does_not_read_is_cut_off() -> None:
    _, client = logged_in()
    client.session.pause_writing()
    client.session.disconnect(SHUTDOWN)
    assert client.transport.aborted


def test_answers_do_not_gather_for_who_does_not_read() -> None:
    _, client = logged_in()
    client.session.pause_writing()
    assert client.raw(stomp("DANCE") * 1000) == []
    assert not client.transport.reading
    client.session.resume_writing()
    assert len(client.got()) == 1000
