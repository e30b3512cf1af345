"""The named reasons for which Queuecast closes a client, and how errors map to them.

Each reason has a code, a text and whether the client may reconnect. On a WebSocket the code is
the close code (RFC 6455 section 7.4: 1000-2999 are the protocol's, 4000-4999 private); on HTTP
the status stands beside it. Codes are stable: clients branch on them.
"""

from __future__ import annotations

from typing import NamedTuple

from . import errors


class Disconnect(NamedTuple):
    """Why a client is closed.

    code: WebSocket close code. status: the HTTP status of the same refusal.
    retry: whether reconnecting may help.
    """

    name: str
    code: int
    status: int
    text: str
    retry: bool

    def because(self, text: str) -> Disconnect:
        """Return the same reason with a text for this very case."""
        return self._replace(text=text)


NORMAL = Disconnect("normal", 1000, 200, "bye", True)
SHUTDOWN = Disconnect("shutdown", 1012, 503, "gateway is restarting, reconnect", True)
PROTOCOL_ERROR = Disconnect("protocol_error", 1002, 400, "protocol error", False)

BAD_REQUEST = Disconnect("bad_request", 4400, 400, "bad request", False)
REFUSED = Disconnect("refused", 4403, 403, "refused", False)
NOT_FOUND = Disconnect("not_found", 4404, 404, "not found", True)
TIMEOUT = Disconnect("timeout", 4408, 408, "no answer to heartbeats", True)
CONFLICT = Disconnect("conflict", 4409, 409, "conflict", True)
TOO_LARGE = Disconnect("too_large", 4413, 413, "too large", False)
UNSUPPORTED = Disconnect("unsupported", 4415, 501, "unsupported by this broker", False)
LIMIT = Disconnect("limit", 4429, 429, "limit reached", True)
INTERNAL = Disconnect("internal", 4450, 500, "internal error, see the gateway's log", True)
PUBLISH_FAILED = Disconnect("publish_failed", 4452, 502, "the broker refused a message", True)
UNAVAILABLE = Disconnect("unavailable", 4453, 503, "broker unavailable", True)
OUTCOME_UNKNOWN = Disconnect("outcome_unknown", 4454, 504, "publish outcome unknown", True)
SLOW = Disconnect("slow", 4455, 503, "the client did not keep up", True)

ALL = (
    NORMAL,
    SHUTDOWN,
    PROTOCOL_ERROR,
    BAD_REQUEST,
    REFUSED,
    NOT_FOUND,
    TIMEOUT,
    CONFLICT,
    TOO_LARGE,
    UNSUPPORTED,
    LIMIT,
    INTERNAL,
    PUBLISH_FAILED,
    UNAVAILABLE,
    OUTCOME_UNKNOWN,
    SLOW,
)

# Most specific first: the first class that fits decides.
_FOR_ERRORS: tuple[tuple[type[errors.QueuecastError], Disconnect], ...] = (
    (errors.BadRequest, BAD_REQUEST),
    (errors.Refused, REFUSED),
    (errors.NotFound, NOT_FOUND),
    (errors.Unroutable, NOT_FOUND),
    (errors.Conflict, CONFLICT),
    (errors.TooLarge, TOO_LARGE),
    (errors.LimitExceeded, LIMIT),
    (errors.Unsupported, UNSUPPORTED),
    (errors.Unavailable, UNAVAILABLE),
    (errors.OutcomeUnknown, OUTCOME_UNKNOWN),
    (errors.TooSlow, SLOW),
    (errors.PublishFailed, PUBLISH_FAILED),
)


def reason_for(error: errors.QueuecastError) -> Disconnect:
    """Return the reason that an error becomes at the edge, in general words."""
    for kind, reason in _FOR_ERRORS:
        if isinstance(error, kind):
            return reason
    return INTERNAL


def for_error(error: errors.QueuecastError) -> Disconnect:
    """Return the reason that an error becomes at the edge, with the error's own text."""
    reason = reason_for(error)
    return reason if reason is INTERNAL else reason.because(str(error))
