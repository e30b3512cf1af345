"""What must hold after every kill: the judge knows what the clients of all lives so far know."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from tests.crash.victim import RULES, STREAM_BYTES

# Where a message published to a destination is to be found.
QUEUES = {
    "/queue/work": "work",
    "/queue/one": "one",
    "/queue/short": "short",
    "/queue/limited": "limited",
    "/exchange/events/a": "copy",
}
RETAINED = {"/topic/kept.a": 0, "/topic/kept.b": 0, "/topic/few.a": 1}
SHORT = 5
# More than the weight of any message that is published.
_LARGEST = 6_000


class _Queue:
    """One queue's messages, by number; numbers grow in the order of publishing.

    due: answered, and there at the last start. settled: acked or rejected in this life; whether
    the store knows is open. seen: delivered in any life. gone: not there any more at a start.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.due: set[int] = set()
        self.settled: set[int] = set()
        self.seen: set[int] = set()
        self.gone: set[int] = set()

    def start(self, entries: list[tuple[int, bool]], elsewhere: Set[int] = frozenset()) -> int:
        """Compare with what is there after a kill; returns how many were seen before.

        elsewhere: messages that became letters.
        """
        numbers = [number for number, _ in entries]
        there = set(numbers)
        assert len(there) == len(numbers), f"{self.name}: a message is there twice"
        # Letters come in the order in which they died.
        assert self.name == "dead" or numbers == sorted(numbers), f"{self.name}: order was lost"
        assert not there & elsewhere, f"{self.name}: alive and a letter: {there & elsewhere}"
        missing = self.due - self.settled - there - elsewhere
        if self.name == "short" and len(there) == SHORT:
            missing = {number for number in missing if number > min(there)}
        assert not missing, f"{self.name}: answered and lost: {sorted(missing)[:5]}"
        back = there & self.gone
        assert not back, f"{self.name}: gone and back again: {sorted(back)[:5]}"
        for number, redelivered in entries:
            assert redelivered or number not in self.seen, f"{self.name}: {number} is not marked"
        self.gone |= (self.due | self.settled) - there
        self.due = there
        self.settled = set()
        return len(there & self.seen)

    def deliver(self, number: int, redelivered: bool) -> None:
        assert number not in self.gone, f"{self.name}: {number} was gone and is delivered"
        assert number not in self.settled, f"{self.name}: {number} was settled, is delivered"
        assert redelivered or number not in self.seen, f"{self.name}: {number} is not marked"
        self.seen.add(number)


class _Stream:
    """The stream's messages by offset; numbers grow with them.

    due: answered, and there at the last start.
    """

    def __init__(self) -> None:
        self.due: set[int] = set()
        self._numbers: dict[int, int] = {}  # by offset
        self._offsets: dict[int, int] = {}  # by number
        self._read = -1

    def start(self, kept: list[tuple[int, int, int]]) -> None:
        """Compare with offsets, numbers and weights that are there after a kill."""
        there = [number for _, number, _ in kept]
        assert there == sorted(set(there)), "stream: order was lost"
        for offset, number, _ in kept:
            self._place(offset, number)
        first = kept[0][0] if kept else max(self._numbers, default=-1) + 1
        known = {number for offset, number in self._numbers.items() if offset >= first}
        assert known <= set(there), f"stream: seen and lost: {sorted(known - set(there))[:5]}"
        missing = self.due - set(there)
        newer = {number for number in missing if there and number > there[0]}
        assert not newer, f"stream: answered and lost: {sorted(newer)[:5]}"
        if missing:
            used = sum(weight for _, _, weight in kept)
            assert used > STREAM_BYTES - _LARGEST, f"stream: only {used} bytes are left"
        self.due = set(there)
        self._read = -1

    def read(self, offset: int, number: int) -> None:
        """Take what a reader got that began at the first message."""
        assert offset > self._read, f"stream: offset {offset} after {self._read}"
        self._read = offset
        self._place(offset, number)

    def _place(self, offset: int, number: int) -> None:
        known = self._numbers.setdefault(offset, number)
        assert known == number, f"stream: offset {offset} was {known}'s, and is {number}'s"
        place = self._offsets.setdefault(number, offset)
        assert place == offset, f"stream: {number} was at {place} and is at {offset}"


