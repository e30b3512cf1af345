"""Logging in to STOMP, and the heart-beats agreed on then."""

from __future__ import annotations

import pytest

from tests.unit.sessions.stomp_rig import (
    ELSEWHERE,
    House,
    error,
    logged_in,
    stomp,
)


@pytest.mark.parametrize(
    ("offered", "version"),
    [(None, "1.0"), ("1.0", "1.0"), ("1.0,1.1", "1.1"), ("1.2,1.1,9.9", "1.2")],
)
@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
def test_connected(command: str, offered: str | None, version: str) -> None:
    client = House().open()
    headers = {} if offered is None else {"accept_version": offered}
    (got,) = client.say(command, login="guest", passcode="guest", **headers)
    assert got.command == "CONNECTED"
    assert got.headers["version"] == version
    assert got.headers["heart-beat"] == "0,0"
    assert got.headers["session"].startswith("session-")
    assert got.headers["server"].startswith("Queuecast/")


def test_versions_without_a_common_one() -> None:
    client = House().open()
    failed = error(client, "CONNECT", accept_version="2.0", login="guest", passcode="guest")
    assert failed["message"] == "Version mismatch"
    assert failed["body"] == "Supported versions are 1.0,1.1,1.2\n"
    client.log_in()


def test_a_wrong_passcode_is_refused_and_the_connection_stays() -> None:
    client = House().open()
    failed = error(client, "CONNECT", login="guest", passcode="wrong")
    assert failed["message"] == "Bad CONNECT"
    assert failed["body"] == "Access refused for user 'guest'\n"
    assert not client.gone
    assert error(client, "SEND", destination="/topic/a")["message"] == "Illegal command"
    client.log_in()


def test_the_default_user_is_for_this_machine_only() -> None:
    house = House()
    (got,) = house.open().say("CONNECT")
    assert got.command == "CONNECTED"
    assert house.logins == [("guest", "guest", None, True)]
    stranger = house.open(peer=ELSEWHERE)
    assert error(stranger, "CONNECT")["body"] == "Missing login or passcode header(s)\n"
    assert len(house.logins) == 1


@pytest.mark.parametrize("headers", [{"login": "guest"}, {"passcode": "guest"}])
def test_half_a_login(headers: dict[str, str]) -> None:
    failed = error(House().open(), "CONNECT", **headers)
    assert failed["body"] == "Missing login or passcode header(s)\n"


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("/", "/"),
        ("prod", "prod"),
        ("gateway.example", None),
        ("GATEWAY.example:15674", None),
        ("", None),
    ],
)
def test_the_name_that_was_dialled_is_the_default_virtual_host(
    host: str, asked: str | None
) -> None:
    house = House()
    house.open().log_in(host=host.replace(":", "\\c"))
    assert house.logins[0][2] == asked


def test_names_that_are_too_long_never_reach_the_broker() -> None:
    house = House()
    client = house.open()
    long = "x" * 256
    assert error(client, "CONNECT", login=long, passcode="p")["message"] == "Bad CONNECT"
    failed = error(client, "CONNECT", login="guest", passcode="guest", host=long)
    assert failed["message"] == "Bad CONNECT"
    assert house.logins == []


def test_connecting_twice() -> None:
    _, client = logged_in()
    assert error(client, "CONNECT", login="guest", passcode="guest")["message"] == "Illegal command"


@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE", "DISCONNECT", "ACK"])
def test_nothing_before_connect(command: str) -> None:
    house = House()
    client = house.open()
    failed = error(client, command, destination="/queue/a", receipt="7")
    assert failed["message"] == "Illegal command"
    assert failed["body"] == "You must log in using CONNECT first\n"
    assert failed["receipt-id"] == "7"
    assert not client.gone
    assert house.published == []


def test_a_page_cannot_speak_stomp_through_its_browsers_http() -> None:
    house = House()
    client = house.open()
    body = stomp("CONNECT") + stomp("SEND", b"x", destination="/topic/a")
    head = b"POST / HTTP/1.1\r\nHost: localhost:61613\r\nContent-Length: 99\r\n\r\n"
    assert client.raw(head + b"\0" + body) == []
    assert client.gone
    assert (house.logins, house.published) == ([], [])


def test_frames_behind_connect_wait_for_the_login() -> None:
    house = House()
    house.login_waits = house.runtime.promise()
    client = house.open()
    login = stomp("CONNECT", login="guest", passcode="guest")
    assert client.raw(login + stomp("SEND", b"x", destination="/topic/a", receipt="1")) == []
    assert not client.transport.reading
    house.login_waits.set_result(None)
    house.runtime.settle()
    assert [each.command for each in client.got()] == ["CONNECTED", "RECEIPT"]
    assert client.transport.reading


def test_who_does_not_log_in_is_closed_silently() -> None:
    house = House()
    silent, slow, fine = house.open(), house.open(), house.open()
    fine.log_in()
    house.login_waits = house.runtime.promise()
    slow.say("CONNECT", login="guest", passcode="guest")
    house.runtime.advance(10)
    assert silent.gone
    assert slow.gone
    assert not fine.gone
    assert silent.got() == []
    assert house.login_waits.done(), "nobody waits for that verdict any more"
    house.runtime.advance(2)
    assert silent.transport.closed
    assert house.accounts == 1, "the login that came too late holds nothing"


def test_the_account_is_left_once() -> None:
    house, client = logged_in()
    assert house.accounts == 1
    client.say("DISCONNECT")
    client.session.connection_lost()
    assert house.accounts == 0


def test_1_0_values_are_trimmed() -> None:
    house = House()
    client = house.open()
    client.raw(b"CONNECT\nlogin: guest\npasscode: guest\n\n\0")
    assert house.logins == [("guest", "guest", None, True)]
    client.raw(b"SEND\ndestination: /topic/a\n\nx\0")
    assert house.published[0].destination == "/topic/a"


# -- heart-beats --------------------------------------------------------------------------


def test_we_beat_twice_as_often_as_promised() -> None:
    house = House()
    client = house.open()
    assert client.log_in(heart_beat="0,4000").headers["heart-beat"] == "4000,0"
    client.transport.writes.clear()
    for _ in range(4):
        house.runtime.advance(1)
    assert client.transport.writes == [b"\n", b"\n"]
    client.session.pause_writing()
    house.runtime.advance(2)
    assert len(client.transport.writes) == 2, "nothing is added to what is not read"
    client.session.connection_lost()
    house.runtime.advance(10)
    assert len(client.transport.writes) == 2


def test_a_client_without_a_sign_of_life_is_closed_without_an_error() -> None:
    house = House()
    quiet, beating = house.open(), house.open()
    quiet.log_in(heart_beat="1000,0")
    beating.log_in(heart_beat="1000,0")
    for _ in range(4):
        beating.raw(b"\n")
        house.runtime.advance(1)
    assert quiet.gone
    assert quiet.got() == []
    assert not beating.gone


def test_a_client_that_is_not_read_from_is_not_silent() -> None:
    house = House(publishing=1)
    client = house.open()
    client.log_in(heart_beat="1000,0")
    house.confirm_at_once = False
    client.say("SEND", b"x", destination="/topic/a")
    assert not client.transport.reading
    for _ in range(10):
        house.runtime.advance(1)
    assert not client.gone
