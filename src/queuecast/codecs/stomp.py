"""STOMP frames, server side: the bytes a client sent to events.

The law of this file is RabbitMQ's reading of STOMP 1.0, 1.1 and 1.2, the same for all three:

    stream  = *(noise frame)      noise = NUL, LF or CR LF; an LF is a heart-beat
    frame   = command EOL *(header EOL) EOL body NUL             EOL = LF or CR LF
    header  = 1*name ":" value    the first of repeated ones counts; a value may hold bare colons

Names and values are UTF-8 and escape CR, LF, colon and backslash as ``\\r \\n \\c \\\\`` in every
command; any other escape is an error. A body ends at its first NUL; on SEND alone a content-length
says where. The first offence ends the conversation: it is the last event, a `Fault`, and whatever
was complete before it has already been delivered.

Stricter than RabbitMQ: a NUL within the head (a forgotten empty line, else the client would wait
for ever), a header without a name and text that is not UTF-8 are errors.

The parser holds at most one unfinished frame, of at most ``max_frame`` bytes.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import msgspec

# The longest command of the protocol has 11 bytes; it stops a first line that never ends.
MAX_COMMAND: Final = 32

# What a client may say. Their heads are read the fast way, the others' line by line.
COMMANDS: Final = frozenset(
    {
        "ABORT",
        "ACK",
        "BEGIN",
        "COMMIT",
        "CONNECT",
        "DISCONNECT",
        "NACK",
        "SEND",
        "STOMP",
        "SUBSCRIBE",
        "UNSUBSCRIBE",
    }
)

# What the parser waits for.
_FRAME: Final = 0
_COMMAND: Final = 1
_HEADER: Final = 2
_BODY: Final = 3

# A body that ends at its first NUL.
_TO_NUL: Final = -1
# A head that is whole, short and plain is read in one go; others line by line.
_PLAIN_HEAD: Final = 1024

_NOISE = re.compile(rb"(?:[\n\0]++|\r\n)*+")
_NOT_PLAIN = re.compile(rb"[\0\r\\]")
_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_UNESCAPED: Final = {"r": "\r", "n": "\n", "c": ":", "\\": "\\"}


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A whole frame; the command may be one that nobody knows."""

    command: str
    headers: dict[str, str]
    body: bytes

    def trimmed(self) -> Frame:
        """Return the frame as STOMP 1.0 reads it: blanks before a value are no part of it."""
        headers = {name: value.lstrip() for name, value in self.headers.items()}
        return Frame(self.command, headers, self.body)


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """An end of line between frames: the client is alive."""


class Fault(msgspec.Struct, frozen=True, gc=False):
    """The client broke the protocol: close. Nothing follows it."""

    reason: str


Event: TypeAlias = Frame | Heartbeat | Fault
_HEARTBEAT = Heartbeat()


class StompLimits(msgspec.Struct, frozen=True, gc=False):
    """How much one frame may hold, in bytes and header lines.

    ``max_frame`` counts from the command to the end of the body and stops a body that never ends;
    ``max_frame_before_login`` does so for strangers. ``max_headers`` counts lines, repeated ones
    too, and stops a head that is cheap to send and dear to store. ``max_header`` bounds one line.
    """

    max_frame: int = 4 * 1024 * 1024
    max_frame_before_login: int = 64 * 1024
    max_headers: int = 100
    max_header: int = 16 * 1024


DEFAULT_LIMITS: Final = StompLimits()


class _ProtocolFault(Exception):
    """Leaves the parser's loop; becomes the last event."""


