"""Who takes part in a run of the history pass, and who of them wants which message."""

from __future__ import annotations

from collections.abc import Iterator

from ...message import Message
from ..matching import Index, new_index
from .stream_holes import Hole
from .stream_request import Request, keys_of


class _Group:
    """The requests of one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.requests: set[Request] = set()


class Run:
    """The requests that are served while the consumer reads on, by their patterns."""

    def __init__(self) -> None:
        self._all: set[Request] = set()
        self._everything: set[Request] = set()  # those without a pattern
        self._groups: dict[str, _Group] = {}
        self._index: Index[_Group] = new_index("topic")

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request: Request | None) -> bool:
        return request in self._all

    def __iter__(self) -> Iterator[Request]:
        """Yield all as of now: they may leave meanwhile."""
        return iter(tuple(self._all))

    def add(self, request: Request) -> None:
        """Let a request take part."""
        self._all.add(request)
        if request.pattern is None:
            self._everything.add(request)
            return
        group = self._groups.get(request.pattern)
        if group is None:
            group = self._groups[request.pattern] = _Group(request.pattern)
            self._index.add(request.pattern, group)
        group.requests.add(request)

    def discard(self, request: Request) -> None:
        """Let a request go; harmless when it takes no part."""
        self._all.discard(request)
        self._everything.discard(request)
        group = self._groups.get(request.pattern) if request.pattern is not None else None
        if group is not None:
            group.requests.discard(request)
            if not group.requests:
                del self._groups[group.pattern]
                self._index.remove(group.pattern, group)

    def meet(self, hole: Hole) -> list[Request]:
        """Tell all of a place where messages are missing; returns those that end before it."""
        inside = [each for each in self._all if each.want <= hole.offset <= each.head]
        return [each for each in inside if each.meet(hole)]

    def hand(self, offset: int, message: Message) -> list[Request]:
        """Give a message to all that want it; returns those that have enough now."""
        takers = set(self._everything)
        if self._groups:
            for key in keys_of(message):
                for group in self._index.match(key):
                    takers |= group.requests
        return [each for each in takers if each.want <= offset and each.take(offset, message)]
