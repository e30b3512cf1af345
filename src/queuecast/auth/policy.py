"""What an identity may subscribe to and publish: the `[[allow]]` rules.

A rule's destinations are patterns: words between dots may be `*` (one word) or `#` (any), in
keys, in exchange names and in queue names alike. A request that is itself a pattern passes only
when one single rule contains all of it: `/topic/#` is refused where `/topic/public.#` is allowed.
Two names of one thing (`/queue/N` and `/amq/queue/N`, `/topic/K` and `/exchange/amq.topic/K`)
are two destinations here: each is allowed by its own name only.

Rules speak of names, not of exchange types: on a fanout or headers exchange the broker ignores
the key, so that any allowed key of it means all of its messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..destination import Destination
from ..errors import ConfigError, QueuecastError, Refused
from .identity import Identity

Verb = Literal["subscribe", "publish"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[allow]]` rule. who: an identity's name, or "*" for everybody."""

    who: str
    subscribe: tuple[Destination, ...] = ()
    publish: tuple[Destination, ...] = ()

    @classmethod
    def parse(
        cls,
        who: str,
        subscribe: Iterable[str] = (),
        publish: Iterable[str] = (),
        where: str = "allow",
    ) -> Rule:
        """Read a rule's destinations; raises ConfigError naming `where` and the wrong one."""
        return cls(
            who,
            _destinations(subscribe, f"{where}.subscribe"),
            _destinations(publish, f"{where}.publish"),
        )

    def concerns(self, identity: Identity) -> bool:
        """Tell whether the rule speaks of this identity."""
        return self.who in ("*", identity.name)

    def allows(self, verb: Verb, wanted: Destination) -> bool:
        """Tell whether all of `wanted` lies within one destination of the rule."""
        granted = self.subscribe if verb == "subscribe" else self.publish
        return any(each.covers(wanted) for each in granted)


class Policy:
    """The door-keeper that every route and frame asks, after alias expansion."""

    def __init__(self, rules: Sequence[Rule] = (), allow_all: bool | None = None) -> None:
        """rules: none of them matching means refused. allow_all: None means without rules."""
        self._rules = tuple(rules)
        self._allow_all = not self._rules if allow_all is None else allow_all

    def allow(self, identity: Identity, verb: Verb, destination: Destination) -> None:
        """Return if allowed; raises Refused, whose hint names the rule to add."""
        if self._allow_all:
            return
        for rule in self._rules:
            if rule.concerns(identity) and rule.allows(verb, destination):
                return
        raise Refused(
            f"{identity.name} may not {verb} {'to ' if verb == 'subscribe' else ''}{destination}",
            # Quoted as in TOML: the line is made to be pasted, and the name is a stranger's.
            f"[[allow]] who = {_quoted(identity.name)} {verb} = [{_quoted(str(destination))}]",
        )


def _quoted(text: str) -> str:
    # JSON's escapes are among those of TOML's basic strings.
    return json.dumps(text, ensure_ascii=False)


def _destinations(texts: Iterable[str], where: str) -> tuple[Destination, ...]:
    made = []
    for index, text in enumerate(texts):
        try:
            made.append(Destination.parse(text))
        except QueuecastError as error:
            raise ConfigError(f"{where}[{index}]: {error.text}", error.hint) from None
    return tuple(made)
