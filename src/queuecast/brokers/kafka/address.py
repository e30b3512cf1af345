"""Where the Kafka cluster is and who we are there, read from its URL.

kafka://[USER:PASSWORD@]HOST[:9092][,HOST[:9092]…][?mechanism=PLAIN]
kafkas://…                                                 the same over TLS
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from ...errors import ConfigError
from ...hostport import host_port
from ..files import NAMES, NO_FILES, Files
from ..url import read_hosts, split_url

DEFAULT_PORT = 9092
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_FORM = "kafka://USER:PASSWORD@HOST:PORT,HOST:PORT?mechanism=SCRAM-SHA-256, or kafkas:// for TLS"
_ESCAPE = f"it is {_FORM}; in a password write / as %2F, # as %23, ? as %3F, @ as %40"


@dataclass(frozen=True, slots=True)
class Address:
    """A cluster's bootstrap servers ("host:port") and the login; user "" is no login."""

    servers: tuple[str, ...] = (f"127.0.0.1:{DEFAULT_PORT}",)
    user: str = ""
    password: str = field(default="", repr=False)
    mechanism: str = "PLAIN"
    tls: bool = False
    files: Files = NO_FILES

    @classmethod
    def parse(cls, url: str, *, files: Files = NO_FILES) -> Address:
        """Read a kafka:// or kafkas:// URL; raises ConfigError, never showing the password.

        files: win over those that the URL names.
        """
        if not url.lower().startswith(("kafka://", "kafkas://")):
            raise ConfigError("broker URL: it is not one of Kafka's", f"it is {_FORM}")
        parts = split_url(url, _ESCAPE)
        if parts.path:
            raise ConfigError("broker URL: it has a path", _ESCAPE)
        tls = parts.scheme == "kafkas"
        options = dict(parts.options)
        files = files.with_options(options)
        files.check(tls=tls, scheme="kafkas")
        user, colon, password = (parts.login or "").partition(":")
        if parts.login is not None and not (user and (colon or files.password_file)):
            raise ConfigError("broker URL: a login is USER:PASSWORD", _ESCAPE)
        if files.password_file and not user:
            raise ConfigError("broker URL: a password_file and no user", "kafka://USER@HOST")
        if files.password_file and colon:
            raise ConfigError("broker URL: it has a password, and there is a password_file")
        return cls(
            tuple(host_port(*each) for each in read_hosts(parts.hosts, DEFAULT_PORT, _ESCAPE)),
            unquote(user),
            unquote(password),
            _mechanism(options, user),
            tls,
            files,
        )

    @property
    def masked(self) -> str:
        """The URL for people: the password is ***."""
        login = f"{quote(self.user, safe='')}:***@" if self.user else ""
        return f"kafka{'s' if self.tls else ''}://{login}{','.join(self.servers)}"

    def current_password(self) -> str:
        """Return the password, read from its file where there is one; raises ConfigError."""
        return self.files.password() if self.files.password_file else self.password

    def options(self) -> dict[str, Any]:
        """Return what aiokafka's clients take; raises ConfigError for a bad file."""
        made: dict[str, Any] = {"bootstrap_servers": list(self.servers)}
        if self.tls:
            made["ssl_context"] = self.files.context()
        protocol = "SSL" if self.tls else "PLAINTEXT"
        if self.user:
            protocol = "SASL_" + protocol
            made["sasl_mechanism"] = self.mechanism
            made["sasl_plain_username"] = self.user
            made["sasl_plain_password"] = self.current_password()
        made["security_protocol"] = protocol
        return made


def _mechanism(options: dict[str, str], user: str) -> str:
    """Take the mechanism, and refuse what else there is; raises ConfigError."""
    mechanism = options.pop("mechanism", "").upper()
    if options:
        name = next(iter(options))
        raise ConfigError(
            f"broker URL: unknown parameter {name!r}", f"it takes mechanism, {', '.join(NAMES)}"
        )
    if mechanism and not user:
        raise ConfigError("broker URL: a mechanism without a login", f"it is {_FORM}")
    if mechanism and mechanism not in MECHANISMS:
        raise ConfigError(
            f"broker URL: unknown mechanism {mechanism[:32]!r}",
            f"it is one of {', '.join(MECHANISMS)}",
        )
    return mechanism or "PLAIN"
