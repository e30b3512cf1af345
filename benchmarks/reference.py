"""The stream that all subscribers of a run have to get, as whoever was first got it.

To compare bytes is several times cheaper than to count the messages in them, and shows more: who
has the reference's bytes has its messages, in its order, and nothing else. What the reference
itself is worth, streams.check says at the end of the run.
"""

from __future__ import annotations

from bisect import bisect_left

from . import message


class Reference:
    """The bytes, where the messages in them begin, and the time stamps of those."""

    def __init__(self, *, stamped: bool) -> None:
        self.data = bytearray()
        self._stamped = stamped
        self._begins: list[int] = []
        self._stamps: list[int] = []

    def take(self, place: int, piece: memoryview) -> tuple[int, int] | None:
        """Compare what came at a place, or be the first to have it; None: it is something else.

        Returns the first message that begins in it, by its index, and how many do.
        """
        data = self.data
        size = len(piece)
        known = len(data) - place
        if known < size:
            if known and not data.startswith(piece[:known], place):
                return None
            data += piece[known:]
            self._find(place + known)
        elif not data.startswith(piece, place):
            return None
        first = bisect_left(self._begins, place)
        return first, bisect_left(self._begins, place + size, first) - first

    def stamp(self, index: int) -> int | None:
        """Return the time stamp of a message, monotonic ns; None while it is not whole."""
        return self._stamps[index] if index < len(self._stamps) else None

    def _find(self, place: int) -> None:
        data, begins = self.data, self._begins
        while (place := data.find(message.MARKER, place)) >= 0:
            begins.append(place)
            place += 1
        if not self._stamped:
            return
        for begin in begins[len(self._stamps) :]:
            text = data[begin : begin + message.STAMP.stop]
            if len(text) < message.STAMP.stop:
                return
            self._stamps.append(int(text[message.STAMP]))
