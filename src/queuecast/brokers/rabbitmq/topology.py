"""Exchanges and queues: what is configured, what type an exchange has, whether a queue is there.

All of it happens on throw-away channels, because RabbitMQ answers a refusal by closing the
channel.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import pika.exceptions
from pika.compat import long

from ...errors import BadDestination, ConfigError, Conflict, NotFound, QueuecastError, Unavailable
from ...pattern import is_pattern
from ..base import PREDECLARED, ExchangeSpec, QueueSpec
from ..binding import check_binding, is_own_type, routing_type, unknown_type
from .connection import Link
from .failures import (
    NOT_FOUND,
    PRECONDITION_FAILED,
    Away,
    away,
    missing_exchange,
    of_channel,
    plain,
    reason,
)

log = logging.getLogger(__name__)

# What we call an exchange whose type we cannot learn: one that this login may not declare.
OPAQUE = "opaque"
# Types by whose rules we can match ourselves.
MATCHED = ("direct", "topic", "fanout")

# Seconds for a call about a queue: RabbitMQ 4 waits for a minute for one whose node is down.
QUEUE_PATIENCE = 4.0

# RabbitMQ compares the type first; the text is the same from 3.8 to 4.x. It quotes a plugin's
# type twice, as Erlang writes an atom that has a hyphen.
_TYPE = re.compile(r"inequivalent arg 'type' .*current is '+([^']+)'")
_NO_TYPE = re.compile(r"(?:unknown|invalid) exchange type")


class Topology:
    """What was declared, to be repeated after a reconnect, and what was learned.

    open_link: opens a connection of its own, for what RabbitMQ 3.x closes a connection over.
    """

    def __init__(self, open_link: Callable[[], Awaitable[Link]]) -> None:
        self._open_link = open_link
        self._exchanges: dict[str, ExchangeSpec] = {}
        self._queues: dict[str, QueueSpec] = {}
        self._learned: dict[str, str] = {}
        # Configured, and declared by another login than ours.
        self._known_exchanges: dict[str, ExchangeSpec] = {}
        self._known_queues: dict[str, QueueSpec] = {}

    def know(self, exchanges: Sequence[ExchangeSpec], queues: Sequence[QueueSpec]) -> None:
        """Take over what another login declares, without declaring it."""
        self._known_exchanges = {each.name: each for each in exchanges}
        self._known_queues = {each.name: each for each in queues}

    async def declare(
        self, link: Link, exchanges: Sequence[ExchangeSpec], queues: Sequence[QueueSpec]
    ) -> None:
        """Create exchanges and queues, then remember them.

        A queue about which RabbitMQ does not answer, because its node is down, is left to
        `repeat_queues`. Raises Conflict, Refused, NotFound, ConfigError (a type that the broker
        does not have, a binding that never matches).
        """
        for exchange in exchanges:
            await self._declare_exchange(link, exchange)
            self._exchanges[exchange.name] = exchange
        for queue in queues:
            for binding in queue.bindings:
                if not is_pattern(binding.key):
                    continue
                try:
                    await self.check_binding(link, binding.exchange, binding.key)
                except BadDestination as error:
                    raise ConfigError(f"queue {queue.name!r}: {error.text}", error.hint) from None
        results = await asyncio.gather(
            *(declare_queue(link, queue) for queue in queues), return_exceptions=True
        )
        for queue, result in zip(queues, results, strict=True):
            if isinstance(result, Away):
                # One queue of a node that is down must not stop the gateway.
                log.warning("queue %r cannot be declared now: %s", queue.name, result)
            elif isinstance(result, BaseException):
                raise result
            self._queues[queue.name] = queue

    async def repeat(self, link: Link) -> None:
        """Declare every exchange again on a new link; a refusal is logged, the rest goes on.

        Raises Unavailable.
        """
        self._learned.clear()
        exchanges = list(self._exchanges.values())
        results = await asyncio.gather(
            *(_in_time(self._declare_exchange(link, each)) for each in exchanges),
            return_exceptions=True,
        )
        for exchange, result in zip(exchanges, results, strict=True):
            if isinstance(result, Unavailable):
                raise result
            if isinstance(result, BaseException):
                log.error("exchange %r cannot be declared again: %s", exchange.name, result)

    async def repeat_queues(self, link: Link) -> bool:
        """Declare every queue again; False when one is away and has to be asked again later."""
        queues = list(self._queues.values())
        results = await asyncio.gather(
            *(declare_queue(link, each) for each in queues), return_exceptions=True
        )
        whole = True
        for queue, result in zip(queues, results, strict=True):
            if isinstance(result, Unavailable):
                whole = False
                log.info("queue %r is away: %s", queue.name, result)
            elif isinstance(result, BaseException):
                log.error("queue %r cannot be declared again: %s", queue.name, result)
        return whole

    async def repeat_exchange(self, link: Link, name: str) -> None:
        """Declare one configured exchange again, if it is configured."""
        exchange = self._exchanges.get(name)
        if exchange is not None:
            await self._declare_exchange(link, exchange)

    def queue(self, name: str) -> QueueSpec:
        """Return how `/queue/name` is declared: as configured, else just durable."""
        return self._queues.get(name) or self._known_queues.get(name) or QueueSpec(name)

    async def exchange_type(self, link: Link, name: str) -> str:
        """Return the type by whose rules it routes, or OPAQUE; raises NotFound, Unavailable."""
        known = PREDECLARED.get(name)
        if known is not None:
            return known
        exchange = self._exchanges.get(name) or self._known_exchanges.get(name)
        if exchange is not None:
            return routing_type(exchange)
        learned = self._learned.get(name)
        if learned is None:
            learned = self._learned[name] = await _ask_type(link, name)
        return learned

    async def check_binding(self, link: Link, name: str, key: str) -> str:
        """Return the exchange's type if a binding by the key can match there.

        Raises BadDestination, NotFound, Unavailable.
        """
        kind = await self.exchange_type(link, name)
        try:
            check_binding(name, kind, key)
        except BadDestination:
            if name not in self._learned:
                raise
            # It may have been of that type before, and be another exchange now.
            self.forget(name)
            kind = await self.exchange_type(link, name)
            check_binding(name, kind, key)
        return kind

    async def _declare_exchange(self, link: Link, spec: ExchangeSpec) -> None:
        if is_own_type(spec.type):
            await _declare_exchange(link, spec)
            return
        apart = await self._open_link()
        try:
            await _declare_exchange(apart, spec)
        finally:
            await apart.close()

    def forget(self, name: str) -> None:
        """Ask the broker anew next time."""
        self._learned.pop(name, None)


async def _in_time(call: Coroutine[Any, Any, None]) -> None:
    """Await a declaration for a bounded time; raises Unavailable, and what it raises."""
    try:
        async with asyncio.timeout(QUEUE_PATIENCE):
            await call
    except TimeoutError:
        raise Unavailable(f"RabbitMQ has not answered within {QUEUE_PATIENCE:g} s") from None


async def exchange_exists(link: Link, name: str) -> None:
    """Return if the exchange exists; raises NotFound, Unavailable."""
    if name in PREDECLARED:
        return
    try:
        async with link.probe() as channel:
            await channel.call("exchange_declare", name, passive=True)
    except pika.exceptions.AMQPError as error:
        raise of_channel(error, name) from None


async def _ask_type(link: Link, name: str) -> str:
    await exchange_exists(link, name)
    try:
        async with link.probe() as channel:
            # Its refusal names the real type. Should the exchange vanish in between, what this
            # creates goes away with its first binding.
            await channel.call(
                "exchange_declare", name, exchange_type="topic", durable=True, auto_delete=True
            )
    except pika.exceptions.ChannelClosed as error:
        found = _TYPE.search(error.reply_text)
        if found is not None:
            return found[1]
        if error.reply_code == PRECONDITION_FAILED and "inequivalent arg" in error.reply_text:
            return "topic"  # the type was right, something else was not
        if error.reply_code == NOT_FOUND:
            raise missing_exchange(name) from None
        return OPAQUE
    except pika.exceptions.AMQPError as error:
        raise of_channel(error, name) from None
    return "topic"


async def _declare_exchange(link: Link, spec: ExchangeSpec) -> None:
    if spec.name in PREDECLARED:
        if PREDECLARED[spec.name] != spec.type:
            raise Conflict(
                f"exchange {spec.name!r} is predeclared as {PREDECLARED[spec.name]}, "
                f"configured is {spec.type}"
            )
        return
    try:
        async with link.probe() as channel:
            await channel.call(
                "exchange_declare",
                spec.name,
                exchange_type=spec.type,
                durable=spec.durable,
                auto_delete=spec.auto_delete,
                arguments=dict(spec.arguments),
            )
    except pika.exceptions.AMQPError as error:
        if _NO_TYPE.search(reason(error)):
            raise ConfigError(*unknown_type(spec)) from None
        raise _conflict(error, "exchange", spec.name, _exchange_words(spec)) from None


async def declare_queue(link: Link, spec: QueueSpec) -> None:
    """Declare and bind a queue; raises Conflict, Locked, Refused, NotFound, Unavailable."""
    try:
        async with link.probe(patience=QUEUE_PATIENCE) as channel:
            await channel.call(
                "queue_declare",
                spec.name,
                durable=spec.durable,
                exclusive=spec.exclusive,
                auto_delete=spec.auto_delete,
                arguments=_table(spec.arguments),
            )
    except TimeoutError:
        raise silent(spec.name) from None
    except pika.exceptions.AMQPError as error:
        raise _conflict(error, "queue", spec.name, _queue_words(spec)) from None
    await bind_queue(link, spec)


async def bind_queue(link: Link, spec: QueueSpec) -> None:
    """Bind a queue as it is specified; raises Refused, NotFound, Unavailable."""
    for binding in spec.bindings:
        try:
            async with link.probe(patience=QUEUE_PATIENCE) as channel:
                await channel.call(
                    "queue_bind",
                    spec.name,
                    binding.exchange,
                    binding.key,
                    arguments=dict(binding.arguments),
                )
        except TimeoutError:
            raise silent(spec.name) from None
        except pika.exceptions.AMQPError as error:
            raise of_channel(error, binding.exchange) from None


def _table(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments whose numbers are written with 64 bits, as RabbitMQ's own plugins do."""
    return {
        name: long(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in arguments.items()
    }


def _conflict(error: BaseException, kind: str, name: str, wanted: str) -> QueuecastError:
    if isinstance(error, pika.exceptions.ChannelClosed) and (
        error.reply_code == PRECONDITION_FAILED
    ):
        text = plain(error.reply_text)
        if kind == "exchange" and "inequivalent arg" not in text:
            return ConfigError(f"exchange {name!r}: {text}", f"asked for is {wanted}")
        return Conflict(
            f"{kind} {name!r} exists with other properties: {text}", f"asked for is {wanted}"
        )
    return of_channel(error)


def _exchange_words(spec: ExchangeSpec) -> str:
    return (
        f"type={spec.type}, durable={spec.durable}, auto_delete={spec.auto_delete}, "
        f"arguments={dict(spec.arguments)}"
    )


def _queue_words(spec: QueueSpec) -> str:
    return (
        f"durable={spec.durable}, exclusive={spec.exclusive}, auto_delete={spec.auto_delete}, "
        f"arguments={dict(spec.arguments)}"
    )


def silent(name: str) -> Away:
    """Return the error for a queue about which RabbitMQ does not answer."""
    return away(name, f"RabbitMQ did not answer about it within {QUEUE_PATIENCE:g} s")


async def ensure_queue(link: Link, spec: QueueSpec) -> bool:
    """Declare a queue unless it is there, with whatever properties; raises as of_channel.

    Returns whether it was missing.
    """
    try:
        await check_queue(link, spec.name)
    except NotFound:
        await declare_queue(link, spec)
        return True
    return False


async def delete_queue(link: Link, name: str, *, if_unused: bool = False) -> None:
    """Delete a queue; nothing when it is not there. Raises Locked, Refused, Unavailable."""
    try:
        async with link.probe(patience=QUEUE_PATIENCE) as channel:
            await channel.call("queue_delete", name, if_unused=if_unused)
    except TimeoutError:
        raise silent(name) from None
    except pika.exceptions.AMQPError as error:
        failure = of_channel(error)
        if not isinstance(failure, NotFound):
            raise failure from None


async def try_delete_queue(link: Link, name: str, *, if_unused: bool = False) -> None:
    """Delete a queue, if the broker is there and lets us."""
    try:
        await delete_queue(link, name, if_unused=if_unused)
    except QueuecastError as error:
        log.debug("the queue %s could not be deleted: %s", name, error)


async def check_queue(link: Link, name: str) -> tuple[int, int]:
    """Return the numbers of ready messages and of consumers; raises NotFound, Conflict."""
    try:
        async with link.probe(patience=QUEUE_PATIENCE) as channel:
            answer = await channel.call("queue_declare", name, passive=True)
    except TimeoutError:
        raise silent(name) from None
    except pika.exceptions.AMQPError as error:
        raise of_channel(error) from None
    return answer.message_count, answer.consumer_count
