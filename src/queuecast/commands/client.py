"""What the commands that talk to a running gateway share."""

from __future__ import annotations

import os
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from ..config import masked
from ..destination import Destination
from ..errors import BadDestination
from .failure import Failure

# An answer that refuses is a short JSON object; more of a strange server's page is not read.
_MAX_REFUSAL = 64 << 10


class Refusal(msgspec.Struct):
    """A gateway's refusal; `retry`: the same request may succeed later."""

    text: str
    code: str = ""
    hint: str = ""
    retry: bool = False

    def __str__(self) -> str:
        return f"{self.text}: {self.hint}" if self.hint else self.text


def base_of(url: str) -> str:
    """Return a gateway's URL without a slash at its end; raises Failure if it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise Failure(f"--url: {masked(url)!r} is not a URL: e.g. http://127.0.0.1:15674", 2)
    return url.rstrip("/")


def path_of(destination: str) -> str:
    """Return a destination as a URL's path; what is none itself may be the gateway's alias."""
    try:
        return Destination.parse(destination).url_path
    except BadDestination:
        path = quote(destination, safe="/%*!$&'()+,;=:@")
        return path if path.startswith("/") else "/" + path


async def refusal_of(response: aiohttp.ClientResponse) -> Refusal:
    """Read why a request was refused; a proxy's or stranger's page gives only its status."""
    raw = await response.content.read(_MAX_REFUSAL)
    try:
        return msgspec.json.decode(raw, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        again = response.status in (502, 503, 504)
        return Refusal(f"{response.status} {response.reason or ''}".strip(), retry=again)


def unreachable(url: str, error: Exception) -> str:
    """Say that a gateway cannot be reached, and why."""
    cause = getattr(error, "os_error", None) or error
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number and number > 0 else str(cause) or type(cause).__name__
    return f"cannot reach {masked(url)}: {reason}"
