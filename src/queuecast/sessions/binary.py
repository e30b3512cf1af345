"""Which messages' bodies are bytes for a subscription, whatever they look like.

Without it a body is text where it is UTF-8. Bytes that happen to be UTF-8, as some records of a
binary format always are, would come as text and the next record as bytes. A client says
`binary=always`, or a `[[binary]]` rule says so for a destination.

The values are part of an encoding: subscriptions share bytes only where they agree on this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..destination import Destination
from ..errors import BadRequest
from ..message import Message
from ..pattern import contains

PARAMETER = "binary"
_ALLOWED = {"always": True, "auto": False, "": False}


@dataclass(frozen=True, slots=True)
class Binary:
    """What is always bytes: all messages, or those that were published where a rule says so.

    rules: destinations of exchanges.
    """

    always: bool = False
    rules: tuple[Destination, ...] = ()

    def holds(self, message: Message) -> bool:
        """Return whether a message's body is bytes even if it is UTF-8."""
        return self.always or any(
            rule.exchange == message.exchange and contains(rule.pattern, message.routing_key)
            for rule in self.rules
        )


# One for each of a subscription's destinations; () where nothing is always bytes.
Binaries = tuple[Binary, ...]

_NEVER = Binary()
_ALWAYS = Binary(always=True)
ALWAYS: Binaries = (_ALWAYS,)


class BinaryRules:
    """The `[[binary]]` rules."""

    __slots__ = ("_queues", "_shared", "_wider")

    def __init__(self, destinations: Sequence[Destination] = ()) -> None:
        """destinations: of exchanges, and queues, whose names may be patterns."""
        self._shared = tuple(each for each in destinations if each.is_shared)
        self._queues = tuple(each for each in destinations if not each.is_shared)
        # A subscription that no rule contains can get messages that one is for: by a wider pattern,
        # from a queue. One value for all of them, so that it divides no cohort.
        self._wider = Binary(rules=self._shared) if self._shared else _NEVER

    def of(self, *destinations: Destination, always: bool = False) -> Binaries:
        """Return what is always bytes for a subscription.

        always: whether its client asked for that.
        """
        if always:
            return (_ALWAYS,) * len(destinations)
        if not self._shared and not self._queues:
            return ()
        found = tuple(map(self._one, destinations))
        return () if all(each is _NEVER for each in found) else found

    def _one(self, destination: Destination) -> Binary:
        if destination.is_shared:
            held = any(
                rule.exchange == destination.exchange
                and contains(rule.pattern, destination.pattern)
                for rule in self._shared
            )
        else:
            # /queue/N and /amq/queue/N are one queue.
            held = any(contains(rule.name, destination.name) for rule in self._queues)
        return _ALWAYS if held else self._wider


NO_BINARY_RULES = BinaryRules()


def parse_binary(text: str | None) -> bool:
    """Read the parameter `binary`; raises BadRequest."""
    found = _ALLOWED.get(text or "")
    if found is None:
        raise BadRequest(f"{PARAMETER}={str(text)[:32]!r} is unknown", "allowed is always or auto")
    return found
