"""Who is at the other end of a connection: the peer, or the one for whom a worker hands over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

# Set by a worker that hands a request to another one: the address of its client. It counts only on
# the workers' own Unix sockets, which nobody else reaches.
HANDED = "queuecast-peer"


def peer_address(headers: Mapping[str, str], transport: asyncio.BaseTransport | None) -> str:
    """Return a client's address, "" where it is not known. headers: lower-case names."""
    if transport is None:
        return ""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple) and peer:  # a Unix socket's is text
        return str(peer[0]).partition("%")[0]
    return headers.get(HANDED, "") if is_handed(transport) else ""


def is_handed(transport: asyncio.BaseTransport) -> bool:
    """Tell whether a connection is another worker's."""
    # The family, not a missing address: that is missing, too, once a client has reset.
    found = transport.get_extra_info("socket")
    return found is not None and found.family == socket.AF_UNIX
