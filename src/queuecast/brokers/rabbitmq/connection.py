"""One live AMQP connection and its channels: a narrow adapter over pika's asyncio connection.

pika calls back; here a call is awaited. Everything else of pika stays behind this module. A
`Link` lives for one TCP connection and is never reopened: the supervisor makes a new one. When
a channel or the link ends, all calls that wait on it fail with pika's reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import pika
import pika.channel
import pika.credentials
import pika.exceptions
import pika.spec
from pika.adapters.asyncio_connection import _AsyncioIOServicesAdapter

from ...errors import LimitExceeded, QueuecastError, Unavailable
from ..url import Host
from .address import Address
from .deliveries import Callback, Connection, OnMessage
from .failures import Untrusted, of_connect, of_hosts, reason
from .probes import Probes
from .pulse import QUIET, Pulse

log = logging.getLogger(__name__)

# Seconds to wait for the broker's answer when closing; afterwards the socket is just dropped.
_CLOSE_PATIENCE = 5.0


def guarded(call: Callable[..., None]) -> Callable[..., None]:
    """Wrap a callback for pika: an exception is logged instead of ending the connection."""

    def guard(*args: Any) -> None:
        try:
            call(*args)
        except Exception:
            log.exception("a callback of the RabbitMQ connection failed")

    return guard


def _quieten_pika() -> None:
    # pika logs each fault several times, with tracebacks; the supervisor says it once.
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


class _Services(_AsyncioIOServicesAdapter):  # type: ignore[misc]
    """pika's sockets, but for one that is reset in the moment in which it has connected.

    pika would raise ValueError in a callback of the loop: a traceback in the log, and the attempt
    would end with its timeout instead of at once.
    """

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        on_done: Callable[[Any], None],
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> Any:
        """Make a transport of a connected socket, and tell `on_done` that or the error."""
        try:
            return super().create_streaming_connection(
                protocol_factory, sock, on_done, ssl_context, server_hostname
            )
        except ValueError as error:
            if "Expected connected socket" not in str(error):
                raise
        # pika has closed the socket.
        gone = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return asyncio.get_running_loop().call_soon(on_done, gone)


class Channel:
    """One channel. Calls raise pika's reason when it is closed, by whomever.

    closed: done when it is over, with the reason as its result.
    """

    def __init__(self, link: Link, raw: pika.channel.Channel) -> None:
        self.link = link
        self.raw = raw
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[Any]] = set()
        self.closed: asyncio.Future[BaseException] = self._loop.create_future()
        self.on_closed: Callable[[BaseException], None] | None = None
        self.on_cancel: Callable[[str], None] | None = None
        raw.add_on_close_callback(guarded(self._on_close))
        raw.add_on_cancel_callback(guarded(self._on_cancel))

    @property
    def is_open(self) -> bool:
        return bool(self.raw.is_open) and not self.closed.done()

    def _on_close(self, _raw: pika.channel.Channel, why: BaseException) -> None:
        if self.closed.done():
            return
        self.closed.set_result(why)
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(_copy(why))
        self._waiting.clear()
        if self.on_closed is not None:
            self.on_closed(why)

    def _on_cancel(self, frame: Any) -> None:
        if self.on_cancel is not None:
            self.on_cancel(frame.method.consumer_tag)

    def call(self, name: str, *args: Any, **options: Any) -> asyncio.Future[Any]:
        """Send pika's method `name`; the future is the broker's answering method.

        Calls on one channel are sent one at a time, in order.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed.done():
            future.set_exception(_copy(self.closed.result()))
            return future

        def answered(frame: Any) -> None:
            self._waiting.discard(future)
            if not future.done():
                future.set_result(frame.method)

        try:
            getattr(self.raw, name)(*args, callback=guarded(answered), **options)
        except pika.exceptions.AMQPError as error:
            future.set_exception(error)
            return future
        self._waiting.add(future)
        return future

    async def qos(self, prefetch: int) -> None:
        await self.call("basic_qos", prefetch_count=prefetch)

    async def consume(
        self,
        queue: str,
        tag: str,
        on_message: OnMessage,
        *,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Start deliveries; never without acks (on a stream that closes the connection)."""
        await self.call(
            "basic_consume",
            queue,
            Callback(on_message),
            consumer_tag=tag,
            exclusive=exclusive,
            arguments=dict(arguments) if arguments else None,
        )

    async def cancel(self, tag: str) -> None:
        """Stop deliveries; those on their way are still handed over, unacked ones stay."""
        answer = self.call("basic_cancel", tag)
        # pika would give deliveries on their way back to the queue, which reorders them and, in
        # a quorum queue, counts against their delivery limit.
        self.raw._cancelled.discard(tag)
        await answer

    def publish(
        self, exchange: str, key: str, body: bytes, properties: Any, mandatory: bool
    ) -> None:
        self.raw.basic_publish(exchange, key, body, properties, mandatory)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Ack; nothing when the channel is closed (the broker requeues by itself)."""
        with contextlib.suppress(pika.exceptions.AMQPError):
            self.raw.basic_ack(tag, multiple)

    def nack(self, tag: int, *, requeue: bool) -> None:
        with contextlib.suppress(pika.exceptions.AMQPError):
            self.raw.basic_nack(tag, False, requeue)

    def abandon(self) -> None:
        """Close without waiting for the broker's answer."""
        if self.is_open:
            with contextlib.suppress(pika.exceptions.AMQPError):
                self.raw.close()

    async def close(self) -> None:
        """Close; returns once the broker has answered or the link is gone."""
        if not self.closed.done() and not self.raw.is_closing:
            with contextlib.suppress(pika.exceptions.AMQPError):
                self.raw.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_PATIENCE):
                await asyncio.shield(self.closed)


