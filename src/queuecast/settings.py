"""Every setting's name, type, default, bounds and help, table by table; config.py reads them.

The tables that may stand many times are in arrays.py.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from .auth.origins import is_loopback
from .errors import ConfigError
from .hostport import read_host_port
from .options import Table, option
from .paths import StompPaths

_LONGEST_NODE_OF_WORKERS = 28

# It stands in a page, between quotes.
_SCRIPT_URL = re.compile(r"(?:https?:/)?/[A-Za-z0-9._~:/?#@!$&()*+,;=%\[\]-]+")


def _host_port(setting: str, text: str, host: str, example: str) -> tuple[str, int]:
    """Read [HOST:]PORT; host: where none is given. Raises ConfigError."""
    found = read_host_port(text)
    if found is None:
        raise ConfigError(
            f"{setting}: {text!r} is not [HOST:]PORT",
            f'e.g. "{example}", "0.0.0.0:{example}", "[::1]:{example}"',
        )
    return found[0] or host, found[1]


def _is_origin(text: str) -> bool:
    if text == "null":
        return True
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises ValueError for a bad port
    except ValueError:
        return False
    return bool(parts.hostname) and "*" not in text and text == f"{parts.scheme}://{parts.netloc}"


class ServerConfig(Table, frozen=True, kw_only=True):
    """[server]"""

    host: Annotated[str, option("Address to listen on.", flag="--host")] = "127.0.0.1"
    port: Annotated[
        int, option("Port to listen on; 0 takes a free one.", flag="--port", ge=0, le=65535)
    ] = 15674
    prefix: Annotated[
        str,
        option("Path under which a proxy serves the gateway, e.g. `/push`.", flag="--prefix"),
    ] = ""
    stomp_tcp: Annotated[
        str,
        option(
            "Where STOMP without WebSocket listens, for back ends: `[HOST:]PORT`, usually 61613; "
            "nowhere when empty.",
            flag="--stomp-tcp",
        ),
    ] = ""
    stomp_path: Annotated[
        str,
        option("Path of STOMP over WebSocket.", flag="--stomp-path"),
    ] = "/ws"
    sockjs_path: Annotated[
        str,
        option("Path of STOMP over SockJS; it may be that of `stomp_path`.", flag="--sockjs-path"),
    ] = "/stomp"
    sockjs_websocket: Annotated[
        bool, option("SockJS clients may use WebSocket; otherwise HTTP alone.")
    ] = True
    sockjs_cookie: Annotated[
        bool,
        option("SockJS answers set the cookie `JSESSIONID`, for load balancers that need it."),
    ] = False
    sockjs_client_url: Annotated[
        str,
        option(
            "Where SockJS's iframe page loads sockjs-client from, the version that your pages "
            "have; there are no iframe transports when empty."
        ),
    ] = ""
    ws_frame: Annotated[
        Literal["text", "binary"],
        option(
            "What STOMP frames are sent in over WebSocket: text messages, but binary ones where "
            "a frame is not UTF-8; or always binary ones."
        ),
    ] = "text"
    stomp_http_auth: Annotated[
        bool,
        option(
            "STOMP clients log in with HTTP Basic on the WebSocket's or SockJS request; `login` "
            "and `passcode` in their frames are ignored. Not over `stomp_tcp`."
        ),
    ] = False
    origins: Annotated[
        tuple[str, ...],
        option(
            "Origins whose pages may use the gateway, e.g. `https://app.example`, besides its own "
            "and loopback names.",
            flag="--origins",
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        option("Addresses or networks (CIDR) whose `X-Forwarded-*` headers are believed."),
    ] = ()
    allow_anyone: Annotated[
        bool,
        option(
            "Start without `[[allow]]` rules although the gateway reaches beyond loopback.",
            flag="--allow-anyone",
        ),
    ] = False
    workers: Annotated[
        int,
        option(
            "Processes that serve clients together on one port, each a whole gateway; more than "
            "one only with RabbitMQ or Kafka.",
            flag="--workers",
            ge=1,
            le=256,
        ),
    ] = 1
    drain: Annotated[
        float,
        option(
            "Over what time a shutdown, or `queuecast drain`, tells clients to reconnect; few "
            "clients take less.",
            flag="--drain",
            kind="duration",
            ge=0,
        ),
    ] = 10.0
    pid_file: Annotated[
        str,
        option(
            "File that `serve` writes its process number and URL to, for `queuecast drain`; it is "
            "locked while the gateway runs. None when empty.",
            flag="--pid-file",
        ),
    ] = ""
    grace: Annotated[
        float,
        option(
            "How long a shutdown waits for confirms in flight, after the drain.",
            flag="--grace",
            kind="duration",
        ),
    ] = 10.0
    demo: Annotated[bool, option("Serve the demo pages at `/`.", flag="--demo")] = False
    heartbeat: Annotated[
        float,
        option("Pause between heartbeats; proxies cut at 60 s.", kind="duration", ge=0.01),
    ] = 25.0
    compression: Annotated[
        bool,
        option("Compress WebSocket messages (permessage-deflate).", flag="--compression"),
    ] = False
    node: Annotated[
        str,
        option(
            "Name of this gateway among several, as clients see it in ack ids: letters, digits, "
            "`-` and `_`. A random one when empty.",
            flag="--node",
        ),
    ] = ""
    retry: Annotated[
        int, option("After what time a cut EventSource comes again.", unit="ms", ge=0)
    ] = 2000

    def check(self) -> None:
        """Raise ConfigError for what its type alone does not forbid."""
        if not self.host:
            raise ConfigError("server.host is empty", 'for all addresses write "0.0.0.0" or "::"')
        if self.prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.prefix):
            raise ConfigError(
                f"server.prefix: {self.prefix!r} is not a path prefix",
                'e.g. "/push", no slash at the end',
            )
        if self.node and not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", self.node):
            raise ConfigError(
                f"server.node: {self.node!r} is not a name", "1 to 32 letters, digits, - and _"
            )
        if self.workers > 1 and len(self.node) > _LONGEST_NODE_OF_WORKERS:
            raise ConfigError(
                f"server.node: {self.node!r} is too long with workers, whose numbers follow it",
                f"at most {_LONGEST_NODE_OF_WORKERS} characters",
            )
        self.stomp_address()
        for index, origin in enumerate(self.origins):
            if not _is_origin(origin):
                raise ConfigError(
                    f"server.origins[{index}]: {origin!r} is not an origin",
                    'scheme, host and port only, e.g. "https://app.example"; "*" is never allowed',
                )
        for index, network in enumerate(self.trusted_proxies):
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise ConfigError(
                    f"server.trusted_proxies[{index}]: {network!r} is no address or network",
                    'e.g. "10.0.0.7", "10.0.0.0/8"',
                ) from None
        if self.sockjs_client_url and not _SCRIPT_URL.fullmatch(self.sockjs_client_url):
            raise ConfigError(
                f"server.sockjs_client_url: {self.sockjs_client_url!r} is no script's address",
                'e.g. "https://cdn.example/sockjs-1.6.1.min.js" or "/static/sockjs.min.js"',
            )

    def reach(self) -> str:
        """Return the setting by which others than this machine's own reach it, "" for none."""
        stomp = self.stomp_address()
        if not is_loopback(self.host):
            return f'server.host = "{self.host}"'
        if stomp is not None and not is_loopback(stomp[0]):
            return f'server.stomp_tcp = "{self.stomp_tcp}"'
        if self.origins:
            return "server.origins"
        return "server.trusted_proxies" if self.trusted_proxies else ""

    def stomp_paths(self) -> StompPaths:
        return StompPaths(self.stomp_path, self.sockjs_path)

    def stomp_address(self) -> tuple[str, int] | None:
        """Return host and port of STOMP over TCP, None when it is off; raises ConfigError."""
        if not self.stomp_tcp:
            return None
        return _host_port("server.stomp_tcp", self.stomp_tcp, self.host, "61613")


