"""A session that publishes for its client and counts what is not confirmed yet."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..auth.identity import Identity
from ..destination import Destination
from ..disconnect import INTERNAL
from ..errors import BadRequest, QueuecastError, TooLarge
from ..message import Properties
from .base import Session
from .services import Services, Transport

logger = logging.getLogger(__name__)


class PublishingSession(Session):
    """publishing: publishes under way; protocols stop reading while there are too many."""

    __slots__ = ("_publishing_bytes", "publishing")

    def __init__(self, services: Services, transport: Transport, identity: Identity) -> None:
        super().__init__(services, transport, identity)
        self.publishing = 0
        self._publishing_bytes = 0

    @property
    def full(self) -> bool:
        """Whether no more publishes may be under way: they are held until the broker confirms."""
        limits = self.services.limits
        return (
            self.publishing >= limits.publishing
            or self._publishing_bytes >= limits.publishing_bytes
        )

    def publish_answered(self) -> None:
        """Go on: one publish less is under way."""
        raise NotImplementedError

    def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        answer: Callable[[QueuecastError | None], None],
    ) -> None:
        """Publish for the client; `answer` gets what policy and broker raise, or None.

        It does not end with the session: what a client sent just before it left is published.
        """
        self.publishing += 1
        self._publishing_bytes += len(body)
        self.services.runtime.spawn(
            self._publish(destination, body, properties, answer), f"publish to {destination}"
        )

    async def _publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        answer: Callable[[QueuecastError | None], None],
    ) -> None:
        try:
            self.check_publish(destination, body)
            await self.services.publish_once(self.identity, destination, body, properties)
        except QueuecastError as error:
            answer(error)
        except Exception:
            logger.exception("publishing to %s failed", destination)
            answer(QueuecastError(INTERNAL.text))
        else:
            answer(None)
        finally:
            self.publishing -= 1
            self._publishing_bytes -= len(body)
            self.publish_answered()

    def check_publish(self, destination: Destination, body: bytes) -> None:
        """Raise what policy and limits say against a message."""
        self.services.allow(self.identity, "publish", destination)
        if len(body) > self.services.limits.message:
            raise TooLarge(
                f"the body has {len(body)} bytes, at most {self.services.limits.message}"
            )
        if destination.has_wildcards:
            raise BadRequest(
                f"nothing can be published to the pattern {destination.shown}",
                "publish to a key without * and #",
            )
