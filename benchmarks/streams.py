"""A subscriber's stream, taken apart: the bodies in it, and whether it is what it has to be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from . import message

Split = Callable[[bytes], list[bytes]]

_SSE_EVENT = re.compile(rb"(?:id: [0-9A-Za-z:.-]+\n)?data: ([^\n]*)\n\n")
# Node.js sends each event as a chunk of its own.
_CHUNKED_EVENT = re.compile(rb"[0-9a-f]+\r\ndata: ([^\n]*)\n\n\r\n")
_STOMP_MESSAGE = re.compile(
    rb"MESSAGE\n(?:(?!gap:)[a-z-]+:[^\n]*\n)+\n(?P<body>[^\0]*)\0\n?", re.DOTALL
)


def events(stream: bytes) -> list[bytes]:
    """Split Server-Sent Events; ValueError when anything else is in the stream."""
    return _matched(_SSE_EVENT, stream)


def chunked_events(stream: bytes) -> list[bytes]:
    """Split Server-Sent Events that come in chunks (RFC 9112, 7.1), one in each."""
    return _matched(_CHUNKED_EVENT, stream)


def whole_events(stream: bytes) -> list[bytes]:
    """Split Server-Sent Events that come in chunks of any size."""
    return events(_dechunked(stream))


def publications(stream: bytes) -> list[bytes]:
    """Split Centrifugo's WebSocket: the lines of a frame are replies, each with a push."""
    replies = [json.loads(line) for frame in frames(stream) for line in frame.split(b"\n")]
    # An empty one is a ping.
    return [_published(reply.get("push", reply)) for reply in replies if reply]


def publication_events(stream: bytes) -> list[bytes]:
    """Split Centrifugo's unidirectional Server-Sent Events: each is a push."""
    pushes = [json.loads(event) for event in whole_events(stream)]
    return [_published(push) for push in pushes if push]


def _published(push: dict[str, Any]) -> bytes:
    data = push.get("pub", {}).get("data")
    if not isinstance(data, str):
        raise ValueError(f"not a publication of the benchmark: {str(push)[:200]}")
    return data.encode()


def _dechunked(stream: bytes) -> bytes:
    """Take chunks away (RFC 9112, 7.1); ValueError unless the stream is whole ones."""
    pieces = []
    place = 0
    while place < len(stream):
        head = stream.find(b"\r\n", place)
        if head < 0:
            raise ValueError(f"not a chunk: {stream[place : place + 200]!r}")
        end = head + 2 + int(stream[place:head], 16)
        if stream[end : end + 2] != b"\r\n":
            raise ValueError(f"not a whole chunk: {stream[place : place + 200]!r}")
        pieces.append(stream[head + 2 : end])
        place = end + 2
    return b"".join(pieces)


def _matched(event: re.Pattern[bytes], stream: bytes) -> list[bytes]:
    bodies = []
    place = 0
    while place < len(stream):
        found = event.match(stream, place)
        if found is None:
            raise ValueError(f"not an event of the benchmark: {stream[place : place + 200]!r}")
        bodies.append(found[1])
        place = found.end()
    return bodies


def frames(stream: bytes) -> list[bytes]:
    """Split whole WebSocket text messages (RFC 6455, 5.2)."""
    bodies = []
    place = 0
    while place < len(stream):
        length, head = int.from_bytes(stream[place + 1 : place + 2], "big"), 2
        if length == 126:
            length, head = int.from_bytes(stream[place + 2 : place + 4], "big"), 4
        elif length == 127:
            length, head = int.from_bytes(stream[place + 2 : place + 10], "big"), 10
        end = place + head + length
        if stream[place] != 0x81 or end > len(stream):
            raise ValueError(f"not a whole text frame: {stream[place : place + 200]!r}")
        bodies.append(stream[place + head : end])
        place = end
    return bodies


def stomp_messages(stream: bytes) -> list[bytes]:
    """Split STOMP over WebSocket."""
    return [_stomp_body(frame) for frame in frames(stream)]


def sockjs_messages(stream: bytes) -> list[bytes]:
    """Split STOMP over SockJS's WebSocket."""
    found = []
    for data in frames(stream):
        if not data.startswith(b"a["):
            raise ValueError(f"not a message of SockJS: {data[:200]!r}")
        found += [text.encode() for text in json.loads(data[1:])]
    return [_stomp_body(frame) for frame in found]


def _stomp_body(frame: bytes) -> bytes:
    found = _STOMP_MESSAGE.fullmatch(frame)
    if found is None:
        raise ValueError(f"not a MESSAGE of the benchmark: {frame[:200]!r}")
    return found["body"]


def check(
    split: Split,
    stream: bytes,
    messages: int,
    cycle: int,
    topics: Sequence[int] = (0,),
    first: int = 0,
    ordered: bool = True,
) -> None:
    """Raise ValueError unless a stream is exactly `messages` messages of each topic in order.

    cycle: the number after which the numbers begin again (the null server's batch). first: the
    number of the first message. ordered: False where several publishers have no common order.
    """
    numbers: dict[int, list[int]] = {topic: [] for topic in topics}
    for body in split(stream):
        parsed = message.parse(body)
        if parsed is None or parsed[1] not in numbers:
            raise ValueError(f"not a message of this subscriber, in order or not: {body[:100]!r}")
        numbers[parsed[1]].append(parsed[0])
    wanted = [first + number % cycle for number in range(messages)]
    for topic, found in numbers.items():
        if (found if ordered else sorted(found)) != wanted:
            raise ValueError(
                f"{len(found)} messages of destination {topic}, not {messages} in order"
            )
