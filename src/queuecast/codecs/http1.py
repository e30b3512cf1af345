"""One HTTP/1.1 request head in, small final responses out (RFC 9112).

The head is kept until it is whole and then given to llhttp in one piece, cut exactly at its end:
whatever follows (a body, WebSocket frames, the next request) is never parsed here. What two
readers of the same bytes could understand differently is refused with 400, because another server
reads them again after a hand-over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import httptools
import msgspec

# Section 3: method, target without space or control character, version.
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)")
# RFC 3986, 3.2.2 and 3.2.3, as far as it separates hosts from everything else.
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+;=%-]+)(?::[0-9]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Headers whose repetition means two different things to two readers.
_SINGLE: Final = frozenset({"host", "content-length", "transfer-encoding", "sec-websocket-key"})
_FIRST_BYTES: Final = frozenset(b"!#$%&'*+.^_`|~-0123456789") | frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_RAISE_HEAD: Final = "limits.head raises it"


class HeadError(Exception):
    """No request head that can be served: the status to answer, why, and what to do about it."""

    def __init__(self, status: int, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.hint = hint


class RequestHead(msgspec.Struct, frozen=True):
    """A request head and the exact bytes that came after it.

    ``target``, ``path`` and ``query`` are as sent, not percent-decoded; an absolute-form target has
    given its authority to the ``host`` header (RFC 9112, 3.2.2) and left path and query. ``raw`` is
    everything received, ``rest`` included, for a server that reads it all again.
    """

    method: str
    target: str
    path: str
    query: str
    version: str
    headers: dict[str, str]
    rest: bytes
    raw: bytes


class HeadParser:
    """Reads one request head; a new parser is needed for the next.

    ``max_head`` is in bytes, from the first to the empty line: it stops a head that never ends.
    ``max_headers`` counts header lines: it stops a head that is cheap to send and dear to store.
    """

    __slots__ = ("_buffer", "_done", "_max_head", "_max_headers", "_searched", "_start")

    def __init__(self, max_head: int, max_headers: int) -> None:
        self._max_head = max_head
        self._max_headers = max_headers
        # At most max_head bytes and one read.
        self._buffer = bytearray()
        # Where the end of the head may begin: bytes before are not searched again.
        self._searched = 0
        # Where the request line begins.
        self._start = 0
        self._done = False

    def receive_data(self, data: bytes) -> RequestHead | None:
        """Return the head once it is whole, None before; raise HeadError if it is none.

        HeadError carries 400 for bad syntax, 414 for a request line and 431 for headers beyond the
        limit, 501 for a method nobody knows, 505 for another version. The parser takes no more
        bytes after either.
        """
        if self._done:
            raise ValueError("this parser has read its head")
        buffer = self._buffer
        buffer += data
        size = len(buffer)
        limit = self._max_head
        # Section 2.2: empty lines before the request line are passed over. They count as bytes.
        while buffer.startswith(b"\r\n", self._start):
            self._start += 2
        start = self._start
        if start < size and buffer[start] not in _FIRST_BYTES and buffer[start:] != b"\r":
            # A TLS hello, for one, is answered at once and not after the head's timeout.
            raise self._failed(400, "not an HTTP request")
        # An empty line ends the head; what comes before it is looked at closely in _read.
        search = max(self._searched, start)
        found = buffer.find(b"\n\r\n", search)
        end = found + 3 if found >= 0 else 0
        self._searched = max(start, size - 2)
        # Lines that end in LF alone never complete a head: say so now.
        if buffer.find(b"\n\n", search, min(end or size, limit)) >= 0:
            raise self._failed(400, "lines end in CR LF")
        if (end or size) > limit:
            if buffer.find(b"\n", start, limit) < 0:
                raise self._failed(414, f"request line over {limit} bytes", _RAISE_HEAD)
            raise self._failed(431, f"request head over {limit} bytes", _RAISE_HEAD)
        if not end:
            return None
        self._done = True
        raw = bytes(buffer)
        self._buffer = bytearray()
        return self._read(raw, start, end)

    def _failed(self, status: int, text: str, hint: str = "") -> HeadError:
        self._done = True
        self._buffer = bytearray()
        return HeadError(status, text, hint)

    def _read(self, raw: bytes, start: int, end: int) -> RequestHead:
        line = _REQUEST_LINE.fullmatch(raw[start : raw.index(b"\r\n", start)].decode("latin-1"))
        if line is None:
            raise HeadError(400, "bad request line")
        method, target, version = line.groups()
        if version not in ("1.0", "1.1"):
            raise HeadError(505, f"HTTP/{version} is not spoken here")
        if "#" in target:
            raise HeadError(400, "'#' in a URL is written %23")
        collector = _Collector(self._max_headers)
        try:
            httptools.HttpRequestParser(collector).feed_data(raw[start:end])
        except httptools.HttpParserUpgrade:
            pass  # Raised for every Upgrade and CONNECT, at the end of the head that we cut.
        except httptools.HttpParserInvalidMethodError:
            raise HeadError(501, f"method {method} is not known") from None
        except httptools.HttpParserError as error:
            raise HeadError(400, f"bad request head: {error}") from None
        if collector.failure is not None:
            raise collector.failure
        if not collector.complete:
            raise HeadError(400, "bad request head")
        headers = collector.headers
        if version == "1.0" and "transfer-encoding" in headers:
            raise HeadError(400, "Transfer-Encoding in HTTP/1.0")
        host = headers.get("host")
        if host is None and version == "1.1":
            raise HeadError(400, "no Host")
        rest_of_target = target
        if method == "CONNECT":
            rest_of_target = ""
        elif (absolute := _ABSOLUTE.match(target)) is not None:
            host = headers["host"] = absolute[1]
            if not host:
                raise HeadError(400, "no authority in the request target")
            rest_of_target = target[absolute.end() :]
            if not rest_of_target.startswith("/"):
                rest_of_target = "/" + rest_of_target
        if host and not _HOST.fullmatch(host):
            raise HeadError(400, "bad Host")
        path, _, query = rest_of_target.partition("?")
        return RequestHead(
            method=method,
            target=target,
            path=path,
            query=query,
            version=version,
            headers=headers,
            rest=raw[end:],
            raw=raw,
        )


class _Collector:
    """Takes llhttp's callbacks. An exception in one would lose its type: it is kept instead."""

    __slots__ = ("_count", "_max_headers", "complete", "failure", "headers")

    def __init__(self, max_headers: int) -> None:
        self._max_headers = max_headers
        self._count = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.failure: HeadError | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > self._max_headers:
            text = f"more than {self._max_headers} headers"
            self.failure = HeadError(431, text, "limits.headers raises it")
            return
        key = name.decode("ascii").lower()
        text = value.decode("latin-1").strip(" \t")
        before = self.headers.get(key)
        if before is None:
            self.headers[key] = text
        elif key in _SINGLE:
            self.failure = HeadError(400, f"{key} is given twice")
        else:
            # RFC 9110, 5.3; cookies have a separator of their own (RFC 9113, 8.2.3).
            self.headers[key] = f"{before}{'; ' if key == 'cookie' else ', '}{text}"

    def on_headers_complete(self) -> None:
        self.complete = True


