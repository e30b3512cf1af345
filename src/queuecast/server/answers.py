"""Answers in JSON: the same whether aiohttp writes them or we do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ..codecs.http1 import error_body
from ..disconnect import for_error
from ..errors import QueuecastError

# aiohttp would name itself and Python, with their versions.
SERVER = ("Server", "queuecast")
_JSON = (("Cache-Control", "no-store"), ("Content-Type", "application/json"))
# Seconds after which a client may try again.
_RETRY_AFTER = ("Retry-After", "5")

INTERNAL = "internal error, see the gateway's log"


class Answer(NamedTuple):
    """Status, headers and body; what concerns the connection, the page that asks, and the time
    is added by whoever writes it.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def raw(body: bytes, status: int = 200, *headers: tuple[str, str]) -> Answer:
    """Return the answer whose body is JSON already."""
    return Answer(status, (*headers, *_JSON), body)


def value(found: object, status: int = 200) -> Answer:
    """Return the answer that is a value."""
    return raw(msgspec.json.encode(found) + b"\n", status)


def problem(
    status: int,
    code: str,
    text: str,
    hint: str = "",
    *headers: tuple[str, str],
    retry: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Answer:
    """Return the answer that explains a refusal. extra: what else a program may need to know."""
    if extra:
        body = msgspec.json.encode(
            {"code": code, "text": text, "hint": hint, "retry": retry, **extra}
        )
    else:
        body = error_body(code, text, hint, retry)
    return raw(body, status, *headers)


def refusal(
    error: QueuecastError, *, status: int | None = None, extra: Mapping[str, Any] | None = None
) -> Answer:
    """Return the answer that an error becomes."""
    return problem(
        status or for_error(error).status,
        error.code,
        error.text,
        error.hint,
        *((_RETRY_AFTER,) if error.retry else ()),
        retry=error.retry,
        extra=extra,
    )


def internal() -> Answer:
    """Return the answer to what is our mistake; the log has it."""
    return problem(500, "internal", INTERNAL)
