"""Of which type the feeds' queues are, and with which arguments they are declared.

RabbitMQ 4 refuses every publish that is routed to a classic queue whose node is down, so that a
dead node of a cluster would cost all publishers of the exchange their confirms, also when the
gateway died with it and no program is left to delete the queue. RabbitMQ 3 confirms such publishes
and drops the messages, which is silent when the node only stood still. A quorum queue moves to
another node instead. On a single node a classic queue does as well and costs the broker less. AMQP
does not tell how many nodes there are: several hosts in the URL mean a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .connection import Link

CLASSIC = "classic"
QUORUM = "quorum"


@dataclass(frozen=True, slots=True)
class FeedKind:
    """The type of the feeds' queues at one broker. version: the broker's, major and minor."""

    type: str
    version: tuple[int, int]

    @classmethod
    def of(cls, link: Link) -> FeedKind:
        """Return the type that was asked for, or that suits the broker."""
        address = link.address
        suits = QUORUM if link.version >= (4, 0) or len(address.hosts) > 1 else CLASSIC
        return cls(address.feed_queues or suits, link.version)

    @property
    def is_quorum(self) -> bool:
        """Whether the queues outlive a node of a cluster."""
        return self.type == QUORUM

    def arguments(self, expires: int, letters: str = "") -> dict[str, Any]:
        """Return the arguments of a queue that one consumer reads in order.

        expires: milliseconds that the queue is kept without a consumer. letters: the queue that
        gets a copy of what RabbitMQ drops from this one, "" for none. Arguments win over a
        policy's dead-letter-exchange and overflow; of lengths and times the smaller holds.
        """
        arguments: dict[str, Any] = {
            "x-queue-type": self.type,
            "x-expires": expires,
            # A policy's reject-publish would make other people's publishes fail.
            "x-overflow": "drop-head",
        }
        if self.type == QUORUM:
            # Quorum queues know no exclusive consumers. The one on a lost connection goes first.
            arguments["x-single-active-consumer"] = True
            if self.version >= (4, 0):
                # Each lost connection counts as an attempt to deliver, and the default limit is
                # 20; before RabbitMQ 4 there is none.
                arguments["x-delivery-limit"] = -1
            if self.version >= (4, 3):
                # Milliseconds until a consumer gives its messages back whose node is gone, or cut
                # off; the default is a minute. RabbitMQ before 4.3 does not wait.
                arguments["x-consumer-disconnected-timeout"] = 100
        if letters:
            arguments["x-dead-letter-exchange"] = ""
            arguments["x-dead-letter-routing-key"] = letters
        return arguments
