"""What stands in STOMP's headers: versions, heart-beats, ack modes, ids and destinations.

Pure functions, as RabbitMQ reads and writes these values. A value that cannot be understood is a
`StompError`, which says what the ERROR frame about it must say.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from ..destination import Destination, Kind, of_message

VERSIONS: Final = ("1.0", "1.1", "1.2")
SUPPORTED_VERSIONS: Final = ",".join(VERSIONS)

# Browsers' timers hold no more milliseconds; whole seconds, as all that is answered.
_MAX_BEAT: Final = 2_147_483_000
_MIN_BEAT: Final = 1000
_BEAT = re.compile(r" *-?[0-9]{1,18} *")
_DELIVERY_TAG = re.compile(r"[0-9]{1,18}")
_SEPARATOR: Final = "@@"
_TEMP_QUEUE: Final = Kind.TEMP_QUEUE.value
_DESTINATION_ESCAPE = re.compile(rb"[/%\x00-\x1f\x80-\xff]")
_REPLY_ESCAPE = re.compile(rb"[%\x00-\x1f\x80-\xff]")


class StompError(Exception):
    """What the client asked for cannot be done: the ERROR frame's `message` header and its body."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(f"{message}: {text}")
        self.message = message
        self.text = text


class Beats(NamedTuple):
    """What was agreed on, in milliseconds, 0 for none: we send so often, and expect so often.

    As text it is the `heart-beat` header of CONNECTED.
    """

    send: int
    expect: int

    def __str__(self) -> str:
        return f"{self.send},{self.expect}"


NO_BEATS: Final = Beats(0, 0)


# Bounded: a header may have any blanks. All clients of one library say the same.
@lru_cache(maxsize=64)
def negotiate_heart_beat(header: str | None) -> Beats:
    """Answer a client's `heart-beat`, which names what it can send and what it wants to get.

    The client's wish is taken over: nothing for 0 and less, at least a second, whole seconds.
    Raises StompError.
    """
    if header is None:
        return NO_BEATS
    words = header.split(",")
    if len(words) != 2 or not all(_BEAT.fullmatch(word) for word in words):
        raise StompError(
            "Processing error", f"heart-beat is {header[:64]!r}, two numbers are expected\n"
        )
    sends, wants = (_beat(int(word)) for word in words)
    return Beats(send=wants, expect=sends)


def _beat(milliseconds: int) -> int:
    if milliseconds <= 0:
        return 0
    within = min(max(milliseconds, _MIN_BEAT), _MAX_BEAT)
    return within - within % 1000


@lru_cache(maxsize=64)
def negotiate_version(header: str | None) -> str:
    """Return the highest version that a client's `accept-version` shares with us.

    Without the header it is 1.0. Raises StompError with the body that clients know.
    """
    if header is None:
        return VERSIONS[0]
    offered = {word.strip() for word in header.split(",")}
    for version in reversed(VERSIONS):
        if version in offered:
            return version
    raise StompError("Version mismatch", f"Supported versions are {SUPPORTED_VERSIONS}\n")


class AckMode(enum.StrEnum):
    """How a subscription's messages are settled; the value is the `ack` header of SUBSCRIBE."""

    AUTO = "auto"
    CLIENT = "client"
    INDIVIDUAL = "client-individual"


def ack_mode(header: str | None) -> AckMode:
    """Read the `ack` header of SUBSCRIBE, auto when absent; raises StompError."""
    if header is None:
        return AckMode.AUTO
    try:
        return AckMode(header)
    except ValueError:
        raise StompError(
            "Processing error",
            f"ack is {header[:64]!r}, allowed are {', '.join(AckMode)}\n",
        ) from None


def boolean(headers: Mapping[str, str], name: str) -> bool | None:
    """Read a header that is true or false, with a capital or without; None for anything else."""
    value = headers.get(name)
    if value in ("true", "True"):
        return True
    if value in ("false", "False"):
        return False
    return None


def subscription_tag(id: str | None, destination: str) -> str:
    """Return the tag by which a session knows a subscription, with or without an `id`.

    An id that is kept for reply queues is a StompError.
    """
    if id is None:
        return f"Q_{destination}"
    if id.startswith(_TEMP_QUEUE):
        raise StompError("Invalid id", f"An id may not begin with {_TEMP_QUEUE}\n")
    return f"T_{id}"


class MessageId(NamedTuple):
    """What a delivery's message-id and ack id are made of: `tag@@session@@delivery_tag`.

    session holds no "@"; the tag may hold anything.
    """

    tag: str
    session: str
    delivery_tag: int

    def __str__(self) -> str:
        return f"{self.tag}{_SEPARATOR}{self.session}{_SEPARATOR}{self.delivery_tag}"


def parse_message_id(text: str) -> MessageId:
    """Read an id that was given out with a delivery; raises StompError."""
    # From the right: a client's own id may hold the separator, ours cannot.
    words = text.rsplit(_SEPARATOR, 2)
    if len(words) != 3 or not _DELIVERY_TAG.fullmatch(words[2]):
        raise StompError("Invalid header", f"{text[:300]!r} is no id of a message\n")
    return MessageId(words[0], words[1], int(words[2]))


def stomp_destination(destination: Destination) -> str:
    """Return a destination as RabbitMQ writes it in a MESSAGE.

    A slash within a name, a percent sign and every byte below 32 or over 127 is %XX;
    `Destination.parse` reads it back to an equal value.
    """
    prefix = destination.kind.value
    if destination.kind is Kind.REPLY_QUEUE:
        # Its slashes are kept in both directions.
        return prefix + _REPLY_ESCAPE.sub(_percent, destination.name.encode()).decode()
    text = prefix + _encoded(destination.name)
    return text if destination.key is None else f"{text}/{_encoded(destination.key)}"


# Bounded: routing keys are chosen by whoever publishes.
@lru_cache(maxsize=4096)
def message_destination(exchange: str, routing_key: str) -> str:
    """Return the `destination` of a message that was published to an exchange with a key."""
    return stomp_destination(of_message(exchange, routing_key))


def _encoded(segment: str) -> str:
    return _DESTINATION_ESCAPE.sub(_percent, segment.encode("utf-8", "replace")).decode()


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]
