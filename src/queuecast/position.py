"""Where messages stand, and from where a subscription wants to start.

A position is opaque to clients. Inside it is a vector of marks, one per lane: a plain
destination has one lane, several destinations on one connection one each. A mark is an epoch
(one unbroken numbering: it changes when numbers could otherwise be reused or messages were
lost) and an offset in it. Its text is safe in a URL query, an SSE id and a STOMP header:
`epoch-offset` joined by commas, where neighbours of one epoch are `epoch-offset.offset.offset`.
Several destinations' are joined by `~`, with the epoch only where it is another one: else nobody
could tell two destinations from two lanes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple, Self

from .errors import BadPosition

MAX_POSITION_TEXT = 2048  # a longer one would not fit into proxies' header limits on resume
_OFFSET = r"(?:0|[1-9][0-9]{0,18})"
_EPOCH = "[0-9a-z]{1,32}"
_TEXT = re.compile(
    rf"{_EPOCH}-{_OFFSET}(?:\.{_OFFSET}|,{_EPOCH}-{_OFFSET}|~(?:{_EPOCH}-)?{_OFFSET})*"
)
_MARK = re.compile(rf"([.,~]?)(?:({_EPOCH})-)?({_OFFSET})")
# Redis streams' ids are milliseconds, a hyphen and a number. Epochs of ours are shorter than those
# milliseconds, or have a letter.
_LONGEST_NUMBER = 12
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def new_epoch(prefix: str = "") -> str:
    """Return a fresh epoch name: the prefix and 8 random characters of 0-9a-f."""
    return prefix + secrets.token_hex(4)


class Mark(NamedTuple):
    """A place in one lane: everything up to and including `offset` of this epoch is before it."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


class Position(tuple[Mark, ...]):
    """An immutable vector of marks, one per lane.

    bounds: of several destinations together, the first lane of each; () of a single one. They
    are no part of the value.
    """

    bounds: tuple[int, ...] = ()

    def __new__(cls, marks: Iterable[Mark], bounds: tuple[int, ...] = ()) -> Self:
        made = super().__new__(cls, marks)
        if bounds:
            made.bounds = bounds
        return made

    def __str__(self) -> str:
        return _text(self, self.bounds)

    def parts(self) -> list[Position]:
        """Return the place in each of its destinations alone, in their order."""
        ends = (*self.bounds[1:], None)
        return [
            Position(self[first:end]) for first, end in zip(self.bounds or (0,), ends, strict=True)
        ]

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position's text; raises BadPosition."""
        if len(text) > MAX_POSITION_TEXT:
            raise BadPosition(f"a position has at most {MAX_POSITION_TEXT} characters")
        if _TEXT.fullmatch(text) is None:
            raise BadPosition(
                f"{text[:64]!r} is not a position",
                "give one back as you got it (an SSE id, an envelope's position, a poll's "
                "`next`), or `first`, or a time: Unix seconds or RFC 3339",
            )
        marks: list[Mark] = []
        bounds = [0]
        epoch = ""
        for sign, name, offset in _MARK.findall(text):
            if sign == "~":
                bounds.append(len(marks))
            epoch = name or epoch
            marks.append(Mark(epoch, int(offset)))
        return cls(marks, tuple(bounds) if len(bounds) > 1 else ())


class Vector:
    """A position that moves on, message by message.

    bounds: of several destinations together, the first lane of each; () of a single one. A
    position brings its own.
    """

    __slots__ = ("bounds", "marks")

    def __init__(self, marks: Iterable[Mark], bounds: tuple[int, ...] = ()) -> None:
        self.marks = list(marks)
        self.bounds = marks.bounds if isinstance(marks, Position) else bounds

    def advance(self, lane: int, offset: int, epoch: str | None = None) -> None:
        """Move one lane on to `offset` of its present epoch, or of a new one."""
        self.marks[lane] = Mark(epoch or self.marks[lane].epoch, offset)

    def copy(self) -> Vector:
        """Return an independent vector at the same place."""
        return Vector(self.marks, self.bounds)

    def part(self, index: int) -> Position:
        """Return the present place in one of several destinations; their number is from 0."""
        first, *following = self.bounds[index : index + 2]
        return Position(self.marks[first : following[0] if following else None])

    def position(self) -> Position:
        """Return the present place as an immutable value."""
        return Position(self.marks, self.bounds)

    def __str__(self) -> str:
        marks = self.marks
        if len(marks) == 1:
            return f"{marks[0][0]}-{marks[0][1]}"
        return _text(marks, self.bounds)


def _text(marks: Iterable[Mark], bounds: tuple[int, ...]) -> str:
    parts: list[str] = []
    last = ""
    for epoch, offset in marks:
        if epoch == last:
            parts.append(f".{offset}")
        else:
            parts.append(f",{epoch}-{offset}" if last else f"{epoch}-{offset}")
            last = epoch
    for lane in bounds:
        if lane:
            parts[lane] = f"~{parts[lane][1:]}"
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Start:
    """From where a subscription begins.

    live, first, the last `count`, since a `position`, or from a `time` on (Unix seconds).

    foreign: the client resumes from an id that no gateway gave it, so that it has to be told of a
    gap. otherwise: the start to take where the position is of other destinations; None: that is
    an error.
    """

    kind: Literal["live", "first", "last", "since", "time"] = "live"
    count: int = 0
    position: Position | None = None
    time: float = 0.0
    foreign: bool = False
    otherwise: Start | None = None

    @classmethod
    def parse(cls, since: str | None, last: str | None, event_id: str | None = None) -> Start:
        """Read the parameters `since` and `last`, and Last-Event-ID (None or empty: not given).

        since: "first", a position, or a time: Unix seconds, with a fraction or not, or RFC 3339.
        event_id: a position. Any other text there is an id of another server, which the client
        got at this URL before, and no error: an EventSource would stop for good.

        Raises BadPosition for `since` and `last`. Last-Event-ID wins over `since`, and `since`
        over `last`, because an EventSource repeats its URL when it reconnects.
        """
        if event_id:
            asked = replace(cls.parse(since, last), foreign=True)
            position = _own(event_id)
            if position is None:
                return asked
            return cls("since", position=position, otherwise=asked)
        if since:
            if since == "first":
                return cls("first")
            if (time := _time(since)) is not None:
                return cls("time", time=time)
            return cls("since", position=Position.parse(since))
        if last:
            if not last.isascii() or not last.isdigit() or len(last) > 9:
                raise BadPosition(
                    f"last={last[:32]!r} is not a count", "give a number from 0 to 999999999"
                )
            count = int(last)
            return cls("last", count=count) if count else LIVE
        return LIVE


LIVE = Start()


def _own(text: str) -> Position | None:
    """Return the position that an event id is, None for an id of another server."""
    try:
        position = Position.parse(text)
    except BadPosition:
        return None
    if any(len(epoch) >= _LONGEST_NUMBER and epoch.isdigit() for epoch, _ in position):
        return None
    return position


def _time(text: str) -> float | None:
    """Return the Unix seconds of a time, None for what is not one; raises BadPosition."""
    if _SECONDS.fullmatch(text):
        return float(text)
    if not _DATE.match(text):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise BadPosition(
            f"{text[:64]!r} is not a time", "give RFC 3339 with its zone, 2026-01-31T12:00:00Z"
        )
    return time.timestamp()
