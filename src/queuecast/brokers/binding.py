"""What an exchange's type makes of a binding key: whether a subscription by it can ever match.

A broker takes such a binding without a word, and its subscriber waits indefinitely. So it is
refused here, on every broker, where the exchange's type is known.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import BadDestination
from ..pattern import is_pattern
from .base import EXCHANGE_TYPES, ExchangeSpec

# Exchange types of plugins, and the plugin of each; of RabbitMQ's own and well-known ones.
PLUGINS: Final = {
    "x-consistent-hash": "rabbitmq_consistent_hash_exchange",
    "x-delayed-message": "rabbitmq_delayed_message_exchange",
    "x-jms-topic": "rabbitmq_jms_topic_exchange",
    "x-modulus-hash": "rabbitmq_sharding",
    "x-random": "rabbitmq_random_exchange",
    "x-recent-history": "rabbitmq_recent_history_exchange",
}
DELAYED: Final = "x-delayed-message"
DELAYED_TYPE: Final = "x-delayed-type"

# As Erlang reads an integer; 0 is refused.
_WEIGHT = re.compile(r"\+?0*[1-9][0-9]*")

WEIGHT_HINT: Final = "the key is the queue's weight there: give a whole number from 1"


def routing_type(spec: ExchangeSpec) -> str:
    """Return the type by whose rules an exchange routes: of a delayed one that which it wraps."""
    if spec.type == DELAYED:
        inner = spec.arguments.get(DELAYED_TYPE)
        return inner if isinstance(inner, str) else spec.type
    return spec.type


def has_weights(kind: str) -> bool:
    """Return whether a binding key is a weight there, and not compared with routing keys."""
    return kind == "x-consistent-hash"


def check_binding(exchange: str, kind: str, key: str) -> None:
    """Raise BadDestination for a key that no message can match.

    kind: see routing_type. `*` and `#` are ordinary characters to a direct exchange; but a
    subscriber who writes them means a pattern.
    """
    if kind == "direct" and is_pattern(key):
        raise BadDestination(
            f"the exchange {exchange!r} is direct: no message matches the pattern {key!r}",
            "name each key, or make it a topic exchange",
        )
    if has_weights(kind) and not _WEIGHT.fullmatch(key):
        raise BadDestination(
            f"the exchange {exchange!r} is an {kind}: {key!r} is no binding key there", WEIGHT_HINT
        )


def unknown_type(spec: ExchangeSpec) -> tuple[str, str]:
    """Return what to say, and what to do, where a RabbitMQ does not know an exchange's type."""
    plugin = PLUGINS.get(spec.type, "PLUGIN")
    return (
        f"exchange {spec.name!r}: this RabbitMQ has no type {spec.type!r}",
        f"rabbitmq-plugins enable {plugin}",
    )


def is_own_type(kind: str) -> bool:
    """Return whether every AMQP broker has this type of exchange."""
    return kind in EXCHANGE_TYPES
