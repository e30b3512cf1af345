"""A session: one client's conversation on one connection, and the hub's outlet for it.

It owns its subscriptions and its work queues. While the connection takes no bytes, its shared
subscriptions stand still as cursors and its consumers hold what they may; when the connection
ends, everything is closed and what was unacked goes back to its queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..aliases import concealed
from ..auth.identity import Identity
from ..destination import Destination
from ..disconnect import INTERNAL, Disconnect, for_error
from ..errors import BadRequest, LimitExceeded, QueuecastError, Unavailable
from ..hub.subscription import Encoding, Subscription
from ..position import Start
from ..runtime import Promise
from .lease import lease_of
from .services import RESTARTING, Services, Transport
from .work import WorkEncoding, WorkSubscription

logger = logging.getLogger(__name__)

Work = TypeVar("Work", bound=WorkSubscription)


class Session:
    """What all protocols share. `write` is the transport's own: one call from tick to socket."""

    __slots__ = (
        "_cancels",
        "_numbers",
        "ack_name",
        "box",
        "closed",
        "identity",
        "paused",
        "services",
        "subscriptions",
        "transport",
        "work",
        "write",
    )

    def __init__(self, services: Services, transport: Transport, identity: Identity) -> None:
        self.services = services
        self.transport = transport
        self.identity = identity
        self.write: Callable[[bytes], None] = transport.write
        self.box: list[bytes] = []
        # How its ack ids begin; "" until a consumer with client acks was opened.
        self.ack_name = ""
        self._numbers = 0
        self.paused = False
        self.closed = False
        # Tuples while small: most connections have one subscription, and there are many.
        self.subscriptions: tuple[Subscription, ...] = ()
        self.work: tuple[WorkSubscription, ...] = ()
        self._cancels: tuple[Callable[[], object], ...] = ()

    @property
    def kind(self) -> str:
        """What its transport is called in metrics."""
        raise NotImplementedError

    # -- the connection's calls -----------------------------------------------------------

    def start(self) -> None:
        """Begin the conversation."""
        raise NotImplementedError

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client."""
        raise NotImplementedError

    def eof_received(self) -> None:
        """The client sends no more: it is leaving."""
        self.transport.close()

    def pause_writing(self) -> None:
        """The connection is full: stand still."""
        self.paused = True
        for subscription in self.subscriptions:
            subscription.pause()

    def resume_writing(self) -> None:
        """The connection takes bytes again."""
        self.paused = False
        for subscription in self.subscriptions:
            subscription.resume()
        for work in self.work:
            work.resume()

    def heartbeat(self, now: float) -> None:
        """Give a sign of life; called every heartbeat interval. now: monotonic seconds."""
        raise NotImplementedError

    def disconnect(self, reason: Disconnect) -> None:
        """Tell the client why, and close."""
        raise NotImplementedError

    def connection_lost(self) -> None:
        """The connection is gone: give everything back."""
        self.end()

    def end(self) -> None:
        """Close subscriptions and consumers; the transport is the caller's."""
        if self.closed:
            return
        self.closed = True
        for cancel in self._cancels:
            cancel()
        self._cancels = ()
        subscriptions, self.subscriptions = self.subscriptions, ()
        for subscription in subscriptions:
            subscription.close()
        if self.ack_name:
            self.services.acks.leave(self.ack_name)
        work, self.work = self.work, ()
        for each in work:
            self.services.runtime.spawn(each.close(), "close a consumer")

    # -- for the protocols ----------------------------------------------------------------

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run something that ends with the session; what it raises closes the session.

        work: makes the coroutine, which is only made if the session lasts until it begins.
        """
        cancel: Callable[[], object] | None = None

        async def guarded() -> None:
            try:
                await work()
            except QueuecastError as error:
                self.disconnect(for_error(error))
            except Exception:
                logger.exception("%s failed", name)
                self.disconnect(INTERNAL)
            finally:
                if cancel is not None:
                    self._cancels = tuple(each for each in self._cancels if each is not cancel)

        cancel = self.services.runtime.spawn(guarded(), name)
        self._cancels = (*self._cancels, cancel)

    async def subscribe(
        self, destinations: tuple[Destination, ...], encoding: Encoding, start: Start
    ) -> Subscription:
        """Join the (joint) feed of shared destinations; call `flow` on the result."""
        self._check_room()
        for destination in destinations:
            self.services.allow(self.identity, "subscribe", destination)
        try:
            subscription = await self.services.hub.subscribe(destinations, encoding, start, self)
        except QueuecastError as error:
            raise concealed(error, destinations) from error
        self.subscriptions = (*self.subscriptions, subscription)
        return subscription

    def subscribe_at_once(
        self, destinations: tuple[Destination, ...], encoding: Encoding, start: Start
    ) -> Subscription | None:
        """As `subscribe`, where nothing has to be waited for and nothing is wrong.

        None: ask `subscribe`, which waits, or says what is wrong.
        """
        try:
            self._check_room()
            for destination in destinations:
                self.services.allow(self.identity, "subscribe", destination)
            subscription = self.services.hub.subscribe_at_once(destinations, encoding, start, self)
        except QueuecastError:
            return None
        if subscription is not None:
            self.subscriptions = (*self.subscriptions, subscription)
        return subscription

    async def consume(
        self,
        destination: Destination,
        encoding: WorkEncoding,
        *,
        ack: bool,
        prefetch: int | None,
        lease: float | None = None,
    ) -> WorkSubscription:
        """Become a competing consumer of a queue destination; call `flow` on the result.

        lease: seconds, None for the setting's.
        """
        if ack and not self.ack_name:
            self.ack_name = self.services.acks.enter(self)
        work = WorkSubscription(
            self,
            destination,
            encoding,
            self.new_number(),
            client_acks=ack,
            lease=self.lease(lease, ack=ack),
        )
        return await self.open_work(work, prefetch)

    def lease(self, asked: float | None, *, ack: bool) -> float:
        """Return the lease of a subscription in seconds, 0 for none; raises BadRequest."""
        limits = self.services.limits
        if not ack:
            if asked is not None:
                raise BadRequest("a lease is for ack=client")
            return 0.0
        return lease_of(asked, default=limits.lease, longest=limits.max_lease)

    def new_number(self) -> int:
        """Return a number for a consumer; never one again, or late acks would find another's."""
        self._numbers += 1
        return self._numbers

    def alive(self) -> None:
        """The client, not only its connection, gave a sign of life."""
        for work in self.work:
            work.alive()

    async def open_work(self, work: Work, prefetch: int | None) -> Work:
        """Let a consumer that was just made begin; see `consume`."""
        self._check_room()
        self.services.allow(self.identity, "subscribe", work.destination)
        self.work = (*self.work, work)
        try:
            await work.open(prefetch or self.services.limits.prefetch)
        except BaseException:
            self.work = tuple(each for each in self.work if each is not work)
            raise
        return work

    def drop_subscription(self, subscription: Subscription) -> None:
        """End one subscription, the session goes on."""
        subscription.close()
        self.subscriptions = tuple(each for each in self.subscriptions if each is not subscription)

    def drop_work(self, work: WorkSubscription) -> Promise:
        """End one consumer, the session goes on; returns what is done when the broker knows.

        It is ended even if the session ends meanwhile.
        """
        self.work = tuple(each for each in self.work if each is not work)
        runtime = self.services.runtime
        ended = runtime.promise()

        async def close() -> None:
            try:
                await work.close()
            finally:
                if not ended.done():
                    ended.set_result(None)

        runtime.spawn(close(), "close a consumer")
        return ended

    def _check_room(self) -> None:
        if self.services.drain.begun:
            raise Unavailable(RESTARTING)
        limit = self.services.limits.subscriptions
        if len(self.subscriptions) + len(self.work) >= limit:
            raise LimitExceeded(f"this connection has {limit} subscriptions, that is the limit")

    # -- what can befall a subscription ---------------------------------------------------

    def feed_failed(self, subscription: Subscription, error: QueuecastError) -> None:
        """A feed is over. Protocols that can name one subscription override this."""
        self.disconnect(for_error(error))

    def work_cancelled(self, work: WorkSubscription, error: QueuecastError) -> None:
        """A consumer is over. As feed_failed."""
        self.disconnect(for_error(error))
