"""Channels in confirm mode: which messages the broker has not answered for yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ...errors import OutcomeUnknown, PublishFailed, Unroutable
from .connection import Channel, Link
from .failures import reason


@dataclass(eq=False, slots=True)
class Outgoing:
    """One message on its way."""

    exchange: str
    key: str
    body: bytes
    properties: Any
    mandatory: bool
    declare: str | None
    done: asyncio.Future[None]
    deadline: float
    returned: str | None = None
    sent_at: float = 0.0
    counted: bool = False
    slow: bool = False  # noted as unconfirmed for long


class ConfirmChannel:
    """A channel in confirm mode and what is unconfirmed on it, by sequence number."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.unconfirmed: dict[int, Outgoing] = {}
        self._sequence = 0
        channel.raw.add_on_return_callback(self._on_return)

    @classmethod
    async def open(cls, link: Link) -> ConfirmChannel:
        confirming = cls(await link.channel())
        try:
            await confirming.channel.call("confirm_delivery", confirming._on_confirm)
        except BaseException:
            confirming.channel.abandon()
            raise
        return confirming

    def send(self, item: Outgoing, now: float) -> None:
        item.sent_at = now
        self.channel.publish(item.exchange, item.key, item.body, item.properties, item.mandatory)
        self._sequence += 1
        self.unconfirmed[self._sequence] = item

    async def send_once(self, exchange: str, key: str, body: bytes, properties: Any) -> None:
        """Publish one message, wait for its confirm and close; raises pika's errors."""
        loop = asyncio.get_running_loop()
        item = Outgoing(exchange, key, body, properties, True, None, loop.create_future(), 0.0)
        try:
            self.send(item, 0.0)
            await self.settled(item)
            if not item.done.done():
                item.done.cancel()
                raise self.channel.closed.result()
            await item.done
        finally:
            self.channel.abandon()

    async def settled(self, item: Outgoing) -> None:
        """Wait until the message is answered for or the channel is closed."""
        ends: set[asyncio.Future[Any]] = {item.done, self.channel.closed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    def _on_return(self, _raw: Any, method: Any, _properties: Any, body: bytes) -> None:
        # A return names no sequence number, but comes before its message's ack.
        for item in self.unconfirmed.values():
            if (
                item.returned is None
                and item.mandatory
                and item.key == method.routing_key
                and item.exchange == method.exchange
                and item.body == body
            ):
                item.returned = str(method.reply_text)
                return

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        nacked = method.NAME == "Basic.Nack"
        tag = method.delivery_tag
        if method.multiple:
            # Insertion order is sequence order.
            tags = []
            for number in self.unconfirmed:
                if number > tag:
                    break
                tags.append(number)
        else:
            tags = [tag]
        for number in tags:
            item = self.unconfirmed.pop(number, None)
            if item is not None:
                _settle(item, nacked)


def _settle(item: Outgoing, nacked: bool) -> None:
    if item.done.done():
        return
    if nacked:
        item.done.set_exception(
            PublishFailed(
                f"RabbitMQ refused the message to {where(item)}",
                "a queue is full (x-overflow), or its node, or most of its nodes, are down",
            )
        )
    elif item.returned is not None:
        item.done.set_exception(_unroutable(item))
    else:
        item.done.set_result(None)


def _unroutable(item: Outgoing) -> Unroutable:
    if item.exchange:
        return Unroutable(f"no queue takes what is published to {where(item)}")
    return Unroutable(
        f"no queue {item.key!r} at the broker",
        f'create it, add [[queue]] name = "{item.key}", or publish to /queue/{item.key}',
    )


def where(item: Outgoing) -> str:
    if item.exchange:
        return f"exchange {item.exchange!r}, key {item.key!r}"
    return f"queue {item.key!r}"


def unknown(item: Outgoing, why: BaseException) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"the broker may or may not have the message to {where(item)}: {reason(why)}"
    )
