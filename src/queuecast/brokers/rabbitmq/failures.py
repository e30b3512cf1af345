"""What RabbitMQ's and pika's errors become: the tree of queuecast.errors."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

import pika.exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorPhaseErrorBase,
    AMQPConnectorStackTimeout,
)

from ...errors import (
    BadDestination,
    BadRequest,
    ConfigError,
    Conflict,
    Locked,
    LoginRefused,
    NotFound,
    QueuecastError,
    Refused,
    Unavailable,
)
from ..binding import WEIGHT_HINT

# AMQP 0-9-1 section 1.1, reply codes.
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
NOT_ALLOWED = 530

_QUEUE = re.compile(r"no queue '(.*)' in vhost")

_OTHER_NAME = "the broker URL's host has to be a name that the certificate has"
# What to do about a certificate, by OpenSSL's X509_V_ERR_… (openssl-verification-options(1)).
_CERTIFICATES = {
    10: "it has expired: renew it",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}


def missing_exchange(name: str) -> NotFound:
    """Return the error for an exchange that does not exist; the hint names the setting."""
    return NotFound(
        f"no exchange {name!r} at the broker", f'create it, or add [[exchange]] name = "{name}"'
    )


def missing_queue(name: str) -> NotFound:
    """Return the error for a queue that does not exist; the hint names the setting."""
    return NotFound(
        f"no queue {name!r} at the broker", f'create it, or add [[queue]] name = "{name}"'
    )


def of_channel(error: BaseException, exchange: str | None = None) -> QueuecastError:
    """Return what a closed channel means to the call that caused it.

    exchange: the exchange that the call was about, for the hint.
    """
    if isinstance(error, QueuecastError):
        return error
    if not isinstance(error, pika.exceptions.ChannelClosed):
        return Unavailable(f"the connection to RabbitMQ was lost: {reason(error)}")
    code, text = error.reply_code, plain(error.reply_text)
    if code == ACCESS_REFUSED:
        if "exclusive use" in text:
            return Locked(text)
        return Refused(text)
    if code == NOT_FOUND:
        if exchange and "no exchange" in text:
            return missing_exchange(exchange)
        queue = _QUEUE.search(text)
        return missing_queue(queue[1]) if queue else NotFound(text)
    if code == RESOURCE_LOCKED:
        return Locked(text)
    if code == PRECONDITION_FAILED:
        if text.startswith("The binding key must"):
            return BadDestination(text, WEIGHT_HINT)
        return Conflict(text)
    if isinstance(error, pika.exceptions.ChannelClosedByClient):
        return Unavailable("the channel to RabbitMQ is closing")
    return BadRequest(text)


def of_connect(error: BaseException, host: str, virtual_host: str) -> QueuecastError:
    """Return why the connection could not be opened."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(
            cause,
            pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError,
        ) and _closed_with(cause, ACCESS_REFUSED):
            return LoginRefused(
                "RabbitMQ refused the login",
                "check the user and password in the broker URL; guest may log in from the "
                "broker's own machine only",
            )
        if isinstance(cause, pika.exceptions.ProbableAccessDeniedError) and _closed_with(
            cause, NOT_ALLOWED
        ):
            return _of_virtual_host(str(cause), virtual_host)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refused(
                f"the certificate of {host} is not trusted: {cause.verify_message.rstrip('.')}",
                _CERTIFICATES.get(cause.verify_code, "name its authority with cafile"),
            )
        if isinstance(cause, pika.exceptions.IncompatibleProtocolError):
            return Unavailable(
                f"{host} closed the connection before it spoke AMQP", "is that RabbitMQ's port?"
            )
        if isinstance(cause, ConfigError):
            return cause
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return Unavailable(f"no such host {host!r}")
        if isinstance(cause, ConnectionRefusedError):
            return Unavailable(f"connection refused by {host}")
        if isinstance(cause, AMQPConnectorStackTimeout | TimeoutError):
            return Unavailable(f"no answer from {host}")
    return Unavailable(f"{host}: {reason(causes[-1])}")


def _closed_with(error: BaseException, code: int) -> bool:
    """Tell whether the broker itself gave this code.

    pika guesses from the moment: a connection that was just cut during the login looks alike.
    """
    return f"({code})" in str(error) or isinstance(error, pika.exceptions.AuthenticationError)


def _of_virtual_host(text: str, name: str) -> QueuecastError:
    if "not found" in text:
        return NotFound(f"no virtual host {name!r} at the broker")
    if "limit" in text:
        return Unavailable(f"the virtual host {name!r} has no room for a connection")
    return Refused(f"RabbitMQ refused the virtual host {name!r}", "give the user permissions there")


def reason(error: BaseException | None) -> str:
    """Return an error in a few words, for logs and statuses."""
    if error is None:
        return "closed"
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return plain(str(error.reply_text))
    if isinstance(error, pika.exceptions.AMQPHeartbeatTimeout):
        return "no heartbeat from the broker"
    if isinstance(error, pika.exceptions.StreamLostError):
        return "connection reset" if "reset" in str(error).lower() else "connection lost"
    return str(error) or type(error).__name__


def plain(text: str) -> str:
    """Return RabbitMQ's "NAME_OF_CODE - text" without the first part."""
    name, dash, rest = text.partition(" - ")
    return rest if dash and name.isupper() else text


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk from pika's nested connection errors down to what happened."""
    yield error
    if isinstance(error, AMQPConnectionWorkflowFailed):
        for inner in reversed(error.exceptions):
            yield from _causes(inner)
    elif isinstance(error, AMQPConnectorPhaseErrorBase):
        yield from _causes(error.exception)
    elif isinstance(error, pika.exceptions.AMQPConnectionError):
        for argument in error.args:
            if isinstance(argument, BaseException):
                yield from _causes(argument)
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
