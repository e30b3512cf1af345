"""RabbitMQ's texts, mapped to errors and hints; and the delays between attempts."""

from __future__ import annotations

import pika.exceptions
import pytest

from queuecast.brokers.rabbitmq.address import Address
from queuecast.brokers.rabbitmq.failures import (
    Away,
    Untrusted,
    of_channel,
    of_connect,
    of_hosts,
)
from queuecast.brokers.rabbitmq.supervisor import LAST_DELAY, delays
from queuecast.errors import (
    BadRequest,
    Conflict,
    Locked,
    LoginRefused,
    NotFound,
    QueuecastError,
    Refused,
    Unavailable,
)

# How pika wraps what the broker said while the connection was opened.
HOST = ("host", 1)
BY_BROKER = "ConnectionClosedByBroker: ({}) '{}'"


@pytest.mark.parametrize(
    ("code", "text", "kind", "word"),
    [
        (404, "NOT_FOUND - no exchange 'e' in vhost '/'", NotFound, '[[exchange]] name = "e"'),
        (404, "NOT_FOUND - no queue 'q' in vhost '/'", NotFound, '[[queue]] name = "q"'),
        (403, "ACCESS_REFUSED - access to exchange 'e' in vhost '/' refused", Refused, "refused"),
        (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", Locked, "exclusive"),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access", Locked, "exclusive"),
        (406, "PRECONDITION_FAILED - inequivalent arg", Conflict, "inequivalent"),
        (540, "NOT_IMPLEMENTED - x", BadRequest, "x"),
    ],
)
def test_closed_channels(code: int, text: str, kind: type[QueuecastError], word: str) -> None:
    error = of_channel(pika.exceptions.ChannelClosedByBroker(code, text), "e")
    assert type(error) is kind
    assert word in str(error)


def test_a_lost_connection_is_unavailable() -> None:
    assert type(of_channel(pika.exceptions.StreamLostError("x"))) is Unavailable


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pika.exceptions.ProbableAuthenticationError(BY_BROKER.format(403, "no")), LoginRefused),
        (pika.exceptions.ProbableAuthenticationError("StreamLostError: (reset)"), Unavailable),
        (pika.exceptions.ProbableAuthenticationError(BY_BROKER.format(320, "bye")), Unavailable),
        (pika.exceptions.ProbableAccessDeniedError(BY_BROKER.format(530, "not found")), NotFound),
        (pika.exceptions.ProbableAccessDeniedError(BY_BROKER.format(530, "refused")), Refused),
        (pika.exceptions.ProbableAccessDeniedError(BY_BROKER.format(530, "limit")), Unavailable),
        (pika.exceptions.ProbableAccessDeniedError("StreamLostError: (reset)"), Unavailable),
        (pika.exceptions.IncompatibleProtocolError("StreamLostError: (reset)"), Unavailable),
        (ConnectionRefusedError(), Unavailable),
        (TimeoutError(), Unavailable),
    ],
)
def test_failed_connects(error: BaseException, kind: type[QueuecastError]) -> None:
    assert type(of_connect(error, HOST, Address())) is kind


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://u:p@h", "the password in the broker URL"),
        ("amqp://u@h?password_file=/f", "password_file"),
        ("amqps://h?auth_mechanism=external&certfile=/c", "ssl_cert_login_from"),
    ],
)
def test_a_refused_login_says_what_to_look_at(url: str, words: str) -> None:
    error = pika.exceptions.ProbableAuthenticationError(BY_BROKER.format(403, "no"))
    assert words in of_connect(error, HOST, Address.parse(url)).hint


def test_a_mechanism_that_is_not_offered_is_named() -> None:
    external = Address.parse("amqps://h?auth_mechanism=external&certfile=/c")
    error = of_connect(pika.exceptions.AuthenticationError("EXTERNAL"), HOST, external)
    assert type(error) is LoginRefused
    assert "rabbitmq_auth_mechanism_ssl" in error.hint


def test_several_hosts_are_told_in_one_line_each_with_its_reason() -> None:
    away = Unavailable("connection refused by a:1")
    untrusted = Untrusted("the certificate of b:1 is not trusted", "cafile")
    error = of_hosts([away, untrusted, Unavailable("no answer from c:1")])
    # One may be back in a moment.
    assert type(error) is Unavailable
    assert error.line() == (
        "connection refused by a:1; the certificate of b:1 is not trusted; no answer from c:1: "
        "cafile"
    )
    assert isinstance(of_hosts([untrusted, untrusted]), Refused)
    assert of_hosts([away]) is away


def test_delays_double_up_to_a_limit_with_jitter() -> None:
    longest = delays(lambda _low, high: high)
    shortest = delays(lambda low, _high: low)
    assert [longest(n) for n in range(4)] == [0.25, 0.5, 1.0, 2.0]
    assert longest(1000) == LAST_DELAY
    assert shortest(1000) == LAST_DELAY / 2


@pytest.mark.parametrize(
    ("code", "text", "elsewhere"),
    [
        # RabbitMQ 3.10 to 4.3, a queue's process that does not run.
        (404, "NOT_FOUND - home node 'r@b' of durable queue 'q' in vhost '/' is down or", False),
        (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor", False),
        (404, "NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart", False),
        (404, "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to", False),
        (404, f"NOT_FOUND - home node 'r@b' of durable queue '{'q' * 200}", False),
        # A stream's replica, 3.10 and later.
        (406, "PRECONDITION_FAILED - queue 'queue 'q' in vhost '/'' does not have a", True),
        (406, "PRECONDITION_FAILED - stream queue 'q' in vhost '/' does not have a running", True),
        (506, "RESOURCE_ERROR - queue 'q' in vhost '/' does not have a running local", True),
        (506, "RESOURCE_ERROR - Stream coordinator unavailable for queue 'q' in vhost '/'", True),
    ],
)
def test_a_queue_that_exists_and_does_not_run_is_away(
    code: int, text: str, elsewhere: bool
) -> None:
    error = of_channel(pika.exceptions.ChannelClosedByBroker(code, text))
    assert isinstance(error, Away)
    assert (error.code, error.retry, error.elsewhere) == ("unavailable", True, elsewhere)
    if code == 406:
        assert "add_replica q NODE" in error.hint


@pytest.mark.parametrize("code", [404, 406])
def test_a_name_that_reads_like_a_reason_is_none(code: int) -> None:
    text = "no queue 'home node 'x' is down or inaccessible' in vhost '/'"
    error = of_channel(pika.exceptions.ChannelClosedByBroker(code, f"NOT_FOUND - {text}"))
    assert type(error) is (NotFound if code == 404 else Conflict)
