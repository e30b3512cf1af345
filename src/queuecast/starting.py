"""The first connect to the broker, and the clients that come before it is done.

A gateway listens before it has reached its broker: a second one must not touch the first one's
queues, and a probe has to get its answer. A store takes seconds to load, and after a restart all
clients come at once. Refusing them would only make them reconnect, so that their calls wait here
for the moment that the start takes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .brokers.base import (
    DEFAULT_PREFETCH,
    PLAIN,
    Broker,
    Consumer,
    ConsumeSpec,
    DeliverySink,
    FeedReader,
    FeedSink,
    Owner,
    QueueSpec,
)
from .destination import Destination
from .errors import QueuecastError, Unavailable
from .message import NO_PROPERTIES, Properties
from .runtime import Promise, Runtime
from .sessions.services import Account, Login, PublishAtOnce

logger = logging.getLogger(__name__)

# Seconds between attempts to reach the broker at start; doubled up to the second value.
_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
# Bytes of bodies that wait for the start, all together: it stops publishers from filling the
# memory with what no broker has taken yet. Beyond it a publish is refused at once.
HELD_BYTES = 64 << 20


class Starting:
    """The time until the broker was reached for the first time.

    connect: one attempt; raises Unavailable while the broker is away. patience: seconds that one
    call waits at most. While no attempt has failed yet each call has them for itself; from the
    first failure on the broker is away, and calls wait no longer than so many seconds after the
    start. A call whose time is over goes to the broker, which has its own words for a refusal.
    """

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        connect: Callable[[], Awaitable[None]],
        *,
        patience: float,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """name: of the broker, for the log."""
        self._runtime = runtime
        self._name = name
        self._connect = connect
        self._patience = patience
        self._held_bytes = held_bytes
        self._began = runtime.now()
        self._is_over = False
        self._has_failed = False
        self._held = 0
        # Calls that wait, in their order. At most what sessions may have under way: for each
        # connection its subscriptions and its unconfirmed publishes.
        self._waiting: dict[Promise, None] = {}

    @property
    def is_over(self) -> bool:
        """Whether calls go to the broker at once."""
        return self._is_over and not self._waiting

    @property
    def is_patient(self) -> bool:
        """Whether a call that comes now waits."""
        return not self._is_over and self._left() > 0

    # -- the first connect ----------------------------------------------------------------

    async def reach(self, timeout: float) -> None:
        """Connect, trying again for `timeout` seconds; raises what `connect` does."""
        deadline = self._runtime.now() + timeout
        delay = _FIRST_RETRY
        while True:
            try:
                await self._attempt()
            except Unavailable as error:
                left = deadline - self._runtime.now()
                if delay > left:
                    raise
                logger.warning("%s is away, trying for %.0f s more: %s", self._name, left, error)
                await self._runtime.sleep(delay)
                delay = min(delay * 2, _LAST_RETRY)
            else:
                return

    async def reach_or_go_on(self) -> Coroutine[Any, Any, None] | None:
        """Try once; returns what goes on trying where the broker is away, None where it is done."""
        try:
            await self._attempt()
        except Unavailable as error:
            logger.warning("%s is away, trying on: %s", self._name, error)
            return self._keep_trying()
        return None

    async def _keep_trying(self) -> None:
        delay = _FIRST_RETRY
        while True:
            await self._runtime.sleep(delay * random.uniform(0.5, 1.0))
            try:
                await self._attempt()
            except QueuecastError as error:
                delay = min(delay * 2, _LAST_RETRY)
                logger.warning("%s: %s; next attempt within %.1f s", self._name, error, delay)
            except Exception:
                # A defect must not leave the gateway waiting indefinitely without a word.
                delay = _LAST_RETRY
                logger.exception("connecting to %s failed", self._name)
            else:
                return

    async def _attempt(self) -> None:
        try:
            await self._connect()
        except BaseException:
            self._has_failed = True
            raise
        self.end()

    def end(self) -> None:
        """Let the calls that wait go to the broker, in their order."""
        self._is_over = True
        for promise in self._waiting:
            if not promise.done():
                promise.set_result(None)

    # -- calls that come before -----------------------------------------------------------

    async def wait(self, size: int = 0) -> None:
        """Return when the broker may be asked. size: bytes that the caller holds meanwhile."""
        if self._is_over:
            if self._waiting:
                # Behind those that have waited: what one client publishes keeps its order.
                await self._runtime.sleep(0)
            return
        left = self._left()
        if left <= 0 or self._held + size > self._held_bytes:
            return
        promise = self._runtime.promise()
        self._waiting[promise] = None
        self._held += size
        try:
            await self._runtime.within(left, promise)
        except TimeoutError:
            return
        finally:
            self._held -= size
            del self._waiting[promise]

    def _left(self) -> float:
        """Return for how many seconds a call that comes now may wait."""
        if not self._has_failed:
            return self._patience
        return self._began + self._patience - self._runtime.now()

    def at_once_of(self, at_once: PublishAtOnce | None) -> PublishAtOnce | None:
        """Return how sessions publish without waiting: not at all before the start is over."""
        if at_once is None:
            return None

        def publish_at_once(
            destination: Destination,
            body: bytes,
            properties: Properties,
            *,
            mandatory: bool | None = None,
        ) -> bool:
            if not self.is_over:
                return False
            return at_once(destination, body, properties, mandatory=mandatory)

        return publish_at_once

    def login_of(self, login: Login) -> Login:
        """Return how logins are checked, which the broker does as well."""

        async def check(user: str, passcode: str, host: str | None, *, loopback: bool) -> Account:
            await self.wait()
            return await login(user, passcode, host, loopback=loopback)

        return check


class StartingBroker:
    """A broker's calls as sessions and the hub make them: each waits for the start."""

    def __init__(self, broker: Broker, starting: Starting) -> None:
        self._broker = broker
        self._starting = starting

    def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties = NO_PROPERTIES,
        *,
        mandatory: bool | None = None,
    ) -> Awaitable[None]:
        """See the broker interface. No coroutine more than the broker's, once it is started."""
        if self._starting.is_over:
            return self._broker.publish(destination, body, properties, mandatory=mandatory)
        return self._publish(destination, body, properties, mandatory)

    async def _publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        mandatory: bool | None,
    ) -> None:
        await self._starting.wait(len(body))
        await self._broker.publish(destination, body, properties, mandatory=mandatory)

    async def open_feed(self, destination: Destination, sink: FeedSink) -> FeedReader:
        """See the broker interface."""
        await self._starting.wait()
        return await self._broker.open_feed(destination, sink)

    async def consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int = DEFAULT_PREFETCH,
        spec: ConsumeSpec = PLAIN,
    ) -> Consumer:
        """See the broker interface."""
        await self._starting.wait()
        return await self._broker.consume(destination, sink, prefetch=prefetch, spec=spec)

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        """See the broker interface."""
        await self._starting.wait()
        await self._broker.declare_own(queue, owner)

    async def delete_own(self, name: str, owner: Owner) -> None:
        """See the broker interface."""
        await self._starting.wait()
        await self._broker.delete_own(name, owner)

    async def release(self, owner: Owner) -> None:
        """See the broker interface."""
        await self._broker.release(owner)
