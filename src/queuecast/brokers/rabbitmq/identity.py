"""Epochs that RabbitMQ keeps: which incarnation of a queue or an exchange is there now.

An epoch must be the same on every node, outlive restarts of all nodes, and change when the thing
that it stands for was deleted and recreated, by any client. It is kept where it cannot part from
that thing: in the `alternate-exchange` argument of a durable auto-delete exchange that is bound to
it as the source. RabbitMQ deletes the exchange together with its last binding, hence in the
transaction that deletes the thing; creating an exchange is atomic, so nodes that start at the same
time agree; and RabbitMQ's refusal of another value names the present one.
"""

from __future__ import annotations

import re
import secrets

import pika.exceptions

from ...errors import Conflict, QueuecastError, Unavailable
from .connection import Channel, Link
from .failures import NOT_FOUND, PRECONDITION_FAILED, of_channel, plain

# Attempts to agree with other nodes on an epoch, while others delete and recreate the thing.
_ATTEMPTS = 5
_PREFIX = "queuecast.e."
_CURRENT = re.compile(r"current is (?:the value )?'([^']*)'")


def current_value(text: str) -> str | None:
    """Return the present value of an argument, from RabbitMQ's refusal of another one."""
    found = _CURRENT.search(text)
    return found[1] if found else None


def new_epoch() -> str:
    """Return an epoch that was never used before."""
    return secrets.token_hex(5)


class Identity:
    """The epoch of one thing at the broker.

    exchange: where it is kept; the name is short, because RabbitMQ's refusals end after 255 bytes
    and have to hold the name and both values. what: the thing, for errors.
    """

    def __init__(self, exchange: str, what: str) -> None:
        self.exchange = exchange
        self.what = what

    async def _bind(self, channel: Channel, epoch: str) -> None:
        """Bind the exchange to the thing; raises pika's AMQPError."""
        raise NotImplementedError

    async def _is_held(self, link: Link, epoch: str) -> bool:
        """Return whether an epoch that was found belongs to the thing that is there now."""
        return True

    def _failure(self, error: BaseException) -> QueuecastError:
        """Return what a refused binding means."""
        return of_channel(error)

    async def learn(self, link: Link) -> str:
        """Return the epoch of the thing that is there now, giving it one if it has none.

        Raises Unavailable, NotFound or what else a missing thing means, Refused.
        """
        for _ in range(_ATTEMPTS):
            fresh = new_epoch()
            epoch = await self.declare(link, fresh)
            if epoch != fresh and not await self._is_held(link, epoch):
                continue
            try:
                async with link.probe() as channel:
                    await self._bind(channel, epoch)
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code == NOT_FOUND and f"'{self.exchange}" in error.reply_text:
                    continue
                raise self._failure(error) from None
            except pika.exceptions.AMQPError as error:
                raise of_channel(error) from None
            # Until it is bound the exchange may outlive the thing, so look once more.
            if await self.current(link) == epoch:
                return epoch
        raise Unavailable(f"{self.what} is deleted and recreated repeatedly by another client")

    async def current(self, link: Link) -> str:
        """Return the epoch, an unused new one if there was none; raises Conflict, Unavailable.

        An old epoch is never written again: the exchange may just have gone with its thing.
        """
        return await self.declare(link, new_epoch())

    async def declare(self, link: Link, epoch: str) -> str:
        """Write an epoch unless there is one; return the one that is there. Raises as `current`."""
        try:
            async with link.probe() as channel:
                await channel.call(
                    "exchange_declare",
                    self.exchange,
                    exchange_type="fanout",
                    durable=True,
                    auto_delete=True,
                    arguments={"alternate-exchange": _PREFIX + epoch},
                )
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != PRECONDITION_FAILED:
                raise of_channel(error) from None
            return self._read(error.reply_text)
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        return epoch

    def _read(self, text: str) -> str:
        found = current_value(text)
        if found is not None and re.fullmatch(_PREFIX + "[0-9a-f]{10}", found):
            return found.removeprefix(_PREFIX)
        raise Conflict(
            f"the exchange {self.exchange!r} of {self.what} cannot be read: {plain(text)}",
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