class Judge:
    """All lives on one directory."""

    def __init__(self) -> None:
        self.lives = 0
        self.answered = 0
        self.seen_again = 0
        self._epoch = ""
        self._is_declared = False
        self._queues: dict[str, _Queue] = {}
        self._stream = _Stream()
        self._rejected: set[int] = set()
        # What was settled in this life, in order; how much of it a message's answer covers, which
        # was sent after it; and how much is certain.
        self._settled: list[tuple[str, int]] = []
        self._covers: dict[int, int] = {}
        self._certain = 0
        self._passing: dict[str, str] = {}
        self._numbers: dict[int, int] = {}  # by offset
        self._offsets: dict[int, int] = {}  # by number
        self._last_fed = 0
        self._retained: tuple[dict[int, int], ...] = tuple({} for _ in RULES)

    def judge(self, notes: Path) -> bool:
        """Take one life's notes; raises AssertionError with what is wrong.

        Returns whether the life got so far as to read the store.
        """
        # The last line may have been cut, or is empty.
        events = [json.loads(line) for line in notes.read_bytes().split(b"\n")[:-1]]
        for name, *words in events:
            getattr(self, f"_on_{name}")(*words)
        return bool(events)

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue(name))

    # What the store had at a start

    def _on_started(
        self,
        epoch: str,
        offset: int,
        queues: dict[str, list[Any]],
        retained: list[Any],
        stream: list[Any],
    ) -> None:
        self.lives += 1
        assert self._epoch in ("", epoch), "the epoch changed"
        self._epoch = epoch
        highest = max(self._numbers, default=0)
        assert offset >= highest, f"begins at {offset}, and {highest} was given already"
        self._last_fed = offset
        self._check_passing(queues)
        alive, dead = ({number for number, _ in queues.get(name, ())} for name in ("work", "dead"))
        assert not alive & dead, f"both alive and dead: {alive & dead}"
        lost = self._rejected - alive - dead - self._queue("dead").settled
        assert not lost, f"rejected and lost: {lost}"
        self._rejected = set()
        for name, number in self._settled[: self._certain]:
            entries = queues.get(name, ())
            assert all(number != each for each, _ in entries), f"{name}: {number} was settled"
        self._settled, self._covers, self._certain = [], {}, 0
        letters = dead | self._queue("dead").settled | self._queue("dead").gone
        for name in ("work", "one", "short", "copy", "limited", "dead"):
            assert name in queues or not self._is_declared, f"queue {name} is gone"
            entries = [(number, mark) for number, mark in queues.get(name, ())]
            elsewhere = letters if name == "limited" else frozenset()
            self.seen_again += self._queue(name).start(entries, elsewhere)
        self._stream.start([(offset, number, size) for offset, number, size in stream])
        for rule, (floor, rows) in enumerate(retained):
            self._check_retained(rule, floor, rows)

    def _check_passing(self, queues: dict[str, Any]) -> None:
        for name, state in self._passing.items():
            assert state != "there" or name in queues, f"{name} was declared and is gone"
            assert state != "gone" or name not in queues, f"{name} was deleted and is there"
            self._passing[name] = ""

    def _check_retained(self, rule: int, floor: int, rows: list[tuple[int, int]]) -> None:
        now = dict(rows)
        assert [offset for offset, _ in rows] == sorted(now), "retained: out of order"
        assert len(set(now.values())) == len(rows), "retained: one is there twice"
        assert not rows or rows[0][0] > floor
        assert len(rows) <= RULES[rule].messages, "retained: more than the bound"
        for offset, number in self._retained[rule].items():
            assert offset <= floor or now.get(offset) == number, f"retained {number} is lost"
        # What the bound took away was too much: it is full, or nearly, when something is gone.
        if rule == 0 and self._retained[rule] and min(self._retained[rule]) <= floor:
            assert len(rows) == RULES[rule].messages, "retained: more is gone than had to go"
        for offset, number in now.items():
            self._place(offset, number)
        self._retained[rule].clear()
        self._retained[rule].update(now)

    def _place(self, offset: int, number: int) -> None:
        known = self._numbers.setdefault(offset, number)
        assert known == number, f"offset {offset} was {known}'s, and is {number}'s"
        place = self._offsets.setdefault(number, offset)
        assert place == offset, f"{number} was at {place} and is at {offset}"

    # What clients saw

    def _on_declared(self) -> None:
        self._is_declared = True

    def _on_sends(self, number: int) -> None:
        self._covers[number] = len(self._settled)

    def _on_published(self, where: str, number: int, persistent: bool) -> None:
        self.answered += 1
        if where in RETAINED or persistent:
            # Written in the order of the calls.
            self._certain = max(self._certain, self._covers[number])
        if where in RETAINED:
            self._retained[RETAINED[where]][self._offsets[number]] = number
        elif where == "/amq/queue/stream":
            self._stream.due.add(number)
        elif where in QUEUES and persistent:
            self._queue(QUEUES[where]).due.add(number)

    def _on_fed(self, key: str, offset: int, number: int) -> None:
        assert offset > self._last_fed, f"offset {offset} after {self._last_fed}"
        self._last_fed = offset
        self._place(offset, number)

    def _on_streamed(self, offset: int, number: int) -> None:
        self._stream.read(offset, number)

    def _on_delivered(self, queue: str, number: int, redelivered: bool) -> None:
        self._queue(queue).deliver(number, redelivered)

    def _on_acked(self, queue: str, number: int) -> None:
        self._queue(queue).settled.add(number)
        self._settled.append((queue, number))

    def _on_rejected(self, queue: str, number: int) -> None:
        self._queue(queue).settled.add(number)
        self._settled.append((queue, number))
        if number in self._queue(queue).due:
            self._rejected.add(number)

    def _on_passing(self, name: str, state: str) -> None:
        self._passing[name] = state

    def _on_failed(self, error: str) -> None:
        raise AssertionError(f"a call failed: {error}")