class AdminConfig(Table, frozen=True, kw_only=True):
    """[admin]"""

    listen: Annotated[
        str,
        option(
            "Where `/metrics`, `/admin` and health are served, apart from clients: `[HOST:]PORT`, "
            "on loopback where no host is given; nowhere when empty.",
            flag="--admin",
        ),
    ] = ""
    token: Annotated[
        str,
        option(
            "What requests there have to show, as `Authorization: Bearer TOKEN`; needed where "
            "`listen` reaches beyond loopback. Rather set it in the environment."
        ),
    ] = ""

    def check(self) -> None:
        """Raise ConfigError for a token that is none, and a listener that anybody could reach."""
        address = self.address()
        if self.token and not re.fullmatch(r"[!-~]{8,512}", self.token):
            raise ConfigError("admin.token is not 8 to 512 characters of ASCII without spaces")
        if address is not None and not is_loopback(address[0]) and not self.token:
            raise ConfigError(
                f"admin.listen: {self.listen!r} reaches beyond loopback and there is no "
                "admin.token",
                "set QUEUECAST_ADMIN__TOKEN, or listen on 127.0.0.1",
            )

    def address(self) -> tuple[str, int] | None:
        """Return host and port, None when it is off; raises ConfigError."""
        if not self.listen:
            return None
        return _host_port("admin.listen", self.listen, "127.0.0.1", "15675")


