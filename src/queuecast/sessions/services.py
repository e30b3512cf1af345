"""What sessions need of the house, handed to them by the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..auth.identity import Identity
from ..auth.policy import Verb
from ..delivery import Consumer, DeliveryBudget, DeliverySink
from ..destination import Destination
from ..errors import QueuecastError, Refused, Unsupported
from ..hub.subscription import Encoding, Outlet, Subscription
from ..message import Properties
from ..position import Start
from ..queuespec import PLAIN, ConsumeSpec, Owner, QueueSpec
from ..runtime import Runtime
from .acks import Acks
from .binary import NO_BINARY_RULES, BinaryRules
from .counts import Counts
from .idempotency import LOST, IdempotencyKeys
from .returns import Returns

if TYPE_CHECKING:
    from .base import Session

RESTARTING = "the gateway is restarting"


class Feeds(Protocol):
    """hub.hub.Hub, as far as sessions need it."""

    def subscribe(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Awaitable[Subscription]: ...

    def subscribe_at_once(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Subscription | None: ...


class Publish(Protocol):
    """brokers.base.Broker.publish."""

    def __call__(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> Awaitable[None]: ...


class PublishAtOnce(Protocol):
    """brokers.base.PromptBroker.publish_at_once."""

    def __call__(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> bool: ...


class Consume(Protocol):
    """brokers.base.Broker.consume."""

    def __call__(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int,
        spec: ConsumeSpec = PLAIN,
    ) -> Awaitable[Consumer]: ...


class Queues(Protocol):
    """A session's own queues, as brokers.base.Broker keeps them."""

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None: ...
    async def delete_own(self, name: str, owner: Owner) -> None: ...
    async def release(self, owner: Owner) -> None: ...


class NoQueues:
    """Declares nothing: nobody has said where."""

    async def declare_own(self, queue: QueueSpec, owner: Owner) -> None:
        raise Unsupported(f"no queue can be declared: {queue.name!r}")

    async def delete_own(self, name: str, owner: Owner) -> None:
        raise Unsupported(f"no queue can be deleted: {name!r}")

    async def release(self, owner: Owner) -> None: ...


class Allow(Protocol):
    """auth.policy.Policy.allow: raises Refused."""

    def __call__(self, identity: Identity, verb: Verb, destination: Destination, /) -> None: ...


