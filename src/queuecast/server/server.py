"""Ties door, web application and connections together, and shuts them down in order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..aliases import Aliases
from ..auth.origins import OriginCheck
from ..config import Config
from ..disconnect import Disconnect
from ..errors import ConfigError
from ..sessions.roll import Present
from ..sessions.services import Services
from ..sessions.sockjs import SockJsSessions
from .connection import Connections
from .door import Doors
from .gate import Gate
from .handler import Server as HttpServer
from .handover import Handover
from .health import Health
from .limits import ServerLimits
from .listener import BACKLOG, Listener, raise_open_files
from .plan import Plans
from .posts import Posts
from .publish import Publisher
from .push import Push
from .roll import roll
from .siblings import Place
from .sockets import Sockets
from .sockjs import SockJs, SockJsOptions
from .stomp import StompDoors
from .uploads import Uploads
from .web import Page, Web

logger = logging.getLogger(__name__)

# Seconds at a stop for what clients have sent already and we have not read.
_LAST_CALL = 0.2


class Server:
    """The gateway's public sockets. stomp: where plain STOMP listens, once started."""

    def __init__(
        self,
        services: Services,
        config: Config,
        aliases: Aliases,
        ready: Callable[[], tuple[bool, str]],
        page: Page | None = None,
        *,
        place: Place | None = None,
    ) -> None:
        """ready: see Health. place: this worker's among several on one port."""
        self.limits = _limits(config)
        self.sockets = Sockets(self.limits.connections)
        self._interval = min(1.0, self.limits.heartbeat, self.limits.head_seconds)
        slots = round(self.limits.heartbeat / self._interval)
        self.connections = Connections(self.sockets, slots)
        server = config.server
        self._gate = Gate(
            services,
            OriginCheck(server.origins, server.host),
            aliases,
            prefix=server.prefix,
            paths=server.stomp_paths(),
            is_proxy=_membership(server.trusted_proxies),
        )
        uploads = Uploads(self.limits)
        self._sockjs = SockJs(
            services,
            self._gate,
            SockJsSessions(services, config.limits.sockjs_sessions, self.limits.heartbeat),
            uploads,
            SockJsOptions(server.sockjs_websocket, server.sockjs_cookie, server.sockjs_client_url),
        )
        self._push = Push(services, self._gate, self._sockjs)
        self._place = place
        self._handover = Handover(place, self.limits.heartbeat) if place is not None else None
        self._inner: asyncio.Server | None = None
        self._health = Health(services, ready, self._handover)
        publisher = Publisher(services, self.limits, uploads)
        self._plans = Plans(self._gate, publisher, services.limits.message, place)
        self._uploads = uploads
        self._web = Web(
            services,
            self._gate,
            self._push,
            self._sockjs,
            self.connections,
            self.sockets,
            self.limits,
            uploads,
            publisher,
            self._health,
            page,
            self._handover,
        )
        self._address = (server.host, server.port)
        self._http: HttpServer | None = None
        self._listener: Listener | None = None
        self._doors: Doors | None = None
        self._posts: Posts | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._services = services
        self._stomp_address = server.stomp_address()
        self._stomp_listener: Listener | None = None
        self.stomp: tuple[str, int] | None = None

    async def start(self) -> tuple[str, int]:
        """Listen; returns host and port. Raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._http = http = self._web.server()
        self._posts = Posts(
            self._services, self._plans, self._uploads, http, self.sockets, self.limits, loop
        )
        self._doors = Doors(
            self._gate,
            self._push,
            self.connections,
            http,
            self.sockets,
            self.limits,
            loop.time,
            self._posts,
            self._health,
            self._services.runtime.spawn,
            self._place,
        )
        self._listener = self._listener_at(self._doors, *self._address)
        address = await self._listener.start()
        if self._stomp_address is not None:
            try:
                await self._start_stomp(*self._stomp_address)
            except BaseException:
                self._listener.close()
                raise
        if self._place is not None:
            await self._open_inner(self._place)
        self._timer = loop.call_later(self._interval, self._beat)
        return address

    def _listener_at(
        self, doors: Callable[[], asyncio.Protocol], host: str, port: int, *, stomp: bool = False
    ) -> Listener:
        place = self._place
        if place is None:
            return Listener(doors, host, port)
        inherited = place.stomp if stomp else place.http
        return Listener(doors, host, port, reuse=True, inherited=inherited)

    async def _open_inner(self, place: Place) -> None:
        """Let the other workers in, by the same doors."""
        assert self._doors is not None
        path = place.door(place.number)
        # A worker that was killed leaves its own behind.
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._inner = await loop.create_unix_server(self._doors, str(path), backlog=BACKLOG)

    async def _start_stomp(self, host: str, port: int) -> None:
        doors = StompDoors(self._services, self.connections, self.sockets, host)
        self._stomp_listener = self._listener_at(doors, host, port, stomp=True)
        try:
            self.stomp = await self._stomp_listener.start()
        except OSError as error:
            raise ConfigError(
                f"server.stomp_tcp: cannot listen on {host} port {port}: {error.strerror or error}",
                "RabbitMQ's STOMP plugin usually has 61613; choose another, or 0 for a free one",
            ) from None

    def people(self) -> Iterator[Present]:
        """Yield everybody who is connected, or between two requests of a session."""
        return roll(self.connections, self._sockjs.sessions, self._services.polls)

    def readiness(self) -> tuple[bool, str]:
        """Return whether clients should come, and what is the matter, for people."""
        return self._health.readiness()

    @property
    def sockjs_sessions(self) -> int:
        """SockJS sessions over HTTP."""
        return len(self._sockjs.sessions)

    @property
    def polls(self) -> int:
        """Long polls that wait, and those whose clients hold messages between two."""
        # One that waits stands still no longer, and is among the others already.
        return self._web.polls + sum(each.paused for each in self._services.polls)

    @property
    def handed(self) -> Mapping[str, int]:
        """Requests handed to other workers so far, by outcome."""
        return self._handover.counts if self._handover is not None else {}

    async def drain(self, reason: Disconnect, spread: float) -> None:
        """Send all push clients and polls away within `spread` seconds, and let none in.

        Publishing and acks go on, and /readyz says 503. Queues' messages are delivered no more;
        what a client has not acked when it is its turn to go, goes back.
        """
        self._refuse_subscriptions()
        if self._stomp_listener is not None:
            self._stomp_listener.close()
        await asyncio.gather(
            self._web.end_polls(spread),
            self.connections.disconnect_all(reason, spread),
            self._sockjs.disconnect_all(reason, spread),
        )
        # Between two polls; acks of their messages were taken until now.
        for poll in list(self._services.polls):
            poll.end()
        self._services.drain.done = True

    def _refuse_subscriptions(self) -> None:
        self._push.draining = True
        self._sockjs.draining = True
        self._services.drain.begun = True

    def stop_accepting(self) -> None:
        """Close the listener, refuse new subscriptions; what is open goes on. /readyz says 503."""
        self._refuse_subscriptions()
        for listener in (self._listener, self._stomp_listener):
            if listener is not None:
                listener.close()

    async def stop(self, reason: Disconnect, grace: float) -> None:
        """Close everybody within `grace` seconds; requests under way get their answers.

        Push clients that nobody sent away (`drain`) are told the reason, all at once.
        """
        self.stop_accepting()
        if self._doors is not None:
            self._doors.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        await self.drain(reason, 0.0)
        if self._http is not None and self._posts is not None:
            # After the listener: else a connection accepted meanwhile is nobody's.
            self._http.pre_shutdown()
            left = max(0.2, deadline - loop.time())
            self._posts.close(min(_LAST_CALL, left / 2))
            # aiohttp waits twice, for the answer and for the task behind it.
            await asyncio.gather(self._http.shutdown(left / 2), self._posts.emptied(left))
            self._http = None
        await self.connections.emptied(max(0.0, deadline - loop.time()))
        self.connections.abort_all()
        # An abort takes effect in the next turn of the loop.
        await asyncio.sleep(0)
        if self._inner is not None:
            self._inner.close()
        if self._handover is not None:
            await self._handover.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        # First of all, so that nothing below can stop the clock of everybody.
        self._timer = loop.call_later(self._interval, self._beat)
        now = loop.time()
        assert self._doors is not None
        assert self._posts is not None
        self._doors.sweep(now)
        self._posts.sweep(now)
        self.connections.beat(now)
        self._sockjs.sweep(now)


def _limits(config: Config) -> ServerLimits:
    limits = config.limits
    possible = raise_open_files()
    return ServerLimits(
        connections=min(limits.connections or possible, possible),
        head=limits.head,
        headers=limits.headers,
        head_seconds=limits.head_timeout,
        batch=limits.batch_bytes,
        batch_messages=limits.batch,
        heartbeat=config.server.heartbeat,
    )


def _membership(proxies: Iterable[str]) -> Callable[[str], bool] | None:
    """Return whether an address is within the networks; None when there are none."""
    networks = [ipaddress.ip_network(each, strict=False) for each in proxies]
    if not networks:
        return None

    def is_member(peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False  # not an address: a Unix socket's name
        return any(address in network for network in networks)

    return is_member
