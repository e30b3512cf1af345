"""Which broker a URL asks for; its client library is imported only then."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..delivery import DeliveryBudget
from ..errors import ConfigError
from ..retention import RetainRule
from .base import Broker, TopicSpec
from .embedded.history import DEFAULT_LIMITS, HistoryLimits
from .files import NO_FILES, Files

if TYPE_CHECKING:
    from .embedded.keeper import Keeper
    from .rabbitmq.broker import RabbitBroker


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept for destinations under a rule, and where.

    rules: every broker has its own way. directory: the embedded broker's, "" for in memory;
    synchronous: "full" or "normal", see settings.py.
    """

    directory: str = ""
    synchronous: str = "full"
    rules: Sequence[RetainRule] = ()


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """What only Kafka has: the prefix of consumer groups, and topics to create."""

    group: str = "queuecast"
    topics: Sequence[TopicSpec] = ()


def make_broker(
    url: str,
    *,
    files: Files = NO_FILES,
    history: HistoryLimits = DEFAULT_LIMITS,
    deliveries: DeliveryBudget | None = None,
    keeping: Keeping | None = None,
    kafka: KafkaSettings | None = None,
) -> Broker:
    """Return the broker of a URL, not yet started.

    Raises ConfigError for an unknown scheme, a malformed URL, a rule that the broker cannot keep
    to, or a client library that is not installed (with the command that installs it).
    """
    keeping = keeping or Keeping()
    # The scheme alone: what else is wrong with a URL is its own broker's to say.
    scheme = url.partition(":")[0].lower()
    if scheme == "embedded":
        from .embedded.broker import EmbeddedBroker

        return EmbeddedBroker(
            keeper=_keeper(keeping) if keeping.directory else None,
            retain=keeping.rules,
            history=history,
        )
    if scheme in ("amqp", "amqps"):
        if find_spec("pika") is None:
            raise ConfigError(f"{scheme}:// needs pika", _install("rabbitmq"))
        from .rabbitmq.broker import RabbitBroker

        return RabbitBroker(url, files=files, deliveries=deliveries, retain=keeping.rules)
    if scheme in ("kafka", "kafkas"):
        if find_spec("aiokafka") is None:
            raise ConfigError(f"{scheme}:// needs aiokafka", _install("kafka"))
        from .kafka.broker import KafkaBroker

        settings = kafka or KafkaSettings()
        return KafkaBroker(url, files=files, group=settings.group, topics=settings.topics)
    raise ConfigError(
        f"broker.url has the unknown scheme {scheme!r}",
        "use embedded:, amqp://, amqps://, kafka:// or kafkas://",
    )


def _install(extra: str) -> str:
    """Return the command that installs an extra where this program runs."""
    active = sys.prefix in (sys.base_prefix, os.environ.get("VIRTUAL_ENV"))
    pip = "pip" if active else f"{sys.executable} -m pip"
    return f"{pip} install 'queuecast[{extra}]'"


def _keeper(keeping: Keeping) -> Keeper:
    # Only now: a gateway in memory needs no SQLite.
    from .embedded.keeper import Keeper
    from .embedded.store import Store

    directory = Path(keeping.directory)
    return Keeper(Store(directory, synchronous=keeping.synchronous, rules=keeping.rules))


def login_broker(
    gateway: Broker,
    user: str,
    password: str,
    virtual_host: str | None,
    *,
    deliveries: DeliveryBudget | None = None,
    rules: Sequence[RetainRule] = (),
) -> RabbitBroker:
    """Return the gateway's RabbitMQ as another user sees it, not yet started.

    It has the gateway's hosts and trusts whom the gateway trusts. virtual_host: None for the
    gateway's own. rules: for what is retained there.
    """
    from .rabbitmq.broker import RabbitBroker

    assert isinstance(gateway, RabbitBroker)
    address = gateway.address.for_login(user, password, virtual_host)
    own = address.virtual_host == gateway.address.virtual_host
    return RabbitBroker(
        address, hosts=gateway.hosts, deliveries=deliveries, covered=rules if own else ()
    )


def default_virtual_host(gateway: Broker) -> str:
    """Return the virtual host of the gateway's RabbitMQ."""
    from .rabbitmq.broker import RabbitBroker

    assert isinstance(gateway, RabbitBroker)
    return gateway.address.virtual_host
