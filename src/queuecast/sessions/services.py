"""What sessions need of the house, handed to them by the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..auth.identity import Identity
from ..auth.policy import Verb
from ..delivery import Consumer, DeliveryBudget, DeliverySink
from ..destination import Destination
from ..errors import Refused
from ..hub.subscription import Encoding, Outlet, Subscription
from ..message import Properties
from ..position import Start
from ..runtime import Runtime


class Feeds(Protocol):
    """hub.hub.Hub, as far as sessions need it."""

    def subscribe(
        self,
        destinations: Sequence[Destination],
        encoding: Encoding,
        start: Start,
        outlet: Outlet,
    ) -> Awaitable[Subscription]: ...


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


class Consume(Protocol):
    """brokers.base.Broker.consume."""

    def __call__(
        self, destination: Destination, sink: DeliverySink, *, prefetch: int
    ) -> Awaitable[Consumer]: ...


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


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one client may cost.

    message: bytes of a body, in and out of fragments (a body beyond it would have to be held
    whole). frame: bytes of a WebSocket message with its envelope. subscriptions: per connection.
    publishing, publishing_bytes: unconfirmed publishes per connection and the bytes of their
    bodies, then its frames are read no further.
    held: bytes of work-queue messages kept for a client that does not read; beyond them they go
    back.
    live_within: seconds that a subscription may take to be live upstream. poll: seconds that a
    long poll waits. login: seconds that a STOMP client has to log in.
    """

    message: int = 1 << 20
    frame: int = 2 << 20
    subscriptions: int = 100
    publishing: int = 100
    publishing_bytes: int = 4 << 20
    held: int = 1 << 20
    prefetch: int = 1000
    live_within: float = 5.0
    poll: float = 25.0
    login: float = 10.0


@dataclass(slots=True)
class Services:
    """The house, as a session sees it.

    resolve: the destination of a URL's path. alias: what an alias stands for, None for all else.
    retry: milliseconds, the SSE reconnection time. compression: whether WebSockets may negotiate
    permessage-deflate. deliveries: what work queues may hold, all together.
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
    compression: bool = False
    deliveries: DeliveryBudget = field(default_factory=DeliveryBudget)


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
