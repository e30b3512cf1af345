"""The tables that may stand many times in a configuration, [[queue]] and the like (TOML: arrays).

Their docstrings are what docs/configuration.md says of them; config.py has their names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .brokers.base import BindingSpec, ExchangeSpec, QueueSpec, TopicSpec
from .options import Table, option


class ExchangeConfig(Table, frozen=True, kw_only=True):
    """Exchanges that are declared at the start."""

    name: Annotated[str, option("The exchange's name.")]
    type: Annotated[
        str,
        option(
            "Its type: `direct`, `topic`, `fanout` or `headers`; at RabbitMQ also one of a plugin, "
            "e.g. `x-consistent-hash`."
        ),
    ] = "topic"
    durable: Annotated[bool, option("Survives a restart of the broker.")] = True
    auto_delete: Annotated[bool, option("Goes with its last binding.")] = False
    arguments: Annotated[dict[str, Any], option("AMQP arguments, e.g. `alternate-exchange`.")] = (
        msgspec.field(default_factory=dict)
    )

    def spec(self) -> ExchangeSpec:
        """Return it as a broker declares it."""
        return ExchangeSpec(self.name, self.type, self.durable, self.auto_delete, self.arguments)


class BindingConfig(Table, frozen=True, kw_only=True):
    """One of a queue's bindings."""

    exchange: Annotated[str, option("The exchange to bind to.")]
    key: Annotated[str, option("Routing key or pattern.")] = ""
    arguments: Annotated[dict[str, Any], option("What a headers exchange matches.")] = (
        msgspec.field(default_factory=dict)
    )


class QueueConfig(Table, frozen=True, kw_only=True):
    """Queues that are declared at the start."""

    name: Annotated[str, option("The queue's name.")]
    durable: Annotated[bool, option("Survives a restart of the broker.")] = True
    auto_delete: Annotated[bool, option("Goes with its last consumer.")] = False
    arguments: Annotated[
        dict[str, Any], option("AMQP arguments, e.g. `x-message-ttl` (ms), `x-max-length`.")
    ] = msgspec.field(default_factory=dict)
    bindings: Annotated[
        tuple[BindingConfig, ...], option("Tables with `exchange`, `key`, `arguments`.")
    ] = ()
    max_redeliveries: Annotated[
        int, option("That of `[limits]` for this queue; -1 is the same as there.", ge=-1)
    ] = -1

    def spec(self) -> QueueSpec:
        """Return it as a broker declares it."""
        return QueueSpec(
            self.name,
            self.durable,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
            bindings=tuple(
                BindingSpec(each.exchange, each.key, each.arguments) for each in self.bindings
            ),
        )


class TopicConfig(Table, frozen=True, kw_only=True):
    """Kafka topics that are created at the start where they are missing; one that is there is
    left as it is.
    """

    name: Annotated[str, option("The topic's name.")]
    partitions: Annotated[int, option("How many; 0 for the cluster's default.", ge=0)] = 0
    replication: Annotated[
        int, option("Replicas of each; 0 for the cluster's default.", ge=0, le=32767)
    ] = 0
    settings: Annotated[
        dict[str, str], option('Kafka\'s own, as text, e.g. `"retention.ms" = "86400000"`.')
    ] = msgspec.field(default_factory=dict)

    def spec(self) -> TopicSpec:
        """Return it as a broker creates it."""
        return TopicSpec(self.name, self.partitions, self.replication, self.settings)


class BridgeConfig(Table, frozen=True, kw_only=True):
    """A queue's messages for everybody: each is consumed once and acked when the broker has
    confirmed its copy.
    """

    source: Annotated[str, option("`/queue/NAME` or `/amq/queue/NAME` to consume.")] = (
        msgspec.field(name="from")
    )
    target: Annotated[str, option("Destination to publish to, without wildcards.")] = msgspec.field(
        name="to"
    )
    prefetch: Annotated[int, option("Messages in flight.", ge=1, le=65535)] = 100


class AllowConfig(Table, frozen=True, kw_only=True):
    """Who may do what. When there are rules, what none of them allows is refused; without rules the
    gateway serves loopback only. A subscription with a pattern must lie within one rule.
    """

    who: Annotated[str, option('`"anonymous"`, a STOMP login, or `"*"` for all.')] = "anonymous"
    subscribe: Annotated[
        tuple[str, ...], option("Destinations; words may be `*` (one) or `#` (any).")
    ] = ()
    publish: Annotated[tuple[str, ...], option("The same for publishing.")] = ()


class RetainConfig(Table, frozen=True, kw_only=True):
    """Destinations whose messages are kept whether or not anyone is subscribed. A rule holds for
    the destinations that lie within its pattern; the first that holds decides.
    """

    destination: Annotated[
        str, option("`/topic/PATTERN` or `/exchange/NAME[/PATTERN]`; one rule holds for all in it.")
    ]
    age: Annotated[
        float, option("Age to which messages are kept; 0 for any.", kind="duration", ge=0)
    ] = 0.0
    bytes: Annotated[
        int, option("Bytes of all of them together; 0 for any number.", kind="size", ge=0)
    ] = 0
    messages: Annotated[
        int, option("Their count; 0 for any. Only the embedded broker can count.", ge=0)
    ] = 0
    replicas: Annotated[
        int,
        option(
            "RabbitMQ only: on how many nodes a stream is created, for one that is not there yet; "
            "0 for all nodes of the cluster.",
            ge=0,
            le=99,
        ),
    ] = 0


class SlowConfig(Table, frozen=True, kw_only=True):
    """What a client gets that does not keep up. A rule holds for the destinations that lie within
    its pattern; the first that holds decides.
    """

    destination: Annotated[str, option("`/topic/PATTERN` or `/exchange/NAME[/PATTERN]`.")]
    policy: Annotated[
        Literal["catch-up", "conflate", "disconnect"],
        option("All messages later, the newest of each routing key, or the end of the connection."),
    ] = "catch-up"


class BinaryConfig(Table, frozen=True, kw_only=True):
    """Destinations whose messages' bodies are bytes, as with the parameter `binary=always`, even
    where they happen to be text. A rule holds for what was published within its pattern, however
    wide the subscription is, for all messages of a subscription within it, and for those of its
    queue.
    """

    destination: Annotated[
        str,
        option("`/topic/PATTERN`, `/exchange/NAME[/PATTERN]`, `/queue/NAME` or a pattern there."),
    ]