def response(
    status: int,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    last: bool = True,
) -> bytes:
    """Return a whole final response; it is the last on its connection unless that is kept alive.

    Content-Length and Connection are added; a status that has no body (1xx, 204, 304) with one, and
    a name or value that would break out of its line, is a ValueError.
    """
    bodyless = status < 200 or status in (204, 304)
    if bodyless and body:
        raise ValueError(f"status {status} has no body")
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    connection = "close" if last else ""
    for name, value in headers:
        if not _NAME.fullmatch(name) or _UNSAFE_VALUE.search(value):
            raise ValueError(f"not a header: {name!r}")
        if name.lower() == "upgrade":
            # RFC 9110, 7.8: an Upgrade is always announced in Connection (426 names its protocol).
            connection = "close, Upgrade" if last else "Upgrade"
        lines.append(f"{name}: {value}")
    if not bodyless:
        lines.append(f"Content-Length: {len(body)}")
    if connection:
        lines.append(f"Connection: {connection}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def error_body(code: int | str, text: str, hint: str | None = None, retry: bool = False) -> bytes:
    """Return the JSON that explains a refusal: a code, what is wrong, what to do, may it retry."""
    error = {"code": code, "text": text, "hint": hint, "retry": retry}
    return msgspec.json.encode(error) + b"\n"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
