"""Every error that Queuecast raises on purpose, and what each becomes at the edge.

    QueuecastError
    ├── ConfigError          a setting is wrong: the start fails, one line, exit code 2
    ├── BadRequest           the client's words are wrong
    │   ├── BadDestination   … the destination
    │   └── BadPosition      … the position (`since`, `last`, Last-Event-ID)
    ├── Refused              the policy, an origin check or the broker says no
    │   └── LoginRefused     … to the user and password
    ├── NotFound             no such exchange or queue
    ├── Conflict             it exists with other properties
    │   ├── Locked           … or another session holds it exclusively
    │   ├── Settled          … or the message is settled already
    │   ├── Returned         … or it went back to its queue
    │   └── Elsewhere        … or another node has it
    ├── TooLarge             a body, frame or batch over its limit
    ├── LimitExceeded        too many connections, subscriptions, …
    ├── Unsupported          this broker cannot do that
    ├── TooSlow              the client did not keep up, and `[[slow]]` says to close it
    ├── Unavailable          the broker is away or the gateway is draining; trying again helps
    └── PublishFailed        the broker did not take the message
        ├── Unroutable       … because the queue that was named does not exist
        └── OutcomeUnknown   … or perhaps did: the connection went before the confirm

An error carries a `code` (stable, for programs), a text (what was wrong), a hint (what is
allowed, or which setting helps) and `retry` (whether the same request may succeed later).
It becomes an HTTP status, a WebSocket close code or a STOMP ERROR once, at the edge: see
disconnect.py.
"""

from __future__ import annotations

from typing import ClassVar


class QueuecastError(Exception):
    """Base of all errors raised on purpose; `text` and `hint` may be shown to the client."""

    code: ClassVar[str] = "error"
    retry: ClassVar[bool] = False

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})" if self.hint else self.text

    def line(self) -> str:
        """Return it as one line for a shell: what was wrong, then what helps."""
        text = f"{self.text}: {self.hint}" if self.hint else self.text
        return " ".join(text.split())


class ConfigError(QueuecastError):
    """A setting is wrong; the text names its path."""

    code = "config"


class BadRequest(QueuecastError):
    """The client's request or frame is wrong."""

    code = "bad_request"


class BadDestination(BadRequest):
    """The destination is malformed or unknown."""

    code = "bad_destination"


class BadPosition(BadRequest):
    """`since`, `last` or Last-Event-ID cannot be understood."""

    code = "bad_position"


class Refused(QueuecastError):
    """The policy, an origin check or the broker's own permissions say no."""

    code = "refused"


class LoginRefused(Refused):
    """The broker does not take the user and password."""


class NotFound(QueuecastError):
    """No such exchange, queue or route."""

    code = "not_found"


class Conflict(QueuecastError):
    """It exists with other properties, or cannot be made with these."""

    code = "conflict"


class Locked(Conflict):
    """Another session holds it exclusively."""


class Settled(Conflict):
    """The message was acked or nacked already."""

    code = "settled"


class Returned(Conflict):
    """The message went back to its queue before it was acked; it comes again, to somebody."""

    code = "returned"


class Elsewhere(Conflict):
    """Another node has what was named."""

    code = "elsewhere"


class TooLarge(QueuecastError):
    """A body, frame or batch is over its limit."""

    code = "too_large"


class LimitExceeded(QueuecastError):
    """A count is at its limit."""

    code = "limit"
    retry = True


class Unsupported(QueuecastError):
    """The broker behind the gateway cannot do that."""

    code = "unsupported"


class TooSlow(QueuecastError):
    """The client did not keep up with a destination whose slow clients are disconnected."""

    code = "slow"
    retry = True


class Unavailable(QueuecastError):
    """The broker is away, or the gateway is draining."""

    code = "unavailable"
    retry = True


class PublishFailed(QueuecastError):
    """The broker did not take responsibility for a message."""

    code = "publish_failed"
    retry = True


class Unroutable(PublishFailed):
    """A queue was named and does not exist."""

    code = "unroutable"
    retry = False


class OutcomeUnknown(PublishFailed):
    """The connection to the broker went before the confirm: it may or may not have the message."""

    code = "outcome_unknown"
    retry = False
