"""Who a STOMP login is, and what it may use: checked by the broker itself.

With RabbitMQ an account is a broker of its own, with the client's user, password and virtual
host, so that the client's own permissions hold for all it does. Accounts are shared by the
sessions of the same login, never by others: the passcode is part of the key, as a salted hash.
Only feeds are shared by all logins of a virtual host, as sharing.py says.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from .brokers.base import Broker, FeedReader, FeedSink
from .calls import consume_of, publish_of
from .destination import Destination
from .errors import LimitExceeded, LoginRefused, NotFound, QueuecastError, Refused, Unavailable
from .hub.feed import Feed
from .hub.hub import CloseReader, Hub, OpenReader
from .runtime import Promise
from .sessions.services import Account, Services
from .sharing import FeedBroker, Member, SharedFeeds, follow

logger = logging.getLogger(__name__)

# Two connections to the broker each: it stops one who has many users' passwords.
MAX_ACCOUNTS = 100
# Logins that are being tried at the broker: it stops a crowd that guesses passwords from using
# up the broker's connections.
MAX_OPENING = 16
# Seconds: that an account outlives its last session; for which a password need not be asked of
# the broker again (a user who was locked out gets in for no longer).
LINGER = 30.0
RECHECK = 60.0


class Accounts(Protocol):
    """Checks logins; `login` is services.Login, `recall` services.Recall."""

    def recall(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Account | None: ...

    async def login(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Account: ...

    async def sweep(self) -> None:
        """Once a second: close what nobody uses."""

    async def close(self) -> None:
        """Close everything; the sessions are gone."""


class LocalAccounts:
    """The only user of a gateway whose broker checks no logins: guest, on this machine only.

    With Kafka it acts as the login of the broker's URL, as sessions without login do.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def recall(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Account | None:
        """See services.Recall."""
        try:
            return self._check(user, passcode, host, loopback=loopback)
        except Refused:
            return None  # `login` says why

    async def login(self, user: str, passcode: str, host: str | None, *, loopback: bool) -> Account:
        """See services.Login."""
        return self._check(user, passcode, host, loopback=loopback)

    def _check(self, user: str, passcode: str, host: str | None, *, loopback: bool) -> Account:
        known = user == "guest" and hmac.compare_digest(passcode.encode(), b"guest")
        if not known:
            raise _access_refused(user)
        if not loopback:
            raise Refused("non-loopback access denied")
        if host not in (None, "/"):
            raise _virtual_host_denied(host)
        return Account(user, self._services, lambda: None)

    async def sweep(self) -> None: ...
    async def close(self) -> None: ...


class LoginBroker(Broker, FeedBroker, Protocol):
    """A broker that belongs to one login."""

    async def check_login(self) -> None:
        """Log in once more; raises as `start`."""


# Makes the broker of a user, password and virtual host (None: the default one), not started.
MakeBroker = Callable[[str, str, str | None], LoginBroker]

_Key = tuple[str, str | None, bytes]


class _Entry:
    """One account: opening, open, closed."""

    __slots__ = (
        "broker",
        "checked",
        "checking",
        "idle_since",
        "member",
        "services",
        "sessions",
        "waiters",
    )

    def __init__(self, broker: LoginBroker) -> None:
        self.broker = broker
        # Once it is open.
        self.services: Services | None = None
        self.member: Member | None = None
        self.sessions = 0
        self.idle_since = 0.0
        self.checked = 0.0
        self.checking = True
        # Logins that wait for the broker's verdict: one per connection.
        self.waiters: list[Promise] = []

    @property
    def idle(self) -> bool:
        """Whether nobody needs it: no session, and no feed that it reads for others."""
        reads = self.member is None or bool(self.member.relays)
        return not (self.sessions or self.checking or reads)


