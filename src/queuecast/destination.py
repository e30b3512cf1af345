"""Destinations: what clients name, in RabbitMQ's STOMP grammar on every transport.

    /exchange/NAME[/KEY or PATTERN]   /topic/KEY or PATTERN   everyone gets every message
    /queue/NAME  /amq/queue/NAME  /reply-queue/NAME           each message to one subscriber
    /temp-queue/NAME                                          only as a reply-to (STOMP)

Segments are percent-encoded: `%2F` is a slash within a name, and every byte round-trips.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from urllib.parse import quote

from .errors import BadDestination
from .pattern import contains, is_pattern

# The exchange that /topic stands for at an AMQP broker.
TOPIC_EXCHANGE = "amq.topic"

MAX_SEGMENT = 255  # bytes: AMQP 0-9-1 short strings hold no more

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_MUST_ESCAPE = re.compile(r"[/%\x00-\x1f\x7f]")

_GRAMMAR = (
    "/exchange/NAME[/KEY], /topic/KEY, /queue/NAME, /amq/queue/NAME, "
    "/temp-queue/NAME or /reply-queue/NAME"
)


class Kind(enum.StrEnum):
    """The forms of a destination; the value is its prefix."""

    EXCHANGE = "/exchange/"
    TOPIC = "/topic/"
    QUEUE = "/queue/"
    AMQ_QUEUE = "/amq/queue/"
    TEMP_QUEUE = "/temp-queue/"
    REPLY_QUEUE = "/reply-queue/"


# Iterating over an enumeration and asking its members for their values is dear: connections and
# publishes all come here.
_PREFIXES = tuple((kind.value, kind) for kind in Kind)
_SHARED_KINDS = frozenset((Kind.EXCHANGE, Kind.TOPIC))


@dataclass(frozen=True, slots=True)
class Destination:
    """A parsed destination.

    name: the exchange (EXCHANGE) or queue; for TOPIC the key or pattern.
    key: routing key or binding pattern of an EXCHANGE destination, None when absent.
    alias: the path that the client used instead, None when it named the destination itself; it
    makes no difference to what the destination is.
    """

    kind: Kind
    name: str
    key: str | None = None
    alias: str | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read a destination with percent-encoded segments; raises BadDestination."""
        if not text:
            raise BadDestination("a destination cannot be blank", f"it is {_GRAMMAR}")
        for prefix, kind in _PREFIXES:
            if text.startswith(prefix):
                return cls._of(kind, text[len(prefix) :], text)
            if text == prefix[:-1]:
                raise BadDestination(f"{text!r} lacks a name", f"a destination is {_GRAMMAR}")
        raise BadDestination(f"unknown destination {text[:300]!r}", f"it is {_GRAMMAR}")

    @classmethod
    def _of(cls, kind: Kind, rest: str, text: str) -> Destination:
        if kind is Kind.REPLY_QUEUE:
            # Verbatim, slashes kept: brokers make these names.
            return cls(kind, _checked(_decode(rest, text), text))
        segments = rest.split("/")
        allowed = 2 if kind is Kind.EXCHANGE else 1
        if len(segments) > allowed:
            raise BadDestination(
                f"{text[:300]!r} has too many segments for {kind.value}",
                "write a slash within a name as %2F",
            )
        name = _checked(_decode(segments[0], text), text)
        if len(segments) == 1:
            return cls(kind, name)
        key = _decode(segments[1], text)
        if len(key.encode()) > MAX_SEGMENT:
            raise BadDestination(f"a routing key has at most {MAX_SEGMENT} bytes")
        return cls(kind, name, key)

    @classmethod
    def from_url(cls, text: str) -> Destination:
        """Read a destination from a URL's path or query; raises BadDestination.

        A key that is empty or ends in "." is refused here: browsers cut a URL at `#`, so that
        is what is left of a pattern whose `#` was not written `%23`.
        """
        if text == "/topic/":
            raise BadDestination("the key is empty", _CUT_HINT)
        destination = cls.parse(text)
        key = destination.name if destination.kind is Kind.TOPIC else destination.key
        if destination.is_shared and key is not None and (key == "" or key.endswith(".")):
            raise BadDestination(f"the key {key!r} is empty or ends in '.'", _CUT_HINT)
        return destination

    @property
    def is_shared(self) -> bool:
        """Whether everyone gets every message (a feed), rather than one subscriber each."""
        return self.kind in _SHARED_KINDS

    @property
    def names_queue(self) -> bool:
        """Whether a queue is named, so that a publish to a missing one must fail."""
        return not self.is_shared

    @property
    def exchange(self) -> str:
        """The exchange that it stands for at an AMQP broker: "", the default one, for a queue."""
        if self.kind is Kind.TOPIC:
            return TOPIC_EXCHANGE
        return self.name if self.kind is Kind.EXCHANGE else ""

    @property
    def pattern(self) -> str:
        """The routing key there, or the binding pattern ("" where an exchange has none given)."""
        return self.key or "" if self.kind is Kind.EXCHANGE else self.name

    @property
    def shown(self) -> str:
        """What clients may see: the alias they used hides the broker's names."""
        return self.alias or str(self)

    @property
    def has_wildcards(self) -> bool:
        """Whether it stands for many keys; nothing can be published to it then."""
        return self.is_shared and is_pattern(self.pattern)

    def covers(self, inner: Destination) -> bool:
        """Tell whether everything that `inner` stands for is also meant by this one.

        Names may be patterns too, as in the policy's rules.
        """
        if self.kind is not inner.kind or not contains(self.name, inner.name):
            return False
        if self.kind is not Kind.EXCHANGE:
            return True
        return contains(self.key or "", inner.key or "")

    def __str__(self) -> str:
        """Return the canonical text, which `parse` reads back to an equal value."""
        if self.kind is Kind.REPLY_QUEUE:
            return self.kind.value + self.name.replace("%", "%25")
        text = self.kind.value + _escape(self.name)
        return text if self.key is None else f"{text}/{_escape(self.key)}"

    @property
    def url_path(self) -> str:
        """The text as it must stand in a URL's path, `#` as %23 and so on."""
        safe = "*!$&'()+,;=:@"
        if self.kind is Kind.REPLY_QUEUE:
            return self.kind.value + quote(self.name, safe=safe + "/")
        path = self.kind.value + quote(self.name, safe=safe)
        return path if self.key is None else f"{path}/{quote(self.key, safe=safe)}"


