"""What all brokers' URLs have in common: SCHEME://[LOGIN@]HOST[:PORT],…[/PATH][?PARAMETERS]."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

from ..errors import ConfigError

_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]@,]+))(?::(?P<port>\d{1,5}))?"
)

Host = tuple[str, int]


class BrokerUrl(NamedTuple):
    """A URL's parts as they are written. login: None where there is no @."""

    scheme: str
    login: str | None
    hosts: str
    path: str
    options: dict[str, str]


def split_url(url: str, hint: str) -> BrokerUrl:
    """Take a URL apart; raises ConfigError, with the hint, and never shows a part of it.

    It has an @ or # at a wrong place when a password was not percent-encoded.
    """
    scheme, _, rest = url.partition("://")
    if "#" in rest:
        raise ConfigError("broker URL: there is a # in it", hint)
    place, _, query = rest.partition("?")
    place, _, path = place.partition("/")
    if "@" in path + query:
        raise ConfigError("broker URL: there is an @ behind the host", hint)
    login, at, hosts = place.rpartition("@")
    return BrokerUrl(scheme.lower(), login if at else None, hosts, path, _options(query, hint))


def read_hosts(text: str, port: int, hint: str) -> tuple[Host, ...]:
    """Read HOST[:PORT],HOST[:PORT],…; port: where none is given. Raises ConfigError."""
    hosts = []
    for each in text.split(","):
        found = _HOST.fullmatch(each)
        if found is None or not 0 < int(found["port"] or port) <= 65535:
            # Not quoted: it may be a part of the password.
            raise ConfigError("broker URL: host and port cannot be read", hint)
        host = (found["six"] or found["host"]).lower(), int(found["port"] or port)
        if host in hosts:
            raise ConfigError("broker URL: a host is named twice", hint)
        hosts.append(host)
    return tuple(hosts)


def _options(query: str, hint: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ConfigError("broker URL: what follows the ? cannot be read", hint) from None
