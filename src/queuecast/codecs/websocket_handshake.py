"""The WebSocket opening handshake, server side (RFC 6455, section 4.2)."""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

_HEAD: Final = (
    "HTTP/1.1 101 Switching Protocols\r\n"
    "Upgrade: websocket\r\n"
    "Connection: Upgrade\r\n"
    "Sec-WebSocket-Accept: "
)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class HandshakeError(Exception):
    """The request is no WebSocket handshake: the status to answer, why, and headers to add."""

    def __init__(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


def check_upgrade(method: str, http_version: str, headers: Mapping[str, str]) -> str:
    """Return the client's Sec-WebSocket-Key, or raise HandshakeError (4.2.1).

    Header names are in lower case. The version is "1.1" or another.
    """
    if method != "GET":
        raise HandshakeError(405, "a WebSocket handshake is a GET", (("Allow", "GET"),))
    if http_version != "1.1":
        raise HandshakeError(400, "a WebSocket handshake is HTTP/1.1")
    if not _has_token(headers.get("upgrade", ""), "websocket"):
        raise HandshakeError(
            426, "this address speaks WebSocket: no Upgrade: websocket", (("Upgrade", "websocket"),)
        )
    if not _has_token(headers.get("connection", ""), "upgrade"):
        raise HandshakeError(
            400, "no Connection: Upgrade (a proxy that does not forward WebSocket drops it)"
        )
    if headers.get("sec-websocket-version", "").strip() != "13":
        raise HandshakeError(
            426,
            "WebSocket version 13 is spoken here",
            (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        )
    key = headers.get("sec-websocket-key", "").strip()
    if not _is_key(key):
        raise HandshakeError(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    return key


def offered_subprotocols(headers: Mapping[str, str]) -> list[str]:
    """Return the subprotocols the client offers, the one it likes best first (11.3.4)."""
    offered = headers.get("sec-websocket-protocol", "").split(",")
    return [name for item in offered if (name := item.strip())]


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept that answers this Sec-WebSocket-Key (4.2.2, 5.4)."""
    # The protocol's own choice of hash: it proves that the server read the handshake, no more.
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False).decode("ascii")


def handshake_response(
    key: str,
    subprotocol: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    *,
    extension: str | None = None,
) -> bytes:
    """Return the 101 that opens the WebSocket (4.2.2).

    The subprotocol must be one that the client offered, the extension an answer to what it offered
    (deflate.negotiate). A name or value that would break out of
    its line is a ValueError.
    """
    lines = [_HEAD + accept_key(key)]
    if subprotocol is not None:
        headers = (("Sec-WebSocket-Protocol", subprotocol), *headers)
    if extension is not None:
        headers = (("Sec-WebSocket-Extensions", extension), *headers)
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _UNSAFE.search(value):
            raise ValueError(f"not a header: {name!r}")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _has_token(value: str, token: str) -> bool:
    value = value.lower()
    return value == token or any(item.strip() == token for item in value.split(","))


def _is_key(key: str) -> bool:
    try:
        return len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except (binascii.Error, ValueError):
        return False