class BrokerConfig(Table, frozen=True, kw_only=True):
    """[broker]"""

    url: Annotated[
        str,
        option(
            "`embedded:`, `amqp://user:password@host:5672,host:5672/vhost`, `amqps://…`, "
            "`kafka://host:9092,host:9092` or `kafkas://…`.",
            flag="--broker",
        ),
    ] = "embedded:"
    data: Annotated[
        str,
        option(
            "Directory in which `embedded:` keeps durable queues, their persistent messages and "
            "retained destinations; in memory only when empty.",
            flag="--data",
        ),
    ] = ""
    synchronous: Annotated[
        Literal["full", "normal"],
        option(
            "When a message in `data` counts as written. `full`: when the disk has it. `normal`: "
            "when the operating system has it; a killed gateway loses nothing then, but a crash "
            "of the system or a power cut may lose the last messages that were answered.",
            flag="--synchronous",
        ),
    ] = "full"
    cafile: Annotated[
        str,
        option("Certificate authorities (PEM) for `amqps://` and `kafkas://`.", flag="--cafile"),
    ] = ""
    certfile: Annotated[
        str,
        option(
            "The gateway's own certificate (PEM) for `amqps://` and `kafkas://`, where the broker "
            "asks for one."
        ),
    ] = ""
    keyfile: Annotated[
        str, option("Key of `certfile` (PEM); it may also stand in `certfile` itself.")
    ] = ""
    passphrase_file: Annotated[str, option("File with the passphrase of `keyfile`.")] = ""
    password_file: Annotated[
        str,
        option(
            "File with the password of the user in `url`, instead of a password there; it is read "
            "again at each connect."
        ),
    ] = ""
    group: Annotated[
        str,
        option(
            "Kafka: what the names of consumer groups begin with; `/queue/T` is a member of "
            "`queuecast.T`."
        ),
    ] = "queuecast"
    loopback_users: Annotated[
        tuple[str, ...],
        option(
            "RabbitMQ users that may log in over STOMP from this machine only: RabbitMQ itself "
            "sees the gateway's address instead of the client's."
        ),
    ] = ("guest",)
    start: Annotated[
        Literal["retry", "exit"],
        option(
            "When the broker is away at the start: go on trying, or exit with 1.", flag="--start"
        ),
    ] = "retry"
    start_timeout: Annotated[
        float, option('How long `start = "exit"` tries first.', kind="duration")
    ] = 10.0

    @property
    def scheme(self) -> str:
        """What the URL begins with: embedded, amqp, amqps, kafka, kafkas."""
        return self.url.partition(":")[0]


