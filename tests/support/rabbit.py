"""RabbitBrokers for tests: started, and by way of a proxy that cuts connections."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from queuecast.brokers.rabbitmq import RabbitBroker
from tests.support.proxy import TcpProxy
from tests.support.servers import RabbitMQ

# What pika says of a connection that it could not make to a broker that is killed and cut off.
# Its timeout is none of its own errors, and a ValueError is a reset while the login goes on.
NOT_CONNECTED = (pika.exceptions.AMQPError, AMQPConnectorException, OSError, ValueError)


def through(proxy: TcpProxy, url: str) -> str:
    """Return the broker's URL by way of a proxy."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}").geturl()


@contextlib.asynccontextmanager
async def proxied(rabbit: RabbitMQ) -> AsyncIterator[TcpProxy]:
    parts = urlsplit(rabbit.url)
    async with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def started(url: str, **options: object) -> AsyncIterator[RabbitBroker]:
    """A broker that tries to reconnect more often than one that serves people."""
    broker = RabbitBroker(url, **{"reconnect": 0.5, **options})  # type: ignore[arg-type]
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def cuttable(
    rabbit: RabbitMQ, *, url: str = "", **options: object
) -> AsyncIterator[tuple[RabbitBroker, TcpProxy]]:
    """A started broker that is connected by way of a proxy, and the proxy. url: as another user."""
    async with (
        proxied(rabbit) as proxy,
        started(through(proxy, url or rabbit.url), **options) as broker,
    ):
        yield broker, proxy
