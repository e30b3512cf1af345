"""What a SUBSCRIBE's or SEND's headers say about a queue: the properties, and their defaults.

Where RabbitMQ's releases differ this does what a broker of every release from 3.10 to 4.x accepts,
deprecated features denied or not, and what the frame's words say:

* A queue that is not durable is exclusive and auto-delete, whatever the frame says. Up to 4.2 a
  frame could ask for a transient queue that sessions share, and /topic's was one by default.
* A durable subscription to /exchange is no more exclusive than one to /topic, as up to 3.13. In
  4.x it is unless the frame has `exclusive:false`, and so ends with its session; frames with that
  header do here what they do there.
* A SEND's `persistent` is the message's alone. At RabbitMQ `persistent:false` on a SEND also
  makes the queue it names for the first time exclusive to the session; here it does not, because
  it takes away what others were to consume.
* `x-overflow` is honoured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..codecs.stomp_values import AckMode, StompError, boolean
from ..destination import MAX_SEGMENT, Destination, Kind
from ..queuespec import (
    QUEUE_TYPE,
    STREAM_OFFSET,
    STREAM_STARTS,
    BindingSpec,
    QueueSpec,
    Timestamp,
)
from .stomp_names import TEMPORARY, durable_name, random_name

_NUMBERS: Final = frozenset(
    (
        "x-expires",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-stream-filter-size-bytes",
        "x-stream-max-segment-size-bytes",
    )
)
_TEXTS: Final = frozenset(
    (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-max-age",
        "x-overflow",
        QUEUE_TYPE,
    )
)
# Of the consumer, not of its queue.
_PRIORITY: Final = "x-priority"
_FILTER: Final = "x-stream-filter"
_UNFILTERED: Final = "x-stream-match-unfiltered"
_QUEUE_NAME: Final = "x-queue-name"

_FLAGS: Final = ("durable", "persistent", "auto-delete", "exclusive")
# What a queue is anyway, so that saying so asks for nothing else.
_OF_QUEUE: Final = {"durable": True, "persistent": True, "auto-delete": False, "exclusive": False}
_OF_SHARED: Final = {"durable": False, "persistent": False, "auto-delete": True, "exclusive": True}
# RabbitMQ's consumer priorities and stream offsets are signed, 32 and 64 bits.
_MAX_PRIORITY: Final = (1 << 31) - 1
_MAX_LONG: Final = (1 << 63) - 1
_MAX_SECONDS: Final = 253_402_300_799  # the end of the year 9999
_MAX_FILTERS: Final = 100  # each is looked up in every chunk

TOPIC_EXCHANGE: Final = "amq.topic"


def is_durable(headers: Mapping[str, str]) -> bool:
    """Tell whether a frame speaks of a durable subscription."""
    return bool(boolean(headers, "durable") or boolean(headers, "persistent"))


def needs_own_queue(headers: Mapping[str, str], mode: AckMode) -> bool:
    """Tell whether a subscription to /topic or /exchange cannot share the feed."""
    return mode is not AckMode.AUTO or _asks(headers, _OF_SHARED, _FLAGS) or _QUEUE_NAME in headers


def queue_of_subscribe(
    destination: Destination, headers: Mapping[str, str], id: str | None
) -> QueueSpec | None:
    """Return the queue to declare; None where the destination's own will do.

    For /topic and /exchange always one, as /queue's when a header asks for other properties.
    Raises StompError.
    """
    if not destination.is_shared:
        return queue_of_send(destination, headers, _FLAGS)
    name = headers.get(_QUEUE_NAME)
    key = destination.pattern
    if name is not None:
        if not name or len(name.encode()) > MAX_SEGMENT:
            raise StompError("Invalid header", f"'{_QUEUE_NAME}' has 1 to {MAX_SEGMENT} bytes\n")
    elif is_durable(headers) and id is not None:
        name = durable_name(key, id)
    else:
        name = random_name()
    exchange = TOPIC_EXCHANGE if destination.kind is Kind.TOPIC else destination.name
    # What is durable can be shared: with the sessions that come back to it.
    usual = {**_OF_SHARED, "exclusive": False}
    return _queue(name, headers, usual, (BindingSpec(exchange, key),))


def queue_of_send(
    destination: Destination,
    headers: Mapping[str, str],
    flags: tuple[str, ...] = ("durable", "auto-delete", "exclusive"),
) -> QueueSpec | None:
    """Return how /queue/N is to be declared, None where it is as always. Raises StompError."""
    if destination.kind is not Kind.QUEUE or not _asks(headers, _OF_QUEUE, flags):
        return None
    plain = {name: value for name, value in headers.items() if name in flags or name[:2] == "x-"}
    return _queue(destination.name, plain, _OF_QUEUE, ())


def temporary_queue() -> QueueSpec:
    """Return a queue for the answers to one session's questions.

    RabbitMQ names it; a name of our own can be declared again after a lost connection, so that
    answers to what was asked before still arrive.
    """
    return QueueSpec(random_name(TEMPORARY), durable=False, exclusive=True, auto_delete=True)


def _asks(headers: Mapping[str, str], usual: Mapping[str, bool], flags: tuple[str, ...]) -> bool:
    for name in headers:
        if name in _NUMBERS or name in _TEXTS:
            return True
        if name in flags and boolean(headers, name) not in (None, usual[name]):
            return True
    return False


def _queue(
    name: str,
    headers: Mapping[str, str],
    usual: Mapping[str, bool],
    bindings: tuple[BindingSpec, ...],
) -> QueueSpec:
    arguments: dict[str, Any] = {}
    for header, value in headers.items():
        if header in _NUMBERS:
            arguments[header] = _number(header, value, _MAX_LONG)
        elif header in _TEXTS:
            arguments[header] = value.strip()
    # They are durable and shared by their nature.
    replicated = arguments.get(QUEUE_TYPE) in ("quorum", "stream")
    said = [boolean(headers, flag) for flag in ("durable", "persistent")]
    durable = replicated or True in said or (False not in said and usual["durable"])
    if not durable:
        return QueueSpec(
            name,
            durable=False,
            exclusive=True,
            auto_delete=True,
            arguments=arguments,
            bindings=bindings,
        )
    auto_delete = boolean(headers, "auto-delete")
    exclusive = boolean(headers, "exclusive")
    return QueueSpec(
        name,
        durable=True,
        exclusive=not replicated and (usual["exclusive"] if exclusive is None else exclusive),
        auto_delete=usual["auto-delete"] if auto_delete is None else auto_delete,
        arguments=arguments,
        bindings=bindings,
    )


def consumer_arguments(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return a consumer's own arguments; raises StompError."""
    arguments: dict[str, Any] = {}
    if _PRIORITY in headers:
        arguments[_PRIORITY] = _number(_PRIORITY, headers[_PRIORITY], _MAX_PRIORITY, signed=True)
    start = _stream_start(headers.get(STREAM_OFFSET))
    if start is not None:
        arguments[STREAM_OFFSET] = start
    values = headers.get(_FILTER)
    if values is not None:
        filters = [value for each in values.split(",") if (value := each.strip())]
        if len(filters) > _MAX_FILTERS:
            raise StompError("Processing error", f"{_FILTER} has at most {_MAX_FILTERS} values\n")
        if filters:
            arguments[_FILTER] = filters
    unfiltered = boolean(headers, _UNFILTERED)
    if unfiltered is not None:
        arguments[_UNFILTERED] = unfiltered
    return arguments


