"""Deliveries read by hand, everything else by pika.

A delivery is three frames (AMQP 0-9-1 section 4.2.6): basic.deliver, the content header, one body
frame (none when the body is empty). RabbitMQ writes them together, so nearly always one read has
all three, and they become a `Message` without any of pika's objects. What is not so plain (a body
in several frames or reads, a consumer that pika rejects for, what is malformed) is pika's as
before, frame by frame, in the order in which it came.

What is written is pika's, but for the number of writes: pika gives each frame to the kernel alone,
three for a message. Here what gathers until the socket is writable goes together.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import pika.exceptions
import pika.frame
import pika.spec
from pika.adapters.asyncio_connection import AsyncioConnection

from ...message import Message, Properties
from .wire import decode_properties

log = logging.getLogger(__name__)

OnMessage = Callable[[Message, int], None]

# Bytes of one read. pika's 4,096 cut a delivery in two for every dozen of them.
_READ = 64 * 1024
# Bytes from which on what is to be written is no longer joined: a copy of each is enough.
_WRITE = 64 * 1024
# Names kept as text, for each connection: a publisher can make up as many as it likes.
_MAX_NAMES = 4096
_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME_END = 206
_HEAD = struct.Struct(">BHL")  # type, channel, size
_DELIVER = struct.Struct(">BHLLB")  # _HEAD, class and method, length of the consumer tag
_TAG = struct.Struct(">QB")  # delivery tag, bits
_CONTENT = struct.Struct(">BHLHHQ")  # _HEAD, class, weight, size of the body
_CONTENT_HEAD = struct.Struct(">HHQ")
_DELIVER_ID: int = pika.spec.Basic.Deliver.INDEX
_BASIC: int = pika.spec.Basic.INDEX


class _Frames(deque[bytes | bytearray]):
    """pika's queue of what is to be sent, which takes one call for each item; frames are joined."""

    def append(self, data: bytes | bytearray) -> None:
        if not self or len(self[-1]) >= _WRITE:
            super().append(data)
            return
        last = self[-1]
        if not isinstance(last, bytearray):
            last = self[-1] = bytearray(last)
        last += data


class Callback:
    """A consumer's callback, as pika's channel keeps it under the consumer tag.

    on_message gets the message and its delivery tag; what it raises is logged and goes no further.
    """

    __slots__ = ("on_message",)

    def __init__(self, on_message: OnMessage) -> None:
        self.on_message = on_message

    def __call__(self, _raw: Any, deliver: Any, properties: Properties, body: bytes) -> None:
        message = Message(
            body,
            _text(deliver.exchange),
            _text(deliver.routing_key),
            properties,
            bool(deliver.redelivered),
        )
        self.take(message, deliver.delivery_tag)

    def take(self, message: Message, tag: int) -> None:
        """Hand over one message."""
        try:
            self.on_message(message, tag)
        except Exception:
            log.exception("a callback of the RabbitMQ connection failed")


