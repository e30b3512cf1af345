"""[HOST:]PORT as people write it: an IPv6 address stands in brackets."""

from __future__ import annotations

import re

_FORM = re.compile(
    r"(?:(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]]+)):)?(?P<port>[0-9]{1,5})"
)


def read_host_port(text: str) -> tuple[str, int] | None:
    """Return host ("" where none is given) and port; None for another text."""
    found = _FORM.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        return None
    return found["six"] or found["host"] or "", int(found["port"])


def host_port(host: str, port: int) -> str:
    """Return them as one text, for URLs and settings."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