class BrokerAccounts:
    """Accounts at a broker that knows users.

    hub: what the user of the broker's URL reads. loopback_users: names that may log in from this
    machine only. default_host: what the broker's URL names. linger: seconds that an account
    outlives its last session.
    """

    def __init__(
        self,
        services: Services,
        hub: Hub,
        make_broker: MakeBroker,
        *,
        loopback_users: tuple[str, ...] = ("guest",),
        default_host: str | None = None,
        linger: float = LINGER,
        most: int = MAX_ACCOUNTS,
    ) -> None:
        self._services = services
        self._hub = hub
        self._make_broker = make_broker
        self._loopback_users = frozenset(loopback_users)
        self._default_host = default_host
        self._linger = linger
        self._most = most
        self._salt = secrets.token_bytes(32)
        self._entries: dict[_Key, _Entry] = {}
        # By virtual host; only those that have accounts.
        self._shared: dict[str | None, SharedFeeds] = {}
        self._closed = False

    def recall(
        self, user: str, passcode: str, host: str | None, *, loopback: bool
    ) -> Account | None:
        """See services.Recall."""
        if self._closed or (user in self._loopback_users and not loopback):
            return None
        entry = self._entries.get(self._key(user, passcode, host))
        if entry is None or entry.checking:
            return None
        return self._known(user, entry)

    async def login(self, user: str, passcode: str, host: str | None, *, loopback: bool) -> Account:
        """See services.Login."""
        # Here and not at the broker: it would see our own, perhaps local, address.
        if user in self._loopback_users and not loopback:
            raise Refused("non-loopback access denied")
        key = self._key(user, passcode, host)
        runtime = self._services.runtime
        while True:
            if self._closed:
                raise Unavailable("the gateway is shutting down")
            entry = self._entries.get(key)
            if entry is None:
                entry = self._admit(key, passcode)
                runtime.spawn(self._open(key, entry), "open an account")
            elif not entry.checking:
                account = self._known(user, entry)
                if account is not None:
                    return account
                entry.checking = True
                runtime.spawn(self._recheck(key, entry), "check a login")
            waiter = runtime.promise()
            entry.waiters.append(waiter)
            await waiter

    def _admit(self, key: _Key, passcode: str) -> _Entry:
        opening = sum(each.services is None for each in self._entries.values())
        if opening >= MAX_OPENING:
            raise LimitExceeded("too many logins are being checked", "try again in a moment")
        if len(self._entries) >= self._most:
            self._evict()
        user, host, _ = key
        entry = self._entries[key] = _Entry(self._make_broker(user, passcode, host))
        return entry

    def _evict(self) -> None:
        """Close the account that has been unused for longest; raises LimitExceeded."""
        idle = [(entry.idle_since, key) for key, entry in self._entries.items() if entry.idle]
        if not idle:
            raise LimitExceeded(f"{self._most} accounts are in use, that is the limit")
        _, key = min(idle, key=lambda each: each[0])
        self._end(key)

    def _key(self, user: str, passcode: str, host: str | None) -> _Key:
        digest = hashlib.blake2b(passcode.encode(), key=self._salt).digest()
        return user, None if host == self._default_host else host, digest

    def _known(self, user: str, entry: _Entry) -> Account | None:
        """Let a session in whose login the broker has found right within the last minute."""
        if entry.services is None or self._services.runtime.now() - entry.checked >= RECHECK:
            return None
        return self._join(user, entry, entry.services)

    def _join(self, user: str, entry: _Entry, services: Services) -> Account:
        entry.sessions += 1

        def leave() -> None:
            entry.sessions -= 1
            entry.idle_since = self._services.runtime.now()

        return Account(user, services, leave)

    # -- the broker's verdict -------------------------------------------------------------

    async def _open(self, key: _Key, entry: _Entry) -> None:
        error: QueuecastError | None = None
        try:
            await entry.broker.start()
        except QueuecastError as caught:
            error = _verdict(caught, key)
        except Exception as caught:
            logger.exception("opening an account failed")
            error = QueuecastError(f"the login could not be checked: {type(caught).__name__}")
        except BaseException:
            await entry.broker.close()  # a shutdown; one of its connections may be open
            raise
        if error is None and self._closed:
            error = Unavailable("the gateway is shutting down")
        if error is not None:
            if self._entries.get(key) is entry:
                del self._entries[key]
            self._wake(entry, error)
            await entry.broker.close()
            return
        host = key[1]
        shared = self._shared.get(host)
        if shared is None:
            runtime = self._services.runtime
            shared = self._shared[host] = SharedFeeds(runtime, self._hub, ours=host is None)
        entry.member = shared.join(entry.broker)
        entry.services = replace(
            self._services,
            hub=entry.member,
            publish=publish_of(entry.broker),
            at_once=None,  # it would publish with the gateway's own login
            consume=consume_of(entry.broker),
            queues=entry.broker,
        )
        entry.checked = entry.idle_since = self._services.runtime.now()
        self._wake(entry, None)

    async def _recheck(self, key: _Key, entry: _Entry) -> None:
        error: QueuecastError | None = None
        try:
            await entry.broker.check_login()
        except QueuecastError as caught:
            error = _verdict(caught, key)
        except Exception as caught:
            logger.exception("checking a login failed")
            error = QueuecastError(f"the login could not be checked: {type(caught).__name__}")
        if error is None:
            entry.checked = self._services.runtime.now()
        self._wake(entry, error)

    def _wake(self, entry: _Entry, error: QueuecastError | None) -> None:
        entry.checking = False
        waiters, entry.waiters = entry.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    # -- the end --------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Once a second: close the accounts that nobody has used for a while."""
        now = self._services.runtime.now()
        for key, entry in list(self._entries.items()):
            if entry.idle and now - entry.idle_since >= self._linger:
                self._end(key)
        for shared in list(self._shared.values()):
            shared.sweep()

    def _end(self, key: _Key) -> None:
        entry = self._entries.pop(key)
        host = key[1]
        shared = self._shared[host]
        assert entry.member is not None
        shared.leave(entry.member)
        if not shared.members:
            del self._shared[host]
            self._services.runtime.spawn(shared.close(), "close shared feeds")
        self._services.runtime.spawn(entry.broker.close(), "close an account")

    async def close(self) -> None:
        """Close all accounts."""
        self._closed = True
        entries = [entry for entry in self._entries.values() if entry.services is not None]
        self._entries = {}
        feeds, self._shared = list(self._shared.values()), {}
        for shared in feeds:
            await shared.close()
        for entry in entries:
            await entry.broker.close()


class OpensFeeds(Protocol):
    """The part of a broker that opens feeds."""

    async def open_feed(self, destination: Destination, sink: FeedSink) -> FeedReader: ...


def reader_of(broker: OpensFeeds) -> OpenReader:
    """Return how a hub opens its feeds at a broker."""

    async def open_reader(destination: Destination, feed: Feed) -> CloseReader:
        reader = await broker.open_feed(destination, feed)
        follow(feed, reader)
        return reader.close

    return open_reader


def _verdict(error: QueuecastError, key: _Key) -> QueuecastError:
    """Return what a client is told of the broker's refusal, in the words that clients know."""
    user, host, _ = key
    if isinstance(error, LoginRefused):
        return _access_refused(user)
    if isinstance(error, (NotFound, Refused)):
        return _virtual_host_denied(host)
    return error


def _access_refused(user: str) -> Refused:
    return Refused(f"Access refused for user '{user[:255]}'")


def _virtual_host_denied(host: str | None) -> Refused:
    return Refused(f"Virtual host '{(host or '/')[:255]}' access denied")
