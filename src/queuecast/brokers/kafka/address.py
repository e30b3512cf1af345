"""Where the Kafka cluster is and who we are there, read from its URL.

kafka://[USER:PASSWORD@]HOST[:9092][,HOST[:9092]…][?mechanism=PLAIN]
kafkas://…                                                 the same over TLS
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from ...errors import ConfigError
from ..url import read_options, tls_context

DEFAULT_PORT = 9092
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_FORM = "kafka://USER:PASSWORD@HOST:PORT,HOST:PORT?mechanism=SCRAM-SHA-256, or kafkas:// for TLS"
_ESCAPE = f"it is {_FORM}; in a password write / as %2F, # as %23, ? as %3F, @ as %40"
_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]@,]+)(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """A cluster's bootstrap servers ("host:port") and the login; user "" is no login."""

    servers: tuple[str, ...] = (f"127.0.0.1:{DEFAULT_PORT}",)
    user: str = ""
    password: str = field(default="", repr=False)
    mechanism: str = "PLAIN"
    tls: bool = False
    cafile: str | None = None

    @classmethod
    def parse(cls, url: str, *, cafile: str | None = None) -> Address:
        """Read a kafka:// or kafkas:// URL; raises ConfigError, never showing the password."""
        scheme, separator, rest = url.partition("://")
        if scheme.lower() not in ("kafka", "kafkas") or not separator:
            raise ConfigError("broker URL: it is not one of Kafka's", f"it is {_FORM}")
        tls = scheme.lower() == "kafkas"
        if "#" in rest:
            raise ConfigError("broker URL: there is a # in it", _ESCAPE)
        place, _, query = rest.partition("?")
        place, _, path = place.partition("/")
        if path or "@" in query:
            raise ConfigError("broker URL: it has a path, or an @ behind the host", _ESCAPE)
        login, at, hosts = place.rpartition("@")
        user, colon, password = login.partition(":")
        if at and (not user or not colon):
            raise ConfigError("broker URL: a login is USER:PASSWORD", _ESCAPE)
        options = read_options(query, _ESCAPE)
        mechanism = options.pop("mechanism", "")
        if options:
            name = next(iter(options))
            raise ConfigError(f"broker URL: unknown parameter {name!r}", "it takes mechanism")
        if mechanism and not at:
            raise ConfigError("broker URL: a mechanism without a login", f"it is {_FORM}")
        if mechanism and mechanism not in MECHANISMS:
            raise ConfigError(
                f"broker URL: unknown mechanism {mechanism[:32]!r}",
                f"it is one of {', '.join(MECHANISMS)}",
            )
        if cafile and not tls:
            raise ConfigError("broker.cafile without TLS", "the scheme is kafkas://")
        return cls(
            tuple(_server(each) for each in hosts.split(",")),
            unquote(user),
            unquote(password),
            mechanism or "PLAIN",
            tls,
            cafile or None,
        )

    @property
    def masked(self) -> str:
        """The URL for people: the password is ***."""
        login = f"{quote(self.user, safe='')}:***@" if self.user else ""
        return f"kafka{'s' if self.tls else ''}://{login}{','.join(self.servers)}"

    def options(self) -> dict[str, Any]:
        """Return what aiokafka's clients take; raises ConfigError for a bad cafile."""
        made: dict[str, Any] = {"bootstrap_servers": list(self.servers)}
        if self.tls:
            made["ssl_context"] = tls_context(self.cafile)
        protocol = "SSL" if self.tls else "PLAINTEXT"
        if self.user:
            protocol = "SASL_" + protocol
            made["sasl_mechanism"] = self.mechanism
            made["sasl_plain_username"] = self.user
            made["sasl_plain_password"] = self.password
        made["security_protocol"] = protocol
        return made


def _server(text: str) -> str:
    found = _SERVER.fullmatch(text)
    if found is None or not 0 < int(found["port"] or DEFAULT_PORT) <= 65535:
        # Not quoted: it may be a part of the password.
        raise ConfigError("broker URL: host and port cannot be read", _ESCAPE)
    return f"{found['host']}:{found['port'] or DEFAULT_PORT}"
