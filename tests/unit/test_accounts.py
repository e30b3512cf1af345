"""Logins: who shares an account, what is refused, and when accounts end."""

from __future__ import annotations

from typing import Any

import pytest

import queuecast.accounts as accounts
from queuecast.accounts import BrokerAccounts, LocalAccounts
from queuecast.destination import Destination
from queuecast.errors import (
    LimitExceeded,
    LoginRefused,
    NotFound,
    QueuecastError,
    Refused,
    Unavailable,
)
from queuecast.position import LIVE
from queuecast.sessions.services import Account
from tests.support.fake_runtime import FakePromise
from tests.support.fake_session import FakeOutlet, Lines
from tests.unit.sessions.stomp_rig import House


class FakeBroker:
    """A broker that knows one password."""

    def __init__(self, brokers: Brokers, user: str, password: str, host: str | None) -> None:
        self.brokers = brokers
        self.login = (user, password, host)
        self.closed = False
        self.checks = 0

    async def start(self) -> None:
        if self.brokers.wait is not None:
            await self.brokers.wait
        self._judge()

    async def check_login(self) -> None:
        self.checks += 1
        if self.brokers.wait is not None:
            await self.brokers.wait
        self._judge()

    def _judge(self) -> None:
        if self.brokers.failure is not None:
            raise self.brokers.failure
        if self.login[1] != self.brokers.password:
            raise LoginRefused("RabbitMQ refused the login")
        if self.login[2] == "none":
            raise NotFound("no virtual host 'none'")
        if self.login[2] == "closed":
            raise Refused("RabbitMQ refused the virtual host")

    ready = True
    refused = None

    def families(self) -> list[Any]:
        return []

    async def check_feed(self, destination: Any) -> None: ...

    async def open_feed(self, destination: Any, sink: Any) -> Any:
        sink.begin(None)
        return self.Reader()

    class Reader:
        def position(self) -> None: ...
        async def close(self) -> None: ...

    async def publish(self, *args: Any, **options: Any) -> None: ...
    async def consume(self, *args: Any, **options: Any) -> None: ...
    async def close(self) -> None:
        self.closed = True


class Brokers:
    """Makes them."""

    def __init__(self) -> None:
        self.made: list[FakeBroker] = []
        self.password = "secret"
        self.failure: QueuecastError | None = None
        self.wait: FakePromise | None = None

    def __call__(self, user: str, password: str, host: str | None) -> Any:
        self.made.append(FakeBroker(self, user, password, host))
        return self.made[-1]


class Rig:
    def __init__(self, **options: Any) -> None:
        self.house = House()
        self.runtime = self.house.runtime
        self.brokers = Brokers()
        options.setdefault("default_host", "/")
        self.accounts = BrokerAccounts(self.house.services, self.house.hub, self.brokers, **options)

    def login(
        self,
        user: str = "app",
        passcode: str = "secret",
        host: str | None = None,
        *,
        loopback: bool = False,
    ) -> Account:
        return self.runtime.run(self.accounts.login(user, passcode, host, loopback=loopback))

    def pass_time(self, seconds: float) -> None:
        self.runtime.advance(seconds)
        self.runtime.run(self.accounts.sweep())


def test_sessions_of_one_login_share_a_broker_of_its_own() -> None:
    rig = Rig()
    first, second, other = rig.login(), rig.login(host="/"), rig.login(host="prod")
    assert first.services is second.services
    assert first.services.hub is not rig.house.hub
    assert other.services.hub is not first.services.hub
    assert [broker.login for broker in rig.brokers.made] == [
        ("app", "secret", None),
        ("app", "secret", "prod"),
    ]


def test_a_wrong_passcode_never_rides_on_a_right_one() -> None:
    rig = Rig()
    rig.login()
    for wrong in ("", "secre", "secret ", "SECRET"):
        with pytest.raises(Refused, match="Access refused for user 'app'"):
            rig.login(passcode=wrong)
    assert len(rig.brokers.made) == 5, "each was asked of the broker"
    assert all(broker.closed for broker in rig.brokers.made[1:])
    assert not rig.brokers.made[0].closed
    rig.login()
    assert len(rig.brokers.made) == 5


