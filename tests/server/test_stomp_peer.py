"""Where a STOMP client is: forwarded headers are believed from trusted proxies only."""

from __future__ import annotations

from typing import Any, cast

import pytest

from queuecast.server.stomp import basic_login, peer_of_request, peer_of_socket
from queuecast.sessions.stomp import HttpLogin


class Transport:
    def __init__(self, peer: Any, own: Any = ("127.0.0.1", 61613)) -> None:
        self._info = {"peername": peer, "sockname": own}

    def get_extra_info(self, name: str) -> Any:
        return self._info.get(name)


def transport(peer: Any, own: Any = ("127.0.0.1", 61613)) -> Any:
    return cast(Any, Transport(peer, own))


def proxy(address: str) -> bool:
    return address in ("127.0.0.1", "10.0.0.1", "10.0.0.2")


LOCAL, FAR = ("127.0.0.1", 5), ("192.0.2.7", 5)


@pytest.mark.parametrize(
    ("peer", "headers", "loopback"),
    [
        (LOCAL, {}, True),
        (("::1", 5, 0, 0), {}, True),
        (("::ffff:127.0.0.1", 5, 0, 0), {}, True),
        (FAR, {}, False),
        ("", {}, False),
        (None, {}, False),
        # A proxy of which nobody told us: the client is not its peer.
        (LOCAL, {"x-forwarded-for": "192.0.2.7"}, False),
        (LOCAL, {"x-forwarded-for": "127.0.0.1"}, False),
        (LOCAL, {"x-real-ip": "192.0.2.7"}, False),
        (LOCAL, {"forwarded": "for=127.0.0.1"}, False),
        (FAR, {"x-forwarded-for": "127.0.0.1"}, False),
    ],
)
def test_without_trusted_proxies(peer: Any, headers: dict[str, str], loopback: bool) -> None:
    assert peer_of_request(headers, transport(peer), None).loopback is loopback


@pytest.mark.parametrize(
    ("peer", "forwarded", "loopback"),
    [
        (LOCAL, "192.0.2.7", False),
        (LOCAL, "127.0.0.1, 192.0.2.7", False),
        (LOCAL, "127.0.0.1, 192.0.2.7, 10.0.0.2", False),
        (LOCAL, "::1", True),
        (LOCAL, "::1, 10.0.0.2", True),
        (LOCAL, "", False),
        (LOCAL, "localhost", False),
        (LOCAL, "unknown", False),
        (FAR, "::1", False),
    ],
)
def test_with_trusted_proxies(peer: Any, forwarded: str, loopback: bool) -> None:
    headers = {"x-forwarded-for": forwarded}
    assert peer_of_request(headers, transport(peer), proxy).loopback is loopback


def test_other_headers_of_a_trusted_proxy_say_that_the_client_is_elsewhere() -> None:
    assert not peer_of_request({"x-real-ip": "::1"}, transport(LOCAL), proxy).loopback


def test_the_name_that_was_dialled() -> None:
    headers = {"host": "Gateway.Example:15674", "x-forwarded-host": "public.example"}
    assert peer_of_request(headers, transport(LOCAL), None).names == {"gateway.example"}
    assert peer_of_request(headers, transport(LOCAL), proxy).names == {"public.example"}


def test_names_of_the_tcp_port() -> None:
    peer = peer_of_socket(transport(LOCAL), "127.0.0.1")
    assert peer.loopback
    assert {"localhost", "127.0.0.1"} <= peer.names
    far = peer_of_socket(transport(FAR, ("192.0.2.1", 61613)), "stomp.example")
    assert not far.loopback
    assert {"192.0.2.1", "stomp.example"} <= far.names
    assert "localhost" not in far.names


@pytest.mark.parametrize(
    ("header", "login", "valid"),
    [
        (None, None, True),
        ("Basic Z3Vlc3Q6Z3Vlc3Q=", ("guest", "guest"), True),
        ("basic   Z3Vlc3Q6Z3Vlc3Q= ", ("guest", "guest"), True),
        ("Basic dTphOmI=", ("u", "a:b"), True),
        ("Basic 5L2gOuWlvQ==", ("你", "好"), True),
        ("Basic Og==", ("", ""), True),
        ("Basic Z3Vlc3Q=", None, False),
        ("Basic /w==", None, False),
        ("Basic %%%", None, False),
        ("Basic", None, False),
        ("Bearer Z3Vlc3Q6Z3Vlc3Q=", None, False),
        ("", None, False),
    ],
)
def test_http_basic(header: str | None, login: tuple[str, str] | None, valid: bool) -> None:
    assert basic_login(header) == HttpLogin(login, valid)
