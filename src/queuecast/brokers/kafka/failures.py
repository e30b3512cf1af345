"""What Kafka's errors mean to a client of the gateway."""

from __future__ import annotations

import asyncio
import ssl

from aiokafka import errors as kafka

from ...errors import (
    BadDestination,
    BadRequest,
    LimitExceeded,
    LoginRefused,
    NotFound,
    OutcomeUnknown,
    PublishFailed,
    QueuecastError,
    Refused,
    TooLarge,
    Unavailable,
    Unroutable,
)
from ..files import tls_alert
from .address import Address

# A producer that met one of these answers nothing else any more: its sequence numbers and the
# broker's have parted (KIP-360).
POISON = (
    kafka.OutOfOrderSequenceNumber,
    kafka.ProducerFenced,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.UnknownProducerId,
)

# With one of these Kafka refuses a batch for good, perhaps for one record in it. aiokafka then
# goes on counting as if it had been taken.
REJECTIONS = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.InvalidTimestampError,
    kafka.PolicyViolationError,
    kafka.InvalidTopicError,
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
)

_LOGIN = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.UnsupportedSaslMechanismError,
    kafka.SaslAuthenticationFailed,
    kafka.IllegalSaslStateError,
)
_REFUSED = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
)


def missing(topic: str) -> NotFound:
    """Return the error for a topic that is not there."""
    return NotFound(
        f"there is no topic {topic!r}",
        "create it, with [[topic]] or kafka-topics, or let the cluster create topics by itself "
        "(auto.create.topics.enable)",
    )


def unroutable(topic: str) -> Unroutable:
    """Return the same for a publish that names a queue."""
    error = missing(topic)
    return Unroutable(error.text, error.hint)


def invalid_name(topic: str) -> BadDestination:
    """Return the error for a name that Kafka does not take."""
    return BadDestination(
        f"{topic!r} is not a topic that Kafka lets clients use", "choose another name"
    )


def refused(what: str, user: str) -> Refused:
    """Return the error for a permission (ACL) that is missing; what: "read topic 'T'" …"""
    who = f"the gateway's login {user!r}" if user else "the gateway, which has no login,"
    return Refused(f"{who} may not {what}", "give it the permission (kafka-acls)")


def of_connecting(error: BaseException, address: Address) -> QueuecastError:
    """Return what a failed attempt to connect means: LoginRefused, or Unavailable."""
    if isinstance(error, _LOGIN):
        file = ", and password_file" if address.files.password_file else ""
        return LoginRefused(
            f"Kafka refuses the login of {address.user!r}: {reason(error)}",
            f"look at broker.url: user, password and mechanism{file}",
        )
    hint = address.files.certificate_hint if _alert(error) else ""
    return Unavailable(f"Kafka is away: {reason(error)}", hint)


def of_reading(error: BaseException, what: str, user: str) -> QueuecastError:
    """Return what an error of a read means; what: "read topic 'T'"."""
    if isinstance(error, _REFUSED):
        return refused(what, user)
    if isinstance(error, QueuecastError):
        return error
    return Unavailable(f"Kafka could not {what}: {reason(error)}")


def of_publish(error: BaseException, topic: str, size: int, user: str) -> QueuecastError:
    """Return what the failure of one record means to its publisher."""
    if isinstance(error, QueuecastError):
        return error
    if isinstance(error, (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)):
        return TooLarge(
            f"Kafka does not take a record of {size:,} bytes in {topic!r}",
            "raise max.message.bytes of the topic, or send less",
        )
    if isinstance(error, _REFUSED):
        return refused(f"write to topic {topic!r}", user)
    if isinstance(error, kafka.InvalidTopicError):
        return invalid_name(topic)
    if isinstance(error, kafka.UnknownTopicOrPartitionError):
        return missing(topic)
    if isinstance(error, kafka.InvalidTimestampError):
        return BadRequest(
            f"Kafka does not take the timestamp in {topic!r}",
            "the topic's message.timestamp.before.max.ms and after.max.ms say which it takes",
        )
    if isinstance(error, kafka.PolicyViolationError):
        return Refused(f"the cluster's policy refuses the record: {reason(error)}")
    if isinstance(error, POISON):
        return PublishFailed(
            f"Kafka lost what it knew of our publishes to {topic!r}", "publish it again"
        )
    if isinstance(error, kafka.KafkaTimeoutError):
        return LimitExceeded(f"{topic!r} takes no more records now", "slow down")
    if isinstance(error, (kafka.NotEnoughReplicasError, kafka.NotEnoughReplicasAfterAppendError)):
        return OutcomeUnknown(f"too few replicas of {topic!r} are in sync", "it may yet be there")
    return OutcomeUnknown(f"Kafka did not say whether it has the record: {reason(error)}")


def reason(error: BaseException) -> str:
    """Return an error's text for people."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (asyncio.TimeoutError, kafka.RequestTimedOutError)):
        return "no answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if alert := _alert(error):
        return f"it ended TLS: {alert}"
    if isinstance(error, kafka.CommitFailedError):
        return "the group has rebalanced meanwhile"
    text = str(error)
    # aiokafka writes "[Error 7] RequestTimedOutError: …"; the number is of no use to people.
    return text.split("] ", 1)[-1] if text.startswith("[Error ") else text or type(error).__name__


def _alert(error: BaseException) -> str:
    """Return with what word the broker ended TLS, "" if it did not; aiokafka has it as a cause."""
    return tls_alert(str(error)) or tls_alert(str(error.__cause__ or ""))