@pytest.mark.parametrize("host", ["none", "closed"])
def test_a_virtual_host_that_is_denied(host: str) -> None:
    rig = Rig()
    with pytest.raises(Refused, match=f"^Virtual host '{host}' access denied$"):
        rig.login(host=host)


def test_loopback_users_are_held_to_the_clients_address() -> None:
    rig = Rig(loopback_users=("guest", "local"))
    for user in ("guest", "local"):
        with pytest.raises(Refused, match="non-loopback access denied"):
            rig.login(user)
    assert rig.brokers.made == []
    rig.login("guest", loopback=True)
    with pytest.raises(Refused, match="non-loopback access denied"):
        rig.login("guest")


def test_who_logs_in_while_the_broker_is_asked_waits_for_the_same_verdict() -> None:
    rig = Rig()
    rig.brokers.wait = rig.runtime.promise()
    tasks = [
        rig.runtime.start(rig.accounts.login("app", "secret", None, loopback=False))
        for _ in range(5)
    ]
    rig.runtime.settle()
    assert not any(task.done for task in tasks)
    tasks[0].cancel()
    rig.brokers.wait.set_result(None)
    rig.runtime.settle()
    assert len({id(task.result().services) for task in tasks[1:]}) == 1
    assert len(rig.brokers.made) == 1
    for task in tasks[1:]:
        task.result().leave()
    rig.pass_time(31)
    assert rig.brokers.made[0].closed, "the one that was cancelled holds nothing"


def test_an_account_ends_some_time_after_its_last_session() -> None:
    rig = Rig()
    first, second = rig.login(), rig.login()
    first.leave()
    rig.pass_time(100)
    assert not rig.brokers.made[0].closed
    second.leave()
    rig.pass_time(29)
    assert not rig.brokers.made[0].closed
    rig.pass_time(2)
    assert rig.brokers.made[0].closed
    rig.login()
    assert len(rig.brokers.made) == 2


def test_an_account_that_reads_for_others_outlives_its_sessions() -> None:
    rig = Rig()
    first, second = rig.login("a", host="prod"), rig.login("b", host="prod")

    def subscribe(account: Account) -> Any:
        asked = account.services.hub.subscribe(
            [Destination.parse("/topic/x")], Lines(), LIVE, FakeOutlet()
        )

        async def ask() -> Any:
            return await asked

        return rig.runtime.run(ask())

    subscribe(first).close()
    kept = subscribe(second)
    first.leave()
    rig.pass_time(100)
    assert [broker.closed for broker in rig.brokers.made] == [False, False]
    kept.close()
    second.leave()
    for _ in range(3):
        rig.runtime.run(rig.house.hub.sweep())
        rig.pass_time(61)
    assert [broker.closed for broker in rig.brokers.made] == [True, True]
    assert rig.accounts._shared == {}


def test_a_password_is_asked_of_the_broker_again_after_a_minute() -> None:
    rig = Rig()
    rig.login()
    rig.runtime.advance(59)
    rig.login()
    assert rig.brokers.made[0].checks == 0
    rig.runtime.advance(2)
    rig.login()
    rig.login()
    assert rig.brokers.made[0].checks == 1
    rig.brokers.password = "changed"
    rig.runtime.advance(61)
    with pytest.raises(Refused, match="Access refused"):
        rig.login()
    with pytest.raises(Refused, match="Access refused"):
        rig.login()
    assert not rig.brokers.made[0].closed, "its sessions go on, as at RabbitMQ"
    rig.login(passcode="changed")


