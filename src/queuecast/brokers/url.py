"""What all brokers' URLs have in common: options behind a ?, and whom TLS trusts."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import parse_qsl

from ..errors import ConfigError


def read_options(query: str, hint: str) -> dict[str, str]:
    """Return a query's parameters; raises ConfigError, with the hint, for what is none."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ConfigError("broker URL: what follows the ? cannot be read", hint) from None


def tls_context(cafile: str | None) -> ssl.SSLContext:
    """Return what TLS needs; cafile: PEM, instead of the system's authorities.

    Raises ConfigError for a file that is not there or holds no certificate.
    """
    if cafile and not Path(cafile).is_file():
        raise ConfigError(f"cafile: no such file {cafile!r}")
    try:
        return ssl.create_default_context(cafile=cafile)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"cafile: {cafile!r} holds no certificate: {error}") from None