class LimitsConfig(Table, frozen=True, kw_only=True):
    """[limits]"""

    message: Annotated[int, option("Body of one message.", kind="size", ge=1)] = 1 << 20
    frame: Annotated[
        int, option("One WebSocket message, envelope and base64 included.", kind="size", ge=1)
    ] = 2 << 20
    head: Annotated[int, option("Head of a request.", kind="size", ge=256)] = 16 << 10
    headers: Annotated[int, option("Headers of a request.", ge=1)] = 100
    head_timeout: Annotated[
        float, option("Time to finish the head of a request.", kind="duration", ge=0.01)
    ] = 10.0
    login_timeout: Annotated[
        float, option("Time for a STOMP client to log in.", kind="duration", ge=0.01)
    ] = 10.0
    connections: Annotated[
        int,
        option("Connections at a time; 0 is what the limit on open files allows.", ge=0),
    ] = 0
    subscriptions: Annotated[int, option("Subscriptions of one connection.", ge=1)] = 100
    sockjs_sessions: Annotated[
        int, option("SockJS sessions over HTTP (streaming, polling) at a time.", ge=1)
    ] = 10_000
    deliveries: Annotated[
        int,
        option(
            "Messages of work queues that wait for slow clients, all together; further ones stay "
            "in the broker.",
            kind="size",
            ge=1,
        ),
    ] = 256 << 20
    batch: Annotated[int, option("Messages in one JSON batch.", ge=1)] = 1000
    batch_bytes: Annotated[int, option("Body of one JSON batch.", kind="size", ge=1)] = 8 << 20
    publishes: Annotated[
        int, option("Publishes of one connection that await their confirm.", ge=1)
    ] = 100
    lease: Annotated[
        float,
        option(
            "How long a client may hold a queue's message without an ack, where it does not say; "
            "0 is for ever (RabbitMQ gives up after 30 minutes).",
            kind="duration",
        ),
    ] = 0.0
    max_lease: Annotated[
        float, option("The longest lease that a client may ask for.", kind="duration", ge=1)
    ] = 1800.0
    max_redeliveries: Annotated[
        int,
        option(
            "How often a message that clients do not ack is delivered again; then it goes to its "
            "queue's dead-letter exchange, or is dropped where there is none. 0 is any number.",
            ge=0,
        ),
    ] = 0
    poll_idle: Annotated[
        float,
        option(
            "How long a long poll's unacked messages wait for its next poll or ack.",
            kind="duration",
            ge=0.1,
        ),
    ] = 60.0
    poll_sessions: Annotated[
        int, option("Clients that poll queues with `ack=client`, at a time.", ge=1)
    ] = 10_000
    idempotency: Annotated[
        float,
        option("How long an idempotency key is remembered; 0 is not at all.", kind="duration"),
    ] = 600.0
    idempotency_keys: Annotated[
        int, option("Idempotency keys remembered; the oldest go first.", ge=1)
    ] = 100_000

    def check(self) -> None:
        """Raise ConfigError for limits that contradict each other."""
        if self.frame < self.message:
            raise ConfigError("limits.frame is less than limits.message", "a frame holds a message")
        if self.lease > self.max_lease:
            raise ConfigError("limits.lease is more than limits.max_lease")


class LogConfig(Table, frozen=True, kw_only=True):
    """[log]"""

    messages: Annotated[int, option("Messages that a feed's log keeps.", ge=1)] = 65_536
    bytes: Annotated[int, option("Bytes that a feed's log keeps.", kind="size", ge=1)] = 8 << 20
    age: Annotated[float, option("Age to which it keeps them.", kind="duration")] = 300.0
    total: Annotated[int, option("Bytes of all logs together.", kind="size", ge=1)] = 512 << 20
    linger: Annotated[
        float, option("How long a feed outlives its last subscriber.", kind="duration")
    ] = 60.0


class HistoryConfig(Table, frozen=True, kw_only=True):
    """[history]"""

    messages: Annotated[int, option("Messages kept for each destination.", ge=0)] = 100
    age: Annotated[float, option("Age to which they are kept.", kind="duration")] = 300.0
    bytes: Annotated[int, option("Bytes of all of them together.", kind="size", ge=0)] = 64 << 20
