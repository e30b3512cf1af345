"""How each server wants a publish over HTTP: path, headers and the shape of the body.

The paths below /publish are the gateway's, and Nchan's by its configuration. Centrifugo's are from
its server API, Mercure's from the protocol's section on publication.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

from . import message

# Of the servers that publish for nobody without one.
KEY = "benchmark-key-of-thirty-two-bytes-or-more"
# Centrifugo's channels may not begin with a slash.
CHANNEL = message.DESTINATION.rpartition("/")[2]
MERCURE = "/.well-known/mercure"
TOPIC = quote(message.DESTINATION, safe="")

Post = Callable[[bytes], bytes]


def _made(path: str, head: tuple[str, ...], shape: Callable[[bytes], bytes]) -> Post:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", *head, "Content-Length: ")
    start = "\r\n".join(lines).encode()

    def post(body: bytes) -> bytes:
        shaped = shape(body)
        return b"%s%d\r\n\r\n%s" % (start, len(shaped), shaped)

    return post


def _token(claims: object) -> str:
    """Return a JSON Web Token signed with the key (RFC 7515, 3.1; RFC 7518, 3.2)."""

    def encoded(data: bytes) -> str:
        return urlsafe_b64encode(data).rstrip(b"=").decode()

    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    mac = hmac.digest(KEY.encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{encoded(mac)}"


def _mercure() -> Post:
    token = _token({"mercure": {"publish": ["*"]}})
    return _made(
        MERCURE,
        ("Content-Type: application/x-www-form-urlencoded", f"Authorization: Bearer {token}"),
        lambda body: f"topic={TOPIC}&data={quote(body, safe='')}".encode(),
    )


POSTS: dict[str, Post] = {
    "queuecast": _made(
        f"/publish{message.DESTINATION}", ("Content-Type: text/plain",), lambda body: body
    ),
    # Nothing in a benchmark's body has to be escaped in JSON.
    "centrifugo": _made(
        "/api/publish",
        ("Content-Type: application/json", f"X-API-Key: {KEY}"),
        lambda body: b'{"channel":"%s","data":"%s"}' % (CHANNEL.encode(), body),
    ),
    "mercure": _mercure(),
}
