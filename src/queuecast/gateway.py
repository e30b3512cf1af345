"""The composition root: builds the house from a configuration, starts it and takes it down.

A Gateway installs no signal handlers and owns no loop: it runs inside whatever asyncio program
starts it (cli.py, testing.py, yours).
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from .accounts import Accounts, BrokerAccounts, LocalAccounts, LoginBroker, reader_of
from .admin.api import Admin
from .admin.collect import Collector
from .admin.local import LocalView
from .aliases import Aliases, concealed
from .auth.identity import Identity
from .auth.policy import Policy, Verb
from .bridge import Bridge
from .brokers.base import Broker
from .brokers.embedded.history import HistoryLimits
from .brokers.factory import (
    KafkaSettings,
    Keeping,
    default_virtual_host,
    login_broker,
    make_broker,
)
from .brokers.files import Files
from .calls import consume_of, publish_at_once_of, publish_of
from .config import Config
from .delivery import DeliveryBudget
from .destination import Destination
from .disconnect import SHUTDOWN
from .errors import Refused
from .hostport import host_port
from .hub.hub import Hub
from .hub.log import LogLimits
from .server.loop import LoopRuntime
from .server.server import Server
from .server.siblings import Place
from .server.throttle import Throttle
from .sessions.acks import Acks
from .sessions.binary import BinaryRules
from .sessions.idempotency import IdempotencyKeys
from .sessions.returns import Returns
from .sessions.services import Services, SessionLimits, StompOptions
from .starting import Starting, StartingBroker

logger = logging.getLogger(__name__)

# Seconds beyond `[server] drain` and `grace` after which a process gives up a stop that hangs.
STOP_PATIENCE = 5.0
# New objects after which the youngest are looked at, such looks until the middle-aged are, and
# those until all are: after 300,000 objects, which are at most some tens of MB of what crowds of
# clients that come and go leave behind.
_COLLECT = (5_000, 20, 3)


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the fastest event loop there is; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None  # where it does not exist, plain asyncio does the same more slowly
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def collect_rarely() -> None:
    """Let the process look for cyclic garbage less often than Python does by itself.

    Sessions live long, and each look goes over those that have come since, or over all of them:
    with Python's own numbers that is up to a tenth of what a connect costs.
    """
    gc.set_threshold(*_COLLECT)


class Gateway:
    """A running Queuecast: `await start()`, then `await stop()`.

    >>> gateway = Gateway(Config(server=ServerConfig(port=0)))   # doctest: +SKIP
    >>> await gateway.start()                                    # doctest: +SKIP
    >>> gateway.url                                              # doctest: +SKIP
    'http://127.0.0.1:49152'
    """

    def __init__(self, config: Config, place: Place | None = None) -> None:
        """Raises ConfigError for what the configuration alone shows to be wrong.

        place: of this worker among several on one port.
        """
        self.config = config
        self._place = place
        self._deliveries = DeliveryBudget(config.limits.deliveries)
        self.broker: Broker = make_broker(
            config.broker.url,
            files=Files(
                config.broker.cafile,
                config.broker.certfile,
                config.broker.keyfile,
                config.broker.passphrase_file,
                config.broker.password_file,
            ),
            history=HistoryLimits(
                config.history.messages, config.history.age, config.history.bytes
            ),
            deliveries=self._deliveries,
            keeping=Keeping(config.broker.data, config.broker.synchronous, config.retain_rules()),
            kafka=KafkaSettings(config.broker.group, config.topic_specs()),
        )
        self.url = ""
        self.stomp_url = ""
        self.admin_url = ""
        self._admin: Admin | None = None
        self._loop_lag = 0.0
        self._policy = Policy(config.rules())
        self._refusals = Throttle(logger)
        self._draining = False
        self._started = False
        self._drained: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._bridges: list[Bridge] = []
        self._demo: Any = None

    # -- life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Reach the broker and listen.

        With `[broker] start = "retry"` a broker that is away does not stop the start: the
        gateway listens, is not ready, and goes on trying. Raises Refused (the broker refused
        the login), Unavailable (with "exit"), Conflict, ConfigError, OSError (port taken).
        """
        config = self.config
        self.runtime = runtime = LoopRuntime(asyncio.get_running_loop())
        self._starting = starting = Starting(
            runtime, self.broker.name, self._connect, patience=config.limits.head_timeout
        )
        broker = StartingBroker(self.broker, starting)
        self.hub = Hub(
            runtime,
            reader_of(broker),
            limits=LogLimits(
                config.log.messages, config.log.bytes, config.log.age, config.log.total
            ),
            linger=config.log.linger,
            slow=config.slow_rules(),
        )
        aliases = Aliases(config.aliases)
        self.services = Services(
            runtime,
            self.hub,
            publish_of(broker),
            consume_of(broker),
            self._allow,
            aliases.resolve,
            SessionLimits(
                message=config.limits.message,
                frame=config.limits.frame,
                subscriptions=config.limits.subscriptions,
                publishing=config.limits.publishes,
                login=config.limits.login_timeout,
                start=config.limits.head_timeout,
                lease=config.limits.lease,
                max_lease=config.limits.max_lease,
                poll_idle=config.limits.poll_idle,
                poll_sessions=config.limits.poll_sessions,
            ),
            retry=config.server.retry,
            compression=config.server.compression,
            heartbeat=config.server.heartbeat,
            keys=IdempotencyKeys(
                runtime, window=config.limits.idempotency, most=config.limits.idempotency_keys
            ),
            stomp=StompOptions(
                binary=config.server.ws_frame == "binary",
                http_auth=config.server.stomp_http_auth,
            ),
            queues=broker,
            deliveries=self._deliveries,
            acks=Acks(config.server.node if self._place is None else self._place.name),
            at_once=starting.at_once_of(publish_at_once_of(self.broker)),
            binary=BinaryRules(config.binary_rules()),
            returns=Returns(
                config.limits.max_redeliveries, config.max_redeliveries(), now=runtime.now
            ),
        )
        self.services.alias = aliases.match
        self.services.starting = lambda: starting.is_patient
        self.accounts = self._accounts()
        self.services.login = starting.login_of(self.accounts.login)
        self.services.recall = self.accounts.recall
        self.server = Server(
            self.services, config, aliases, self._readiness, self._page(), place=self._place
        )
        # The port first: a second gateway must not touch the first one's queues.
        self.url = f"http://{host_port(*await self.server.start())}{config.server.prefix}"
        if self.server.stomp is not None:
            self.stomp_url = f"tcp://{host_port(*self.server.stomp)}"
        self._started = True
        try:
            await self._open_admin()
            await self._reach_broker()
        except BaseException:
            await self.stop(grace=0)
            raise
        self._spawn(self._sweep(), "sweep")

    def view(self) -> LocalView:
        """Return what people and Prometheus may see of it; once it is started."""
        server = self.server
        collector = Collector(
            self.hub,
            self.services,
            self.broker,
            server.sockets,
            kinds=lambda: server.connections.kinds,
            sockjs=lambda: server.sockjs_sessions,
            polls=lambda: server.polls,
            handed=lambda: server.handed,
            loop_lag=lambda: self._loop_lag,
        )
        return LocalView(collector, server.people, server.readiness)

    async def _open_admin(self) -> None:
        if self._place is not None:
            self._admin = Admin(self.view())
            await self._admin.listen_unix(self._place.admin(self._place.number))
            return
        address = self.config.admin.address()
        if address is None:
            return
        host, port = address
        self._admin = Admin(self.view(), host=host, token=self.config.admin.token)
        self.admin_url = await self._admin.listen(host, port)

    async def drain(self) -> None:
        """Send clients away, spread over `[server] drain`, and let none in; see Server.drain.

        The gateway goes on answering publishes and acks, not ready, until `stop`.
        """
        self.begin_drain()
        if self._started and self._drained is not None:
            # Whoever waits may be cancelled; the draining goes on.
            await asyncio.shield(self._drained)

    def begin_drain(self) -> None:
        """Begin to `drain` in the background; nothing while the gateway is not started."""
        if not self._started:
            return
        self._draining = True
        if self._drained is None:
            logger.info("draining: clients are told to reconnect elsewhere")
            spread = self.config.server.drain
            self._drained = asyncio.create_task(self.server.drain(SHUTDOWN, spread), name="drain")
            self._drained.add_done_callback(log_failure)

    async def stop(self, grace: float | None = None) -> None:
        """Shut down without loss: `drain`, then stop within `grace` seconds (the configuration's).

        Stops accepting, waits for confirms in flight, gives unacked deliveries back. With a grace
        of 0 nobody is waited for.
        """
        if not self._started:
            return
        if grace != 0:
            await self.drain()
        self._started = False
        self._draining = True
        grace = self.config.server.grace if grace is None else grace
        for task in self._background:
            task.cancel()
        if self._drained is not None:
            self._drained.cancel()
        await self.server.stop(SHUTDOWN, grace)
        if self._admin is not None:
            await self._admin.close()
        if self._demo is not None:
            await self._demo.close()
        for bridge in self._bridges:
            await bridge.close()
        await self.accounts.close()
        await self.hub.close()
        await self.broker.close()
        await self.runtime.settle()

    def _allow(self, identity: Identity, verb: Verb, destination: Destination) -> None:
        """Ask the policy; a refusal is logged with the line that would allow it."""
        try:
            self._policy.allow(identity, verb, destination)
        except Refused as error:
            self._refusals.warning(f"refused: {error.text}; to allow it: {error.hint}")
            raise concealed(error, (destination,)) from error

    def _accounts(self) -> Accounts:
        """Return who checks STOMP logins: the broker that is behind."""
        config = self.config
        if not config.broker.scheme.startswith("amqp"):
            return LocalAccounts(self.services)

        def make(user: str, password: str, virtual_host: str | None) -> LoginBroker:
            made = login_broker(
                self.broker,
                user,
                password,
                virtual_host,
                deliveries=self._deliveries,
                rules=config.retain_rules(),
            )
            made.know(config.exchange_specs(), config.queue_specs())
            return made

        return BrokerAccounts(
            self.services,
            self.hub,
            make,
            loopback_users=config.broker.loopback_users,
            default_host=default_virtual_host(self.broker),
        )

    # -- the broker -----------------------------------------------------------------------

    async def _reach_broker(self) -> None:
        """Connect now or, as configured, go on trying in the background or until the limit."""
        if self.config.broker.start == "exit":
            await self._starting.reach(self.config.broker.start_timeout)
            return
        trying = await self._starting.reach_or_go_on()
        if trying is not None:
            self._spawn(trying, "connect to the broker")

    async def _connect(self) -> None:
        config = self.config
        await self.broker.start()
        try:
            await self.broker.declare(config.exchange_specs(), config.queue_specs())
        finally:
            # What cannot be declared is no reason to keep clients from all that is there.
            self._starting.end()
        logger.info("connected to %s", self.broker.name)
        if self._place is not None and not self._place.is_first:
            return  # a bridge keeps its queue's order, and so there is one
        for source, target, prefetch in config.bridge_pairs():
            self._bridge(source, target, prefetch)
        if config.server.demo:
            self._start_demo()

    def _bridge(self, source: Destination, target: Destination, prefetch: int) -> None:
        bridge = Bridge(
            self.runtime, self.broker.publish, self.broker.consume, source, target, prefetch
        )
        self._bridges.append(bridge)
        bridge.start()

    def _readiness(self) -> tuple[bool, str]:
        if self._draining:
            return False, "draining"
        if not self._starting.is_over:
            # Exchanges and queues of the configuration may still be missing.
            return False, f"starting: {self.broker.status}"
        return self.broker.ready, self.broker.status

    # -- the demo -------------------------------------------------------------------------

    def _page(self) -> Callable[[str], tuple[str, bytes] | None] | None:
        if not self.config.server.demo:
            return None
        from .demo.site import page

        return page

    def _start_demo(self) -> None:
        from .demo.worker import BRIDGES, DemoWorker

        for source, target in BRIDGES:
            self._bridge(Destination.parse(source), Destination.parse(target), 100)
        self._demo = DemoWorker(self.runtime, self.broker.publish, self.broker.consume)
        self._demo.start()

    # -- supervision ----------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            due = self.runtime.now() + 1.0
            await asyncio.sleep(1.0)
            self._loop_lag = max(0.0, self.runtime.now() - due)
            try:
                await self.hub.sweep()
            except Exception:
                # One bad sweep must not end all the others: feeds would never close again.
                logger.exception("sweeping the feeds failed")
            try:
                await self.accounts.sweep()
            except Exception:
                logger.exception("sweeping the accounts failed")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._background.append(asyncio.create_task(work, name=name))


def log_failure(task: asyncio.Task[None]) -> None:
    """Log how a background task failed, if it did."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("%s failed", task.get_name(), exc_info=task.exception())
