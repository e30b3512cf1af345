"""Deliveries read by hand: whatever comes, in whatever pieces, pika alone is the judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pika
import pika.channel
import pika.exceptions
import pika.frame
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.io_services_utils import _AsyncTransportBase
from pika.spec import Basic, BasicProperties

from queuecast.brokers.rabbitmq.deliveries import _WRITE, Callback, Connection, _Frames
from queuecast.message import Message, Properties

CHANNELS = (1, 2, 3)
TAGS = ("feed", "other", "cancelled")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Side:
    """A connection without a socket and what comes out of it, in order."""

    def __init__(self, raw: Any, consumer: Callable[[int, str], Any]) -> None:
        self.raw = raw
        self.seen: list[Any] = []
        self.pika_reads = 0
        raw._adapter_emit_data = self._emitted
        raw._heartbeat_checker = SimpleNamespace(
            received=lambda: self.seen.append("heartbeat"), stop=lambda: None
        )
        read = raw._read_frame

        def count() -> Any:
            self.pika_reads += 1
            return read()

        raw._read_frame = count
        for number in CHANNELS:
            channel = pika.channel.Channel(raw, number, lambda _channel: None)
            channel._add_callbacks()
            channel._set_state(channel.OPEN)
            channel.add_on_return_callback(
                lambda _channel, method, _properties, body: self.seen.append(
                    ("returned", method.routing_key, body)
                )
            )
            channel.add_on_cancel_callback(
                lambda frame: self.seen.append(("cancel", frame.method.consumer_tag))
            )
            for tag in TAGS:
                channel._consumers[tag] = consumer(number, tag)
            channel._cancelled.add("cancelled")
            raw._channels[number] = channel

    def _emitted(self, data: bytes) -> None:
        self.seen.append(("sent", bytes(data)))

    @property
    def state(self) -> tuple[Any, ...]:
        raw = self.raw
        return self.seen, raw._frame_buffer, raw.bytes_received, raw.frames_received


def ours(loop: asyncio.AbstractEventLoop) -> Side:
    def consumer(number: int, name: str) -> Callback:
        def take(message: Message, tag: int) -> None:
            where = (message.exchange, message.routing_key, message.redelivered)
            side.seen.append((number, name, tag, where, message.properties, message.body))

        return Callback(take)

    raw = Connection(
        pika.ConnectionParameters(), custom_ioloop=loop, internal_connection_workflow=False
    )
    side = Side(raw, consumer)
    return side


def judge(loop: asyncio.AbstractEventLoop) -> Side:
    def consumer(number: int, name: str) -> Callable[..., None]:
        def take(_raw: Any, method: Any, properties: Any, body: bytes) -> None:
            where = (method.exchange, method.routing_key, method.redelivered)
            plain = plainly(properties)
            side.seen.append((number, name, method.delivery_tag, where, plain, body))

        return take

    raw = AsyncioConnection(
        pika.ConnectionParameters(), custom_ioloop=loop, internal_connection_workflow=False
    )
    side = Side(raw, consumer)
    return side


def plainly(found: BasicProperties) -> Properties:
    """Return pika's properties as ours."""
    values = {name: getattr(found, name) for name in NAMES}
    persistent = found.delivery_mode == 2
    return Properties(**values, persistent=persistent, headers=_plain(found.headers or {}))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, Decimal):
        return float(value)
    # pika's own subclass of int prints an L.
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


short = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = ["content_type", "content_encoding", "correlation_id", "reply_to", "expiration"]
TEXTS += ["message_id", "type", "user_id", "app_id"]
NAMES = [*TEXTS, "priority", "timestamp"]
# No floats: pika cuts them (test_content.py has those).
fields = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.decimals(-1000, 1000, places=2)
    | st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))
    | short
    | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
    max_leaves=6,
)
properties = st.builds(
    BasicProperties,
    headers=st.none() | st.dictionaries(short, fields, max_size=4),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.integers(0, 2**64 - 1),
    cluster_id=st.none() | short,
    **{name: st.none() | short for name in TEXTS},
)
bodies = st.binary(max_size=40)


