"""The router: a message's way to queues, history and feeds, and to a dead-letter exchange.

With a keeper a message is planned here, written, and only then handed on (keeper.py has the law).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...errors import BadRequest, PublishFailed
from ...message import Message
from ...retention import RetainRule
from . import death
from .age import AgeClock
from .exchange import Exchange
from .feed import Feed
from .history import History
from .memory import Memory, weight
from .queue import Queue
from .retained import MemoryLog, RetainedLog, Rules
from .topology import Target, Topology
from .turn import Turn

if TYPE_CHECKING:
    from .keeper import Keeper

logger = logging.getLogger(__name__)


class Routed(NamedTuple):
    """What became of a message: targets that took it, and the name of a queue that refused.

    done: when it is on disk and handed on; None when that is so already.
    """

    taken: int
    refused: str | None
    done: asyncio.Future[None] | None = None


class Router:
    """One broker's router.

    retain: what is kept whether or not anyone is subscribed; the keeper's store has equal rules.
    """

    def __init__(
        self,
        topology: Topology,
        turn: Turn,
        memory: Memory,
        history: History,
        retain: Sequence[RetainRule],
        keeper: Keeper | None,
        ages: AgeClock,
    ) -> None:
        self.offset = 0
        """The last that was given to a message."""
        self.handed = 0
        """Up to which offset all feeds have what is theirs."""
        self._topology = topology
        self._turn = turn
        self._memory = memory
        self._history = history
        self._rules = Rules(retain)
        self._retained: Sequence[MemoryLog] = (
            [MemoryLog(rule, ages.now) for rule in retain] if keeper is None else ()
        )
        self._keeper = keeper

    def begin_at(self, offset: int) -> None:
        """Go on behind an offset; what was only in memory before it is gone."""
        # Whoever was not at the very end has a gap.
        self.offset = self.handed = self._history.floor = offset

    def log(self, rule: int) -> RetainedLog:
        """Return the log of a rule, by its number."""
        return self._retained[rule] if self._keeper is None else self._keeper.log(rule)

    def route(self, target: Exchange[Target], message: Message, *, is_dead: bool = False) -> Routed:
        """Give a message to all that match; raises PublishFailed when memory is full, BadRequest.

        With a keeper it may be on its way when this returns.
        """
        targets, passed = self._match(target, message)
        if is_dead and targets:
            deaths = death.deaths_of(message)
            targets = [
                found
                for found in targets
                if isinstance(found, Feed) or not death.is_cycle(found.name, deaths)
            ]
        size = weight(message)
        queues = [found for found in targets if not isinstance(found, Feed)]
        if queues and not self._memory.has_room(len(queues) * size):
            raise PublishFailed(
                f"the embedded broker's queues hold {self._memory.used} bytes of at most "
                f"{self._memory.limit}",
                "consume what is in the queues, or limit them with x-max-length or x-message-ttl",
            )
        if self._keeper is not None:
            self._keeper.check(message, is_letter=is_dead)
        refusing = [queue for queue in queues if queue.refuses(message)]
        taking = [queue for queue in queues if queue not in refusing] if refusing else queues
        refused = refusing[-1].name if refusing else None
        self.offset += 1
        message.offset = self.offset
        if self._keeper is None:
            feeds = [found for found in targets if isinstance(found, Feed)]
            for queue in taking:
                queue.put(message, size)
            self._hand(message, passed, feeds)
            return Routed(len(targets), refused)

        def hand() -> None:
            # Feeds may have come and gone since; queues may only have gone.
            if target.name and self._topology.exchanges.get(target.name) is not target:
                self._hand(message, (), ())
                return
            now, by = self._match(target, message)
            self._hand(message, by, [found for found in now if isinstance(found, Feed)])

        done = self._keeper.take(
            message, size, taking, self._rules_keeping(passed, message), hand, is_letter=is_dead
        )
        return Routed(len(targets), refused, done)

    def _hand(self, message: Message, passed: Sequence[str], feeds: Sequence[Feed]) -> None:
        """Give a message to history and feeds."""
        for name in passed:
            self._history.add(name, message)
        if self._retained:
            for rule in self._rules_keeping(passed, message):
                self._retained[rule].add(message)
        for feed in feeds:
            feed.append(message)
        self.handed = message.offset or 0

    def _rules_keeping(self, passed: Sequence[str], message: Message) -> Sequence[int]:
        if not self._rules:
            return ()
        return [
            rule
            for name in passed
            for rule in self._rules.keeping(
                name, self._topology.exchanges[name].spec.type, message.routing_key
            )
        ]

    def _match(
        self, target: Exchange[Target], message: Message
    ) -> tuple[Collection[Target], list[str]]:
        """Return the targets, and the exchanges passed on the way (alternate exchanges)."""
        if target.name == "":
            found = self._topology.queues.get(message.routing_key)
            return (() if found is None else (found,)), []
        passed: list[str] = []
        while True:
            passed.append(target.name)
            targets = target.match(message.routing_key, message.properties.headers)
            alternate = target.alternate
            if targets or alternate is None or alternate in passed:
                return targets, passed
            following = self._topology.exchanges.get(alternate)
            if following is None:
                return targets, passed
            if following.name == "":
                return self._match(following, message)[0], passed
            target = following

    # Dead letters

    def on_death(self, dead: Queue, message: Message, reason: str, kept: int) -> None:
        """Take a message that left a queue unacked; kept: its id in the store, 0 for none."""
        name = dead.arguments.dead_letter_exchange
        if name is None:
            self._forget(kept)
            return
        letter = death.bury(
            message,
            queue=dead.name,
            reason=reason,
            exchange=name,
            routing_key=dead.arguments.dead_letter_key,
            time=int(time.time()),
        )

        def bury() -> None:
            # Both in one batch of the store: a kill neither loses the letter nor doubles it.
            self._route_dead(dead.name, letter)
            self._forget(kept)

        self._turn.do(bury)

    def _forget(self, kept: int) -> None:
        if self._keeper is not None:
            self._keeper.drop(kept)

    def _route_dead(self, from_queue: str, letter: Message) -> None:
        target = self._topology.exchanges.get(letter.exchange)
        if target is None:
            logger.warning(
                "dead letter of queue %r dropped: no exchange %r", from_queue, letter.exchange
            )
            return
        try:
            routed = self.route(target, letter, is_dead=True)
        except (PublishFailed, BadRequest) as error:
            logger.warning("dead letter of queue %r dropped: %s", from_queue, error)
            return
        if routed.refused is not None:
            logger.warning(
                "dead letter of queue %r refused by queue %r", from_queue, routed.refused
            )