def test_a_login_is_remembered_for_as_long_as_its_verdict() -> None:
    rig = Rig(loopback_users=("guest",))

    def recall(user: str = "app", passcode: str = "secret", host: str | None = None) -> Any:
        return rig.accounts.recall(user, passcode, host, loopback=False)

    assert recall() is None
    first = rig.login()
    found = recall(host="/")
    assert found.services is first.services
    assert recall(passcode="secre") is recall("other") is recall(host="prod") is None
    assert len(rig.brokers.made) == 1, "the broker is not asked"
    rig.login("guest", loopback=True)
    assert recall("guest") is None, "not from elsewhere"
    # It counts as a session: the account lasts until it leaves.
    first.leave()
    rig.runtime.advance(59)
    rig.pass_time(0)
    assert not rig.brokers.made[0].closed
    assert recall() is not None
    rig.runtime.advance(2)
    assert recall() is None
    rig.runtime.run(rig.accounts.close())
    assert recall() is None


def test_no_login_is_remembered_while_it_is_checked() -> None:
    rig = Rig()
    rig.login()
    rig.runtime.advance(61)
    rig.brokers.wait = rig.runtime.promise()
    task = rig.runtime.start(rig.accounts.login("app", "secret", None, loopback=False))
    rig.runtime.settle()
    assert rig.accounts.recall("app", "secret", None, loopback=False) is None
    rig.brokers.wait.set_result(None)
    rig.runtime.settle()
    task.result()
    assert rig.accounts.recall("app", "secret", None, loopback=False) is not None


def test_a_broker_that_is_away_is_no_refusal() -> None:
    rig = Rig()
    rig.brokers.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        rig.login()
    rig.brokers.failure = None
    rig.login()
    assert rig.brokers.made[0].closed


def test_accounts_are_bounded_and_idle_ones_make_room() -> None:
    rig = Rig(most=2)
    rig.login("a").leave()
    rig.login("b")
    rig.login("c")
    rig.runtime.settle()
    assert [broker.closed for broker in rig.brokers.made] == [True, False, False]
    with pytest.raises(LimitExceeded):
        rig.login("d")
    assert len(rig.brokers.made) == 3


def test_logins_under_way_are_bounded() -> None:
    rig = Rig()
    rig.brokers.wait = rig.runtime.promise()
    for n in range(accounts.MAX_OPENING):
        rig.runtime.start(rig.accounts.login("app", f"guess {n}", None, loopback=False))
    rig.runtime.settle()
    with pytest.raises(LimitExceeded):
        rig.login(passcode="one more")
    assert len(rig.brokers.made) == accounts.MAX_OPENING


def test_closing_closes_all_and_takes_nobody_in() -> None:
    rig = Rig()
    rig.login("a")
    rig.login("b")
    rig.runtime.run(rig.accounts.close())
    assert all(broker.closed for broker in rig.brokers.made)
    with pytest.raises(Unavailable):
        rig.login("a")


@pytest.mark.parametrize("host", [None, "/"])
def test_the_embedded_brokers_guest(host: str | None) -> None:
    house = House()
    embedded = LocalAccounts(house.services)
    account = house.runtime.run(embedded.login("guest", "guest", host, loopback=True))
    assert account.services is house.services
    recalled = embedded.recall("guest", "guest", host, loopback=True)
    assert recalled is not None
    assert recalled.services is house.services


@pytest.mark.parametrize(
    ("user", "passcode", "host", "loopback", "text"),
    [
        ("guest", "wrong", None, True, "Access refused for user 'guest'"),
        ("admin", "guest", None, True, "Access refused for user 'admin'"),
        ("guest", "guest", None, False, "non-loopback access denied"),
        ("guest", "guest", "prod", True, "Virtual host 'prod' access denied"),
    ],
)
def test_nobody_else(user: str, passcode: str, host: str | None, loopback: bool, text: str) -> None:
    house = House()
    accounts = LocalAccounts(house.services)
    with pytest.raises(Refused, match=f"^{text}$"):
        house.runtime.run(accounts.login(user, passcode, host, loopback=loopback))
    assert accounts.recall(user, passcode, host, loopback=loopback) is None
