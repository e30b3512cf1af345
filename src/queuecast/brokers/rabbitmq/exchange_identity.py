"""The epoch of an exchange: it changes when the exchange was deleted and declared again.

Two exchanges of ours stand beside a watched exchange X, shared by all gateways. The first one, W,
holds the epoch (see identity.py) and is bound to X as its source, so that it goes with X. The
second one, the sign, has the epoch in its name and is bound to W, so that it goes with W. As long
as the sign of an epoch is there, X was not deleted: a passive declare shows that without an error.
Nothing is ever published to either, and what is published to X does not pass through them.

W is durable like X. The sign is not: it goes with a broker's restart. That is when a non-durable
X goes too and leaves a durable W behind, unbound. So where W is found without its sign, RabbitMQ
is asked to delete W if it is unused: only a W that is still bound to X remains.
"""

from __future__ import annotations

import hashlib

import pika.exceptions

from ...errors import QueuecastError
from .connection import Channel, Link
from .failures import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, missing_exchange, of_channel
from .identity import Identity


class ExchangeIdentity(Identity):
    """The epoch of one exchange. Its `learn` raises NotFound when the exchange is missing."""

    def __init__(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
        super().__init__(f"queuecast.w.{digest}", f"the exchange {name!r}")
        self.name = name

    def sign(self, epoch: str) -> str:
        """Return the name of the exchange that is there as long as the epoch lasts."""
        return f"{self.exchange}.{epoch}"

    async def _bind(self, channel: Channel, epoch: str) -> None:
        sign = self.sign(epoch)
        await channel.call("exchange_bind", self.name, self.exchange, "")
        await channel.call("exchange_declare", sign, exchange_type="fanout", auto_delete=True)
        await channel.call("exchange_bind", self.exchange, sign, "")

    async def _is_held(self, link: Link, epoch: str) -> bool:
        if not await missing(link, [self.sign(epoch)]):
            return True
        try:
            async with link.probe() as channel:
                await channel.call("exchange_delete", self.exchange, if_unused=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == PRECONDITION_FAILED:
                return True
            if error.reply_code != NOT_FOUND:
                raise of_channel(error) from None
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        return False

    def _failure(self, error: BaseException) -> QueuecastError:
        return of_channel(error, self.name)

    async def learn(self, link: Link) -> str:
        """Return the epoch of the exchange that is there now; raises NotFound when there is none.

        Raises also Refused, Conflict, Unavailable.
        """
        if await missing(link, [self.name]):
            # First, because an epoch of no exchange would stay at the broker.
            raise missing_exchange(self.name)
        return await super().learn(link)


async def missing(link: Link, names: list[str]) -> list[str]:
    """Return those exchanges that do not exist, in one round trip as long as all of them do.

    Raises Unavailable.
    """
    absent: list[str] = []
    left = list(names)
    while left:
        try:
            async with link.probe() as channel:
                for name in left[:-1]:
                    # Without an answer each; the last one's answer is for all.
                    channel.raw.exchange_declare(name, passive=True)
                await channel.call("exchange_declare", left[-1], passive=True)
            return absent
        except pika.exceptions.ChannelClosedByBroker as error:
            text = error.reply_text
            at = next((n for n, name in enumerate(left) if f"'{name}'" in text), None)
            if at is None or error.reply_code not in (NOT_FOUND, ACCESS_REFUSED):
                raise of_channel(error) from None
            # RabbitMQ found those before it and ignored those after it. Of one that this user may
            # not ask for, nothing is known.
            if error.reply_code == NOT_FOUND:
                absent.append(left[at])
            left = left[at + 1 :]
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
    return absent