def content(method: Any, number: int, head: BasicProperties, pieces: list[bytes]) -> list[bytes]:
    """Return a method's frames with its content's; each piece is a frame."""
    length = sum(map(len, pieces))
    frames = [pika.frame.Method(number, method), pika.frame.Header(number, length, head)]
    bodies = [pika.frame.Body(number, piece) for piece in pieces if piece]
    return [frame.marshal() for frame in (*frames, *bodies)]


def delivery(
    number: int = 1,
    name: str = "feed",
    tag: int = 1,
    redelivered: bool = False,
    where: tuple[str, str] = ("amq.topic", "a.b"),
    head: BasicProperties | None = None,
    pieces: list[bytes] | None = None,
) -> list[bytes]:
    method = Basic.Deliver(name, tag, redelivered, *where)
    return content(method, number, head or BasicProperties(), pieces or [b"body"])


HEARTBEAT = pika.frame.Heartbeat().marshal()
numbers = st.sampled_from(CHANNELS)
deliveries = st.builds(
    delivery,
    numbers,
    st.sampled_from([*["feed"] * 5, "other", "cancelled", "unknown"]),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.tuples(short, short),
    st.just(BasicProperties(delivery_mode=2)) | properties,
    st.lists(bodies, min_size=1, max_size=1) | st.lists(bodies, min_size=1, max_size=3),
)
others = (
    st.just([HEARTBEAT])
    | st.builds(
        lambda number, tag: [pika.frame.Method(number, Basic.Cancel(tag, True)).marshal()],
        numbers,
        st.sampled_from(TAGS),
    )
    | st.builds(
        lambda number, key, body: content(
            Basic.Return(312, "NO_ROUTE", "", key), number, BasicProperties(), [body]
        ),
        numbers,
        short,
        bodies,
    )
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """What a broker writes: each channel's frames in order, channels and heartbeats mixed."""
    frames: list[bytes] = []
    for item in draw(st.lists(st.one_of(deliveries, deliveries, deliveries, others), max_size=8)):
        if len(item) > 1 and draw(st.integers(0, 3)) == 0:
            item = [*item[:1], HEARTBEAT, *item[1:]]
        number = int.from_bytes(item[0][1:3])
        mixed = frames and len(item) > 1 and draw(st.integers(0, 3)) == 0
        if mixed and int.from_bytes(frames[-1][1:3]) not in (0, number):
            # Its method stands before the last frame of another channel's delivery.
            frames[-1:] = [item[0], frames[-1], *item[1:]]
        else:
            frames += item
    return b"".join(frames)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stream=streams(), data=st.data())
