"""Notices that an exchange was deleted, also when it was declared again at once.

RabbitMQ deletes an exchange together with its bindings, without notice. The watch looks
each second at what goes with the exchange (exchange_identity.py), and after each reconnect, so
that it also notices what happened while the connection was away. A part that follows an exchange is
called, binds again and tells a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import pika.exceptions

from ...errors import Conflict, NotFound, QueuecastError, Refused, Unavailable
from ..base import PREDECLARED
from .connection import Link
from .exchange_identity import ExchangeIdentity, missing
from .supervisor import Supervisor

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds between looks
# Exchanges looked at per second, in turns. Clients can subscribe to very many, and a look costs
# RabbitMQ about 0.1 ms.
_PER_LOOK = 500
# … and of those that are missing: each costs a channel and a line in RabbitMQ's log.
_MISSING_PER_LOOK = 20
# Seconds for RabbitMQ to answer. A node in a minority is silent about changes of its topology.
# Several calls in a row, each a transaction in RabbitMQ's store.
_ANSWERS = 10.0
# Exchanges that the log has named as not watched; keeps a client from filling the log and memory.
_MOST_TOLD = 1000

OnLost = Callable[[str], None]


def is_watchable(exchange: str) -> bool:
    """Return whether an exchange can be deleted at all; RabbitMQ protects its own."""
    return exchange not in PREDECLARED and not exchange.startswith("amq.")


class Following:
    """One interest in an exchange, until `close`."""

    def __init__(self, watched: _Watched | None, on_lost: OnLost, on_back: OnLost) -> None:
        self._watched = watched
        self.on_lost = on_lost
        self.on_back = on_back
        if watched is not None:
            watched.followings.add(self)

    @property
    def epoch(self) -> str:
        """Which incarnation of the exchange is there, the same on all gateways.

        "" while that is not known: the exchange is missing, not watched, or cannot be deleted.
        """
        return self._watched.epoch if self._watched is not None else ""

    @property
    def is_blind(self) -> bool:
        """Whether RabbitMQ lets the user not watch it: only a longer absence is noticed."""
        return self._watched is not None and self._watched.is_blind

    @property
    def is_watchable(self) -> bool:
        """Whether the exchange is one that can be deleted."""
        return self._watched is not None

    async def close(self) -> None:
        """End it; neither `on_lost` nor `on_back` is called afterwards."""
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.followings.discard(self)
            if not watched.followings:
                watched.forget(watched)


class _Watched:
    """One exchange that is watched.

    epoch: of the exchange when it was last seen. is_missing: it was not there at the last look.
    is_blind: RabbitMQ lets this user not watch it; then it is only noticed while it is missing.
    """

    def __init__(self, name: str, forget: Callable[[_Watched], None]) -> None:
        self.name = name
        self.forget = forget
        self.identity = ExchangeIdentity(name)
        self.epoch = ""
        self.is_missing = False
        self.is_blind = False
        self.followings: set[Following] = set()
        self.busy = asyncio.Lock()

    @property
    def is_known(self) -> bool:
        """Whether it is watched, or known why it is not."""
        return bool(self.epoch) or self.is_missing or self.is_blind

    @property
    def looked_at(self) -> str:
        """The exchange whose absence means that this one was deleted."""
        return self.identity.sign(self.epoch) if self.epoch else self.name


class ExchangeWatch:
    """The watch of one broker: an own look for each exchange, however many follow it.

    supervisor: of the connection that it uses.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._link: Link | None = None
        self._watched: dict[str, _Watched] = {}
        self._next: list[_Watched] = []  # whose turn has not come yet
        self._told: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.losses = 0
        """How often an exchange was found deleted."""

    async def follow(
        self, exchange: str, on_lost: OnLost, on_back: OnLost | None = None
    ) -> Following:
        """Watch an exchange, and return once the watch stands.

        To be called before a queue is bound, so that no loss goes unnoticed. on_lost: called from
        the loop, with the reason, when the exchange was deleted. Where it is missing since,
        on_back is called when it is there again (on_lost when None). Returns at once where it
        cannot be watched: missing, predeclared, or without the right. Raises Unavailable when
        RabbitMQ is away or does not answer within 10 seconds.
        """
        on_back = on_lost if on_back is None else on_back
        if self._closed or not is_watchable(exchange):
            return Following(None, on_lost, on_back)
        watched = self._watched.get(exchange)
        if watched is None:
            watched = self._watched[exchange] = _Watched(exchange, self._forget)
        following = Following(watched, on_lost, on_back)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="rabbitmq exchange watch")
        try:
            if not watched.is_known:
                await self._check(self._link, watched, again=False)
            if not watched.is_known:
                raise Unavailable(f"RabbitMQ does not answer about the exchange {exchange!r}")
        except BaseException:
            await following.close()
            raise
        return following

    def on_up(self, link: Link) -> None:
        """Look at everything by a new link."""
        self._link = link
        for watched in self._watched.values():
            watched.is_blind = False  # the user may have got the right meanwhile
        self._next = []
        self._wake.set()

    def on_down(self) -> None:
        """Let go of the link."""
        self._link = None

    async def close(self) -> None:
        """Stop; what stands at the broker goes with the exchanges."""
        self._closed = True
        self._link = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _forget(self, watched: _Watched) -> None:
        if self._watched.get(watched.name) is watched:
            del self._watched[watched.name]

    # -- looking --------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._wake.wait()
            self._wake.clear()
            link = self._link
            if link is None or not link.is_open or not self._watched:
                continue
            try:
                await self._look(link)
            except (QueuecastError, TimeoutError) as error:
                log.debug("looking at exchanges: %s", error)
            except Exception:
                log.exception("looking at exchanges failed")

    async def _look(self, link: Link) -> None:
        """Look at as many as are due, and find out about those that show no sign."""
        due = self._due()
        standing = {each.looked_at: each for each in due if each.epoch or each.is_blind}
        async with asyncio.timeout(_ANSWERS):
            gone = await missing(link, list(standing))
        others = [each for each in due if not each.epoch and not each.is_blind]
        for watched in [*(standing[name] for name in gone), *others[:_MISSING_PER_LOOK]]:
            if link is not self._link:
                return
            await self._check(link, watched)
        for name, watched in standing.items():
            if watched.is_blind and watched.is_missing and name not in gone:
                self._back(watched)

    def _due(self) -> list[_Watched]:
        if not self._next:
            self._next = list(self._watched.values())
        due, self._next = self._next[:_PER_LOOK], self._next[_PER_LOOK:]
        return [each for each in due if each.followings]

    async def _check(self, link: Link | None, watched: _Watched, *, again: bool = True) -> None:
        """Find out which exchange is there, and tell those who follow it what has changed.

        again: also if another call has found that out meanwhile.
        """
        if link is None:
            return
        try:
            async with asyncio.timeout(_ANSWERS), watched.busy:
                if not again and watched.is_known:
                    return
                if watched.is_blind:
                    # Only asked for when it was found missing.
                    self._lost(watched, missing_now=True)
                    return
                epoch = await watched.identity.learn(link)
        except NotFound:
            self._lost(watched, missing_now=True)
        except (Refused, Conflict) as error:
            self._blind(watched, error)
        except (QueuecastError, pika.exceptions.AMQPError, TimeoutError) as error:
            log.debug("the exchange %r is not watched yet: %s", watched.name, error)
        else:
            before, watched.epoch = watched.epoch, epoch
            if watched.is_missing:
                self._back(watched)
            elif before and before != epoch:
                self._lost(watched, missing_now=False)

    def _blind(self, watched: _Watched, error: QueuecastError) -> None:
        watched.epoch = ""
        watched.is_blind = True
        if watched.name in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(watched.name)
        log.warning(
            "the exchange %r is not watched: if it is deleted and declared again at once, messages "
            "are missed without a gap (%s); give the user %r the right to write to it, and to "
            "configure, write and read queuecast\\..*",
            watched.name,
            error,
            self._supervisor.user,
        )

    # -- telling --------------------------------------------------------------------------

    def _lost(self, watched: _Watched, *, missing_now: bool) -> None:
        if watched.is_missing:
            return  # it is known already
        if missing_now:
            known = bool(watched.epoch) or watched.is_blind
            watched.is_missing, watched.epoch = True, ""
            if not known:
                return  # it was not there from the beginning
            why = f"the exchange {watched.name!r} is missing"
        else:
            why = f"the exchange {watched.name!r} was deleted and declared again"
        self.losses += 1
        log.warning("%s: what was published to it meanwhile may have been missed", why)
        for following in list(watched.followings):
            _call(following.on_lost, why)

    def _back(self, watched: _Watched) -> None:
        watched.is_missing = False
        log.info("the exchange %r is there again", watched.name)
        for following in list(watched.followings):
            _call(following.on_back, f"the exchange {watched.name!r} was missing")


def _call(call: OnLost, why: str) -> None:
    try:
        call(why)
    except Exception:
        log.exception("telling of a lost exchange failed")
