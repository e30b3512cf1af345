"""Calls the roll of a server's clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from ..sessions.base import Session
from ..sessions.roll import Present
from ..sessions.sockjs import SockJsSession
from ..sessions.sockjs_receivers import StreamReceiver
from .connection import Connections


def roll(
    connections: Connections, sockjs: Iterable[SockJsSession], polls: Iterable[Session]
) -> Iterator[Present]:
    """Yield every session once. sockjs: those over HTTP. polls: those between long polls."""
    streams: dict[SockJsSession, asyncio.Transport] = {}
    for connection in connections:
        session = connection.session
        if isinstance(session, Session):
            yield _present(session, connection.transport)
        elif isinstance(session, StreamReceiver):
            streams[session.session] = connection.transport
    for each in sockjs:
        transport = streams.get(each)
        conversation = each.conversation
        yield Present(conversation) if transport is None else _present(conversation, transport)
    for poll in list(polls):
        yield Present(poll)


def _present(session: Session, transport: asyncio.Transport) -> Present:
    peer = transport.get_extra_info("peername")
    address = ""
    if isinstance(peer, tuple):
        host, port = peer[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Present(session, address, transport.get_write_buffer_size())
