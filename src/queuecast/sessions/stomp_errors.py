"""What becomes of an error on a STOMP connection: an ERROR frame, and perhaps the end.

RabbitMQ has two classes, which clients rely on: what is wrong with a frame is answered and the
connection goes on; what AMQP would close a channel for closes the connection.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import errors
from ..codecs.stomp_values import SUPPORTED_VERSIONS, StompError
from ..destination import Destination, Kind
from ..errors import BadDestination, BadRequest, QueuecastError


class Answer(NamedTuple):
    """The ERROR's `message` and body, and whether the connection ends."""

    message: str
    text: str
    closes: bool


# Most specific first: the first class that fits decides.
_OF_ERRORS: tuple[tuple[type[QueuecastError], str, bool], ...] = (
    (errors.BadRequest, "Processing error", False),
    (errors.Refused, "access_refused", True),
    (errors.NotFound, "not_found", True),
    (errors.Locked, "resource_locked", True),
    (errors.Conflict, "precondition_failed", True),
    (errors.TooLarge, "Message too large", False),
    (errors.LimitExceeded, "Limit exceeded", False),
    (errors.Unsupported, "Not supported", False),
    (errors.Unavailable, "Broker unavailable", False),
    (errors.Unroutable, "not_found", False),
    (errors.OutcomeUnknown, "Outcome unknown", False),
    (errors.PublishFailed, "Publish failed", False),
)
_CLOSING = frozenset(
    ("Duplicated subscription identifier", "precondition_failed", "not_implemented")
)


def answer_of(error: StompError | QueuecastError) -> Answer:
    """Return what an error is answered with."""
    if isinstance(error, StompError):
        return Answer(error.message, error.text, error.message in _CLOSING)
    for kind, message, closes in _OF_ERRORS:
        if isinstance(error, kind):
            return Answer(message, f"{error}\n", closes)
    return Answer("Internal error", f"{error}\n", False)


def error_headers(
    message: str, receipt: str | None = None, subscription: str | None = None
) -> list[tuple[str, str]]:
    """Return the headers of an ERROR."""
    headers = [
        ("message", message),
        ("content-type", "text/plain"),
        ("version", SUPPORTED_VERSIONS),
    ]
    if receipt is not None:
        headers.append(("receipt-id", receipt))
    if subscription is not None:
        headers.append(("subscription", subscription))
    return headers


def parse_destination(text: str | None) -> Destination:
    """Read a frame's `destination` without aliases; raises StompError.

    A bare name, without any slash, is a queue's.
    """
    if text is None:
        raise StompError("Missing destination", "A destination is required\n")
    if not text:
        raise StompError("Invalid destination", "Destination cannot be blank\n")
    if "/" not in text:
        text = f"{Kind.QUEUE}{text}"
    try:
        return Destination.parse(text)
    except BadDestination as error:
        for kind in Kind:
            if text.startswith(kind.value) or text == kind.value[:-1]:
                rest = text[len(kind.value) - 1 :][:300]
                name = kind.value.strip("/")
                raise StompError(
                    "Invalid destination",
                    f"'{rest}' is not a valid {name} destination\n{error.text}\n",
                ) from None
        raise StompError("Unknown destination", f"{error}\n") from None
    except BadRequest as error:
        raise StompError("Invalid destination", f"{error}\n") from None
