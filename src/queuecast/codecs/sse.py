"""Server-Sent Events: events to an event stream, and an event stream back to events.

The words are those of the WHATWG HTML standard, section 9.2 "Server-sent events". A stream has no
way to tell CR, CR LF and LF apart, so a reader sees every line end of the data as LF.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_BOM: Final = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_UNSAFE = re.compile(r"[\x00\r\n]")
_DIGITS: Final = frozenset(b"0123456789")
# A reconnection time of more digits than this is no time: int() of endless digits costs dearly.
_MAX_RETRY_DIGITS: Final = 15


def event(
    data: bytes, *, id: str | None = None, event: str | None = None, retry: int | None = None
) -> bytes:
    """Return one event; the data must be UTF-8, and is split at CR, LF and CR LF.

    Empty data is still an event. An id or event name that holds NUL, CR or LF, and a negative
    retry (milliseconds), is a ValueError.
    """
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    # The space is written always: a reader takes away one, and the value may start with its own.
    if event is None and retry is None:
        if id is None:
            return b"data: %b\n\n" % data
        return b"id: %b\ndata: %b\n\n" % (_line(id), data)
    head = b""
    if event is not None:
        head += b"event: %b\n" % _line(event)
    if id is not None:
        head += b"id: %b\n" % _line(id)
    if retry is not None:
        head += b"retry: %d\n" % _milliseconds(retry)
    return b"%bdata: %b\n\n" % (head, data)


def comment(text: str = "") -> bytes:
    """Return a comment, which readers ignore and proxies take as a sign of life."""
    if not text:
        return b":\n\n"
    lines = _LINE_END.split(text.encode())
    return b"".join(b": %b\n" % line for line in lines) + b"\n"


def retry(ms: int) -> bytes:
    """Return the reconnection time in milliseconds, as a block that is no event."""
    return b"retry: %d\n\n" % _milliseconds(ms)


def _line(value: str) -> bytes:
    if _UNSAFE.search(value):
        raise ValueError("an id or event name holds no NUL, CR or LF")
    return value.encode()


def _milliseconds(ms: int) -> int:
    if ms < 0:
        raise ValueError("a reconnection time is not negative")
    return ms


class ServerSentEvent(msgspec.Struct, frozen=True):
    """An event as a reader sees it.

    ``id`` is the last event id of the stream so far, not only of this block; ``retry`` is what this
    block said about the reconnection time, in milliseconds.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry: int | None = None


class EventTooLong(Exception):
    """The stream holds an event over the limit; everything before it has been returned."""


class EventStreamParser:
    """Reads one event stream, from its first byte (9.2.6 "Interpreting an event stream").

    ``max_event`` bounds an event's data and the line being read, in bytes: it stops a server whose
    event never ends. ``last_event_id`` is what to send as Last-Event-ID when reconnecting; hand the
    old one to the parser of the new stream. ``retry`` is the reconnection time in milliseconds, if
    the stream has named one.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_event",
        "_id",
        "_line",
        "_max_event",
        "_retry",
        "_size",
        "_start",
        "_too_long",
        "last_event_id",
        "retry",
    )

    def __init__(self, max_event: int, last_event_id: str = "") -> None:
        self._max_event = max_event
        self.last_event_id = last_event_id
        self.retry: int | None = None
        # The last event id buffer: it becomes last_event_id at the end of its block.
        self._id = last_event_id
        self._event = ""
        # Lines of data and their bytes: at most max_event of them, line ends counted.
        self._data: list[bytes] = []
        self._size = 0
        self._retry: int | None = None
        # The line that has not ended: with _size at most max_event bytes.
        self._line = bytearray()
        self._after_cr = False
        # Bytes seen while they may still be a byte order mark; None once that is decided.
        self._start: bytes | None = b""
        self._too_long = False

    def receive_data(self, data: bytes) -> list[ServerSentEvent]:
        """Return the events that these bytes complete.

        Raises EventTooLong for an event over the limit, in the next call if this one has events to
        return first; and then in every call.
        """
        if self._too_long:
            raise EventTooLong(f"event over {self._max_event} bytes")
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._start = data
                return []
            self._start = None
            data = data.removeprefix(_BOM)
        if not data:
            return []
        if self._after_cr and data[0] == 0x0A:
            data = data[1:]
        # Only the very next byte after a CR can belong to it.
        self._after_cr = data.endswith(b"\r")
        events: list[ServerSentEvent] = []
        *lines, rest = _LINE_END.split(data)
        for line in lines:
            if self._line:
                self._line += line
                line = bytes(self._line)
                self._line.clear()
            if self._size + len(line) > self._max_event:
                return self._overflow(events)
            if not line:
                self._dispatch(events)
            else:
                self._field(line)
        self._line += rest
        if self._size + len(self._line) > self._max_event:
            return self._overflow(events)
        return events

    def _overflow(self, events: list[ServerSentEvent]) -> list[ServerSentEvent]:
        self._too_long = True
        self._data.clear()
        self._line.clear()
        if events:
            return events
        raise EventTooLong(f"event over {self._max_event} bytes")

    def _field(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if colon and not name:
            return
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif (
            name == b"retry"
            and value
            and len(value) <= _MAX_RETRY_DIGITS
            and _DIGITS.issuperset(value)
        ):
            self.retry = self._retry = int(value)

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        # The id holds from here on even if the block has no data and is no event.
        self.last_event_id = self._id
        # One empty data line is an event with empty data; no data line at all is none.
        if self._data:
            events.append(
                ServerSentEvent(
                    data=b"\n".join(self._data).decode("utf-8", "replace"),
                    event=self._event or "message",
                    id=self._id,
                    retry=self._retry,
                )
            )
            self._data.clear()
            self._size = 0
        self._event = ""
        self._retry = None
