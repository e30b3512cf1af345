"""Where the RabbitMQ broker is and who we are there, read from its URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from ...errors import ConfigError
from ...hostport import host_port
from ..url import read_options, tls_context

# Seconds; RabbitMQ notices a vanished peer after about twice that. Pulse's figures go with it.
DEFAULT_HEARTBEAT = 10
DEFAULT_CONNECTION_TIMEOUT = 10.0  # seconds, for TCP, TLS and the AMQP handshake together

_FORM = "amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://…?cafile=FILE"
_ESCAPE = f"it is {_FORM}; in a password write / as %2F, # as %23, ? as %3F, @ as %40"


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's address and login.

    heartbeat: seconds, 0 turns it off. connection_timeout: seconds. cafile: a PEM file with the
    authorities to trust instead of the system's.
    """

    host: str = "127.0.0.1"
    port: int = 5672
    virtual_host: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    cafile: str | None = None
    heartbeat: int = DEFAULT_HEARTBEAT
    connection_timeout: float = DEFAULT_CONNECTION_TIMEOUT

    @classmethod
    def parse(cls, url: str, *, cafile: str | None = None) -> Address:
        """Read an amqp:// or amqps:// URL; raises ConfigError, never showing the password.

        Query parameters: heartbeat, connection_timeout (seconds), cafile. The argument `cafile`
        wins over the one in the URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # The error's text may quote a part of the password.
            raise ConfigError("broker URL: host and port cannot be read", _ESCAPE) from None
        if parts.scheme not in ("amqp", "amqps"):
            raise ConfigError(f"broker URL: unknown scheme {parts.scheme!r}", f"it is {_FORM}")
        if "@" in parts.path + parts.query + parts.fragment:
            raise ConfigError("broker URL: there is an @ behind the host", _ESCAPE)
        if "," in parts.netloc.rpartition("@")[2]:
            raise ConfigError(
                "broker URL: it names one host", "put a load balancer or a DNS name in front"
            )
        tls = parts.scheme == "amqps"
        path = parts.path[1:]
        if "/" in path:
            raise ConfigError(
                "broker URL: the virtual host has a slash", "write a slash in its name as %2F"
            )
        options = read_options(parts.query, _ESCAPE)
        named = options.pop("cafile", None)
        found = cafile or named
        if found and not tls:
            raise ConfigError("broker URL: cafile without TLS", "the scheme is amqps://")
        address = cls(
            host=parts.hostname or "127.0.0.1",
            port=port or (5671 if tls else 5672),
            virtual_host=unquote(path) if path else "/",
            user=unquote(parts.username) if parts.username is not None else "guest",
            password=unquote(parts.password) if parts.password is not None else "guest",
            tls=tls,
            cafile=found,
            heartbeat=int(_number(options, "heartbeat", DEFAULT_HEARTBEAT, 65_535)),
            connection_timeout=_number(
                options, "connection_timeout", DEFAULT_CONNECTION_TIMEOUT, 3600
            ),
        )
        if options:
            name = next(iter(options))
            raise ConfigError(
                f"broker URL: unknown parameter {name!r}",
                "it takes heartbeat, connection_timeout and cafile",
            )
        return address

    @property
    def masked(self) -> str:
        """The URL for people: the password is ***."""
        scheme = "amqps" if self.tls else "amqp"
        place = host_port(self.host, self.port)
        vhost = "" if self.virtual_host == "/" else quote(self.virtual_host, safe="")
        return f"{scheme}://{quote(self.user, safe='')}:***@{place}/{vhost}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return what TLS needs, or None without TLS; raises ConfigError for a bad cafile."""
        return tls_context(self.cafile) if self.tls else None


def _number(options: dict[str, str], name: str, default: float, limit: float) -> float:
    text = options.pop(name, None)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= limit or (name == "connection_timeout" and not value):
        raise ConfigError(f"broker URL: {name}={text[:32]!r}", f"seconds, at most {limit:g}")
    return value