class Link:
    """One TCP connection to the broker.

    host: the one of the address's hosts that it is to. lost: done when it is over, with the reason
    as its result. blocked: RabbitMQ's reason for not taking publishes (connection.blocked), or
    None.
    """

    def __init__(self, address: Address, host: Host, purpose: str) -> None:
        _quieten_pika()
        self.address = address
        self.host = host
        self._purpose = purpose
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[BaseException] = self._loop.create_future()
        self.blocked: str | None = None
        self.on_blocked: Callable[[str | None], None] | None = None
        self._raw: Any = None
        self._probes = Probes(self)
        self._pulse: Pulse | None = None

    @classmethod
    async def open(cls, address: Address, purpose: str) -> Link:
        """Connect and log in at the first of the address's hosts that lets us.

        purpose: shows in the broker's list of connections. Raises Refused, NotFound (virtual
        host), ConfigError, Unavailable; of several hosts it names each with its reason. What one
        host says of the login or the virtual host holds for all.
        """
        login = _credentials(address)
        context = address.ssl_context()
        failures: list[QueuecastError] = []
        for host in address.hosts:
            try:
                return await cls._open_at(address, host, purpose, login, context)
            except (Unavailable, Untrusted) as error:
                failures.append(error)
        raise of_hosts(failures)

    @classmethod
    async def _open_at(
        cls,
        address: Address,
        host: Host,
        purpose: str,
        login: Any,
        context: ssl.SSLContext | None,
    ) -> Link:
        link = cls(address, host, purpose)
        try:
            async with asyncio.timeout(address.connection_timeout + 1):
                link._start(login, context)
                await link._opened
                link._pulse = Pulse(link)
        except QueuecastError:
            raise
        except BaseException as error:
            link.drop(pika.exceptions.StreamLostError("dropped"))
            if isinstance(error, Exception):
                raise of_connect(error, host, address) from None
            raise
        return link

    def _start(self, login: Any, context: ssl.SSLContext | None) -> None:
        address = self.address
        host, port = self.host
        options = pika.SSLOptions(context, address.server_name or host) if context else None
        parameters = pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=address.virtual_host,
            credentials=login,
            heartbeat=address.heartbeat,
            socket_timeout=address.connection_timeout,
            stack_timeout=address.connection_timeout,
            ssl_options=options,
            client_properties={"product": "Queuecast", "connection_name": self._purpose},
        )
        if address.channel_max:
            parameters.channel_max = address.channel_max
        self._raw = Connection(
            parameters,
            on_open_callback=guarded(self._on_open),
            on_open_error_callback=guarded(self._on_open_error),
            on_close_callback=guarded(self._on_close),
            custom_ioloop=_Services(self._loop),
        )
        self._raw.add_on_connection_blocked_callback(guarded(self._on_blocked))
        self._raw.add_on_connection_unblocked_callback(guarded(self._on_unblocked))

    def _on_open(self, _raw: Any) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _on_open_error(self, _raw: Any, error: BaseException | str | None) -> None:
        if not isinstance(error, BaseException):
            error = Unavailable(str(error))
        if not self.lost.done():
            self.lost.set_result(error)
        if not self._opened.done():
            self._opened.set_exception(error)

    def _on_close(self, _raw: Any, why: BaseException) -> None:
        if not self.lost.done():
            self.lost.set_result(why)

    def _on_blocked(self, _raw: Any, frame: Any) -> None:
        text = frame.method.reason
        self.blocked = text if isinstance(text, str) and text else "low on resources"
        log.warning("RabbitMQ takes no publishes: %s", self.blocked)
        if self.on_blocked is not None:
            self.on_blocked(self.blocked)

    def _on_unblocked(self, _raw: Any, _frame: Any) -> None:
        self.blocked = None
        log.info("RabbitMQ takes publishes again")
        if self.on_blocked is not None:
            self.on_blocked(None)

    @property
    def is_open(self) -> bool:
        return self._raw is not None and bool(self._raw.is_open) and not self.lost.done()

    @property
    def version(self) -> tuple[int, int]:
        """RabbitMQ's version, major and minor; (0, 0) where it does not say."""
        properties = getattr(self._raw, "server_properties", None) or {}
        parts = str(properties.get("version", "")).split(".")
        if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
            return (0, 0)
        return (int(parts[0]), int(parts[1]))

    @property
    def received(self) -> int:
        """Bytes that came from the broker."""
        return int(self._raw.bytes_received)

    @property
    def answers(self) -> bool:
        """Whether something was heard from the broker within the last seconds."""
        return self._pulse is not None and self._pulse.quiet < QUIET + 2

    @property
    def channel_max(self) -> int:
        """How many channels were agreed on with the broker (AMQP 0-9-1, connection.tune)."""
        return int(self._raw.params.channel_max) if self._raw is not None else 0

    async def channel(self) -> Channel:
        """Open a channel; raises LimitExceeded when the connection has no more, Unavailable."""
        if not self.is_open:
            why = self.lost.result() if self.lost.done() else None
            raise Unavailable(f"the connection to RabbitMQ is gone: {reason(why)}")
        opened: asyncio.Future[None] = self._loop.create_future()

        def on_open(raw: pika.channel.Channel) -> None:
            if not opened.done():
                opened.set_result(None)
            elif raw.is_open:
                raw.close()  # whoever asked for it has been cancelled meanwhile

        try:
            channel = Channel(self, self._raw.channel(on_open_callback=guarded(on_open)))
        except pika.exceptions.NoFreeChannels:
            raise LimitExceeded(
                "the connection to RabbitMQ has no free channel",
                "raise channel_max in RabbitMQ's configuration",
            ) from None
        channel._waiting.add(opened)
        try:
            await opened
        except asyncio.CancelledError:
            channel.abandon()
            raise
        finally:
            channel._waiting.discard(opened)
        return channel

    def probe(
        self, *, fresh: bool = False, patience: float | None = None
    ) -> contextlib.AbstractAsyncContextManager[Channel]:
        """Borrow a channel for calls that may close it, so that they disturb no other call.

        fresh: one that was never used. RabbitMQ remembers permissions for each channel. patience:
        seconds for the calls, None for any time. Raises pika's ChannelClosed out of the block, see
        failures.of_channel, and TimeoutError.
        """
        return self._probes.borrow(fresh=fresh, patience=patience)

    async def close(self) -> None:
        """Close; waits for the broker's answer for a bounded time."""
        if self.is_open:
            with contextlib.suppress(pika.exceptions.AMQPError):
                self._raw.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_PATIENCE):
                    await asyncio.shield(self.lost)
                return
        self.drop(pika.exceptions.StreamLostError("dropped"))

    def drop(self, why: BaseException) -> None:
        """Cut the socket without ceremony; `why` is what `lost` tells."""
        raw = self._raw
        if raw is None or raw.is_closed:
            return
        with contextlib.suppress(Exception):
            if raw.is_open or raw.is_closing:
                raw._terminate_stream(why)
            else:
                raw.close()


def _credentials(address: Address) -> Any:
    """Return the login as pika has it, its password read now; raises ConfigError."""
    if address.external:
        return pika.credentials.ExternalCredentials()
    return pika.PlainCredentials(address.user, address.current_password())


def _copy(error: BaseException) -> BaseException:
    """Return an equal exception, so that waiters do not share one traceback."""
    try:
        return type(error)(*error.args)
    except TypeError:
        return error
