"""What RabbitMQ's and pika's errors become: the tree of queuecast.errors."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Sequence

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
from ...hostport import host_port
from ..binding import WEIGHT_HINT
from ..files import tls_alert
from ..url import Host
from .address import Address

# AMQP 0-9-1 section 1.1, reply codes.
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
RESOURCE_ERROR = 506
NOT_ALLOWED = 530
INTERNAL_ERROR = 541

_QUEUE = re.compile(r"no queue '(.*)' in vhost")
_NAME = re.compile(r"queue '([^']*)' in vhost")
# How RabbitMQ 3.10 to 4.3 begin the text of NOT_FOUND about a queue that exists and does not run:
# its node is down; its process was stopped, crashed, did not answer, or its leader moves. The
# beginnings decide, because RabbitMQ cuts a text off at 255 bytes.
_AWAY = ("home node '", "queue '", "failed to perform operation on ")
# ... and of PRECONDITION_FAILED about a stream whose replica does not run where we are connected,
# 3.10 and later ones.
_NO_REPLICA = ("queue 'queue '", "stream queue '")


class Away(Unavailable):
    """A queue that exists and cannot be used now: its node is down, or it has no majority.

    why: RabbitMQ's words, for the log. elsewhere: it may be used at another node. dangerous: the
    next attempt may end its whole connection, as RabbitMQ does it to consumers of a quorum queue
    without a majority.
    """

    def __init__(
        self,
        text: str,
        hint: str = "",
        *,
        why: str = "",
        elsewhere: bool = False,
        dangerous: bool = False,
    ) -> None:
        super().__init__(text, hint)
        self.why = why or text
        self.elsewhere = elsewhere
        self.dangerous = dangerous


class NoAnswer(pika.exceptions.AMQPConnectionError):  # type: ignore[misc]
    """The connection stands, and nothing comes from RabbitMQ any more."""


def away(queue: str, why: str, *, dangerous: bool = False) -> Away:
    """Return the error for a queue that is known to be away."""
    cause = "most of its nodes are down" if dangerous else "its node is down"
    return Away(f"the queue {queue!r} is away at the moment: {cause}", why=why, dangerous=dangerous)


def ends_connections(error: BaseException) -> bool:
    """Return whether RabbitMQ failed inside while it served this connection."""
    return (
        isinstance(error, pika.exceptions.ConnectionClosedByBroker)
        and error.reply_code == INTERNAL_ERROR
    )


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
        if text.startswith(_AWAY):
            return Away(text)
        queue = _QUEUE.search(text)
        return missing_queue(queue[1]) if queue else NotFound(text)
    if code == RESOURCE_LOCKED:
        return Locked(text)
    if code == PRECONDITION_FAILED:
        if text.startswith(_NO_REPLICA):
            return Away(text, _replica_hint(text), elsewhere=True)
        if text.startswith("The binding key must"):
            return BadDestination(text, WEIGHT_HINT)
        return Conflict(text)
    if code == RESOURCE_ERROR:
        # A stream's coordinator or replica that does not run at the moment.
        return Away(text, elsewhere=True)
    if isinstance(error, pika.exceptions.ChannelClosedByClient):
        return Unavailable("the channel to RabbitMQ is closing")
    return BadRequest(text)


def _replica_hint(text: str) -> str:
    found = _NAME.search(text)
    stream = found[1] if found else "STREAM"
    return (
        f"add one with `rabbitmq-streams add_replica {stream} NODE`, NODE being the one that the "
        "gateway is connected to, or connect it to a node that has one"
    )


class Untrusted(Refused):
    """TLS failed at one host: another host may have another certificate."""


def of_connect(error: BaseException, host: Host, address: Address) -> QueuecastError:
    """Return why the connection to one of the address's hosts could not be opened."""
    causes = list(_causes(error))
    at = host_port(*host)
    for cause in causes:
        if isinstance(cause, pika.exceptions.ProbableAccessDeniedError) and _closed_with(
            cause, NOT_ALLOWED
        ):
            return _of_virtual_host(str(cause), address.virtual_host)
        if isinstance(cause, pika.exceptions.AuthenticationError):
            return _not_offered(at, address)
        if isinstance(cause, pika.exceptions.ProbableAuthenticationError) and _closed_with(
            cause, ACCESS_REFUSED
        ):
            return _of_login(address)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Untrusted(
                f"the certificate of {at} is not trusted: {cause.verify_message.rstrip('.')}",
                _CERTIFICATES.get(cause.verify_code, "name its authority with cafile"),
            )
        if alert := tls_alert(str(cause)):
            return Untrusted(f"{at} ended TLS: {alert}", address.files.certificate_hint)
        if isinstance(cause, pika.exceptions.IncompatibleProtocolError):
            return Unavailable(
                f"{at} closed the connection before it spoke AMQP", "is that RabbitMQ's port?"
            )
        if isinstance(cause, ConfigError):
            return cause
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return Unavailable(f"no such host {at!r}")
        if isinstance(cause, ConnectionRefusedError):
            return Unavailable(f"connection refused by {at}")
        # pika aborts an AMQP handshake only for its timeout.
        if isinstance(
            cause,
            AMQPConnectorStackTimeout | TimeoutError | pika.exceptions.ConnectionOpenAborted,
        ):
            return Unavailable(f"no answer from {at}")
    return Unavailable(f"{at}: {reason(causes[-1])}")


def of_hosts(failures: Sequence[QueuecastError]) -> QueuecastError:
    """Return why none of an address's hosts let us in: each with its reason."""
    if len(failures) == 1:
        return failures[0]
    made = Unavailable if any(isinstance(each, Unavailable) for each in failures) else Refused
    hints = dict.fromkeys(each.hint for each in failures if each.hint)
    return made("; ".join(each.text for each in failures), "; ".join(hints))


def _of_login(address: Address) -> LoginRefused:
    if address.external:
        return LoginRefused(
            "RabbitMQ refused the login by certificate",
            "the name in the certificate has to be a user's, without a password; see "
            "ssl_cert_login_from in RabbitMQ's configuration",
        )
    place = "password_file" if address.files.password_file else "the password in the broker URL"
    return LoginRefused(
        "RabbitMQ refused the login",
        f"check the user and {place}; guest may log in from the broker's own machine only",
    )


def _not_offered(at: str, address: Address) -> LoginRefused:
    if address.external:
        return LoginRefused(
            f"{at} offers no login by certificate",
            "enable the plugin rabbitmq_auth_mechanism_ssl and add EXTERNAL to auth_mechanisms",
        )
    return LoginRefused(f"{at} offers no login by password", "add PLAIN to auth_mechanisms")


def _closed_with(error: BaseException, code: int) -> bool:
    """Tell whether the broker itself gave this code.

    pika guesses from the moment: a connection that was just cut during the login looks alike.
    """
    return f"({code})" in str(error)


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
    if isinstance(error, NoAnswer):
        return str(error.args[0])
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
