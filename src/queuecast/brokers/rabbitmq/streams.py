"""A rule's stream at the broker: its name, its arguments, and the epoch of its offsets.

The stream, its binding and its epoch (see identity.py) are shared by all nodes: the first one
declares them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from urllib.parse import quote

import pika.exceptions

from ...errors import ConfigError, Conflict, QueuecastError, Unavailable
from ...pattern import is_pattern
from ...retention import RetainRule
from .connection import Channel, Link
from .failures import NOT_FOUND, PRECONDITION_FAILED, of_channel, plain
from .identity import Identity, current_value
from .topology import MATCHED

log = logging.getLogger(__name__)

PREFIX = "queuecast.retain."
# RabbitMQ deletes whole segments only, so they are a fraction of what is kept. Below the minimum
# files would be opened all the time; the maximum is RabbitMQ's own default.
_PARTS = 8
_MIN_SEGMENT = 64 << 10
_MAX_SEGMENT = 500_000_000
_UNSIZED_SEGMENT = 32 << 20  # of a rule that has an age only
# Characters of a name that are readable. RabbitMQ's refusals quote it and end after 255 bytes,
# which must still hold both values of an argument.
_READABLE = 60

_SETTINGS = {
    "x-max-age": "age",
    "x-max-length-bytes": "bytes",
    "x-stream-max-segment-size-bytes": "bytes",
}
_ARGUMENT = re.compile(r"inequivalent arg '([^']+)'")
_REPLICAS = "x-initial-cluster-size"
# Streams of which it was said that they have another number of replicas; of rules alone.
_told: set[str] = set()
_DOWN = "is down or inaccessible"
# Of our bindings, so that others who unbind a queue by exchange and key do not hit them. The types
# of exchange that can be retained route by the key alone.
_OURS = {"x-queuecast": "retain"}


def check_rule(rule: RetainRule) -> None:
    """Raise ConfigError for what a stream cannot keep to."""
    if rule.messages:
        raise ConfigError(
            f"[[retain]] {rule.destination}: RabbitMQ's streams cannot count messages",
            "bound it by age or bytes; messages is for the embedded broker",
        )


def check_exchange(rule: RetainRule, kind: str) -> None:
    """Raise ConfigError for an exchange whose messages a rule cannot keep."""
    if kind not in MATCHED:
        raise ConfigError(
            f"[[retain]] {rule.destination}: the exchange {rule.exchange!r} routes by more than "
            "the routing key",
            "a topic, direct or fanout exchange can be retained; name its type in [[exchange]]",
        )
    if kind == "direct" and is_pattern(rule.pattern):
        raise ConfigError(
            f"[[retain]] {rule.destination}: the exchange {rule.exchange!r} is direct and knows "
            "no patterns",
            "give one rule for each key, or make it a topic exchange",
        )


def stream_name(rule: RetainRule) -> str:
    """Return the name of a rule's stream: readable, and no other rule's."""
    text = f"{quote(rule.exchange, safe='')}:{quote(rule.pattern, safe='#*')}"
    if len(text) > _READABLE:
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        text = f"{text[: _READABLE - 17]}:{digest}"  # no other name has two colons
    return PREFIX + text


def stream_arguments(rule: RetainRule) -> dict[str, str | int]:
    """Return the arguments of a rule's stream; they are the same on RabbitMQ 3.10 to 4.x."""
    segment = _UNSIZED_SEGMENT
    arguments: dict[str, str | int] = {"x-queue-type": "stream"}
    if rule.age:
        arguments["x-max-age"] = f"{max(1, math.ceil(rule.age))}s"
    if rule.bytes:
        arguments["x-max-length-bytes"] = rule.bytes
        segment = min(max(rule.bytes // _PARTS, _MIN_SEGMENT), _MAX_SEGMENT)
    arguments["x-stream-max-segment-size-bytes"] = segment
    if rule.replicas:
        arguments[_REPLICAS] = rule.replicas
    return arguments


async def declare_stream(link: Link, rule: RetainRule) -> None:
    """Create a rule's stream unless it is there.

    One that was created with another number of replicas is taken as it is: what it has by now
    AMQP does not tell, and operators add and remove replicas. Raises Conflict when it has other
    arguments, naming both, Refused, Unavailable.
    """
    name, arguments = stream_name(rule), stream_arguments(rule)
    text = await _declare(link, name, arguments)
    if text is not None and _argument(text) == _REPLICAS:
        current = current_value(text)
        if current and current.isdigit():
            arguments[_REPLICAS] = int(current)
        else:
            arguments.pop(_REPLICAS, None)
        text = await _declare(link, name, arguments)
        if text is None and rule.replicas and name not in _told:
            _told.add(name)
            log.warning(
                "the stream %r was created with %s replicas, [[retain]] %s says %d; to change an "
                "existing stream use rabbitmq-streams add_replica and delete_replica",
                name,
                arguments.get(_REPLICAS, "RabbitMQ's own number of"),
                rule.destination,
                rule.replicas,
            )
    if text is not None:
        raise _conflict(rule, name, arguments, text)


async def _declare(link: Link, name: str, arguments: dict[str, str | int]) -> str | None:
    """Return why RabbitMQ does not take the arguments, None when it does.

    Raises Refused, Unavailable.
    """
    try:
        async with link.probe() as channel:
            await channel.call("queue_declare", name, durable=True, arguments=arguments)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == PRECONDITION_FAILED:
            return plain(error.reply_text)
        raise _away(name, error) from None
    except pika.exceptions.AMQPError as error:
        raise of_channel(error) from None
    return None


def _argument(text: str) -> str:
    """Return which argument a refusal is about, "" when it is about another property."""
    found = _ARGUMENT.search(text)
    return found[1] if found else ""


def _conflict(
    rule: RetainRule, name: str, arguments: dict[str, str | int], text: str
) -> QueuecastError:
    argument = _argument(text)
    setting = _SETTINGS.get(argument)
    if setting is None:
        return Conflict(
            f"the queue {name!r} of [[retain]] {rule.destination} exists with other properties: "
            f"{text}",
            "it has to be the stream that Queuecast declares: delete it, or use another exchange",
        )
    has = current_value(text) or "none"
    wants = arguments.get(argument, "none")
    return Conflict(
        f"[[retain]] {rule.destination}: {setting} makes {argument} {wants}, but the stream "
        f"{name!r} exists with {has}",
        f"put {setting} back, or delete the stream, and what it keeps, at the broker",
    )


async def bind_stream(link: Link, rule: RetainRule) -> bool:
    """Bind a rule's stream to its exchange; False when there is no such exchange.

    Raises Refused, Unavailable.
    """
    try:
        async with link.probe() as channel:
            await channel.call(
                "queue_bind", stream_name(rule), rule.exchange, rule.pattern, arguments=_OURS
            )
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == NOT_FOUND and "no exchange" in error.reply_text:
            return False
        raise _away(stream_name(rule), error) from None
    except pika.exceptions.AMQPError as error:
        raise of_channel(error) from None
    return True


def _away(name: str, error: pika.exceptions.ChannelClosedByBroker) -> QueuecastError:
    """Return what a refusal means when the stream is there, but not up.

    RabbitMQ says "not found" while the stream's node starts, and for ever of a stream that it was
    killed under within a second of its creation: it then knows the queue's name, but no place.
    """
    failure = of_channel(error)
    if error.reply_code != NOT_FOUND:
        return failure
    if _DOWN not in failure.text:
        return Unavailable(failure.text)
    return Unavailable(
        f"RabbitMQ knows the stream {name!r} and cannot reach it: its node is starting, down, or "
        "has lost it",
        "Queuecast goes on when it is back; if the node is up for minutes, see 'A stream that "
        "does not come back' in docs/rabbitmq.md",
    )


class StreamIdentity(Identity):
    """The epoch of a stream, which is also the epoch of its offsets."""

    def __init__(self, stream: str) -> None:
        digest = hashlib.blake2b(stream.encode(), digest_size=6).hexdigest()
        super().__init__(f"queuecast.id.{digest}", f"the stream {stream!r}")
        self._stream = stream

    async def _bind(self, channel: Channel, epoch: str) -> None:
        await channel.call("queue_bind", self._stream, self.exchange, "")

    def _failure(self, error: BaseException) -> QueuecastError:
        assert isinstance(error, pika.exceptions.ChannelClosedByBroker)
        return _away(self._stream, error)
