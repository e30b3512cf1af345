"""The names of queues that RabbitMQ's STOMP plugin makes, so that either finds the other's.

A durable subscription's queue is `stomp-subscription-` and the MD5 of {routing key, id} in
Erlang's external term format ("External Term Format" in the ERTS user's guide), in URL-safe
base64 without padding. Both are lists of bytes there, as in RabbitMQ 3.10 to 4.2. The exchange is
no part of it: subscriptions with the same key and id share a queue, whoever made them.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct

SUBSCRIPTION = "stomp-subscription-"
TEMPORARY = "stomp.gen-"

_VERSION = b"\x83"
_SMALL_TUPLE_OF_2 = b"h\x02"
_NIL = b"j"
_STRING = struct.Struct(">cH")  # a list of up to 65,535 bytes
_LIST = struct.Struct(">cI")  # a longer one: each byte is a small integer


def durable_name(key: str, id: str) -> str:
    """Return the queue of a durable subscription to a routing key or pattern with this id."""
    term = _VERSION + _SMALL_TUPLE_OF_2 + _characters(key) + _characters(id)
    # Not for security: it bounds the length.
    digest = hashlib.md5(term, usedforsecurity=False).digest()
    return SUBSCRIPTION + _text(digest)


def random_name(prefix: str = SUBSCRIPTION) -> str:
    """Return a name that nobody else has."""
    return prefix + _text(secrets.token_bytes(16))


def _characters(text: str) -> bytes:
    data = text.encode()
    if not data:
        return _NIL
    if len(data) <= 0xFFFF:
        return _STRING.pack(b"k", len(data)) + data
    return _LIST.pack(b"l", len(data)) + b"".join(b"a%c" % byte for byte in data) + _NIL


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
