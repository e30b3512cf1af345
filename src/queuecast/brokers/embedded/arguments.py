"""The arguments of a queue, read once (names and units: RabbitMQ's)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import BadRequest, Conflict, Unsupported
from ...queuespec import QUEUE_TYPE, QueueSpec, read_age

_OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")
_MAX_PRIORITY = 255
_MAX_MS = 2**32 - 1  # RabbitMQ's bound on times, about 50 days
_TYPES = ("classic", "quorum", "stream")


@dataclass(frozen=True, slots=True)
class QueueArguments:
    """What a queue was asked to be; times in seconds, None where nothing was asked."""

    max_length: int | None = None
    max_bytes: int | None = None
    ttl: float | None = None
    expires: float | None = None
    dead_letter_exchange: str | None = None
    dead_letter_key: str | None = None
    overflow: str = "drop-head"
    max_priority: int = 0
    delivery_limit: int | None = None
    counts_deliveries: bool = False

    @classmethod
    def read(cls, queue: str, arguments: Mapping[str, Any]) -> QueueArguments:
        """Read a queue's arguments; unknown ones are kept by the spec and mean nothing here.

        Raises BadRequest (a value that RabbitMQ would refuse), Unsupported (a type).
        """
        kind = arguments.get(QUEUE_TYPE, "classic")
        if kind not in _TYPES:
            raise Unsupported(
                f"queue {queue!r}: the embedded broker has no x-queue-type {kind!r}",
                f"it has {', '.join(_TYPES)}",
            )
        ttl = _number(queue, arguments, "x-message-ttl", 0, _MAX_MS)
        expires = _number(queue, arguments, "x-expires", 1, _MAX_MS)
        overflow = _text(queue, arguments, "x-overflow") or "drop-head"
        if overflow not in _OVERFLOWS:
            raise BadRequest(
                f"queue {queue!r}: x-overflow is {overflow!r}", f"one of {', '.join(_OVERFLOWS)}"
            )
        exchange = _text(queue, arguments, "x-dead-letter-exchange")
        key = _text(queue, arguments, "x-dead-letter-routing-key")
        if key is not None and exchange is None:
            raise BadRequest(
                f"queue {queue!r}: x-dead-letter-routing-key without x-dead-letter-exchange"
            )
        return cls(
            max_length=_number(queue, arguments, "x-max-length", 0),
            max_bytes=_number(queue, arguments, "x-max-length-bytes", 0),
            ttl=None if ttl is None else ttl / 1000,
            expires=None if expires is None else expires / 1000,
            dead_letter_exchange=exchange,
            dead_letter_key=key,
            overflow=overflow,
            max_priority=_number(queue, arguments, "x-max-priority", 0, _MAX_PRIORITY) or 0,
            delivery_limit=_number(queue, arguments, "x-delivery-limit", 0),
            counts_deliveries=kind == "quorum",
        )


def check_properties(spec: QueueSpec) -> None:
    """Raise Conflict for what RabbitMQ's quorum queues and streams cannot be, BadRequest."""
    read_age(spec)
    kind = spec.arguments.get(QUEUE_TYPE)
    if kind not in ("quorum", "stream"):
        return
    wrong = "exclusive" if spec.exclusive else "auto-delete" if spec.auto_delete else ""
    if not spec.durable:
        wrong = "transient"
    if wrong:
        raise Conflict(f"queue {spec.name!r}: a {kind} queue cannot be {wrong}")


def read_expiration(text: str | None) -> float | None:
    """Read a message's expiration (milliseconds as decimal text) as seconds.

    Raises BadRequest.
    """
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > _MAX_MS:
        raise BadRequest(
            f"expiration {text[:32]!r} is not a time", f"milliseconds, at most {_MAX_MS}"
        )
    return int(text) / 1000


def _number(
    queue: str, arguments: Mapping[str, Any], name: str, least: int, most: int = 2**63 - 1
) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(
            f"queue {queue!r}: {name} is {value!r}", f"a whole number from {least} to {most}"
        )
    return value


def _text(queue: str, arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is None or isinstance(value, str):
        return value
    raise BadRequest(f"queue {queue!r}: {name} is {value!r}", "a text")
