"""queuecast.js, the module that pages import: the browser's side of the gateway."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

PATH = "/queuecast.js"


def module(path: str) -> tuple[str, bytes] | None:
    """Return content type and body of what stands at a path, or None when it is not the module."""
    return ("text/javascript; charset=utf-8", _read()) if path == PATH else None


@cache
def _read() -> bytes:
    return files(__package__).joinpath("queuecast.js").read_bytes()
