"""Where RabbitMQ's nodes are and who we are there, read from the broker URL.

amqp://[USER:PASSWORD@]HOST[:5672][,HOST[:5672]…][/VHOST][?PARAMETERS]
amqps://…                                                     over TLS, port 5671

Beside Queuecast's own parameters those of RabbitMQ's URIs are understood, as far as they mean
something here: https://www.rabbitmq.com/docs/uri-query-parameters
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote

from ...errors import ConfigError
from ...hostport import host_port
from ..files import NAMES, NO_FILES, Files
from ..url import Host, read_hosts, split_url

# Seconds; RabbitMQ notices a vanished peer after about twice that. Pulse's figures go with it.
DEFAULT_HEARTBEAT = 10
# Seconds for TCP, TLS and the AMQP handshake of one host together.
DEFAULT_CONNECTION_TIMEOUT = 10.0
# The same where there are several hosts: one that is frozen must not delay the others for long.
SHARED_CONNECTION_TIMEOUT = 3.0
_LONGEST_TIMEOUT = 300.0
_TIMEOUT = re.compile(r"(?P<number>[0-9]{1,7}(?:\.[0-9]{1,3})?)(?P<unit>ms|s|)")
# Channels of a connection: feeds and questions about queues need some hundred.
_FEWEST_CHANNELS = 512

_FORM = "amqp://USER:PASSWORD@HOST:PORT,HOST:PORT/VHOST or amqps://…?cafile=FILE"
_ESCAPE = f"it is {_FORM}; in a password write / as %2F, # as %23, ? as %3F, @ as %40"
_PARAMETERS = (
    *NAMES,
    *("auth_mechanism", "server_name_indication", "heartbeat", "connection_timeout"),
    *("channel_max", "verify", "cacertfile", "feed_queues"),
)


@dataclass(frozen=True, slots=True)
class Address:
    """A cluster's hosts and the login, the same at each host.

    hosts: in the order in which they are tried. external: the login is the client certificate
    (SASL EXTERNAL); `user` is then only what it is called, or "". server_name: the name that all
    hosts' certificates have, "" for each host's own. heartbeat: seconds, 0 turns it off.
    connection_timeout: seconds for one host. channel_max: 0 is what RabbitMQ allows. feed_queues:
    the type of the feeds' queues, "" for the one that suits the broker.
    """

    hosts: tuple[Host, ...] = (("127.0.0.1", 5672),)
    virtual_host: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    files: Files = NO_FILES
    external: bool = False
    server_name: str = ""
    heartbeat: int = DEFAULT_HEARTBEAT
    connection_timeout: float = DEFAULT_CONNECTION_TIMEOUT
    channel_max: int = 0
    feed_queues: str = ""

    @classmethod
    def parse(cls, url: str, *, files: Files = NO_FILES) -> Address:
        """Read an amqp:// or amqps:// URL; raises ConfigError, never showing the password.

        files: win over those that the URL names. docs/rabbitmq.md has the parameters.
        """
        parts = split_url(url, _ESCAPE)
        if parts.scheme not in ("amqp", "amqps"):
            raise ConfigError(f"broker URL: unknown scheme {parts.scheme!r}", f"it is {_FORM}")
        if "/" in parts.path:
            raise ConfigError(
                "broker URL: the virtual host has a slash", "write a slash in its name as %2F"
            )
        tls = parts.scheme == "amqps"
        options = dict(parts.options)
        hosts = read_hosts(parts.hosts or "127.0.0.1", 5671 if tls else 5672, _ESCAPE)
        files = files.with_options(_own_names(options))
        files.check(tls=tls, scheme="amqps")
        external = _external(options, files)
        user, colon, password = (parts.login or "").partition(":")
        if files.password_file and colon:
            raise ConfigError("broker URL: it has a password, and there is a password_file")
        if external and (colon or files.password_file):
            raise ConfigError(
                "broker URL: it has a password and auth_mechanism=external",
                "the certificate is the login",
            )
        several = SHARED_CONNECTION_TIMEOUT if len(hosts) > 1 else DEFAULT_CONNECTION_TIMEOUT
        address = cls(
            hosts=hosts,
            virtual_host=unquote(parts.path) if parts.path else "/",
            user=unquote(user) if user or external else "guest",
            password=unquote(password) if colon else "guest",
            tls=tls,
            files=files,
            external=external,
            server_name=_server_name(options, tls),
            heartbeat=_heartbeat(options),
            connection_timeout=_timeout(options, several),
            channel_max=_channel_max(options),
            feed_queues=_feed_queues(options),
        )
        if options:
            name = next(iter(options))
            hint = f"it takes {', '.join(_PARAMETERS)}"
            if name == "password":
                hint = "the passphrase of keyfile stands in a file: passphrase_file=FILE"
            raise ConfigError(f"broker URL: unknown parameter {name!r}", hint)
        return address

    @property
    def masked(self) -> str:
        """The URL for people, with all hosts: the password is ***."""
        scheme = "amqps" if self.tls else "amqp"
        login = "" if self.external else ":***"
        if self.user or login:
            login = f"{quote(self.user, safe='')}{login}@"
        hosts = ",".join(host_port(*host) for host in self.hosts)
        vhost = "" if self.virtual_host == "/" else quote(self.virtual_host, safe="")
        return f"{scheme}://{login}{hosts}/{vhost}"

    def for_login(self, user: str, password: str, virtual_host: str | None) -> Address:
        """Return the address for another user; virtual_host: None for this one's.

        The client certificate stays: RabbitMQ may demand one of everybody.
        """
        return replace(
            self,
            user=user,
            password=password,
            external=False,
            virtual_host=self.virtual_host if virtual_host is None else virtual_host,
            files=replace(self.files, password_file=""),
        )

    def current_password(self) -> str:
        """Return the password, read from its file where there is one; raises ConfigError."""
        return self.files.password() if self.files.password_file else self.password

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return what TLS needs, or None without TLS; raises ConfigError for a bad file."""
        return self.files.context() if self.tls else None


