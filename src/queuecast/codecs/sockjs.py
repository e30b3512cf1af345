"""SockJS framing, server side (SockJS protocol 0.3.3): frames out, messages in, addresses.

To a client go frames of a letter and, after some, a JSON array:

    o                   the session is open             h                 a heartbeat
    a["message", …]     messages                        c[3000,"text"]    the session is over

Each transport has a wire of its own around them. On a WebSocket a frame is a text message; the
wires of the HTTP transports are `Wire`. A client sends a JSON array of texts.
"""

from __future__ import annotations

import enum
import json
import re
from typing import Final, NamedTuple

import msgspec

OPEN: Final = b"o"
HEARTBEAT: Final = b"h"

# What it says first of all; the protocol's own words.
GREETING: Final = b"Welcome to SockJS!\n"

# "JSON Unicode Encoding": what some browsers would change on its way, besides JSON's own.
_MANGLED = re.compile("[\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXTS = msgspec.json.Decoder(list[str] | str)

# A frame's end and the next one's begin, on the wire of XHR; JSON text has no bare line end.
_BORDER: Final = b'"]\na["'
# Browsers show nothing of a stream before a page's worth of bytes has come.
_XHR_PRELUDE: Final = b"h" * 2048 + b"\n"
# A browser that guesses at types and charsets stops doing so after a kilobyte.
_HTML_PRELUDE: Final = 1024 + 256

_CALLBACK = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_IFRAME = re.compile(r"/iframe[0-9-.a-z_]*\.html")
_PATH = re.compile(r"/([^/.]+)/([^/.]+)/([a-z_]+)")
_NUMBERED = re.compile(r"[0-9]{3}")
TRANSPORTS: Final = frozenset(
    (
        "websocket",
        "xhr",
        "xhr_send",
        "xhr_streaming",
        "eventsource",
        "htmlfile",
        "jsonp",
        "jsonp_send",
    )
)


class SockJsError(Exception):
    """The client's words are wrong; the text is the protocol's own."""


# -- to the client ------------------------------------------------------------------------


def quote(text: str) -> bytes:
    """Return a text as a JSON string that every browser reads as it is."""
    data = msgspec.json.encode(text)
    if data.isascii() or not _MANGLED.search(text):
        return data
    return _MANGLED.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()


def message(text: str) -> bytes:
    """Return the frame of one message."""
    return b"a[%b]" % quote(text)


def close(code: int, reason: str) -> bytes:
    """Return the frame that ends a session."""
    return b"c[%d,%b]" % (code, quote(reason))


class Wire(enum.Enum):
    """How frames lie in the answers of an HTTP transport.

    XHR: xhr and xhr_streaming, and jsonp before it is given its callback.
    """

    XHR = "xhr"
    EVENTSOURCE = "eventsource"
    HTMLFILE = "htmlfile"

    def wrap(self, frame: bytes) -> bytes:
        """Return a frame's bytes in an answer."""
        match self:
            case Wire.XHR:
                return frame + b"\n"
            case Wire.EVENTSOURCE:
                # sockjs-client gives the data to decodeURI().
                return b"data: %b\r\n\r\n" % frame.replace(b"%", b"%25")
            case Wire.HTMLFILE:
                return b"<script>\np(%b);\n</script>\r\n" % _script_text(frame)

    def prelude(self, callback: str = "") -> bytes:
        """Return what stands before the first frame of an answer that goes on.

        callback: of htmlfile, as `callback_name` gave it.
        """
        match self:
            case Wire.XHR:
                return _XHR_PRELUDE
            case Wire.EVENTSOURCE:
                return b"\r\n"
            case Wire.HTMLFILE:
                page = _HTMLFILE.replace("CALLBACK", callback).encode()
                return page + b" " * max(0, _HTML_PRELUDE - len(page)) + b"\r\n\r\n"


# `parent` is the page that framed it. The words of the page are free, its calls are the
# protocol's.
_HTMLFILE: Final = """<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body>
  <script>
    var c = parent.CALLBACK;
    c.start();
    function p(d) { c.message(d); }
    window.onload = function () { c.stop(); };
  </script>
"""


def merge(lines: bytes) -> bytes:
    """Return the message frames of Wire.XHR as one frame: a poll is answered with one."""
    return lines.removesuffix(b"\n").replace(_BORDER, b'","')


def jsonp(callback: str, frame: bytes) -> bytes:
    """Return a frame as the script that a jsonp transport loads."""
    # The comment keeps the answer from being taken for something else than a script.
    return b"/**/%b(%b);\r\n" % (callback.encode(), msgspec.json.encode(frame.decode()))


def _script_text(frame: bytes) -> bytes:
    # A message must not be able to end the script that it stands in.
    return msgspec.json.encode(frame.decode()).replace(b"<", b"\\u003c")


# -- from the client ----------------------------------------------------------------------


def parse_messages(payload: bytes | str) -> list[str]:
    """Return the messages of an array (or of one text); raises SockJsError.

    Half a surrogate pair, which JavaScript allows in a text, is U+FFFD as on a native WebSocket.
    """
    if not payload:
        raise SockJsError("Payload expected.")
    try:
        found = _TEXTS.decode(payload)
    except (msgspec.DecodeError, UnicodeError):
        found = _with_surrogates(payload)
    return [found] if isinstance(found, str) else found


def _with_surrogates(payload: bytes | str) -> list[str]:
    broken = SockJsError("Broken JSON encoding.")
    raw = payload.encode() if isinstance(payload, str) else payload
    if b"\\ud" not in raw.lower():
        raise broken
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise broken from None
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise broken
    return [_SURROGATE.sub("\ufffd", text) for text in texts]


def callback_name(value: str | None) -> str:
    """Return the name that a page gave its callback; raises SockJsError.

    It is written into scripts, so nothing but a plain name is taken.
    """
    if not value:
        raise SockJsError('"callback" parameter required')
    if not _CALLBACK.fullmatch(value):
        raise SockJsError('invalid "callback" parameter')
    return value


# -- addresses ----------------------------------------------------------------------------


class SessionPath(NamedTuple):
    """/{server}/{session}/{transport}; the server is for load balancers and means nothing here."""

    server: str
    session: str
    transport: str


def parse_path(rest: str) -> SessionPath | None:
    """Read what follows the base path, raw; None when it is no session's address."""
    found = _PATH.fullmatch(rest)
    return None if found is None else SessionPath(*found.groups())


def is_iframe(rest: str) -> bool:
    """Tell whether what follows the base path is the iframe's page."""
    return _IFRAME.fullmatch(rest) is not None


def is_unmistakable(rest: str) -> bool:
    """Tell whether what follows the base path is SockJS's even where other things live, too.

    A client's server is three digits, as sockjs-client chooses it.
    """
    if rest in ("/info", "/websocket") or is_iframe(rest):
        return True
    path = parse_path(rest)
    return (
        path is not None
        and path.transport in TRANSPORTS
        and _NUMBERED.fullmatch(path.server) is not None
    )
