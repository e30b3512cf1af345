"""What a parent and its workers say to each other, a line of JSON or a word each.

The worker reads its standard input: a Hello first, later DRAIN and STOP; its end means that the
parent has ended, and so does the worker. It writes a Report, or a Failed, to its standard output.
"""

from __future__ import annotations

import msgspec

from ..config import Config

DRAIN = b"drain"
STOP = b"stop"


class Hello(msgspec.Struct, frozen=True):
    """What a worker is to be. See server.siblings.Place; http, stomp: inherited descriptors.

    draining: the others drain already, so no client is to stay.
    """

    config: Config
    log_level: str
    number: int
    count: int
    node: str
    directory: str
    http: tuple[int, ...] = ()
    stomp: tuple[int, ...] = ()
    draining: bool = False


class Report(msgspec.Struct, frozen=True, tag="up"):
    """It serves. connections: how many clients it may have. stomp_url: "" for none."""

    url: str
    stomp_url: str
    broker: str
    connections: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It could not start."""

    text: str
    exit_code: int


Said = Report | Failed
