"""Marks: small messages of our own in a stream, which show how far the reader has come.

Nothing else tells where an empty or quiet stream ends. A mark is published to the exchange that
holds the stream's epoch, so that it reaches this stream only; readers hand it to nobody.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pika.exceptions
import pika.spec

from ...errors import Unavailable
from .confirms import ConfirmChannel
from .connection import Channel
from .failures import of_channel
from .supervisor import Supervisor
from .wire import PERSISTENT

PATIENCE = 15.0  # seconds for the confirm, and without any message before the mark comes
_TYPE = "queuecast.mark"


class Silent(Unavailable):
    """The stream has the mark, and its consumer gets nothing."""


class Marks:
    """The marks of one reader that are on their way.

    exchange: leads to the stream. publishing: publishes them; on the streams' own connection, a
    broker that is low on memory would block the acks with it.
    """

    def __init__(self, exchange: str, publishing: Supervisor, patience: float) -> None:
        self._exchange = exchange
        self._publishing = publishing
        self._patience = patience
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    def saw(self, body: bytes) -> None:
        """Say that a mark, some reader's, has come."""
        marked = self._waiting.get(body)
        if marked is not None and not marked.done():
            marked.set_result(None)

    async def round_trip(
        self, channel: Channel, progress: Callable[[], int], *, needed: bool
    ) -> None:
        """Publish a mark and return when it came by the consumer on `channel`.

        progress: changes with each message that comes. needed: else it is left out while RabbitMQ
        takes no publishes. Raises Silent, Unavailable.
        """
        publishing = await self._publishing.wait(self._patience)
        if publishing.blocked is not None:
            if needed:
                raise Unavailable(f"RabbitMQ takes no publishes: {publishing.blocked}")
            return
        body = secrets.token_hex(8).encode()
        marked = self._waiting[body] = asyncio.get_running_loop().create_future()
        properties = pika.spec.BasicProperties(delivery_mode=PERSISTENT, type=_TYPE)
        try:
            async with asyncio.timeout(PATIENCE):
                confirming = await ConfirmChannel.open(publishing)
                await confirming.send_once(self._exchange, "", body, properties)
            await _until(marked, channel, progress)
        except TimeoutError:
            raise Unavailable("RabbitMQ does not confirm a message to the stream") from None
        except pika.exceptions.AMQPError as error:
            raise of_channel(error) from None
        finally:
            del self._waiting[body]


async def _until(
    marked: asyncio.Future[None], channel: Channel, progress: Callable[[], int]
) -> None:
    ends: set[asyncio.Future[Any]] = {marked, channel.closed}
    while True:
        before = progress()
        await asyncio.wait(ends, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if marked.done():
            return
        if channel.closed.done():
            raise Unavailable("the stream's consumer was lost")
        if progress() == before:  # there may be many messages before it
            raise Silent("the stream does not deliver what is published to it")
