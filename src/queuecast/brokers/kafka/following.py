"""Clients of aiokafka that read the login's password and certificates again at each connect.

A client lives as long as the gateway and makes connections by itself, with what it was given when
it was made: after a secret was replaced, every connection that it has lost would stay lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...errors import ConfigError
from .address import Address

T = TypeVar("T")


def follow_files(client: Any, address: Address) -> None:
    """Have a client that was adopted, and not yet started, ask the address at each connect."""
    read: dict[str, property] = {}
    if address.files.password_file:
        read["_sasl_plain_password"] = property(_each_time(address.current_password))
    if address.files.certfile:
        read["_ssl_context"] = property(_each_time(address.files.context))
    if read:
        # Of an instance alone: the producer and the consumers make their client themselves.
        client.__class__ = type("FollowingClient", (type(client),), read)


def _each_time(ask: Callable[[], T]) -> Callable[[Any], T]:
    def asked(_client: Any) -> T:
        try:
            return ask()
        except ConfigError as error:
            # aiokafka takes it for a broker that is away and tries again; control.py tells it.
            raise ConnectionError(str(error)) from None

    return asked