def test_the_same_comes_out_as_of_pika(
    loop: asyncio.AbstractEventLoop, stream: bytes, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    one, other = ours(loop), judge(loop)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if start < end:
            one.raw._on_data_available(stream[start:end])
            other.raw._on_data_available(stream[start:end])
            assert one.state == other.state
    assert one.raw._frame_buffer == b""
    assert repr(one.seen) == repr(other.seen)  # True is not 1


def test_every_piece_of_one_byte(loop: asyncio.AbstractEventLoop) -> None:
    stream = b"".join(
        [*delivery(tag=1), HEARTBEAT, *delivery(tag=2, pieces=[b""]), *delivery(2, tag=3)]
    )
    one, other = ours(loop), judge(loop)
    for at in range(len(stream)):
        one.raw._on_data_available(stream[at : at + 1])
        other.raw._on_data_available(stream[at : at + 1])
        assert one.state == other.state


def test_a_read_may_end_anywhere(loop: asyncio.AbstractEventLoop) -> None:
    head = BasicProperties(content_type="text/plain", headers={"a": [1, "b"]})
    stream = b"".join([*delivery(tag=1, head=head), *delivery(tag=2, head=head)])
    for cut in range(1, len(stream)):
        one, other = ours(loop), judge(loop)
        for piece in (stream[:cut], stream[cut:]):
            one.raw._on_data_available(piece)
            other.raw._on_data_available(piece)
            assert one.state == other.state


def test_pika_sees_no_delivery_that_came_whole(loop: asyncio.AbstractEventLoop) -> None:
    side = ours(loop)
    for first in (0, 100):
        stream = b"".join(
            b"".join(delivery(tag=first + tag, pieces=[b"x" * tag])) for tag in range(100)
        )
        side.raw._on_data_available(stream)
    assert [seen[2] for seen in side.seen] == list(range(200))
    assert side.pika_reads == 0


def test_what_a_callback_does_to_its_consumer_holds_for_the_next(
    loop: asyncio.AbstractEventLoop,
) -> None:
    side = ours(loop)
    channel = side.raw._channels[1]
    seen: list[int] = []

    def take(_message: Message, tag: int) -> None:
        seen.append(tag)
        if tag == 2:
            channel._cancelled.add("feed")

    channel._consumers["feed"] = Callback(take)
    side.raw._on_data_available(b"".join(b"".join(delivery(tag=tag)) for tag in range(1, 5)))
    assert seen == [1, 2]
    assert len(side.seen) == 2  # pika gave the other two back
    assert all(what[0] == "sent" for what in side.seen)


def test_a_callback_that_fails_does_not_end_the_connection(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    side = ours(loop)
    seen: list[int] = []

    def take(_message: Message, tag: int) -> None:
        seen.append(tag)
        raise RuntimeError("broken")

    side.raw._channels[1]._consumers["feed"] = Callback(take)
    split = delivery(tag=3, pieces=[b"a", b"b"])  # pika's own way to the callback
    side.raw._on_data_available(b"".join([*delivery(tag=1), *delivery(tag=2), *split]))
    assert seen == [1, 2, 3]
    assert caplog.text.count("RuntimeError: broken") == 3


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_a_frame_without_its_end_ends_the_connection_after_what_came_before(
    loop: asyncio.AbstractEventLoop, frame: int
) -> None:
    frames = delivery(tag=2)
    frames[frame] = frames[frame][:-1] + b"\x00"
    side = ours(loop)
    with pytest.raises(pika.exceptions.InvalidFrameError):
        side.raw._on_data_available(b"".join([*delivery(tag=1), *frames]))
    assert [seen[2] for seen in side.seen] == [1]


@pytest.mark.parametrize("header", [b"", b"\x00\x3c", b"\x00\x3c" + bytes(10)])
def test_a_content_header_that_is_cut_ends_the_connection(
    loop: asyncio.AbstractEventLoop, header: bytes
) -> None:
    frames = delivery(tag=2)
    frames[1] = pika.frame.Body(1, header).marshal().replace(b"\x03", b"\x02", 1)
    side = ours(loop)
    with pytest.raises(pika.exceptions.InvalidFrameError):
        side.raw._on_data_available(b"".join([*delivery(tag=1), *frames]))
    assert [seen[2] for seen in side.seen] == [1]


def test_names_that_are_ever_new_do_not_pile_up(loop: asyncio.AbstractEventLoop) -> None:
    side = ours(loop)
    for key in range(10_000):
        side.raw._on_data_available(b"".join(delivery(where=("amq.topic", f"job.{key}"))))
    assert [seen[3][1] for seen in side.seen] == [f"job.{key}" for key in range(10_000)]
    assert len(side.raw._names) <= 4096


def test_pika_reads_as_much_at_once_as_it_is_told() -> None:
    """A private name of pika's: reading would work without it, but slower."""
    assert isinstance(_AsyncTransportBase._MAX_RECV_BYTES, int)


@given(
    st.lists(
        st.one_of(
            st.integers(1, 100),
            st.sampled_from((_WRITE - 1, _WRITE, _WRITE + 1)),
            st.none(),  # the kernel takes some of the first item, as pika's _produce does it
        ),
        max_size=40,
    )
)
def test_what_is_written_is_joined_and_stays_in_order(sizes: list[int | None]) -> None:
    frames = _Frames()
    sent, written = bytearray(), bytearray()
    for number, size in enumerate(sizes):
        if size is None:
            if frames:
                first = frames.popleft()
                sent += first[: len(first) // 2]
                if rest := first[len(first) // 2 :]:
                    frames.appendleft(rest)
            continue
        data = bytes((number,)) * size
        frames.append(data)
        written += data
        assert data == bytes((number,)) * size
    assert sent + b"".join(frames) == written
    assert all(0 < len(each) <= 2 * _WRITE for each in frames)
    assert all(len(each) >= _WRITE for each in list(frames)[1:-1])


def test_a_message_is_one_write() -> None:
    frames = _Frames()
    for frame in (b"method", b"header", b"body", b"ack"):
        frames.append(frame)
    assert list(frames) == [b"methodheaderbodyack"]
