"""Our STOMP frames as bytes, and the fast path for the MESSAGEs of a broadcast.

Headers escape CR, LF, colon and backslash in every version, as RabbitMQ writes them, so that the
versions share their bytes; every frame is followed by an LF. STOMP has no escape for a NUL and
clients cut frames at it, so it becomes U+FFFD: no publisher's header can forge a frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

_MUST_ESCAPE = re.compile(r"[\r\n:\\\0]")
_ESCAPED: Final = {"\r": "\\r", "\n": "\\n", ":": "\\c", "\\": "\\\\", "\0": "\ufffd"}
_BREAKS_LINE = re.compile(r"[\r\n\0]")
_ODD = re.compile(r"[\r\\\0]")


def _escape(text: str) -> str:
    return _MUST_ESCAPE.sub(_escaped, text) if _MUST_ESCAPE.search(text) else text


def _escaped(found: re.Match[str]) -> str:
    return _ESCAPED[found[0]]


def header_lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return headers as lines, escaped, each with its end; what has no UTF-8 form becomes "?"."""
    pairs = list(headers)
    text = "".join([f"{name}:{value}\n" for name, value in pairs])
    # Nearly all need no escape: they have no colons and ends of lines but those between them.
    if _ODD.search(text) or not text.count(":") == text.count("\n") == len(pairs):
        text = "".join([f"{_escape(name)}:{_escape(value)}\n" for name, value in pairs])
    return text.encode("utf-8", "replace")


def encode_frame(command: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """Return a frame and the LF that follows it, the same bytes for every version.

    A content-length is added when there is a body; one among the headers is dropped. CONNECTED is
    not escaped (STOMP 1.2, "Value Encoding"): a header that would break out of its line there is a
    ValueError.
    """
    pairs = [pair for pair in headers if pair[0] != "content-length"]
    if command == "CONNECTED":
        for name, value in pairs:
            if ":" in name or _BREAKS_LINE.search(name) or _BREAKS_LINE.search(value):
                raise ValueError(f"not a header of CONNECTED: {name!r}")
        lines = "".join(f"{name}:{value}\n" for name, value in pairs).encode("utf-8", "replace")
    else:
        lines = header_lines(pairs)
    length = b"content-length:%d\n" % len(body) if body else b""
    return b"%b\n%b%b\n%b\0\n" % (command.encode(), lines, length, body)


class MessageHead:
    """The part of a MESSAGE that all messages of a subscription and a destination share."""

    __slots__ = ("_first",)

    def __init__(self, subscription: str | None, destination: str) -> None:
        pairs = [("destination", destination)]
        if subscription is not None:
            pairs.insert(0, ("subscription", subscription))
        self._first = b"MESSAGE\n" + header_lines(pairs) + b"message-id:"

    def encode(
        self,
        message_id: str,
        body: bytes,
        lines: bytes = b"",
        *,
        redelivered: bool = False,
        ack: str | None = None,
    ) -> bytes:
        """Return a MESSAGE and the LF that follows it.

        lines: the message's own headers, made by `header_lines`; they must not repeat ours.
        message_id, ack: the latter only for STOMP 1.2 subscriptions that ack; both are escaped.
        """
        # A position needs no escape and no cohort is redelivered to: the path of broadcasts.
        state = b"redelivered:true\n" if redelivered else b"redelivered:false\n"
        if ack is not None:
            state += b"ack:%b\n" % _escape(ack).encode("utf-8", "replace")
        identity = _escape(message_id).encode("utf-8", "replace")
        if not body:
            return b"%b%b\n%b%b\n\0\n" % (self._first, identity, state, lines)
        return b"%b%b\n%b%bcontent-length:%d\n\n%b\0\n" % (
            self._first,
            identity,
            state,
            lines,
            len(body),
            body,
        )


# Bounded: routing keys are chosen by whoever publishes.
@lru_cache(maxsize=4096)
def message_head(subscription: str | None, destination: str) -> MessageHead:
    """Return the head for a subscription's id and a destination's text, made once."""
    return MessageHead(subscription, destination)