class Login(Protocol):
    """Checks a STOMP client's credentials.

    host: the virtual host, None for the default one. loopback: whether the client is on this
    machine. Raises Refused with the text for the client, Unavailable, LimitExceeded.
    """

    def __call__(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Awaitable[Account]: ...


class Recall(Protocol):
    """Lets in whose login was found right just now, without a wait; as Login.

    None: nobody remembers, or it is wrong; `login` will know.
    """

    def __call__(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Account | None: ...


@dataclass(frozen=True, slots=True)
class Account:
    """What a login may use. services: with the publish, consume and hub of this very login.

    leave: to be called once, when the session ends.
    """

    user: str
    services: Services
    leave: Callable[[], None]


async def no_login(user: str, passcode: str, host: str | None, *, loopback: bool) -> Account:
    """Refuse every login: nobody has said who may."""
    raise Refused(f"Access refused for user '{user[:255]}'")


def no_recall(user: str, passcode: str, host: str | None, *, loopback: bool) -> Account | None:
    """Remember no login."""
    return None


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one client may cost.

    message: bytes of a body, in and out of fragments (a body beyond it would have to be held
    whole). frame: bytes of a WebSocket message with its envelope. subscriptions: per connection.
    publishing, publishing_bytes: unconfirmed publishes per connection and the bytes of their
    bodies, then its frames are read no further.
    held: bytes of work-queue messages kept for a client that does not read; beyond them they go
    back.
    live_within: seconds that a subscription may take to be live upstream; start: the same while
    the gateway starts. poll: seconds that a long poll waits. login: seconds that a STOMP client has
    to log in.
    lease, max_lease: seconds that a client may hold an unacked message, where it does not say and
    the most that it may ask for; 0 is no lease.
    poll_idle: seconds between two polls of a session with unacked messages. poll_sessions: their
    number. settle: ack ids in one request.
    """

    message: int = 1 << 20
    frame: int = 2 << 20
    subscriptions: int = 100
    publishing: int = 100
    publishing_bytes: int = 4 << 20
    held: int = 1 << 20
    prefetch: int = 1000
    live_within: float = 5.0
    start: float = 10.0
    poll: float = 25.0
    login: float = 10.0
    lease: float = 0.0
    max_lease: float = 1800.0
    poll_idle: float = 60.0
    poll_sessions: int = 10_000
    settle: int = 1000


@dataclass(slots=True)
class Drain:
    """Whether the gateway drains: clients are sent away, and no subscription begins.

    done: everybody was told to go.
    """

    begun: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class StompOptions:
    """How STOMP is spoken. binary: all WebSocket messages that we send are binary.

    http_auth: a login comes with the HTTP request (Basic), and those in frames are ignored.
    """

    binary: bool = False
    http_auth: bool = False


@dataclass(slots=True)
class Services:
    """The house, as a session sees it.

    resolve: the destination of a URL's path. alias: what an alias stands for, None for all else.
    retry: milliseconds, the SSE reconnection time. compression: whether WebSockets may negotiate
    permessage-deflate. queues: where sessions declare queues of their own. keys: what makes
    publishes idempotent, None for nothing. heartbeat: seconds between two signs of life on a push
    connection. deliveries: what work queues may hold, all together. acks: whose clients settle
    messages. returns: how often messages came back. counts: for people and metrics.
    at_once: `publish` where that needs no waiting, None for a broker that always waits.
    binary: which destinations' bodies are bytes.
    starting: whether calls wait for the broker's first connect.
    """

    runtime: Runtime
    hub: Feeds
    publish: Publish
    consume: Consume
    allow: Allow
    resolve: Callable[[str], Destination]
    limits: SessionLimits = field(default_factory=SessionLimits)
    retry: int = 2000
    alias: Callable[[str], Destination | None] = lambda path: None
    login: Login = no_login
    recall: Recall = no_recall
    compression: bool = False
    keys: IdempotencyKeys | None = None
    heartbeat: float = 25.0
    stomp: StompOptions = StompOptions()
    queues: Queues = field(default_factory=NoQueues)
    deliveries: DeliveryBudget = field(default_factory=DeliveryBudget)
    acks: Acks = field(default_factory=Acks)
    returns: Returns = field(default_factory=Returns)
    drain: Drain = field(default_factory=Drain)
    counts: Counts = field(default_factory=Counts)
    at_once: PublishAtOnce | None = None
    binary: BinaryRules = NO_BINARY_RULES
    starting: Callable[[], bool] = lambda: False
    # Long polls whose clients hold messages; at most limits.poll_sessions.
    polls: set[Session] = field(default_factory=set)

    @property
    def live_within(self) -> float:
        """Seconds that a subscription may take to be live upstream."""
        limits = self.limits
        return max(limits.live_within, limits.start) if self.starting() else limits.live_within

    async def publish_once(
        self,
        identity: Identity,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> None:
        """Publish for a client, once for each idempotency key; raises what `publish` does."""
        try:
            await self._publish_once(identity, destination, body, properties, mandatory)
        except QueuecastError as error:
            self.counts.published(error.code)
            raise
        self.counts.published("confirmed")

    def publish_at_once(
        self,
        identity: Identity,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> bool:
        """Publish as `publish_once` does if nothing has to be waited for; raises the same.

        False: nothing has happened, it is for `publish_once`.
        """
        at_once = self.at_once
        if at_once is None:
            return False
        try:
            keys = self.keys
            if keys is not None and keys.place(identity, destination, properties) is not None:
                return False
            if not at_once(destination, body, properties, mandatory=mandatory):
                return False
        except QueuecastError as error:
            self.counts.published(error.code)
            raise
        self.counts.published("confirmed")
        return True

    async def _publish_once(
        self,
        identity: Identity,
        destination: Destination,
        body: bytes,
        properties: Properties,
        mandatory: bool | None,
    ) -> None:
        keys = self.keys
        place = keys.place(identity, destination, properties) if keys is not None else None
        if keys is None or place is None:
            await self.publish(destination, body, properties, mandatory=mandatory)
            return
        if not await keys.admit(place, body):
            return
        error: QueuecastError | None = LOST
        try:
            await self.publish(destination, body, properties, mandatory=mandatory)
            error = None
        except QueuecastError as caught:
            error = caught
            raise
        finally:
            keys.settle(place, error)


class Transport(Protocol):
    """The socket under a session; asyncio's transports fit."""

    def write(self, data: bytes, /) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool: ...
