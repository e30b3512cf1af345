"""STOMP's way in: who a client is to a login, and the plain TCP port for back ends."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

from ..auth.origins import is_loopback
from ..sessions.services import Services
from ..sessions.stomp import HttpLogin, Peer, StompSession, plain_host
from ..sessions.stomp_link import RawLink
from .connection import Connections
from .peer import peer_address
from .sockets import Sockets
from .throttle import Throttle

logger = logging.getLogger(__name__)

# What a proxy adds; where one did, the peer's address is not the client's.
_FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
_LONGEST = 100
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


def peer_of_request(
    headers: Mapping[str, str],
    transport: asyncio.BaseTransport,
    is_proxy: Callable[[str], bool] | None,
) -> Peer:
    """Return who asks for a WebSocket. headers: lower-case names. is_proxy: see Gate.

    The client is on this machine only if nothing says otherwise: of X-Forwarded-For the last
    address that is no trusted proxy's counts, and headers of proxies that are not trusted show
    that the client is somewhere else.
    """
    address = peer_address(headers, transport)
    trusted = is_proxy is not None and is_proxy(address)
    host = headers.get("host", "")
    if trusted:
        host = headers.get("x-forwarded-host", "").partition(",")[0].strip() or host
    if not any(name in headers for name in _FORWARDED):
        loopback = _is_own(address)
    elif not trusted:
        loopback = False
    else:
        assert is_proxy is not None
        hops = [hop.strip() for hop in headers.get("x-forwarded-for", "").split(",")]
        # As long as an address may be: what stands there is remembered.
        client = next((hop for hop in reversed(hops) if not is_proxy(hop)), "")[:_LONGEST]
        loopback = _is_own(client)
    return _peer(loopback, host)


def basic_login(authorization: str | None) -> HttpLogin:
    """Return the login of an Authorization header (RFC 7617); None: there is no header."""
    if authorization is None:
        return HttpLogin(None)
    scheme, _, text = authorization.strip().partition(" ")
    try:
        decoded = base64.b64decode(text.strip(), validate=True).decode()
    except ValueError:  # binascii.Error and UnicodeDecodeError are
        return HttpLogin(None, valid=False)
    user, colon, passcode = decoded.partition(":")
    if scheme.lower() != "basic" or not colon:
        return HttpLogin(None, valid=False)
    return HttpLogin((user, passcode))


def peer_of_socket(transport: asyncio.BaseTransport, listen_host: str) -> Peer:
    """Return who connected to the TCP port; which of our names it dialled is not known."""
    names = {plain_host(listen_host), socket.gethostname().lower()}
    own = transport.get_extra_info("sockname")
    if own:
        names.add(str(own[0]).partition("%")[0].lower())
        if is_loopback(str(own[0])):
            names |= _LOOPBACK_NAMES
    return Peer(_is_own(peer_address({}, transport)), frozenset(names - {""}))


class StompDoors:
    """Makes a session of each connection to the TCP port; a protocol factory."""

    def __init__(
        self, services: Services, connections: Connections, sockets: Sockets, listen_host: str
    ) -> None:
        self._services = services
        self._connections = connections
        self._sockets = sockets
        self._listen_host = listen_host
        self._throttle = Throttle(logger)

    def __call__(self) -> _StompDoor:
        return _StompDoor(self)

    def enter(self, transport: asyncio.Transport) -> bool:
        """Give the connection a session, or turn it away."""
        if not self._sockets.enter():
            self._throttle.warning(
                f"{self._sockets.limit} connections are open, that is the limit: a STOMP client "
                "was turned away"
            )
            transport.abort()
            return False
        session = StompSession(
            self._services,
            transport,
            RawLink(self._services.limits.frame),
            peer_of_socket(transport, self._listen_host),
        )
        self._connections.adopt(transport, session)
        return True

    def leave(self) -> None:
        """Count one who was turned away no more."""
        self._sockets.leave()


class _StompDoor(asyncio.Protocol):
    """A connection's first moment; then it belongs to a Connection."""

    __slots__ = ("_doors",)

    def __init__(self, doors: StompDoors) -> None:
        self._doors = doors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._doors.enter(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        # Only of those turned away: the others have another protocol by now.
        self._doors.leave()


@lru_cache(256)
def _peer(loopback: bool, host: str) -> Peer:
    name = plain_host(host.strip())
    return Peer(loopback, frozenset((name,)) if name else frozenset())


@lru_cache(256)
def _is_own(address: str) -> bool:
    """Tell whether an address, never a name, is loopback."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