_CUT_HINT = "browsers cut a URL at '#': write the pattern's '#' as %23"


def _decode(segment: str, text: str) -> str:
    if "%" not in segment:
        return segment
    if _BAD_ESCAPE.search(segment):
        raise BadDestination(
            f"malformed percent-encoding in {text[:300]!r}", "write a literal % as %25"
        )
    raw = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), segment.encode())
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadDestination(f"{text[:300]!r} does not decode to UTF-8") from None


def _checked(name: str, text: str) -> str:
    if not name:
        raise BadDestination(f"{text[:300]!r} lacks a name", f"a destination is {_GRAMMAR}")
    if len(name.encode()) > MAX_SEGMENT:
        raise BadDestination(f"a name has at most {MAX_SEGMENT} bytes")
    return name


def _escape(segment: str) -> str:
    return _MUST_ESCAPE.sub(lambda found: f"%{ord(found[0]):02X}", segment)


def path_text(path: str) -> str:
    """Return a raw request path as text, still percent-encoded; raises BadDestination.

    HTTP parsers hand over raw UTF-8 as latin-1, one character a byte.
    """
    try:
        return path.encode("latin-1").decode()
    except UnicodeEncodeError:
        return path
    except UnicodeDecodeError:
        raise BadDestination("the path is not UTF-8", "percent-encode it") from None


def of_message(exchange: str, routing_key: str) -> Destination:
    """Return the destination that a message published to an exchange with a key came by."""
    if exchange == "":
        return Destination(Kind.QUEUE, routing_key)
    if exchange == TOPIC_EXCHANGE:
        return Destination(Kind.TOPIC, routing_key)
    return Destination(Kind.EXCHANGE, exchange, routing_key or None)
