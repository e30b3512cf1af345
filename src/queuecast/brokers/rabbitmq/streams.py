"""A rule's stream at the broker: its name, its arguments, and the epoch that tells it from others.

The stream and its binding are shared by all nodes: whoever comes first declares them. So is the
epoch of its offsets, which must be the same on every node, outlive restarts of all of them, and
change when the stream was deleted and made anew, by whomever. It is kept at the broker, where it
cannot part from the stream: a durable auto-delete exchange is bound to the stream, and the epoch
is written in its `alternate-exchange` argument. RabbitMQ deletes the exchange together with its
last binding, hence in the transaction that deletes the stream; creating an exchange is atomic, so
nodes that start at once agree; and RabbitMQ's refusal of another value names the present one.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import secrets
from urllib.parse import quote

import pika.exceptions

from ...errors import ConfigError, Conflict, QueuecastError, Unavailable
from ...pattern import is_pattern
from ...retention import RetainRule
from .connection import Link
from .failures import NOT_FOUND, PRECONDITION_FAILED, of_channel, plain
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
# Attempts to agree with other nodes on an epoch, while somebody deletes and makes the stream.
_ATTEMPTS = 5

_SETTINGS = {
    "x-max-age": "age",
    "x-max-length-bytes": "bytes",
    "x-stream-max-segment-size-bytes": "bytes",
}
_ARGUMENT = re.compile(r"inequivalent arg '([^']+)'")
_CURRENT = re.compile(r"current is (?:the value )?'([^']*)'")
_EPOCH_PREFIX = "queuecast.e."
_DOWN = "is down or inaccessible"


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
    return arguments


async def declare_stream(link: Link, rule: RetainRule) -> None:
    """Create a rule's stream unless it is there.

    Raises Conflict when it has other arguments, naming both, Refused, Unavailable.
    """
    name, arguments = stream_name(rule), stream_arguments(rule)
    try:
        async with link.probe() as channel:
            await channel.call("queue_declare", name, durable=True, arguments=arguments)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == PRECONDITION_FAILED:
            raise _conflict(rule, name, arguments, plain(error.reply_text)) from None
        raise _away(name, error) from None
    except pika.exceptions.AMQPError as error:
        raise of_channel(error) from None


def _conflict(
    rule: RetainRule, name: str, arguments: dict[str, str | int], text: str
) -> QueuecastError:
    found = _ARGUMENT.search(text)
    argument = found[1] if found else ""
    setting = _SETTINGS.get(argument)
    if setting is None:
        return Conflict(
            f"the queue {name!r} of [[retain]] {rule.destination} exists with other properties: "
            f"{text}",
            "it has to be the stream that Queuecast declares: delete it, or use another exchange",
        )
    current = _CURRENT.search(text)
    has = current[1] if current else "none"
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
            await channel.call("queue_bind", stream_name(rule), rule.exchange, rule.pattern)
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


class Identity:
    """The epoch of a stream, kept beside it in an exchange that lives and dies with it."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        # Short, for the same 255 bytes.
        digest = hashlib.blake2b(stream.encode(), digest_size=6).hexdigest()
        self.exchange = f"queuecast.id.{digest}"

    async def learn(self, link: Link) -> str:
        """Return the epoch of the stream that is there now, giving it one if it has none.

        Raises Unavailable, also when there is no stream any more.
        """
        for _ in range(_ATTEMPTS):
            epoch = await self.current(link)
            try:
                async with link.probe() as channel:
                    await channel.call("queue_bind", self._stream, self.exchange, "")
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code == NOT_FOUND and "no exchange" in error.reply_text:
                    continue
                raise _away(self._stream, error) from None
            except pika.exceptions.AMQPError as error:
                raise of_channel(error) from None
            # Until it is bound the exchange may outlive a stream, so look once more.
            if await self.current(link) == epoch:
                return epoch
        raise Unavailable(f"the stream {self._stream!r} is made again and again by somebody")

    async def current(self, link: Link) -> str:
        """Return the epoch, an unused new one if there was none; raises Conflict, Unavailable.

        An old epoch is never written again: the exchange may just have gone with its stream.
        """
        epoch = secrets.token_hex(5)
        try:
            async with link.probe() as channel:
                await channel.call(
                    "exchange_declare",
                    self.exchange,
                    exchange_type="fanout",
                    durable=True,
                    auto_delete=True,
                    arguments={"alternate-exchange": _EPOCH_PREFIX + epoch},
                )
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != PRECONDITION_FAILED:
                raise of_channel(error) from None
            return self._read(error.reply_text)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        return epoch

    def _read(self, text: str) -> str:
        found = _CURRENT.search(text)
        if found is not None and re.fullmatch(_EPOCH_PREFIX + "[0-9a-f]{10}", found[1]):
            return found[1].removeprefix(_EPOCH_PREFIX)
        raise Conflict(
            f"the exchange {self.exchange!r} of the stream {self._stream!r} cannot be read: "
            f"{plain(text)}",
            "delete it if it is not Queuecast's; the virtual host's name has at most 64 bytes",
        )

    async def renew(self, link: Link, old: str) -> None:
        """Have the next `learn` find another epoch than `old`; raises Refused, Unavailable."""
        if await self.current(link) != old:
            return
        try:
            async with link.probe() as channel:
                await channel.call("exchange_delete", self.exchange)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
