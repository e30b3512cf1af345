"""What a client holds unacked, and until when.

A lease begins when a message is written to the client. Every message of a subscription has the
same one, so that those that were written first end first: the record is in the order of its ends,
and one timer, for the first of them, serves all. A message costs an entry in a mapping and no
timer of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import BadRequest, NotFound, QueuecastError, Returned, Settled
from ..runtime import Runtime, Timer

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# Seconds; a shorter one would send messages round faster than any client could ack them.
SHORTEST = 0.1
# Tags of messages that went back, kept so that a late ack can be told; of older ones it is not
# known any more whether they were settled or went back.
_REMEMBERED = 1000


class Handed(NamedTuple):
    """A message in a client's hands. due: when its lease ends, monotonic seconds.

    key: by which its returns are counted (returns.py), None where they are not.
    """

    due: float
    key: bytes | None


class Lease:
    """The messages of one subscription that its client has and has not settled.

    seconds: how long the client may take, 0 for any time. expired: called with the tags whose
    time is over, which count as given back from then on.
    """

    __slots__ = (
        "_expired",
        "_handed",
        "_last",
        "_returned",
        "_runtime",
        "_timer",
        "_void",
        "seconds",
    )

    def __init__(
        self,
        runtime: Runtime,
        seconds: float,
        expired: Callable[[Sequence[tuple[int, Handed]]], None],
    ) -> None:
        self.seconds = seconds
        self._runtime = runtime
        self._expired = expired
        # By tag, in the order of their ends; never more than the prefetch.
        self._handed: dict[int, Handed] = {}
        self._returned: dict[int, None] = {}  # at most _REMEMBERED
        # Up to here tags are void: the broker's connection that they came by was lost.
        self._void = 0
        self._last = 0
        self._timer: Timer | None = None

    def __contains__(self, tag: int) -> bool:
        return tag in self._handed

    def __len__(self) -> int:
        return len(self._handed)

    def hand(self, tag: int, key: bytes | None = None) -> None:
        """Note that a message goes to the client now."""
        self._last = tag
        if not self.seconds:
            self._handed[tag] = Handed(math.inf, key)
            return
        self._handed[tag] = Handed(self._runtime.now() + self.seconds, key)
        if self._timer is None:
            self._timer = self._runtime.call_later(self.seconds, self._ring)

    def up_to(self, tag: int) -> list[int]:
        """Return the tags that the client has, as far as `tag`, in order."""
        tags = []
        for each in self._handed:
            if each > tag:
                break
            tags.append(each)
        return tags

    def take(self, tag: int) -> Handed | None:
        """Forget a message that is being settled; None if the client does not hold it."""
        return self._handed.pop(tag, None)

    def give_back(self, tag: int) -> Handed | None:
        """Forget a message that goes back to its queue; as `take`."""
        handed = self._handed.pop(tag, None)
        if handed is not None:
            self._remember(tag)
        return handed

    def void(self) -> list[Handed]:
        """Forget everything: the connection was lost and it comes again, or the subscription is
        over. Returns what it was."""
        lost = list(self._handed.values())
        if self._handed:
            self._void = next(reversed(self._handed))
            self._handed.clear()
        self._stop()
        return lost

    def is_void(self, tag: int) -> bool:
        """Whether a tag is of before the broker's connection was lost."""
        return 0 < tag <= self._void

    def why_not(self, tag: int) -> QueuecastError:
        """Return what to tell a client that settles what it does not hold."""
        if not 0 < tag <= self._last:
            return NotFound("no message with this ack id was sent")
        if tag in self._returned:
            return Returned(
                "the message went back to its queue",
                "ack within the lease, or ask for a longer one",
            )
        if tag <= self._void:
            return Returned(
                "the message went back to its queue, unless it was settled before: the connection "
                "to the broker was lost",
            )
        return Settled("the message was settled already")

    def _remember(self, tag: int) -> None:
        if len(self._returned) >= _REMEMBERED:
            del self._returned[next(iter(self._returned))]
        self._returned[tag] = None

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self._runtime.now()
        late: list[tuple[int, Handed]] = []
        for tag, handed in self._handed.items():
            if handed.due > now:
                self._timer = self._runtime.call_later(handed.due - now, self._ring)
                break
            late.append((tag, handed))
        for tag, _ in late:
            del self._handed[tag]
            self._remember(tag)
        if late:
            self._expired(late)


def parse_lease(text: str | None) -> float | None:
    """Read a lease, seconds or text such as "500ms", "30s", "5m"; raises BadRequest."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise BadRequest(f"lease={text[:32]!r} is not a duration", 'give e.g. "30s" or "5m"')
    return float(found[1]) * _UNITS[found[2] or "s"]


def lease_of(asked: float | None, *, default: float, longest: float) -> float:
    """Return the lease of a subscription with client acks, in seconds, 0 for none.

    default, longest: the settings. Raises BadRequest.
    """
    if asked is None or asked == default:
        return default
    if asked == 0:
        raise BadRequest(
            "lease=0 is not possible here", f"at most {longest:g}s; limits.lease is {default:g}s"
        )
    if not SHORTEST <= asked <= longest:
        raise BadRequest(
            f"a lease of {asked:g}s is not possible",
            f"{SHORTEST:g}s to {longest:g}s; limits.max_lease raises it",
        )
    return asked
