"""Keeps one connection to the broker up: reconnects with backoff, for ever, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from ...errors import NotFound, QueuecastError, Refused, Unavailable
from ...hostport import host_port
from .address import Address
from .connection import Link
from .failures import reason
from .hosts import Hosts

log = logging.getLogger(__name__)

FIRST_DELAY = 0.25  # seconds
LAST_DELAY = 15.0
# A connection that lived this long (seconds) counts as good: the next delay is the first again.
_GOOD = 5.0


def delays(
    choose: Callable[[float, float], float] = random.uniform, last: float = LAST_DELAY
) -> Callable[[int], float]:
    """Return the delay before attempt n (from 0): doubling, with jitter, between the limits."""

    def delay(attempt: int) -> float:
        ceiling = min(last, FIRST_DELAY * 2.0 ** min(attempt, 16))
        # Jitter: all the nodes of a cluster lose their broker in the same moment.
        return choose(ceiling / 2, ceiling)

    return delay


class Supervisor:
    """One connection that comes back, to whichever of the hosts.

    hosts: which is tried first. on_up: run with each new link before it counts as ready; if it
    raises, the link is closed and opened anew. on_down: told when a link is lost, before the next
    is tried.
    """

    def __init__(
        self,
        address: Address,
        purpose: str,
        *,
        hosts: Hosts,
        on_up: Callable[[Link], Awaitable[None]],
        on_down: Callable[[str], None],
        last_delay: float = LAST_DELAY,
    ) -> None:
        self._address = address
        self._hosts = hosts
        self._purpose = purpose
        self._on_up = on_up
        self._on_down = on_down
        self._delay = delays(last=last_delay)
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._closing = False
        self.link: Link | None = None
        self.status = "not started"
        # How often it was lost and came back.
        self.reconnects = 0
        # Why the broker did not let us come back, at the last attempt.
        self.refused: QueuecastError | None = None

    @property
    def user(self) -> str:
        return self._address.user

    @property
    def purpose(self) -> str:
        """What the connection is for: its name at the broker without ours."""
        return self._purpose.rpartition(" ")[2]

    @property
    def ready(self) -> bool:
        return self.link is not None and self.link.is_open

    async def start(self) -> None:
        """Connect once, then stay connected; raises what Link.open raises.

        May be called again after it raised.
        """
        if self._task is not None:
            return
        self.status = "connecting"
        try:
            link = await self._hosts.open(self._address, self._purpose)
            await self._bring_up(link)
        except QueuecastError as error:
            self.status = f"not connected: {error}"
            raise
        if self._closing:
            await link.close()
            raise Unavailable("the connection to RabbitMQ was closed")
        self._task = asyncio.create_task(self._run(link), name=f"rabbitmq {self._purpose}")

    async def _bring_up(self, link: Link) -> None:
        try:
            await self._on_up(link)
        except BaseException:
            # A node that has just started, or lost its cluster, takes logins and then nothing.
            self._hosts.failed(link.host)
            await link.close()
            raise
        if not link.is_open:
            self._hosts.failed(link.host)
            raise Unavailable("the connection was lost while it was set up")
        self.link = link
        self.refused = None
        self.status = f"connected{self._to(link)}"
        self._up.set()

    def _to(self, link: Link) -> str:
        return f" to {host_port(*link.host)}" if self._hosts.several else ""

    async def _run(self, first: Link) -> None:
        link: Link | None = first
        loop = asyncio.get_running_loop()
        attempt = 0
        while not self._closing:
            if link is not None:
                since = loop.time()
                why = reason(await asyncio.shield(link.lost))
                self._hosts.failed(link.host)
                self._down(why)
                why += self._to(link)
                if loop.time() - since >= _GOOD:
                    attempt = 0
            else:
                why = self.status
            if self._closing:
                return
            delay = self._delay(attempt)
            attempt += 1
            self.status = f"connecting: {why}, next in {delay:.1f} s"
            log.warning(
                "%s (%s): %s, next attempt in %.1f s",
                self._address.masked,
                self._purpose,
                why,
                delay,
            )
            await asyncio.sleep(delay)
            link = await self._attempt()

    async def _attempt(self) -> Link | None:
        try:
            link = await self._hosts.open(self._address, self._purpose)
            await self._bring_up(link)
        except QueuecastError as error:
            self.status = str(error)
            self.refused = error if isinstance(error, (Refused, NotFound)) else None
            return None
        except Exception as error:
            # A defect in setting up must not end the reconnecting.
            log.exception("setting up the connection to RabbitMQ failed")
            self.status = str(error)
            return None
        self.reconnects += 1
        log.info("%s (%s): %s again", self._address.masked, self._purpose, self.status)
        return link

    def _down(self, why: str) -> None:
        self.link = None
        self._up.clear()
        if self._closing:
            return
        try:
            self._on_down(why)
        except Exception:
            # A defect there must not end the reconnecting.
            log.exception("letting go of a lost connection to RabbitMQ failed")

    async def wait(self, patience: float) -> Link:
        """Return the link, waiting up to `patience` seconds for it; raises Unavailable."""
        link = self.link
        if link is not None and link.is_open:
            return link
        if self._closing:
            raise Unavailable("the gateway is closing its connection to RabbitMQ")
        if self._task is not None and patience > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._up.wait()
            link = self.link
            if link is not None and link.is_open:
                return link
        raise Unavailable(f"RabbitMQ is away: {self.status}")

    async def spare(self) -> Link:
        """Open one more connection, for what may end its connection; raises as Link.open."""
        return await self._hosts.open(self._address, f"{self._purpose} trial")

    async def close(self) -> None:
        """Stop reconnecting and close the link."""
        self._closing = True
        link, self.link = self.link, None
        if link is not None:
            await link.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self.status = "closed"
