"""Who is here now: one line for each conversation, for people who look for the slow one."""

from __future__ import annotations

from typing import NamedTuple

from .base import Session


class Present(NamedTuple):
    """A session and its socket. address: "" where none is known. unsent: bytes that the kernel
    has not taken yet."""

    session: Session
    address: str = ""
    unsent: int = 0