def _stream_start(text: str | None) -> object:
    """Read x-stream-offset; what RabbitMQ does not know it ignores, and reads from the end."""
    if text is None or text in STREAM_STARTS:
        return text
    if text.startswith("offset="):
        return _number(STREAM_OFFSET, text[7:], _MAX_LONG)
    if text.startswith("timestamp="):
        return Timestamp(_number(STREAM_OFFSET, text[10:], _MAX_SECONDS))
    return None


def check_stream(queue: QueueSpec | None, headers: Mapping[str, str], mode: AckMode) -> None:
    """Raise StompError, as RabbitMQ does, for a reader of a stream that could not be held back."""
    if queue is None or not queue.is_stream:
        return
    if mode is AckMode.AUTO:
        raise StompError(
            "not_implemented", "a stream is read with ack:client or ack:client-individual\n"
        )
    if headers.get("prefetch-count", "0").strip() == "0":
        raise StompError("precondition_failed", "a stream is read with a 'prefetch-count'\n")


def dead_letter_targets(queue: QueueSpec) -> tuple[Destination, ...]:
    """Return what a queue publishes to by itself, under each of its names; any will do."""
    exchange = queue.arguments.get("x-dead-letter-exchange")
    if exchange is None:
        return ()
    # Without a key of its own it is the message's: any.
    key = queue.arguments.get("x-dead-letter-routing-key", "#")
    if exchange == "":
        return (Destination(Kind.QUEUE, key),)
    named = Destination(Kind.EXCHANGE, exchange, key)
    return (named, Destination(Kind.TOPIC, key)) if exchange == TOPIC_EXCHANGE else (named,)


def _number(name: str, text: str, highest: int, *, signed: bool = False) -> int:
    words = text.strip()
    digits = words.removeprefix("-") if signed else words
    if digits.isascii() and digits.isdigit() and len(digits) <= 19:
        value = int(words)
        if -highest <= value <= highest:
            return value
    raise StompError(
        "Processing error", f"'{name}' is {text[:64]!r}, a number up to {highest} is expected\n"
    )
