"""A connection attempt that ends in the moment in which it succeeds."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from pika.adapters.utils import connection_workflow

from queuecast.brokers.rabbitmq.address import Address
from queuecast.brokers.rabbitmq.connection import Link
from queuecast.errors import Unavailable


class _Gone(socket.socket):
    """A socket whose peer is gone once it has connected."""

    def getpeername(self) -> NoReturn:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")


async def test_a_reset_connect_is_a_plain_refusal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # pika alone sees such sockets.
    names: dict[str, Any] = {**vars(socket), "socket": _Gone}
    monkeypatch.setattr(connection_workflow, "socket", SimpleNamespace(**names))
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: complaints.append(what))
    with socket.create_server(("127.0.0.1", 0)) as server, caplog.at_level(logging.WARNING):
        port = server.getsockname()[1]
        address = Address.parse(f"amqp://127.0.0.1:{port}/?connection_timeout=60")
        with pytest.raises(Unavailable, match="reset by peer"):
            # Not the attempt's own timeout.
            async with asyncio.timeout(30):
                await Link.open(address, "test")
    assert not complaints
    assert not caplog.records