def _own_names(options: dict[str, str]) -> dict[str, str]:
    """Give RabbitMQ's name of a parameter ours, and refuse what would turn TLS's checks off."""
    if "cacertfile" in options:
        options.setdefault("cafile", options["cacertfile"])
        del options["cacertfile"]
    # What a server does about its clients, and so nothing here.
    options.pop("fail_if_no_peer_cert", None)
    if options.pop("verify", "verify_peer") != "verify_peer":
        raise ConfigError(
            "broker URL: verify is verify_peer, always",
            "without it any host could read the password; name the authority with cafile",
        )
    return options


def _external(options: dict[str, str], files: Files) -> bool:
    mechanism = options.pop("auth_mechanism", "plain").lower()
    if mechanism not in ("plain", "external"):
        raise ConfigError("broker URL: unknown auth_mechanism", "it is plain or external")
    if mechanism == "external" and not files.certfile:
        raise ConfigError(
            "broker URL: auth_mechanism=external without a certificate",
            "amqps://HOST/?auth_mechanism=external&cafile=FILE&certfile=FILE&keyfile=FILE",
        )
    return mechanism == "external"


def _server_name(options: dict[str, str], tls: bool) -> str:
    name = options.pop("server_name_indication", "")
    if name and not tls:
        raise ConfigError("broker URL: server_name_indication without TLS", "use amqps://")
    if name == "disable":
        raise ConfigError(
            "broker URL: server_name_indication cannot be turned off",
            "give the name that the certificates have",
        )
    return name


def _heartbeat(options: dict[str, str]) -> int:
    text = options.pop("heartbeat", str(DEFAULT_HEARTBEAT))
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise ConfigError(f"broker URL: heartbeat={text[:32]!r}", "whole seconds, at most 65535")
    return int(text)


def _timeout(options: dict[str, str], default: float) -> float:
    """Read connection_timeout: seconds, "500ms", or RabbitMQ's milliseconds.

    No attempt takes 1,000 seconds and none less than a second, so a number says which it is.
    """
    text = options.pop("connection_timeout", None)
    if text is None:
        return default
    found = _TIMEOUT.fullmatch(text)
    number = float(found["number"]) if found else 0.0
    in_milliseconds = found and (found["unit"] == "ms" or (not found["unit"] and number >= 1000))
    seconds = number / 1000 if in_milliseconds else number
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        raise ConfigError(
            f"broker URL: connection_timeout={text[:32]!r}",
            f'seconds, or text like "500ms" and "3s", at most {_LONGEST_TIMEOUT:g} s; numbers '
            "from 1000 on are milliseconds, as in RabbitMQ's own URIs",
        )
    return seconds


def _channel_max(options: dict[str, str]) -> int:
    text = options.pop("channel_max", "0")
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number and not _FEWEST_CHANNELS <= number <= 65_535:
        raise ConfigError(
            f"broker URL: channel_max={text[:32]!r}",
            f"{_FEWEST_CHANNELS} to 65535, or 0 for what RabbitMQ allows",
        )
    return number


def _feed_queues(options: dict[str, str]) -> str:
    kind = options.pop("feed_queues", "")
    if kind not in ("", "classic", "quorum"):
        raise ConfigError(f"broker URL: feed_queues={kind[:32]!r}", "classic or quorum")
    return kind
