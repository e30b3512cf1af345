"""Who a client is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """A client's name, and when that ceases to be known.

    expires: Unix seconds after which the session is ended, None for never.
    """

    name: str = "anonymous"
    expires: float | None = None


ANONYMOUS = Identity()