class Connection(AsyncioConnection):  # type: ignore[misc]
    """pika's connection, reading deliveries and content headers with our own eyes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # The exchange and the routing key of a delivery by their bytes.
        self._names: dict[bytes, tuple[str, str]] = {}
        self._frame_buffer: bytes
        super().__init__(*args, **options)

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = _READ
        transport._tx_buffers = _Frames()
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        data = self._frame_buffer + data_in if self._frame_buffer else data_in
        at = 0
        while True:
            at = self._take_deliveries(data, at)
            if len(data) < at + _HEAD.size:
                break
            end = at + _HEAD.size + _HEAD.unpack_from(data, at)[2] + 1
            if len(data) < end:
                break
            # pika copies its buffer for each frame: it gets this frame alone.
            self._frame_buffer = data[at:end]
            size, frame = self._read_frame()
            self._trim_frame_buffer(size)
            self._process_frame(frame)
            at = end
        # Half a frame, which waits, or a protocol header, which is no frame.
        self._frame_buffer = data[at:] if at else data
        super()._on_data_available(b"")

    def _adapter_emit_data(self, data: bytes) -> None:
        """Write, and end the connection when the loop has given up its socket.

        uvloop closes the watch on a socket that failed, and tells pika by an error in the next
        write only. pika would go on for a heartbeat's time with a connection that is dead.
        """
        try:
            super()._adapter_emit_data(data)
        except RuntimeError as error:
            self._terminate_stream(pika.exceptions.StreamLostError(str(error)))

    def _read_frame(self) -> tuple[int, Any]:
        buffer: bytes = self._frame_buffer
        if buffer[:1] != b"\x02" or len(buffer) < _HEAD.size:
            found: tuple[int, Any] = super()._read_frame()
            return found
        _kind, channel, size = _HEAD.unpack_from(buffer)
        end = _HEAD.size + size
        if len(buffer) <= end:
            return 0, None
        if buffer[end] != _FRAME_END:
            raise pika.exceptions.InvalidFrameError("Invalid FRAME_END marker")
        if size < _CONTENT_HEAD.size:
            raise pika.exceptions.InvalidFrameError("a content header of too few bytes")
        _class, _weight, length = _CONTENT_HEAD.unpack_from(buffer, _HEAD.size)
        properties = decode_properties(buffer[_HEAD.size + _CONTENT_HEAD.size : end])
        return end + 1, pika.frame.Header(channel, length, properties)

    def _take_deliveries(self, data: bytes, at: int) -> int:
        """Hand over the deliveries that stand whole at `at`; returns where they end."""
        size = len(data)
        begin = at
        frames = 0
        number = -1
        raw_tag, name = b"", ""
        consumer: Any = None
        channel: Any = None
        while size - at >= _DELIVER.size:
            kind, on, length, method, tag_size = _DELIVER.unpack_from(data, at)
            if method != _DELIVER_ID or kind != _METHOD:
                break
            end = at + 7 + length
            tag_at = at + 12 + tag_size
            # Where the content header's properties begin, with their two bytes of flags.
            properties_at = end + 1 + _CONTENT.size
            if size < properties_at + 2 or data[end] != _FRAME_END or end < tag_at + 11:
                break
            if on != number or data[at + 12 : tag_at] != raw_tag:
                number, raw_tag = on, data[at + 12 : tag_at]
                name = raw_tag.decode("utf-8", "replace")
                channel = self._channels.get(on)
                if channel is None:
                    break
            # Looked up for each: the callback before may have cancelled it.
            consumer = channel._consumers.get(name)
            if type(consumer) is not Callback or name in channel._cancelled:
                break
            kind, on, length, of, _weight, body_size = _CONTENT.unpack_from(data, end + 1)
            header_end = end + 8 + length
            if kind != _HEADER or on != number or of != _BASIC:
                break
            if size <= header_end or data[header_end] != _FRAME_END or header_end < properties_at:
                break
            if body_size:
                body_at = header_end + 8
                last = body_at + body_size
                if size <= last or data[last] != _FRAME_END:
                    break
                if _HEAD.unpack_from(data, header_end + 1) != (_BODY, number, body_size):
                    break
                body = data[body_at:last]
            else:
                last, body = header_end, b""
            try:
                tag, bits = _TAG.unpack_from(data, tag_at)
                names = self._names.get(data[tag_at + 9 : end])
                if names is None:
                    names = self._read_names(data[tag_at + 9 : end])
                properties = decode_properties(data[properties_at:header_end])
            except (pika.exceptions.AMQPError, IndexError):
                break  # pika comes upon it too, and ends the connection
            at = last + 1
            frames += 3 if body_size else 2
            consumer.take(Message(body, names[0], names[1], properties, bits & 1 != 0), tag)
        # What pika's heartbeat and its users look at.
        self.bytes_received += at - begin
        self.frames_received += frames
        return at

    def _read_names(self, raw: bytes) -> tuple[str, str]:
        middle = 1 + raw[0]
        exchange = raw[1:middle]
        key = raw[middle + 1 : middle + 1 + raw[middle]]
        if len(self._names) >= _MAX_NAMES:
            self._names.clear()
        names = self._names[raw] = (_text(exchange), _text(key))
        return names


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