class StompParser:
    """What one client sends, frame by frame, however it is cut into reads or WebSocket messages."""

    # One instance per connection: parse state only, no buffer while idle.
    __slots__ = (
        "_body",
        "_command",
        "_cr",
        "_headers",
        "_left",
        "_length",
        "_limits",
        "_line",
        "_lines",
        "_max_frame",
        "_plain",
        "_state",
        "closed",
    )

    def __init__(self, limits: StompLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._max_frame = min(limits.max_frame, limits.max_frame_before_login)
        self._plain = min(_PLAIN_HEAD, limits.max_header, self._max_frame)
        # True once a Fault was returned; later bytes are ignored.
        self.closed = False
        self._state = _FRAME
        # A CR between frames whose LF has not come.
        self._cr = False
        # How many more bytes the frame being read may have, unfinished line and body included.
        self._left = 0
        # An unfinished line: at most max_header bytes.
        self._line: bytearray | None = None
        self._lines = 0
        self._command = ""
        self._headers: dict[str, str] = {}
        # The content-length or _TO_NUL, and an unfinished body: at most max_frame bytes, checked
        # before a byte is kept and never allocated ahead, so that no client chooses our memory.
        self._length = _TO_NUL
        self._body: bytearray | None = None

    def authenticated(self) -> None:
        """Raise the limit on a frame to that of clients who have logged in.

        It does not hold for frames of a read that was parsed before.
        """
        more = self._limits.max_frame - self._max_frame
        self._max_frame += more
        self._left += more

    def receive_data(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete, in order; a `Fault` is always the last."""
        if self.closed:
            return []
        events: list[Event] = []
        try:
            self._parse(data, events)
        except _ProtocolFault as fault:
            self._stop()
            events.append(Fault(str(fault)))
        return events

    def _parse(self, data: bytes, events: list[Event]) -> None:
        position = 0
        end = len(data)
        while position < end:
            state = self._state
            if state == _FRAME:
                if self._cr or data[position] <= 0x0D:
                    position = self._skip_noise(data, position, events)
                    continue
                self._left = self._max_frame
                head = self._read_plain_head(data, position)
                if not head:
                    self._state = _COMMAND
                    continue
                position += head
                if position == end:
                    return
            elif state != _BODY:
                position = self._read_line(data, position)
                continue
            position = self._read_body(data, position, events)

    def _skip_noise(self, data: bytes, position: int, events: list[Event]) -> int:
        """Pass over what may stand between frames; return where it ends."""
        if self._cr:
            if data[position] != 0x0A:
                raise _ProtocolFault("CR without LF between frames")
            self._cr = False
        noise = _NOISE.match(data, position)
        assert noise is not None
        stop = noise.end()
        events.extend([_HEARTBEAT] * data.count(b"\n", position, stop))
        if stop < len(data) and data[stop] == 0x0D:
            if stop + 1 < len(data):
                raise _ProtocolFault("CR without LF between frames")
            self._cr = True
            return stop + 1
        if stop == position:
            # Another control character: it begins a command nobody knows.
            self._left = self._max_frame
            self._state = _COMMAND
        return stop

    def _read_plain_head(self, data: bytes, position: int) -> int:
        """Read a head that is all there and has nothing special in it; return its length, else 0.

        Every offence is left to _read_line, which has the words for it.
        """
        # Bounded, so that many frames with CR LF in one read are not searched to its end each.
        end = data.find(b"\n\n", position, position + self._plain)
        if end < 0:
            return 0
        head = data[position:end]
        if _NOT_PLAIN.search(head):
            return 0
        try:
            lines = head.decode().split("\n")
        except UnicodeDecodeError:
            return 0
        command = lines[0]
        if command not in COMMANDS or len(lines) > self._limits.max_headers + 1:
            return 0
        del lines[0]
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name:
                return 0
            if name not in headers:
                headers[name] = value
        self._command = command
        self._headers = headers
        length = end + 2 - position
        self._left -= length
        self._begin_body()
        return length

    def _read_line(self, data: bytes, position: int) -> int:
        """Take one line of the head, or as much of it as there is; return where it ends.

        What is wrong with a line is said at its first byte over a limit or NUL, else at its end:
        in the order of the bytes, so that any chunking of the same bytes gives the same verdict.
        """
        kept = self._line
        newline = data.find(b"\n", position)
        stop = newline if newline >= 0 else len(data)
        longest = MAX_COMMAND if self._state == _COMMAND else self._limits.max_header
        line_room = longest - (len(kept) if kept else 0)
        room = max(0, min(line_room, self._left))
        if data.find(b"\0", position, min(stop, position + room)) >= 0:
            raise _ProtocolFault("NUL before the empty line that ends the headers")
        if stop - position > room:
            if self._left <= line_room:
                raise _ProtocolFault(f"frame over {self._max_frame} bytes")
            what = "command" if self._state == _COMMAND else "header"
            raise _ProtocolFault(f"{what} over {longest} bytes")
        self._left -= stop - position
        if newline < 0:
            if kept is None:
                self._line = bytearray(data[position:])
            else:
                kept += data[position:]
            return stop
        line = data[position:newline]
        if kept is not None:
            line = bytes(kept + line)
            self._line = None
        self._left -= 1
        if line.endswith(b"\r"):
            line = line[:-1]
        if b"\r" in line:
            raise _ProtocolFault("CR without LF in the head")
        if self._state == _COMMAND:
            self._command = _text(line)
            self._headers = {}
            self._lines = 0
            self._state = _HEADER
        elif line:
            self._add_header(line)
        else:
            self._begin_body()
        return newline + 1

    def _add_header(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > self._limits.max_headers:
            raise _ProtocolFault(f"more than {self._limits.max_headers} headers")
        name, colon, value = line.partition(b":")
        if not colon:
            raise _ProtocolFault("header without a colon")
        if not name:
            raise _ProtocolFault("header without a name")
        self._headers.setdefault(_unescape(_text(name)), _unescape(_text(value)))

    def _begin_body(self) -> None:
        self._state = _BODY
        self._length = _TO_NUL
        if self._command != "SEND":
            return
        text = self._headers.get("content-length")
        if text is None:
            return
        text = text.strip(" ")
        # int() takes time for thousands of digits; 20 hold more than any frame.
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise _ProtocolFault("content-length is not a number")
        self._length = int(text)
        if self._length > max(0, self._left):
            raise _ProtocolFault(f"frame over {self._max_frame} bytes")

    def _read_body(self, data: bytes, position: int, events: list[Event]) -> int:
        """Take the body, or as much of it as there is; return where it ends."""
        kept = self._body
        end = len(data)
        if self._length == _TO_NUL:
            stop = data.find(b"\0", position)
            if (end if stop < 0 else stop) - position > max(0, self._left):
                raise _ProtocolFault(f"frame over {self._max_frame} bytes")
        else:
            stop = position + self._length - (len(kept) if kept else 0)
            if stop >= end:
                stop = -1
            elif data[stop]:
                raise _ProtocolFault("no NUL after content-length bytes of body")
        if stop < 0:
            if kept is None:
                self._body = bytearray(data[position:])
            else:
                kept += data[position:]
            self._left -= end - position
            return end
        body = data[position:stop]
        if kept is not None:
            kept += body
            body = bytes(kept)
            self._body = None
        events.append(Frame(self._command, self._headers, body))
        self._headers = {}
        self._state = _FRAME
        return stop + 1

    def _stop(self) -> None:
        """Let go of everything: the conversation is over."""
        self.closed = True
        self._line = self._body = None
        self._headers = {}


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _ProtocolFault("the head is not UTF-8") from None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(_unescaped, text) if "\\" in text else text


def _unescaped(found: re.Match[str]) -> str:
    character = _UNESCAPED.get(found[1])
    if character is None:
        raise _ProtocolFault(f"unknown escape {found[0]!r}")
    return character
